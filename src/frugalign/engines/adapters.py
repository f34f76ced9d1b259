"""PEFT adapters: attach one to a frozen base, and the record by which one that we saved knows itself and its base.

An adapter that PEFT alone has saved has no record, and is accepted without.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_RECORD_FILE,
    ADAPTER_WEIGHTS_FILE,
    check_safetensors,
    write_json_atomic,
)
from frugalign.base.json_files import read_json
from frugalign.base.parsing import parse_json
from frugalign.base.specs import local_hint, local_path
from frugalign.engines.fingerprints import BaseFingerprint, check_base, fingerprint
from frugalign.engines.sharding import is_spread


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn whatever a library raises about a user's files into one sentence that begins with `what`."""
    try:
        yield
    except FrugalignError:
        raise
    except Exception as error:  # transformers, PEFT, safetensors and the hub each raise their own
        text = " ".join(str(error).split()) or "no reason given"
        if not isinstance(error, (OSError, ValueError, RuntimeError)):
            text = f"{type(error).__name__}: {text}"
        raise FrugalignError(f"{what}: {text[:300]}{'…' if len(text) > 300 else ''}") from error


def attach_adapter(
    model: PreTrainedModel, adapter: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """The model with a frozen PEFT adapter from a local folder or the hub.

    Raises:
        FrugalignError: the adapter is missing or damaged, was changed after it was saved, or is for another model.
    """
    from peft import PeftModel

    folder = _folder_of(adapter)
    if is_spread(model):
        raise FrugalignError(
            f"The adapter {adapter} cannot be attached to a model that is spread over processes: merge it first."
        )
    check_safetensors(folder / ADAPTER_WEIGHTS_FILE)
    record = read_json(folder / ADAPTER_RECORD_FILE)
    if (folder / ADAPTER_RECORD_FILE).exists():
        _check_record(record, folder, model, tokenizer)
    with refused(f"Cannot load the adapter {adapter!r}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        # Loaded again to get the report that `from_pretrained` does not return.
        report = adapted.load_adapter(str(folder), "default")
    if odd := sorted(report.missing_keys) + sorted(report.unexpected_keys):
        raise FrugalignError(
            f"The adapter {adapter!r} does not fit this model: {len(odd)} weights of one have no counterpart in the other, such as {odd[0]}."
        )
    adapted.eval().requires_grad_(False)
    frozen: PreTrainedModel = adapted
    return frozen


def _folder_of(adapter: str) -> Path:
    path = local_path(adapter)
    if path is None:
        from huggingface_hub import snapshot_download

        # Without safetensors, PEFT would fall back to another format.
        wanted = [ADAPTER_CONFIG_FILE, ADAPTER_RECORD_FILE, ADAPTER_WEIGHTS_FILE]
        with refused(f"Cannot load the adapter {adapter!r}"):
            path = Path(snapshot_download(adapter, allow_patterns=wanted))
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        if not os.path.isfile(path / name):
            raise FrugalignError(f"No adapter in {adapter}: it has no {name}{local_hint(adapter)}.")
    return path


def record_adapter(folder: Path, base: BaseFingerprint) -> None:
    """Write an adapter's hash and its base beside the adapter that was saved in `folder`."""
    write_json_atomic(folder / ADAPTER_RECORD_FILE, {"sha256": _content_hash(folder), "base": base.to_dict()})


def _check_record(
    record: dict[str, Any], folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    base = record.get("base")
    if not isinstance(base, dict) or record.get("sha256") != _content_hash(folder):
        raise FrugalignError(
            f"The adapter in {folder} has been changed since it was saved: its files do not have the hash in {ADAPTER_RECORD_FILE}."
        )
    check_base(base, fingerprint(model, tokenizer), f"The adapter in {folder}")


def _content_hash(folder: Path) -> str:
    """SHA-256 over the adapter's weights and its config, except for where the base lies."""
    try:
        config = parse_json((folder / ADAPTER_CONFIG_FILE).read_bytes())
        weights = (folder / ADAPTER_WEIGHTS_FILE).read_bytes()
    except (OSError, ValueError) as error:
        raise FrugalignError(f"The adapter in {folder} is damaged: {' '.join(str(error).split())}.") from error
    if isinstance(config, dict):
        config.pop("base_model_name_or_path", None)
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode() + b"\0" + weights).hexdigest()
