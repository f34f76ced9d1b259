"""What changes a base's results besides its weights: its config, its tokenizer, its chat template and its end tokens.

Each is a mapping of names to short texts, so that a difference can be named.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from frugalign.base.parsing import parse_json
from frugalign.base.wording import shown

VERSION = "transformers_version"
"""The one entry of `config_values` that is not compared. It says whether both sides know the same keys."""
TEMPLATE, END_TOKENS, VOCABULARY = "chat template", "end tokens", "vocabulary and merges"
_SPECIAL, _TOKENS = "special tokens", "tokens"
_WITHOUT_EFFECT = {
    *("name_or_path", VERSION, "architectures", "dtype", "torch_dtype", "quantization_config", "num_labels"),
    *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward"),
    *("id2label", "label2id", "problem_type", "task_specific_params", "initializer_range", "initializer_factor"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "hidden_size", "vocab_size"),
}
"""Keys of a config that change no result, and those whose effect is compared elsewhere: Trainer aligns the ids of special
tokens with the tokenizer, and sizes are fields of the fingerprint."""
_TRAINING_ONLY = ("dropout", "pdrop", "drop_rate")
_OF_ADAPTER = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
)
"""Settings of an adapter that change what its weights do."""
_SHOWN = 40


def config_values(config: PreTrainedConfig) -> dict[str, str]:
    """The entries of a model's config that change results, by dotted key, as JSON. Some configs carry entries for other programs;
    what its class does not declare, the model does not read."""
    values: dict[str, Any] = config.to_dict()
    if is_dataclass(config):
        declared = {"model_type", *(field.name for field in fields(config))}
        values = {key: value for key, value in values.items() if key in declared}
    return dict(_entries(values)) | {VERSION: str(values.get(VERSION))}


def adapter_values(model: Any) -> dict[str, str]:
    """The settings of the PEFT adapter around a model, in the same form. Empty without one."""
    found: dict[str, str] = {}
    for config in getattr(model, "peft_config", {}).values():
        values = config.to_dict()
        found |= {f"adapter.{key}": _text(values[key]) for key in _OF_ADAPTER if key in values}
    return found


def _entries(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in sorted((str(key), value) for key, value in config.items()):
        if key.startswith("_") or key in _WITHOUT_EFFECT or any(word in key for word in _TRAINING_ONLY):
            continue
        if isinstance(value, Mapping) and value:
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    """The value with whole floats as integers, so that 10000 and 10000.0 in two config files are one value."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tokenizer_values(tokenizer: PreTrainedTokenizerBase, generation: Any = None) -> dict[str, str]:
    """Hashes of what turns text into tokens and back, by part.

    Padding and truncation are left out: they are set anew by every caller.

    Args:
        generation: a model's generation config, which may name more end tokens.
    """
    found = {
        _TOKENS: sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]),
        _SPECIAL: [str(tokenizer.bos_token), str(tokenizer.eos_token), str(tokenizer.unk_token)],
        **_pipeline(tokenizer),
        TEMPLATE: tokenizer.chat_template,
    }
    own = getattr(generation, "eos_token_id", None)
    ids = [*(own if isinstance(own, (list, tuple)) else [own]), tokenizer.eos_token_id]
    found[END_TOKENS] = sorted({int(each) for each in ids if each is not None})
    return {name: _hash(json.dumps(value, sort_keys=True, default=str).encode()) for name, value in found.items()}


def _pipeline(tokenizer: Any) -> dict[str, Any]:
    """The parts between text and vocabulary."""
    cleans = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python: its class, its files and its own settings
        files = [getattr(tokenizer, name, None) for name in ("vocab_file", "merges_file", "spm_file")]
        return {
            VOCABULARY: sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]),
            "class": type(tokenizer).__name__,
            "files": [_file_hash(file) for file in files if isinstance(file, str) and os.path.isfile(file)],
            "added tokens": [(index, repr(token)) for index, token in sorted(tokenizer.added_tokens_decoder.items())],
            "decoder": cleans,
        }
    # The model is the last and by far the largest part. Only the others are read.
    rest, _, model = backend.to_str().partition(',"model":')
    parts = parse_json(rest + "}")
    return {
        "normalizer": parts.get("normalizer"),
        "pre-tokenizer": parts.get("pre_tokenizer"),
        "post-processor": parts.get("post_processor"),
        "decoder": [parts.get("decoder"), cleans],
        "added tokens": [parts.get("added_tokens"), bool(getattr(tokenizer, "split_special_tokens", False))],
        VOCABULARY: model,
    }


def different_keys(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The entries of two configs that differ, in words. A key that only one version of transformers knows does not count."""
    same_keys = mine.get(VERSION) == theirs.get(VERSION)
    found = []
    for key in sorted({*mine, *theirs} - {VERSION, *_WITHOUT_EFFECT}):
        one, other = mine.get(key), theirs.get(key)
        if one == other or _is_rounded(one, other) or (None in (one, other) and not same_keys):
            continue
        texts = [shown("unset" if each is None else each, quoted=False) for each in (one, other)]
        is_short = max(map(len, texts)) <= _SHOWN
        found.append(f"{shown(key, quoted=False)} ({texts[0]} there, {texts[1]} here)" if is_short else key)
    return found


def _is_rounded(one: str | None, other: str | None) -> bool:
    """Whether two numbers are one in float32. GGUF files hold them so."""
    try:
        both = [np.float32(float(each)) for each in (one, other) if each is not None]
    except ValueError:
        return False
    return len(both) == 2 and bool(both[0] == both[1])


def different_parts(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """What differs between two tokenizers, in words."""
    parts = [key for key in mine if key in theirs and key != _TOKENS and mine[key] != theirs[key]]
    aside = {TEMPLATE, END_TOKENS, _TOKENS}
    if mine.keys() - aside != theirs.keys() - aside:
        parts.append("class")
    own = [key for key in dict.fromkeys(parts) if key not in (TEMPLATE, END_TOKENS)]
    apart = [f"tokenizer ({', '.join(own)})"] if own else []
    return apart + [key for key in (TEMPLATE, END_TOKENS) if key in parts]


def with_pipeline_of(mine: Mapping[str, str] | None, theirs: Mapping[str, str] | None) -> dict[str, str] | None:
    """My special and end tokens and my chat template, with the other parts of a tokenizer that has the same tokens. As it is
    if it has others, None if one is unknown."""
    if mine is None or theirs is None:
        return None
    if mine.get(_TOKENS) is None or mine[_TOKENS] != theirs.get(_TOKENS):
        return dict(mine)
    return {**theirs, **{key: mine[key] for key in (_SPECIAL, TEMPLATE, END_TOKENS) if key in mine}}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _file_hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
