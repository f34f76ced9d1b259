"""The YAML loader behind `frugalign.base.parsing`: PyYAML's safe loader with fewer types and more checks."""

from __future__ import annotations

import re
from typing import Any

import yaml

from frugalign.base.wording import shown

_TAG = "tag:yaml.org,2002:"
_TYPES = frozenset(f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge"))
_INT = re.compile(r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class Refused(Exception):
    """A value that YAML allows and this loader does not. `line` counts from 1."""

    def __init__(self, why: str, mark: Any) -> None:
        super().__init__(why)
        self.line = mark.line + 1


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader without dates, octal 010 and base-60 1:30. It reads 1e-4 as a number."""

    def _number(self, node: Any) -> int | float:
        text = str(node.value).replace("_", "")
        try:
            if node.tag == f"{_TAG}float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            return int(text, 0 if text.lstrip("+-")[:2].lower() in ("0b", "0o", "0x") else 10)
        except ValueError as error:
            raise Refused(f"{shown(node.value)} is not a number", node.start_mark) from error


def _resolvers() -> dict[str, Any]:
    """PyYAML's rules from the first character of a word to its type, without dates and `=`, and with our numbers."""
    ours = {"timestamp", "value", "int", "float"}
    found = {
        first: [(tag, rule) for tag, rule in rules if tag.removeprefix(_TAG) not in ours]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+.0123456789":
        found.setdefault(first, []).extend([(f"{_TAG}int", _INT), (f"{_TAG}float", _FLOAT)])
    return found


Loader.yaml_implicit_resolvers = _resolvers()
Loader.add_constructor(f"{_TAG}int", Loader._number)
Loader.add_constructor(f"{_TAG}float", Loader._number)


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper. It also quotes texts that only our loader reads as numbers, such as 1e5."""


Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
}


def check_events(text: str, max_depth: int) -> None:
    """Check nesting and tags before anything recursive reads the text.

    Raises:
        Refused: too deep, or a tag of a type that is not read.
        yaml.YAMLError: it is not YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in _TYPES:
            raise Refused(f"the tag {shown(tag.replace(_TAG, '!!'), quoted=False)} is not read here", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > max_depth:
                raise Refused(f"it is nested more than {max_depth} levels deep", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def check_nodes(root: Any, largest: int) -> None:
    """Check that keys are texts, each given once in its mapping, and that aliases neither contain themselves nor multiply
    the content beyond `largest` values.

    Raises:
        Refused: they are not, or they do.
    """
    sizes: dict[int, int] = {}
    unfinished: set[int] = set()

    def size(node: Any) -> int:
        key = id(node)
        if key in unfinished:
            raise Refused("an alias contains itself", node.start_mark)
        if key not in sizes:
            unfinished.add(key)
            children = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                _check_keys([key for key, _ in node.value])
                children = [value for _, value in node.value]
            sizes[key] = 1 + sum(map(size, children))
            unfinished.remove(key)
        if sizes[key] > largest:
            raise Refused(f"its aliases repeat it to more than {largest:,} values", node.start_mark)
        return sizes[key]

    size(root)


def _check_keys(keys: list[Any]) -> None:
    seen = set()
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            raise Refused("a key must be text, not a list or a mapping", key.start_mark)
        if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
            raise Refused(f"the key {shown(key.value, quoted=False)} must be text; put it in quotes", key.start_mark)
        if key.value in seen:
            raise Refused(f"the key {shown(key.value)} is given twice", key.start_mark)
        seen.add(key.value)
