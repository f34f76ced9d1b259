"""A file of a data set, on this machine or wherever `fsspec` reads: `s3://…`, `gs://…`, `hf://…`, `memory://…`."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from frugalign.base.errors import FrugalignError
from frugalign.data.rows import one_line, printable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PATTERN = re.compile(r"[*?\[]")
_BUFFER = 1 << 20
Found = TypeVar("Found")


def is_pattern(name: str) -> bool:
    """Whether a name has the marks of a pattern: `*`, `?` or `[`."""
    return _PATTERN.search(name) is not None


@dataclass(frozen=True)
class DataFile:
    """A file at `path`. `system`: where it lies, if that is not this machine."""

    path: str
    system: AbstractFileSystem | None = None

    def __str__(self) -> str:
        return self.path if self.system is None else str(self.system.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name if self.system is not None else Path(self.path).name

    @property
    def suffixes(self) -> list[str]:
        """The ends of its name in lower case, without their dots."""
        return [suffix.lstrip(".").lower() for suffix in PurePosixPath(self.name).suffixes]

    @property
    def is_gzip(self) -> bool:
        """Whether its name says that gzip compressed it."""
        return self.suffixes[-1:] == ["gz"]

    @cached_property
    def size(self) -> int:
        """Bytes. 0 where that is unknown.

        Raises:
            OSError: it cannot be reached.
        """
        if self.system is None:
            return os.stat(self.path).st_size
        return int(self.system.size(self.path) or 0)

    def open(self) -> BinaryIO:
        """The file, to read its bytes.

        Raises:
            OSError: it cannot be read.
        """
        if self.system is None:
            return open(self.path, "rb")
        return cast(BinaryIO, io.BufferedReader(self.system.open(self.path, "rb"), _BUFFER))

    def state(self) -> str:
        """Changes when the file is written again: a hash of its place, its size and its time, or whatever its system keeps.

        Raises:
            OSError: it cannot be reached.
        """
        if self.system is None:
            about = os.stat(self.path)
            said: Any = (os.path.realpath(self.path), about.st_size, about.st_mtime_ns, about.st_ino)
        else:
            said = (str(self), self.system.ukey(self.path))
        return hashlib.sha256(repr(said).encode()).hexdigest()


@dataclass(frozen=True)
class Elsewhere:
    """What a URL names: `path` on a file system that `fsspec` knows. Every method raises a `FrugalignError` where it cannot be reached."""

    url: str
    system: AbstractFileSystem
    path: str

    @classmethod
    def of(cls, url: str) -> Elsewhere:
        """The place that a URL names.

        Raises:
            FrugalignError: no file system reads such URLs, or its package is not installed.
        """
        from fsspec.core import url_to_fs

        try:
            system, path = url_to_fs(url)
        except ImportError as error:
            raise FrugalignError(
                f"Cannot read {printable(url)}: {one_line(error)} (a package that pip installs)."
            ) from error
        except Exception as error:  # an unknown protocol, or the file system's own settings
            raise FrugalignError(f"Cannot read {printable(url)}: {one_line(error)}.") from error
        return cls(url, system, path)

    def _ask(self, question: Callable[[], Found]) -> Found:
        try:
            return question()
        except Exception as error:  # network, authentication: every file system has its own
            raise FrugalignError(f"Cannot read {printable(self.url)}: {one_line(error)}.") from error

    def kind(self, inside: str = "") -> str | None:
        """`file` or `directory`, or None if there is neither. `inside`: a name below it."""

        def asked() -> str | None:
            try:
                return str(self.system.info(f"{self.path}/{inside}" if inside else self.path)["type"])
            except (FileNotFoundError, NotADirectoryError):
                return None

        return self._ask(asked)

    def files(self, *folders: str) -> list[DataFile]:
        """The files in it and in these of its folders, by their names."""
        inner = [folder for folder in folders if self.kind(folder) == "directory"]
        places = [self.path.rstrip("/"), *(f"{self.path.rstrip('/')}/{folder}" for folder in inner)]
        found = [
            entry["name"]
            for place in places
            for entry in self._ask(partial(self.system.ls, place, detail=True))
            if entry["type"] == "file"
        ]
        return [DataFile(path, self.system) for path in sorted(found)]

    def folders(self) -> list[str]:
        """The names of the folders in it."""
        entries = self._ask(lambda: self.system.ls(self.path, detail=True))
        return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory")

    def matching(self) -> list[DataFile]:
        """The files that it matches as a pattern."""
        paths = self._ask(lambda: [path for path in self.system.glob(self.path) if self.system.isfile(path)])
        return [DataFile(path, self.system) for path in sorted(paths)]
