"""The bundle that `frugalign export` writes: one proxy as plain arrays, `proxy.json` and `proxy.safetensors`.

Reading needs numpy alone. Nothing in a bundle is code, and both files are checked before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from frugalign_runtime.errors import ProxyError

SETTINGS_FILE = "proxy.json"
ARRAYS_FILE = "proxy.safetensors"
FORMAT = "frugalign-proxy-bundle-1"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
_WORDS = {
    "objective": ("marginal", "sequential", "sequential_integrated"),
    "candidate_features": ("embedding", "token_bias"),
    "tail": ("keep", "drop"),
}
_COUNTS = ("width", "vocabulary", "max_candidates")
_QUERY = ("norm.weight", "norm.bias", "query_in.weight", "query_in.bias", "query_out.weight", "query_out.bias")


@dataclass(frozen=True)
class Settings:
    """The numbers of a bundle that are not arrays.

    `score_scale`: what `q(h)·k` is multiplied by. `initial_bias`: the acceptance logit that a sequential proxy started with. It shapes
    `even_offset`. `logit_scale`, `logit_cap`: how the base's logits follow from its head, `cap·tanh(scale·(W·h + b)/cap)`; a
    cap of None is none. `no_transform`: why they do not follow so, or None; `no_recovery`: why `h` cannot be recovered from them.
    `base`, `proxy`: where the two come from, for messages.
    """

    objective: str
    candidate_features: str
    tail: str
    temperature: float
    p_t: float
    max_candidates: int
    width: int
    vocabulary: int
    initial_bias: float = 0.0
    score_scale: float = 1.0
    norm_eps: float = 1e-5
    logit_scale: float = 1.0
    logit_cap: float | None = None
    no_transform: str | None = None
    no_recovery: str | None = None
    base: str = ""
    proxy: str = ""


@dataclass(frozen=True)
class Bundle:
    """One proxy, as `judge` needs it.

    `arrays`: the query network (`norm.*`, `query_in.*`, `query_out.*`), `keys [V, d]`, `tail_key [d]` with the tail kept,
    `bias [1]`; or `token_bias [V]` and `tail_bias [1]`. Also `head.ids [n]`, `head.rows [n, D]` and
    `head.bias [n]`, a sample of the base's head; and
    `recovery.ids [m]`, `recovery.inverse [D, m]`, `recovery.bias [m]`, which give `h` from logits.
    """

    settings: Settings
    arrays: Mapping[str, np.ndarray]
    name: str = "this proxy"

    def files(self) -> dict[str, bytes]:
        """The content of both files, in the order in which to write them: a folder that has the settings is complete."""
        data = encode(self.arrays)
        content: dict[str, Any] = {"format": FORMAT, **asdict(self.settings)}
        content["sha256"] = _seal(content, data)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        return {ARRAYS_FILE: data, SETTINGS_FILE: text.encode()}

    @classmethod
    def load(cls, folder: str | Path, name: str | None = None) -> Bundle:
        """Read a bundle.

        Args:
            name: what messages call it. Default: the folder's name.

        Raises:
            ProxyError: a file is missing, damaged or changed, or another version wrote it.
        """
        folder = Path(folder).expanduser()
        try:
            content = json.loads((folder / SETTINGS_FILE).read_bytes())
            data = (folder / ARRAYS_FILE).read_bytes()
        except OSError as error:
            raise ProxyError(
                f"There is no exported proxy in {folder}: {error.strerror} ({error.filename}). frugalign export writes one."
            ) from error
        except ValueError as error:
            raise ProxyError(f"{folder / SETTINGS_FILE} is damaged: it is not valid JSON.") from error
        settings = _settings(content, folder)
        if content.get("sha256") != _seal(content, data):
            raise ProxyError(f"The exported proxy in {folder} has been changed since it was written: export it again.")
        bundle = cls(settings, decode(data, folder / ARRAYS_FILE), name or folder.name)
        _check_shapes(bundle, folder)
        return bundle


def _settings(content: Any, folder: Path) -> Settings:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ProxyError(
            f"The bundle in {folder} has format {found!r}, and this version reads {FORMAT!r}: export it again."
        )
    known = {field.name: field.type for field in fields(Settings)}
    damaged = f"{folder / SETTINGS_FILE} is damaged"
    if set(content) != {"format", "sha256", *known}:
        raise ProxyError(f"{damaged}: its fields are not those of {FORMAT}.")
    for name, kind in known.items():
        value = content[name]
        if not _fits(value, str(kind)):
            raise ProxyError(f"{damaged}: {name} is {value!r}.")
    settings = Settings(**{name: content[name] for name in known})
    wrong = [name for name, words in _WORDS.items() if getattr(settings, name) not in words]
    wrong += [name for name in _COUNTS if getattr(settings, name) < 1]
    wrong += [name for name in ("temperature", "logit_scale") if not getattr(settings, name) > 0]
    wrong += ["p_t"] if not 0 <= settings.p_t < 1 else []
    wrong += ["logit_cap"] if settings.logit_cap is not None and not settings.logit_cap > 0 else []
    if wrong:
        raise ProxyError(f"{damaged}: {wrong[0]} is {getattr(settings, wrong[0])!r}.")
    return settings


def _fits(value: Any, kind: str) -> bool:
    if value is None:
        return kind.endswith("None")
    if kind.startswith("float"):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str if kind.startswith("str") else int) and not isinstance(value, bool)


def _check_shapes(bundle: Bundle, folder: Path) -> None:
    """Whether every array that `judge` reads is there, with a shape that fits the others, and finite."""
    settings, arrays = bundle.settings, bundle.arrays
    width, vocabulary, keeps = settings.width, settings.vocabulary, settings.tail == "keep"
    n = {name: len(value) for name, value in arrays.items()}
    wanted: dict[str, tuple[int, ...]] = {"head.ids": (n.get("head.ids", 0),)}
    wanted |= {"head.rows": (*wanted["head.ids"], width), "head.bias": wanted["head.ids"]}
    if settings.candidate_features == "token_bias":
        wanted["token_bias"] = (vocabulary,)
        wanted |= {"tail_bias": (1,)} if keeps else {}
    else:
        hidden, dim = n.get("query_in.weight", 0), n.get("query_out.weight", 0)
        shapes = ((width,), (width,), (hidden, width), (hidden,), (dim, hidden), (dim,))
        wanted |= dict(zip(_QUERY, shapes, strict=True)) | {"keys": (vocabulary, dim), "bias": (1,)}
        wanted |= {"tail_key": (dim,)} if keeps else {}
    if settings.no_recovery is None:
        rows = n.get("recovery.ids", 0)
        wanted |= {"recovery.ids": (rows,), "recovery.inverse": (width, rows), "recovery.bias": (rows,)}
    for name in sorted({*wanted, *arrays}):
        has = arrays[name].shape if name in arrays else None
        if has != wanted.get(name):
            raise ProxyError(
                f"{folder / ARRAYS_FILE} is damaged: {name} has shape {has}, and {wanted.get(name)} is needed."
            )
        if arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise ProxyError(f"{folder / ARRAYS_FILE} is damaged: {name} holds values that are not finite numbers.")
        if name.endswith(".ids") and not ((arrays[name] >= 0) & (arrays[name] < vocabulary)).all():
            raise ProxyError(f"{folder / ARRAYS_FILE} is damaged: {name} holds numbers of no token.")


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file: the header's length, the header in JSON, and the data."""
    names, header, offset, parts = {kind: name for name, kind in _DTYPES.items()}, {}, 0, []
    for name, value in sorted(arrays.items()):
        kind = value.dtype.newbyteorder("<")
        data = np.ascontiguousarray(value, dtype=kind).tobytes()
        header[name] = {
            "dtype": names["<" + kind.str[1:]],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(data: bytes, path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Raises:
        ProxyError: the file is truncated or damaged.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        body, found = memoryview(data)[8 + size :], {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            flat = np.frombuffer(body[start:end], dtype=_DTYPES[entry["dtype"]])
            # A copy is aligned and writable, as torch wants it.
            found[name] = flat.reshape(entry["shape"]).copy()
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProxyError(f"{path} is damaged: it is not a safetensors file of plain numbers.") from error


def _seal(content: Mapping[str, Any], data: bytes) -> str:
    """A hash of all settings and arrays."""
    plain = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode() + b"\0" + data).hexdigest()
