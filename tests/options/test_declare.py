"""Groups, other defaults and notes in a subclass, and how often the package declares each option."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from frugalign.options.declare import REQUIRED, defaults, like, notes, option
from frugalign.options.kinds import COUNT, POSITIVE

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "frugalign"


@dataclass
class Rate:
    rate: float = option(0.1, "The rate.", POSITIVE)


@dataclass
class Names:
    names: list[str] = option(["a"], "The names.")
    folder: str | None = option(None, "The folder.")


@dataclass
@defaults(rate=0.5, names=["b", "c"], folder=REQUIRED)
@notes(rate="Twice as fast.", names="Two of them.")
class Fast(Rate, Names):
    size: int = option(3, "The size.", COUNT)


@dataclass
@notes(rate="Or faster.")
@defaults(rate=0.9)
class Faster(Fast):
    pass


def of(cls: type) -> dict[str, Any]:
    return {each.name: each for each in fields(cls)}


def test_a_subclass_changes_defaults_and_keeps_the_rest() -> None:
    found = Fast(folder="x")
    assert (found.rate, found.names, found.folder, found.size) == (0.5, ["b", "c"], "x", 3)
    assert (Rate().rate, Names().names, Names().folder) == (0.1, ["a"], None), "the groups stay as they were"
    assert of(Fast)["rate"].metadata["kind"] is POSITIVE
    assert get_type_hints(Fast) == {"rate": float, "names": list[str], "folder": str, "size": int}
    with pytest.raises(TypeError, match="folder"):
        Fast()


def test_a_list_is_copied_for_every_instance() -> None:
    Fast(folder="x").names.append("d")
    assert Fast(folder="x").names == ["b", "c"]


def test_notes_are_added_to_the_help_once_a_level() -> None:
    texts = {cls: of(cls)["rate"].metadata["help"] for cls in (Rate, Fast, Faster)}
    assert texts == {Rate: "The rate.", Fast: "The rate. Twice as fast.", Faster: "The rate. Twice as fast. Or faster."}
    assert Faster(folder="x").rate == 0.9


def test_a_name_that_is_not_inherited_is_a_mistake_in_the_code() -> None:
    with pytest.raises(TypeError, match="Slow inherits no option speed"):

        @dataclass
        @defaults(speed=1)
        class Slow(Rate):
            pass


def test_like_takes_help_and_kind_from_the_group() -> None:
    @dataclass
    class Other:
        rate: float | None = like(Rate, "rate", None, "Default: the artefact's.")
        names: int = like(Names, "names", 2, kind=COUNT)

    found = of(Other)
    assert found["rate"].metadata == {"help": "The rate. Default: the artefact's.", "kind": POSITIVE, "section": ""}
    assert (Other().rate, Other().names, found["names"].metadata["kind"]) == (None, 2, COUNT)


def declarations() -> dict[str, list[str]]:
    """File and class of every option that the package declares with `option` or `field`, by name; `like`, `defaults` and `notes`
    declare nothing."""
    found = defaultdict(list)
    files = [*PACKAGE.glob("methods/*/options.py"), *PACKAGE.glob("options/*.py"), *PACKAGE.glob("cli/*.py")]
    for path in [*files, *PACKAGE.glob("methods/*/config.py"), PACKAGE / "study" / "options.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            for line in node.body:
                value = line.value if isinstance(line, ast.AnnAssign) else None
                if isinstance(value, ast.Call) and ast.unparse(value.func) in ("option", "field"):
                    assert isinstance(line, ast.AnnAssign)
                    found[ast.unparse(line.target)].append(f"{path.relative_to(PACKAGE)}:{node.name}")
    return dict(found)


def test_every_option_is_declared_once() -> None:
    found = declarations()
    assert len(found) > 130, "the options are found at all"
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
