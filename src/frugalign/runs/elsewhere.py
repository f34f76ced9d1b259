"""Runs whose folder is a URL (`--output_dir s3://bucket/runs/a`): a copy on this machine, mirrored through `fsspec`.

A command works in the copy, as in any run folder, and what it has finished is uploaded: every minute, with every checkpoint and artefact,
and at the end. A manifest, uploaded last, names the files of the last whole upload, so a kill in between costs what came after it. A later
command on any machine downloads what the manifest names, and resumes from there. Two commands on two machines are not kept from
using one URL at the same time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from frugalign.base import files
from frugalign.base.errors import FrugalignError
from frugalign.base.files import STAGING_FOLDER, hash_file, is_leftover, replacing, write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.base.parsing import parse_json
from frugalign.runs.layout import LOCK_FILE
from frugalign.runs.lock import READING_FILE, in_use

MANIFEST = ".frugalign-manifest.json"
_EVERY = 60.0
"""Seconds between two uploads, unless a checkpoint or an artefact is finished."""
_OWN = (MANIFEST, LOCK_FILE, READING_FILE)
_log = logging.getLogger(__name__)
Manifest = dict[str, str]
"""The hash of every file, by its path below the folder."""


@contextmanager
def working_copy(url: str) -> Iterator[Path]:
    """The folder on this machine in which to run, for a run whose folder is a URL. The caller holds its lock.

    Raises:
        FrugalignError: the URL cannot be read or written, another command uses the copy, or there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise FrugalignError(
            f"Several processes cannot run in {url}: give an output_dir that all of them share, and upload it afterwards."
        )
    folder = _copies() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    mirror = Mirror(url, folder)
    with in_use(folder):
        mirror.pull()
        before = files.on_finished
        files.on_finished = mirror.note
        try:
            yield folder
        finally:
            files.on_finished = before
            mirror.push()


def _copies() -> Path:
    return Path.home() / ".cache" / "frugalign" / "runs"


class Mirror:
    """A folder on this machine and its copy at a URL."""

    def __init__(self, url: str, folder: Path) -> None:
        from fsspec.core import url_to_fs

        self.url, self.folder = url.rstrip("/"), folder.resolve()
        self._system, path = self._ask("read", lambda: url_to_fs(self.url))
        self._path = str(path).rstrip("/")
        self._known: Manifest = {}
        self._states: dict[str, tuple[int, int]] = {}
        self._pushed_at, self._process = time.monotonic(), os.getpid()

    def note(self, name: str, path: Path) -> None:
        """A file or a folder was finished: upload, if it is time. A failure is tried again later."""
        place = path.resolve()
        if os.getpid() != self._process or (place != self.folder and self.folder not in place.parents):
            return
        if name == "moved" or time.monotonic() - self._pushed_at >= _EVERY:
            try:
                self.push()
            except FrugalignError as error:
                _log.warning("%s It is tried again later.", error)
                self._pushed_at = time.monotonic()

    def pull(self) -> None:
        """Make the folder the state of the last whole upload. A copy that has gone on from that state is kept as it is.

        Raises:
            FrugalignError: the URL cannot be read, or its manifest is damaged.
        """
        self._known = self._manifest()
        own = read_json(self.folder / MANIFEST, dict[str, str])
        if own != self._known:
            for name in self._files():
                if name not in self._known or hash_file(self.folder / name) != self._known[name]:
                    (self.folder / name).unlink()
            for name, digest in self._known.items():
                if not (self.folder / name).is_file():
                    self._download(name, digest)
            self._keep_manifest()
        self._states = {name: _state(self.folder / name) for name in self._known if (self.folder / name).is_file()}

    def push(self) -> None:
        """Upload what has changed, then the manifest, and delete what is gone.

        Raises:
            FrugalignError: the URL cannot be written.
        """
        names = self._files()
        changed = [name for name in names if self._states.get(name) != _state(self.folder / name)]
        gone = [name for name in self._known if name not in names]
        self._pushed_at = time.monotonic()
        if not changed and not gone:
            return
        manifest = {name: digest for name, digest in self._known.items() if name not in gone}
        for name in changed:
            state = _state(self.folder / name)
            digest = hash_file(self.folder / name)
            if manifest.get(name) != digest:
                self._upload(name)
            manifest[name], self._states[name] = digest, state
        self._known = manifest
        self._keep_manifest()
        self._upload(MANIFEST)
        for name in gone:
            self._states.pop(name, None)
            self._ask("write", partial(self._system.rm_file, f"{self._path}/{name}"))
        self._pushed_at = time.monotonic()

    def _files(self) -> list[str]:
        """The finished files of the folder, by their paths below it."""
        found = []
        for parent, folders, names in os.walk(self.folder):
            folders[:] = sorted(folder for folder in folders if folder != STAGING_FOLDER)
            paths = [Path(parent, name) for name in sorted(names) if name not in _OWN]
            found += [
                path.relative_to(self.folder).as_posix()
                for path in paths
                if not is_leftover(path) and not path.is_symlink()
            ]
        return found

    def _keep_manifest(self) -> None:
        # Not announced: it belongs to the mirror and not to the run.
        before, files.on_finished = files.on_finished, None
        try:
            write_json_atomic(self.folder / MANIFEST, self._known)
        finally:
            files.on_finished = before

    def _manifest(self) -> Manifest:
        place = f"{self._path}/{MANIFEST}"

        def read() -> bytes:
            self._system.invalidate_cache()
            return bytes(self._system.cat_file(place)) if self._system.isfile(place) else b"{}"

        try:
            found = parse_json(self._ask("read", read))
        except ValueError as error:
            raise FrugalignError(f"{self.url}/{MANIFEST} is damaged: {error}.") from error
        inside = isinstance(found, dict) and all(
            isinstance(digest, str)
            and name
            and not PurePosixPath(name).is_absolute()
            and ".." not in PurePosixPath(name).parts
            for name, digest in found.items()
        )
        if not inside:
            raise FrugalignError(f"{self.url}/{MANIFEST} is damaged: it does not name files with their hashes.")
        return dict(found)

    def _upload(self, name: str) -> None:
        target = f"{self._path}/{name}"

        def upload() -> None:
            self._system.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            # A file that is written in a transaction appears whole.
            with (
                self._system.transaction,
                (self.folder / name).open("rb") as source,
                self._system.open(target, "wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)

        self._ask("write", upload)

    def _download(self, name: str, digest: str) -> None:
        path = self.folder / name
        with replacing(path) as copy:
            self._ask("read", lambda: self._system.get_file(f"{self._path}/{name}", copy.name))
            if hash_file(Path(copy.name)) != digest:
                raise FrugalignError(f"{self.url}/{name} is damaged: it is not what was uploaded.")

    def _ask(self, what: str, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Exception as error:  # network, authentication: every file system has its own
            said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise FrugalignError(f"Cannot {what} {self.url}: {said[:200]}; its copy is {self.folder}.") from error


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
