"""What a fuzzed call may do, and strategies that spoil valid bytes and values."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hypothesis import strategies as st

from frugalign.base.errors import FrugalignError

SECONDS = 5.0
"""A case that computes longer is a hang. Other processes may slow a machine down, so waiting counts at a sixth."""
REFUSED = object()
"""The outcome of a call that ended in one sentence."""
_LONGEST = 3000

ABSURD: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.5, -0.0, 2**31, 2**63, 10**30, -(10**30), 1e300, 1e-300, math.nan, math.inf, -math.inf),
    *("", " ", "x", "1", "nan", "true", "null", "\0", "\ud800", "a\x1b[31m", "\u202e", "é" * 300, "/", "..", "x" * 5000, "os:getcwd"),
    *([], {}, [[]], [None], {"": None}, ["x"] * 50, {"a": {"b": [1]}}),
]  # fmt: skip
TOKENS = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"&a ", b"*a", b"!!x ", b"- ", b"? ",
          b"<<", b"NaN", b"Infinity", b"1e999", b"9" * 400, b"\\ud800", b"\\u0000", b"null", b"---\n", b"[" * 2000, b'{"a":' * 2000, b"\x1b[2J"]  # fmt: skip


class Hang(Exception):
    """A case that did not end in time."""


@contextlib.contextmanager
def in_time(seconds: float = SECONDS) -> Iterator[None]:
    """Raise `Hang` inside the block once it has taken `seconds`."""

    def end(*_: Any) -> None:
        raise Hang(f"no end within {seconds} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 6 * seconds))
    before = [signal.signal(number, end) for number, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def outcome(call: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What a call returns, or `REFUSED` where it ends in one printable sentence. Anything else it raises is a fault."""
    with in_time(seconds), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return call()
        except FrugalignError as error:
            said = str(error)
            assert said.strip() and len(said) <= _LONGEST, said[:200]
            return REFUSED


def absurd() -> st.SearchStrategy[Any]:
    """A value that hardly any field may have."""
    return st.one_of(st.sampled_from(ABSURD), st.floats(), st.integers(), st.text(max_size=20), _nested())


def _nested() -> st.SearchStrategy[Any]:
    leaves = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=5))
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def spoilt_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid bytes with up to four changes: cut, flipped, repeated, or with tokens of the format put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["cut", "end", "flip", "repeat", "token", "random", "replace"])):
            case "cut":
                del data[start : start + length]
            case "end":
                del data[start:]
            case "flip" if data:
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "repeat":
                data[start:start] = data[start : start + length] * draw(st.integers(1, 50))
            case "token":
                data[start:start] = draw(st.sampled_from(TOKENS))
            case "replace":
                data[start : start + length] = draw(st.sampled_from(TOKENS))
            case _:
                data[start:start] = draw(st.binary(max_size=12))
    return bytes(data)


@st.composite
def spoilt_value(draw: st.DrawFn, valid: Any) -> Any:
    """A copy of a JSON value with up to three changes: a value replaced, left out, or put in."""
    found = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(found))
        if not places:
            return draw(absurd())
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "replace", "leave out", "put in"])):
            case "leave out":
                del holder[key]
            case "put in" if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = copy.deepcopy(draw(absurd()))
            case _:
                holder[key] = copy.deepcopy(draw(absurd()))
    return found


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def spoilt_json(valid: Any) -> st.SearchStrategy[bytes]:
    """The bytes of a JSON file: a spoilt value, or a value whose bytes are spoilt."""
    written = json.dumps(valid).encode()
    return st.one_of(
        spoilt_value(valid).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")), spoilt_bytes(written)
    )


def written(folder: Path, name: str, content: bytes) -> str:
    """The path of a file with this content."""
    path = folder / name
    path.write_bytes(content)
    return str(path)


@cache
def room() -> Path:
    """A folder for the files of all cases, on this process's own."""
    import atexit

    folder = Path(mkdtemp(prefix="frugalign-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
