"""The registry: every method is found by its folder's entry, is light to look at, and is named nowhere above the methods."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from tests.fresh import modules_after

import frugalign
from frugalign.base.errors import FrugalignError
from frugalign.base.specs import load_attribute
from frugalign.methods import registry
from frugalign.methods.method import Method
from frugalign.methods.registry import METHODS
from frugalign.policies.spec import PolicySpec
from frugalign.study.options import StudyOptions

PACKAGE = Path(frugalign.__file__).parent
NOT_A_METHOD = "text"
OTHER = Method("other", "for a test")


def test_every_folder_of_methods_is_listed() -> None:
    assert {path.parent.name for path in (PACKAGE / "methods").glob("*/entry.py")} == set(registry.FOLDERS)
    assert {path.name for path in (PACKAGE / "methods").iterdir() if (path / "__init__.py").is_file()} == set(
        registry.FOLDERS
    )


def test_names_are_the_entries_own_and_differ() -> None:
    entries = [
        each for folder in registry.FOLDERS for each in load_attribute(f"frugalign.methods.{folder}.entry:ENTRIES")
    ]
    assert len(entries) == len(METHODS) and all(METHODS[each.name] is each for each in entries)
    assert len(registry.names()) == 20 and "representation_reward" not in registry.names()


def test_a_study_has_every_option_that_a_method_needs() -> None:
    known = {each.name for each in fields(StudyOptions)}
    assert all(method.study_options <= known for method in METHODS.values())
    assert [name for name, method in METHODS.items() if method.fit is not None] == ["representation_reward"]


def test_needs_are_met_by_one_of_several() -> None:
    method = Method("m", "", needs=("reward", ("preferences", "principles")))
    assert method.lacks({}.get) == "reward"
    assert method.lacks({"reward": ["r"]}.get) == "preferences or principles"
    assert method.lacks({"reward": ["r"], "principles": "p"}.get) is None
    assert Method("m", "").lacks({}.get) is None


@pytest.mark.parametrize("name", METHODS)
def test_an_entrys_options_and_functions_are_there(name: str) -> None:
    """What an entry names as text can be imported, and what it says of its options is true of them."""
    method = METHODS[name]
    known = registry.option_names(method)
    assert {*method.observers, *method.reward_options} <= known
    if method.config is not None:
        assert "max_steps" in known
    if method.verb is not None:
        flags = {each.name for each in fields(load_attribute(method.verb.options))}
        assert "output_dir" in flags and callable(load_attribute(method.verb.train))
        if method.verb.config is not None:
            assert flags <= {each.name for each in fields(load_attribute(method.verb.config))}


def test_a_method_outside_the_library_is_named_by_its_place() -> None:
    assert registry.get("proxy") is METHODS["proxy"]
    assert registry.get(f"{__name__}:OTHER") is OTHER
    with pytest.raises(FrugalignError, match="is a str, not a Method"):
        registry.get(f"{__name__}:NOT_A_METHOD")
    with pytest.raises(FrugalignError, match="There is no method 'ppo'; there are base, "):
        registry.get("ppo")


def test_robust_dpo_needs_the_share_of_wrong_labels() -> None:
    problem = METHODS["robust_dpo"].problem
    assert problem({"label_smoothing": 0.1}) is None
    for setting in ({}, {"label_smoothing": 0.0}, {"label_smoothing": 0.5}):
        assert problem(setting) == "needs label_smoothing, the share of wrong labels, in (0, 0.5)"


def test_the_registry_is_light() -> None:
    assert not {"torch", "transformers", "datasets", "trl", "peft", "numpy"} & modules_after(
        "import frugalign.methods.registry"
    )


# A column of the samples, and parts of a policy, are called as methods are.
ALSO_OTHERWISE = {"base", *(each.name for each in fields(PolicySpec))}
ABOVE = [path for room in ("study", "cli", "reports") for path in sorted((PACKAGE / room).rglob("*.py"))]


def names_of_methods(tree: ast.AST) -> Iterator[str]:
    """Method names that code holds as text, and any text that is compared with `….method` or `…["method"]`."""
    names = set(registry.names()) - ALSO_OTHERWISE
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in names:
            yield f"line {node.lineno}: {node.value}"
        if isinstance(node, ast.Compare) and any(is_method(each) for each in [node.left, *node.comparators]):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def is_method(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "method"
    return isinstance(node, ast.Attribute) and node.attr == "method"


@pytest.mark.parametrize("path", ABOVE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_above_the_methods_knows_one_by_name(path: Path) -> None:
    assert list(names_of_methods(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source", ["x = ('dpo', 'rloo')", "if line.method == 'base': pass", "a = cell['method'] in ('proxy', 'psle')"]
)
def test_a_name_above_the_methods_is_seen(source: str) -> None:
    assert list(names_of_methods(ast.parse(source))) != []
