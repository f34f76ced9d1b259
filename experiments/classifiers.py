"""Linear classifiers of texts, for rewards and judges: logistic regression on a sentence encoder's embeddings, or on words.

The encoder is `minilm` in the folder that FRUGALIGN_MODELS names. Without one, embeddings are hashed words, and a note says so: that only
shows that a study runs. A fitted classifier is a safetensors file. `fitted` fits on first use.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from experiments.trials import MODELS_VARIABLE
from safetensors.numpy import load_file, save
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from frugalign.base.files import write_atomic

_log = logging.getLogger(__name__)
_TOKENS = 64
"""Of a text that the encoder reads."""
_WORDS = 2**16
_WIDTH = 384
_BATCH = 32
_MOST_KNOWN = 20_000
_KNOWN: dict[str, np.ndarray] = {}
"""Embeddings of the last texts: several judges read the same answers."""
Features = Callable[[Sequence[str]], Any]
"""Texts to a matrix, one row each, dense or sparse."""


@cache
def _encoder() -> tuple[Any, Any] | None:
    folder = Path(os.environ.get(MODELS_VARIABLE, "")) / "minilm"
    if not (folder / "model.safetensors").is_file():
        _log.warning(
            "No sentence encoder: set %s. Hashed words take its place, and scores mean little.", MODELS_VARIABLE
        )
        return None
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def embeddings(texts: Sequence[str]) -> np.ndarray:
    """Mean-pooled embeddings of unit length, `[N, 384]` float32. A text is read as far as its first 64 tokens, and once if it comes again soon."""
    missing = list(dict.fromkeys(text for text in texts if text not in _KNOWN))
    found = dict(zip(missing, _encoded(missing), strict=True)) if missing else {}
    rows = [_KNOWN[text] if text in _KNOWN else found[text] for text in texts]
    if len(_KNOWN) + len(found) > _MOST_KNOWN:
        _KNOWN.clear()
    _KNOWN.update(found)
    return np.stack(rows) if rows else np.zeros((0, _WIDTH), dtype=np.float32)


def _encoded(texts: Sequence[str]) -> np.ndarray:
    import torch

    found = _encoder()
    if found is None:
        return np.asarray(HashingVectorizer(n_features=_WIDTH).transform(texts).toarray(), dtype=np.float32)
    tokenizer, model = found
    out = np.zeros((len(texts), _WIDTH), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        batch = tokenizer(
            [texts[row] for row in rows], truncation=True, max_length=_TOKENS, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        out[rows] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return out


def bag_of_words(texts: Sequence[str]) -> Any:
    """Hashed words and pairs of words, `[N, 65536]`, sparse, of unit length."""
    return HashingVectorizer(n_features=_WORDS, ngram_range=(1, 2), alternate_sign=False).transform(texts)


@dataclass(frozen=True)
class Linear:
    """The log-odds `x·w + b` of label 1."""

    weight: np.ndarray
    bias: float

    def __call__(self, features: Any) -> list[float]:
        """Log-odds of every row."""
        return [float(value) for value in np.asarray(features @ self.weight).ravel() + self.bias]

    def save(self, path: Path) -> None:
        write_atomic(path, save({"weight": self.weight, "bias": np.array([self.bias], dtype=np.float32)}))

    @classmethod
    def load(cls, path: Path) -> Linear:
        found = load_file(path)
        return cls(found["weight"], float(found["bias"][0]))


def fit(features: Any, labels: Sequence[int], *, strength: float = 1.0) -> Linear:
    """Logistic regression in which both labels weigh the same. `strength`: the inverse of the penalty."""
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    model.fit(features, list(labels))
    return Linear(model.coef_[0].astype(np.float32), float(model.intercept_[0]))


def fit_pairs(better: np.ndarray, worse: np.ndarray, *, strength: float = 1.0) -> Linear:
    """The direction along which the better row of a pair lies above the worse one. It has no bias."""
    gaps = np.concatenate([better - worse, worse - better])
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
    model.fit(gaps, [1] * len(better) + [0] * len(worse))
    return Linear(model.coef_[0].astype(np.float32), 0.0)


def fitted(path: Path, train: Callable[[], Linear]) -> Linear:
    """The classifier in this file, fitted on first use. With hashed words in place of the encoder, the file has another name."""
    if _encoder() is None:
        path = path.with_stem(f"{path.stem}-without-encoder")
    if not path.is_file():
        train().save(path)
    return Linear.load(path)


def accuracy(scores: Sequence[float], labels: Sequence[int]) -> dict[str, float]:
    """Shares of both labels that are found, their mean, and the rank statistic (AUROC)."""
    from sklearn.metrics import roc_auc_score

    ones = [score > 0 for score, label in zip(scores, labels, strict=True) if label]
    zeros = [score <= 0 for score, label in zip(scores, labels, strict=True) if not label]
    found, left = sum(ones) / len(ones), sum(zeros) / len(zeros)
    return {
        "balanced accuracy": (found + left) / 2,
        "found of label 1": found,
        "found of label 0": left,
        "AUROC": float(roc_auc_score(list(labels), list(scores))),
        "texts": len(scores),
    }
