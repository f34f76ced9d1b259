"""Records as bytes."""

from __future__ import annotations

import math

import pytest
import torch

from frugalign.workers.record import Record, pack, unpack


def test_a_record_comes_back_bit_by_bit() -> None:
    tensors = {
        "half": torch.tensor([0.1, -math.inf, 3.0], dtype=torch.bfloat16),
        "long": torch.tensor([[2**62, -1]]),
        "yes": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    values = {"ids": [[1, 2], []], "sum": 0.1 + 0.2, "text": "λ\n", "nothing": None}
    found = unpack(pack(Record(values, tensors)))
    assert found.values == values
    assert set(found.tensors) == set(tensors)
    for name, value in tensors.items():
        assert found.tensors[name].dtype == value.dtype and torch.equal(found.tensors[name], value), name


def test_a_record_without_tensors_or_values() -> None:
    assert unpack(pack(Record())) == Record({}, {})
    assert unpack(pack(Record({"a": 1}))) == Record({"a": 1}, {})


def test_what_is_no_number_is_refused() -> None:
    """JSON has no NaN; what may be NaN travels as a tensor."""
    with pytest.raises(ValueError, match="JSON"):
        pack(Record({"a": math.nan}))
