"""A hash of what a reward does, so that a run is not resumed under another reward of the same name.

A model reward hashes its weights and settings, by its own `content_hash`. A function is described by the statements of
its source that it uses: its definition, the constants, functions and classes that it names, and the modules of the user
that it imports. Comments, other statements, and installed libraries do not count. Code that was not written in a file,
or inside another function, is described by its bytecode and the values that it encloses.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from frugalign.engines.fingerprints import weights_hash
from frugalign.rewards.loading import NamedReward, module_of_file

_DEPTH = 6
"""How deep an enclosed value is described."""
_SECRET = re.compile("(api_key|auth_token|access_token|hf_token|hub_token|secret|password)$")
"""Arguments that may change without another result."""
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


def reward_contents(rewards: Sequence[NamedReward]) -> dict[str, str]:
    """A hash of every reward, by its name."""
    return {named.name: _hash(_described(named)) for named in rewards}


def _hash(description: Any) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def _described(named: NamedReward) -> Any:
    own = getattr(named.function, "content_hash", None)
    if own is not None and not isinstance(named.function, type):
        return own()
    attribute = re.search(r":(\w+)$", named.spec)
    home = _module_of(named.spec.rsplit(":", 1)[0].rsplit("=", 1)[-1]) if attribute else None
    if attribute and (found := _defined(_Source.of(home), attribute[1])):
        return found
    return _value(named.function)


def _module_of(where: str) -> ModuleType | None:
    """The loaded module of this name, or from this file."""
    if not where.endswith(".py"):
        return sys.modules.get(where)
    path = Path(where).expanduser()
    return module_of_file(path.resolve()) if path.is_file() else None


# -- source -----------------------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """A module's file, None where that is not known, and the package that its relative imports start from."""

    file: Path | None
    package: str

    @classmethod
    def of(cls, module: Any) -> _Source:
        file = getattr(module, "__file__", None)
        known = Path(file).resolve() if isinstance(file, str) and file.endswith(".py") else None
        return cls(known, getattr(module, "__package__", None) or "")

    @classmethod
    def named(cls, name: str) -> _Source:
        """The source of a module, loaded or not. A reward may import what it needs when it is called. Nothing is imported here."""
        if name in sys.modules:
            return cls.of(sys.modules[name])
        spec, known = None, ""
        places: list[str] | None = None
        try:
            for part in name.split("."):
                known = f"{known}.{part}".lstrip(".")
                # The first part may be known to another finder, as of a package that was installed to be edited.
                spec = find_spec(known) if places is None else PathFinder.find_spec(known, places)
                if spec is None:
                    return cls(None, "")
                places = list(spec.submodule_search_locations or [])
        except (ImportError, KeyError, ValueError):  # inside a package without a file of its own
            return cls(None, "")
        file = spec.origin if spec is not None else None
        return cls(Path(file).resolve(), spec.parent or "") if spec and file and file.endswith(".py") else cls(None, "")


def _defined(source: _Source, name: str) -> list[str]:
    """`_definitions` of one name; empty if no statement binds it by that name, as with a lambda."""
    return _definitions(source, [name]) if name in _statements(source) else []


def _definitions(source: _Source, names: Sequence[str]) -> list[str]:
    """The statements of a module that define these names, and those that define what they use in turn."""
    found: list[str] = []
    # `from words import *` may bind any of the names.
    statements, waiting, seen = _statements(source), [*names, "*"], set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        for statement in statements.get(name, []):
            text = ast.dump(statement)
            if text in found:
                continue
            found.append(text)
            found += _imported(source, statement)
            waiting += sorted({each.id for each in ast.walk(statement) if isinstance(each, ast.Name)})
    return found


def _statements(source: _Source) -> dict[str, list[ast.stmt]]:
    """The top-level statements of a module by the names that they bind. Empty if its source is not known."""
    try:
        tree = ast.parse(source.file.read_bytes()) if source.file is not None else ast.Module([], [])
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}
    found: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name in sorted(set(_bound(statement))):
            found.setdefault(name, []).append(statement)
    return found


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
        return
    for each in ast.walk(statement):  # an assignment, an import, or either of them under an if, a try, a with
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield each.name
        elif isinstance(each, ast.alias):
            yield (each.asname or each.name).split(".")[0]
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id
        elif isinstance(each, (ast.Attribute, ast.Subscript)) and isinstance(each.ctx, ast.Store):
            yield from (part.id for part in ast.walk(each) if isinstance(part, ast.Name))


def _imported(source: _Source, statement: ast.stmt) -> list[str]:
    """Hashes of the user's modules that a statement imports, and of those that they import in turn."""
    found: list[str] = []
    waiting = [(source, statement)]
    seen = {source.file}
    while waiting:
        where, part = waiting.pop(0)
        for name in _modules_in(where, part):
            imported = _Source.named(name)
            path = imported.file
            if path is None or path in seen or name.split(".")[0] == "frugalign" or _is_library(path):
                continue
            seen.add(path)
            every = [each for group in _statements(imported).values() for each in group]
            found.append(_hash([path.stem, sorted({ast.dump(each) for each in every})]))
            waiting += [(imported, each) for each in every]
    return found


def _modules_in(source: _Source, statement: ast.stmt) -> Iterator[str]:
    for each in ast.walk(statement):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            package = source.package.split(".")
            parts = [*package[: len(package) + 1 - each.level], *([each.module] if each.module else [])]
            home = ".".join(filter(None, parts)) if each.level else str(each.module)
            yield from (home, *(f"{home}.{alias.name}" for alias in each.names))


def _is_library(path: Path) -> bool:
    return any(path.is_relative_to(Path(folder).resolve()) for folder in _LIBRARIES if folder)


# -- objects ----------------------------------------------------------------------------------------------------------


def _value(value: Any, depth: int = 0) -> Any:
    """A description of a value that is the same in another process."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if depth > _DEPTH:
        return type(value).__qualname__
    if isinstance(value, CodeType):
        consts = [_value(each, depth + 1) for each in value.co_consts]
        return [value.co_code.hex(), consts, list(value.co_names)]
    if isinstance(value, Mapping):
        return sorted([repr(key), _value(each, depth + 1)] for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return [_value(each, depth + 1) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_value(each, depth + 1), default=repr) for each in value)
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), _hash(value.detach().cpu().reshape(-1).view(torch.uint8).tolist())]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), _value(value.reshape(-1).tolist(), depth)]
    if isinstance(value, nn.Module):
        return [type(value).__qualname__, weights_hash(value)]
    if isinstance(value, functools.partial):
        return [_value(each, depth + 1) for each in (value.func, value.args, value.keywords)]
    if inspect.ismethod(value):
        return [_value(value.__func__, depth + 1), _value(value.__self__, depth + 1)]
    if inspect.isfunction(value):
        return _function(value, depth + 1)
    if isinstance(value, type) or inspect.isbuiltin(value) or inspect.ismodule(value):
        return [getattr(value, "__module__", ""), getattr(value, "__qualname__", ""), *_class(value, depth)]
    return _instance(value, depth + 1)


def _function(function: Any, depth: int) -> Any:
    source, top = _Source.of(sys.modules.get(function.__module__)), function.__qualname__.split(".")[0]
    if "<locals>" not in function.__qualname__ and (found := _defined(source, top)):
        return found
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    enclosed = {name: _value(_content(cell), depth) for name, cell in cells}
    settings = _value([function.__defaults__, function.__kwdefaults__], depth)
    return [_value(function.__code__), enclosed, settings, _definitions(source, _global_names(function.__code__))]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _global_names(code: CodeType) -> list[str]:
    inner = [name for each in code.co_consts if isinstance(each, CodeType) for name in _global_names(each)]
    return [*code.co_names, *inner]


def _class(found: Any, depth: int) -> list[Any]:
    """What a class does: its statements, or the code of its methods."""
    if not isinstance(found, type) or found.__module__ == "builtins":
        return []
    source, top = _Source.of(sys.modules.get(found.__module__)), found.__qualname__.split(".")[0]
    if source.file is not None and _is_library(source.file):
        return []
    if "<locals>" not in found.__qualname__ and (statements := _defined(source, top)):
        return list(statements)
    return [[name, _value(each, depth + 1)] for name, each in sorted(vars(found).items()) if inspect.isfunction(each)]


def _instance(found: Any, depth: int) -> Any:
    """The class, and what it was made with: other attributes may be counters and caches, which change as it is called.

    Of an object without attributes, such as a path or a compiled pattern, the text that shows it.
    """
    if not hasattr(found, "__dict__"):
        return [type(found).__qualname__, _class(type(found), depth), re.sub(r" at 0x[0-9a-f]+", "", repr(found))]
    try:
        given = list(inspect.signature(type(found).__init__).parameters)[1:]
    except (ValueError, TypeError):
        given = []
    held = vars(found)
    values = {name: held.get(name, held.get(f"_{name}")) for name in given if not _SECRET.search(name)}
    return [
        type(found).__qualname__,
        _class(type(found), depth),
        {key: _value(each, depth) for key, each in values.items()},
    ]
