"""Find the files of a data set: files, folders, stored data sets, hub data sets."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import is_url, local_hint, local_path, resolve_name
from frugalign.data.data_file import DataFile, Elsewhere, is_pattern
from frugalign.data.read_json import read_json
from frugalign.data.rows import Batch, Problem, Source, one_line, printable

_log = logging.getLogger(__name__)

FORMATS = ("jsonl", "json", "csv", "parquet")
_READ = ".jsonl, .json, .csv or .parquet file (also .gz)"
_COMPRESSED = {"zst": "zstd -d", "zstd": "zstd -d", "bz2": "bunzip2", "xz": "unxz", "lz4": "lz4 -d", "zip": "unzip"}
_COMPRESSED |= {"7z": "7z x", "tar": "tar -xf", "tgz": "tar -xf", "rar": "unrar x"}
_MAGIC = {
    b"\x1f\x8b": "is compressed with gzip; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it with `zstd -d`",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"BZh": "is compressed with bzip2; unpack it with `bunzip2`",
    b"PAR1": "is a Parquet file; rename it to .parquet",
    b"ARROW1": "is an Arrow file; save it as Parquet",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}
_KINDS_OF_SPLIT = ("prefs", "sft", "gen", "dpo", "kto", "rm", "ppo", "rl")
"""Ends of names that mark different data, as in train_prefs and train_sft. Files with other ends are parts of one split."""
_RESERVED = {"test": "test", "held": "test", "holdout": "test", "val": "validation", "dev": "validation"}
_RESERVED |= {"eval": "validation"}
"""What a name begins with that is never trained on."""
_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("test", "tests", "testing", "testset", "held", "heldout", "hold", "holdout"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "validset", "dev", "devset", "devel"), "validation"),
    **dict.fromkeys(("eval", "evaluation", "evalset"), "validation"),
}
"""Words that say what a split is for, anywhere in its name."""
_SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder of `save_to_disk` is known."""
_NO_WORDS = frozenset((*FORMATS, *_COMPRESSED, "gz", "of", "part", "shard", "chunk", "out"))
"""What may stand behind a split's name: formats, and the numbers of parts. `out` is the end of held_out."""


def words_of(split: str) -> list[str]:
    """The words of a split's or file's name, without numbers, formats and numbers of parts."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", split)
    return [word for word in re.findall(r"[^\W\d_]+", spaced.lower()) if word not in _NO_WORDS]


def role_of(split: str) -> str | None:
    """What a split or file of this name is for: `train`, `validation`, `test` or, if the name does not say it, None.

    Its last word decides (`prompts_test`), then its first, then any other. Whatever begins with test, val, dev, eval or
    held is never trained on.
    """
    words = words_of(split)
    if not words:
        return None
    if words[-1] in _WORDS:
        return _WORDS[words[-1]]
    first = "train" if words[0].startswith("train") else None
    first = first or next((role for mark, role in _RESERVED.items() if words[0].startswith(mark)), None)
    return first or next((_WORDS[word] for word in words if word in _WORDS), None)


def rest_of(split: str) -> list[str]:
    """What a split's name says beside its role, such as `prefs`."""
    return [word for word in words_of(split) if word not in _WORDS]


def read_splits(name: str) -> dict[str, list[Source]]:
    """The splits of a data set, each as its files.

    `name`: hub id, file (.jsonl .json .csv .parquet, also .gz), folder, pattern (`shards/train-*.parquet`), URL of one of these
    (`s3://bucket/folder`), or `package.module:attribute` that names one. Of a folder or a pattern, files whose names say train, test or
    validation are the splits. Without such names all files are one split, `train`, and so is a single file.

    Raises:
        FrugalignError: nothing exists under this name. Problems inside a file show when it is read.
    """
    name = resolve_name(name)
    if is_url(name):
        return _read_url(name)
    path = Path(name).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # too long, or with a NUL character
        raise FrugalignError(f"There can be no data file or folder of this name: {one_line(error)}.") from error
    if is_folder:
        if any((path / mark).is_file() for mark in _SAVED):
            return _read_saved(str(path))
        # Exports in the hub's layout keep their files in data/.
        places = [place for place in (path, path / "data") if place.is_dir()]
        found = [
            DataFile(str(file))
            for file in sorted(each for place in places for each in place.iterdir())
            if file.is_file()
        ]
        inner = [place.name for place in path.iterdir() if place.is_dir()]
        return _sources(found, f"The folder {path}", inner)
    if is_file:
        return {"train": [_source(DataFile(str(path)))]}
    if is_pattern(name) and "\0" not in name:
        return _sources(_matching(path), f"The pattern {printable(name)}")
    if _is_local(name, path):
        raise FrugalignError(f"There is no data file or folder {printable(name)}{local_hint(name)}.")
    return _read_hub(name)


def _read_url(url: str) -> dict[str, list[Source]]:
    place = Elsewhere.of(url)
    kind = place.kind()
    if kind == "directory":
        if any(place.kind(mark) == "file" for mark in _SAVED):
            return _read_saved(url)
        return _sources(place.files("data"), f"The folder {url}", place.folders())
    if kind == "file":
        return {"train": [_source(DataFile(place.path, place.system))]}
    if is_pattern(url):
        return _sources(place.matching(), f"The pattern {printable(url)}")
    raise FrugalignError(f"There is no data file or folder {printable(url)}.")


def _matching(pattern: Path) -> list[DataFile]:
    import glob

    return [DataFile(file) for file in sorted(glob.glob(str(pattern), recursive=True)) if Path(file).is_file()]


def _is_local(name: str, path: Path) -> bool:
    """Whether a name that does not exist was meant as a path."""
    return (
        local_path(name) is not None or _format(DataFile(name)) is not None or _unpacked_by(DataFile(name)) is not None
    )


def _format(file: DataFile) -> str | None:
    suffixes = file.suffixes
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def _unpacked_by(file: DataFile) -> str | None:
    return _COMPRESSED.get(file.suffixes[-1]) if file.suffixes else None


def _sources(files: Sequence[DataFile], where: str, inner: Sequence[str] = ()) -> dict[str, list[Source]]:
    """The data files among `files`, by their splits. `inner`: folders that are not read."""
    # A packed file is listed, so that its split is not forgotten in silence.
    files = [file for file in files if _format(file) is not None or _unpacked_by(file) is not None]
    if not files:
        inner = sorted(folder for folder in inner if not folder.startswith("."))
        hint = f"; it has the folders {', '.join(inner[:8])}" if inner else ""
        raise FrugalignError(f"{where} holds no .jsonl, .json, .csv or .parquet file{hint}.")
    splits: dict[str, list[DataFile]] = {}
    others = []
    for file in files:
        role = role_of(file.name)
        if role is None:
            others.append(file)
        else:
            splits.setdefault(_split_of(file.name, role), []).append(file)
    if splits and others:
        where = where[:1].lower() + where[1:]
        _log.warning(
            "Not read, as other files in %s are named as splits: %s.", where, ", ".join(file.name for file in others)
        )
    return {split: [_source(file) for file in each] for split, each in (splits or {"train": others}).items()}


def _split_of(file: str, role: str) -> str:
    """The split that a file of this name belongs to: its role, or the role and the kind of data."""
    kind = next(iter(rest_of(file)[-1:]), None)
    return f"{role}_{kind}" if kind in _KINDS_OF_SPLIT else role


def _source(data: DataFile) -> Source:
    file, form = str(data), _format(data)
    if form is None:
        unpack = _unpacked_by(data)
        if unpack is None:
            raise FrugalignError(f"{printable(file)} is not a {_READ}.")
        return _broken(
            file, f"the file is packed in a format that is not read; unpack it with `{unpack} {printable(file)}`"
        )
    try:
        with data.open() as stream:
            head = stream.read(8)
        state = data.state()
    except Exception as error:  # an OSError here, anything of a file system elsewhere
        return _broken(file, f"the file cannot be read ({one_line(error)})")
    for magic, what in _MAGIC.items():
        expected = (magic == b"\x1f\x8b" and data.is_gzip) or (magic == b"PAR1" and form == "parquet")
        if head.startswith(magic) and not expected:
            return _broken(file, f"the file {what}")
    if form in ("csv", "parquet"):
        from frugalign.data.read_tables import read_csv, read_parquet

        return Source(file, partial(read_csv if form == "csv" else read_parquet, data), form == "csv", state)
    return Source(file, partial(read_json, data, is_lines=form == "jsonl"), state=state)


def _broken(file: str, reason: str) -> Source:
    def read() -> Iterator[Batch]:
        yield Batch([], [], [Problem(file, None, reason)])

    return Source(file, read)


def _read_saved(folder: str) -> dict[str, list[Source]]:
    import datasets

    try:
        found = datasets.load_from_disk(folder)
    except Exception as error:
        raise FrugalignError(f"Cannot read the data set in {folder}: {one_line(error)}.") from error
    return _tables(folder, found)


def _read_hub(name: str) -> dict[str, list[Source]]:
    import datasets

    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # network, authentication, format: all user errors
        raise FrugalignError(
            f"Cannot load the data set {name!r}: it is not a local file or folder, and the hub says: {one_line(error)}."
        ) from error
    return _tables(name, found)


def _tables(name: str, found: Any) -> dict[str, list[Source]]:
    from frugalign.data.read_tables import read_dataset

    splits = found if isinstance(found, dict) else {"train": found}
    return {
        str(split): [Source(f"{name} [{split}]", partial(read_dataset, table), state=table._fingerprint)]
        for split, table in splits.items()
    }
