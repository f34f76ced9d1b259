"""What holds the KL of stored answers."""

from __future__ import annotations

import pytest
import torch

from frugalign.methods.brake import Brake


def test_a_step_after_one_beyond_the_target_is_the_kl_alone() -> None:
    brake, loss, kl = Brake(0.02, 2.0, slope=0.1), torch.tensor(3.0), torch.tensor(0.5)
    for length, expected in ((8.0, 3.01), (1.0, 0.5), (1.0, 3.01)):  # ten times the slope on the way back
        assert float(brake.applied(loss, kl, length)) == pytest.approx(expected)
        brake.end_step()
    assert brake.last == 0.5 and not brake.is_beyond


def test_a_step_counts_once_whatever_its_micro_batches() -> None:
    brake = Brake(0.0, 2.0)
    for kl in (1.0, 5.0):
        assert not brake.is_beyond
        brake.applied(torch.tensor(0.0), torch.tensor(kl))
    brake.end_step()
    assert brake.last == 3.0 and brake.is_beyond
    brake.end_step()
    assert brake.last == 3.0, "a step without a measured KL changes nothing"


def test_without_a_target_it_is_a_constant_weight() -> None:
    brake = Brake(0.02, None)
    for _ in range(2):
        assert float(brake.applied(torch.tensor(1.0), torch.tensor(100.0))) == pytest.approx(3.0)
        brake.end_step()
