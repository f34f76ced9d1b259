"""Read YAML and JSON that somebody else wrote: every fault of the text is one sentence, found in bounded time.

YAML here is mappings, lists, text, numbers, true, false and null. A date stays text. `1e-4` is a number. Refused are tags of
other types, duplicate keys, keys that are not text, recursive or exploding aliases, deep nesting and large files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import shown, shown_path

if TYPE_CHECKING:
    from yaml import Node

MAX_BYTES = 1 << 18
"""Size of a YAML file. Parsing that much takes about a second."""
MAX_DEPTH = 50
MAX_NODES = 100_000
"""Values in a YAML file, each counted as often as aliases repeat it."""


def parse_json(text: str | bytes, *, strict: bool = False) -> Any:
    """The value that a JSON text holds.

    Args:
        strict: also refuse NaN, infinity and duplicate keys, which are not JSON.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        if not strict:
            return json.loads(text)
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (twice := first_repeated([key for key, _ in pairs])) is not None:
        raise ValueError(f"the key {shown(twice)} is given twice")
    return dict(pairs)


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that occurs again, or None."""
    if len(set(names)) == len(names):
        return None
    return next(name for name in names if names.count(name) > 1)


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file. None if it is empty.

    Args:
        what: what the file is, such as "config file", for messages.

    Raises:
        FrugalignError: the file cannot be read, or is not YAML of the kind above.
    """
    named = f"the {what} {shown_path(path)}"
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise FrugalignError(f"There is no {named.removeprefix('the ')}.") from error
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in the name; RuntimeError: no such ~user
        raise FrugalignError(f"Cannot read {named}: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > MAX_BYTES:
        raise FrugalignError(f"{_capital(named)} is larger than {MAX_BYTES // 1024} KiB.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FrugalignError(f"{_capital(named)} is not UTF-8 text.") from error
    return parse_yaml(text, named)


def parse_yaml(text: str, named: str) -> Any:
    """The value that a YAML text holds. None if it is empty.

    Args:
        named: where the text is from, such as "the config file a.yaml", for messages.

    Raises:
        FrugalignError: it is not YAML of the kind that this module reads.
    """
    import yaml

    from frugalign.base.yaml_loader import Loader, Refused, check_events, check_nodes

    try:
        check_events(text, MAX_DEPTH)
        loader = Loader(text)
        try:
            node: Node | None = loader.get_single_node()
            if node is None:
                return None
            check_nodes(node, MAX_NODES)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except Refused as error:
        raise FrugalignError(f"{_capital(named)}, line {error.line}: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {min(mark.line, text.count(chr(10))) + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise FrugalignError(f"{_capital(named)}{line} is not valid YAML: {problem.rstrip('.')}.") from error


def dump_yaml(value: Any, *, width: int = 80, allow_unicode: bool = False) -> str:
    """YAML of plain values, keys in their order, that `parse_yaml` and other YAML readers read back."""
    import yaml

    from frugalign.base.yaml_loader import Dumper

    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, width=width, allow_unicode=allow_unicode)
    return text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
