"""Writing and checking files: atomic writes, and the check of safetensors.

A file is written under a temporary name and then moved into place. A killed run leaves the old file or the new one,
never half of one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.parsing import parse_json

MODEL_CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_RECORD_FILE = "frugalign_adapter.json"
MODEL_RECORD_FILE = "frugalign_model.json"
CARD_FILE = "README.md"
STAGING_FOLDER = ".frugalign-saving"
"""Where an artefact or a checkpoint is written before it is moved up, into place."""
_TEMPORARY = ".frugalign-tmp"
"""How a half-written file's name ends. No other program writes such files, so they are safe to delete."""
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_MAX_HEADER = 100_000_000
_REASONS = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a file stands in its place",
    errno.EISDIR: "a folder stands in its place",
    errno.ENOENT: "its folder is gone",
}
on_change: Callable[[str, Path], None] | None = None
"""Called before and after every change of a file here, with the name of the moment and the path. It lets a test stop the
process or fill the disk at any of these moments."""
on_finished: Callable[[str, Path], None] | None = None
"""Called after every change of a file or a folder, as `on_change` is. It uploads a run whose folder is elsewhere (`runs/elsewhere.py`)."""
_FINISHED = ("written", "appended", "moved")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an operating-system error while writing `path` into one sentence. For any code that saves files.

    Raises:
        FrugalignError: the disk is full, permission is denied, and the like.
    """
    try:
        yield
    except OSError as error:
        raise FrugalignError(f"Cannot write {path}: {reason_of(error)}.") from error


def reason_of(error: OSError) -> str:
    """Why the system refused, in words that follow a colon."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)


def announce(name: str, path: Path) -> None:
    """Call `on_change`, and `on_finished` after a change, if they are set."""
    if on_change is not None:
        on_change(name, path)
    if on_finished is not None and name in _FINISHED:
        on_finished(name, path)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file completely or not at all. Missing folders are created, and a failed write leaves the old file in
    place.

    Raises:
        FrugalignError: the file cannot be written; the message gives the reason.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    with writing(path):
        announce("write", path)
        with replacing(path) as file:
            file.write(data)
        announce("written", path)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file with a name of its own, which stands at `path` once the block has ended. If that fails, the old file stays there.

    Raises:
        FrugalignError: the file cannot be written; the message gives the reason.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
        os.close(descriptor)
        try:
            with open(staged, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            announce("staged", path)
            Path(staged).chmod(0o666 & ~umask())  # mkstemp makes private files; an artefact is as public as its folder
            os.replace(staged, path)
        except BaseException:
            Path(staged).unlink(missing_ok=True)
            raise


def is_leftover(path: Path) -> bool:
    """Whether this is what `write_atomic` leaves behind when the process is killed inside it."""
    return re.fullmatch(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_TEMPORARY)}", path.name) is not None


def umask() -> int:
    """The rights that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write indented JSON, completely or not at all. NaN and infinity are refused: they are not JSON.

    Raises:
        FrugalignError: the file cannot be written. ValueError: `value` holds a NaN or an infinity.
    """
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_safetensors(path: str | Path) -> None:
    """Check a safetensors file's header against its length before anything is loaded from it.

    The header is a little-endian u64 length and that many bytes of JSON: each tensor's dtype, shape and byte offsets.
    Every tensor's size must match its shape. Together the tensors must fill the data without gap or overlap. Weights
    changed under a valid header cannot be detected here.

    Raises:
        FrugalignError: the file is missing, truncated or damaged.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
                raise FrugalignError(
                    f"{path} is truncated or not a safetensors file: its header is longer than the file."
                )
            raw = file.read(length)
    except FileNotFoundError as error:
        raise FrugalignError(f"{path} does not exist.") from error
    except OSError as error:
        raise FrugalignError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        header = parse_json(raw)
        tensors = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        spans = sorted(_span(entry) for entry in tensors.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FrugalignError(f"{path} has been tampered with or damaged: its header cannot be read.") from error
    end = 0
    for begin, stop, expected in spans:
        if begin != end or stop - begin != expected:
            raise FrugalignError(
                f"{path} has been tampered with or damaged: its header does not fit the tensors' shapes."
            )
        end = stop
    if size - 8 - length < end:
        raise FrugalignError(f"{path} is truncated: it holds {size - 8 - length:,} of {end:,} bytes of weights.")
    if size - 8 - length > end:
        raise FrugalignError(
            f"{path} has been tampered with: {size - 8 - length - end:,} bytes follow its last tensor."
        )


def _span(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    """(begin, end, bytes required by dtype and shape) of one tensor in a header."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    count = 1
    for extent in entry["shape"]:
        if not isinstance(extent, int) or extent < 0:
            raise ValueError(f"extent {extent!r}")
        count *= extent
    return begin, end, count * _DTYPE_BITS[entry["dtype"]] // 8


def hash_file(path: Path) -> str:
    """A hash of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
