"""Encoded pairs: many as few, and many without a copy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, arrow_dataset
from tests.two_layers import two_layers

from frugalign.engines.loading import load_model
from frugalign.methods.rerank import collator
from frugalign.methods.rerank.collator import encode_pairs


def test_many_pairs_are_encoded_as_few_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Dataset` pickles a table to hash it, which at a million pairs is a gigabyte."""
    base = load_model(two_layers())
    args = SimpleNamespace(max_length=None, prompt_format="raw", chat_template_kwargs=None)
    rows = [
        {"prompt": f"Question {i}?", "chosen": " Yes.", "rejected": f" No {i}.", "weight": float(i)} for i in range(5)
    ]
    pairs = Dataset.from_list(rows)
    few = encode_pairs(pairs, base.model, base.tokenizer, args)
    hashed: list[Any] = []
    monkeypatch.setattr(collator, "ROWS", 2)
    monkeypatch.setattr(arrow_dataset, "generate_fingerprint", hashed.append)
    many = encode_pairs(pairs, base.model, base.tokenizer, args)
    assert not hashed and many.to_list() == few.to_list()
