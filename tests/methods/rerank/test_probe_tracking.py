"""Probes that follow: a step by hand, a representation that turns away, and a calibration that starts where it was."""

import json

import pytest
import torch
from torch import Tensor

from frugalign.methods.rerank.probe_tracking import ProbeTracker
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel


def probes(width: int = 2) -> RepresentationModel:
    found = RepresentationModel(RepresentationConfig(width=width, layers=[1], mu=0.25, scale=2.0))
    found.requires_grad_(False)
    return found


def follower(model: RepresentationModel, n: int, **options: float) -> ProbeTracker:
    given = {"learning_rate": 0.5, "margin": 1.0} | options
    return ProbeTracker(model, n, batch_size=n, seed=0, **given)  # type: ignore[arg-type]


def test_one_step_by_hand() -> None:
    """One pair, states ±(1, 2): standardised (±1, ±1), Δx = (2, 2), |Δx|² = 8. w = 0: gap 0.

    Loss −log σ(0 − 1), its slope in the gap −σ(1) = −0.7311; the gap's gradient in w is Δx = (2, 2). Step 0.5/8: w = 0.0914·(1, 1) on
    standardised states, over the scale (1, 2) on plain ones.
    """
    model = probes()
    torch.nn.init.constant_(model.weight, 0.01)  # a window of equal rewards has no temperature
    followed = follower(model, 1)
    better, worse = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[-1.0, -2.0]]])
    followed.begin(lambda numbers: (better, worse))
    torch.nn.init.zeros_(model.weight)
    followed.window = [(1.0, 0.0)]
    found = followed.step(lambda numbers: (better, worse))
    step = 0.5 / 8 * float(torch.sigmoid(torch.tensor(1.0)))
    torch.testing.assert_close(model.weight, torch.tensor([[2 * step, step]]), rtol=1e-5, atol=1e-7)
    assert found["probe/loss"] == pytest.approx(1.3132617) and found["probe/accuracy"] == 0.0


def states_of(angle: float, n: int = 64) -> tuple[Tensor, Tensor]:
    """Pairs that differ along one direction of a plane, which an angle turns."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, n, 1, 2, generator=generator)
    direction = torch.tensor([torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))])
    return noise[0] + 2 * direction, noise[1] - 2 * direction


@pytest.mark.slow
def test_probes_follow_a_direction_that_turns() -> None:
    """By a right angle in forty steps: frozen probes end at chance, those that follow do not."""
    model = probes()
    model.weight.copy_(torch.tensor([[1.0, 0.0]]))
    followed = follower(model, 64, learning_rate=1.0)
    followed.begin(lambda numbers: tuple(each[list(numbers)] for each in states_of(0.0)))  # type: ignore[return-value,arg-type]
    for step in range(1, 41):
        angle = step / 40 * 3.14159 / 2
        found = followed.step(lambda numbers, angle=angle: tuple(each[list(numbers)] for each in states_of(angle)))  # type: ignore[misc]
    better, worse = states_of(3.14159 / 2)
    frozen = float((better[:, 0, 0] > worse[:, 0, 0]).float().mean())
    assert frozen < 0.65 and found["probe/accuracy"] > 0.95
    assert float((model(better) > model(worse)).float().mean()) > 0.95


def test_the_calibration_starts_where_it_was_and_moves_with_the_scale() -> None:
    """States three times as far apart, and shifted: t̂ is three times the old one, μ moves with the mean; at no change neither does."""
    model = probes()
    model.weight.copy_(torch.tensor([[1.0, 0.5]]))
    followed = follower(model, 64, learning_rate=1e-12)
    better, worse = states_of(0.0)
    followed.begin(lambda numbers: (better[list(numbers)], worse[list(numbers)]))
    followed.step(lambda numbers: (better[list(numbers)], worse[list(numbers)]))
    assert (model.config.mu, model.config.scale) == pytest.approx((0.25, 2.0), rel=1e-5)
    for _ in range(4):  # the window forgets
        followed.step(lambda numbers: (3 * better[list(numbers)] + 1, 3 * worse[list(numbers)] + 1))
    # Weights (1, ½): a shift of 1 in both features is 1.5.
    mean = float((model(better).mean() + model(worse).mean()) / 2)
    assert model.config.scale == pytest.approx(6.0, rel=0.01)
    assert model.config.mu == pytest.approx(0.25 + 2 * mean + 1.5, abs=0.02)


def test_every_pair_comes_before_one_comes_again_and_state_goes_on() -> None:
    model = probes()
    model.weight.copy_(torch.tensor([[1.0, 0.5]]))
    better, worse = states_of(0.3, 10)
    seen: list[int] = []

    def read(numbers: list[int]) -> tuple[Tensor, Tensor]:
        seen.extend(numbers)
        return better[numbers], worse[numbers]

    followed = ProbeTracker(model, 10, learning_rate=0.5, margin=1.0, batch_size=5, seed=3)
    followed.begin(read)  # type: ignore[arg-type]
    seen.clear()
    for _ in range(4):
        followed.step(read)  # type: ignore[arg-type]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    kept = json.loads(json.dumps(followed.state()))
    other = ProbeTracker(probes(), 10, learning_rate=0.5, margin=1.0, batch_size=5, seed=3)
    other.load_state(kept)
    followed.step(read), other.step(read)  # type: ignore[arg-type]
    assert torch.equal(other.probes.weight, followed.probes.weight) and other.window == followed.window
    assert other.probes.config.scale == followed.probes.config.scale
