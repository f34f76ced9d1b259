"""The base as a guide: draws follow the full distribution, head and tail, and hardly feel rounding."""

import math

import pytest
import torch
from scipy import stats

from frugalign.decoding.chooser import BaseGuide
from frugalign.decoding.noise import Noise, draw, row_keys

N = 100_000


def keys(n: int = N) -> torch.Tensor:
    return row_keys(0, 0, range(n), [0] * n)


@pytest.mark.parametrize(("vocabulary", "scale"), [(12, 1.5), (64, 1.0), (65, 1.0), (200, 0.7)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_full_distribution(vocabulary: int, scale: float, temperature: float) -> None:
    """Chi-square of 100,000 draws at α = 1e-3: within the 64 likeliest tokens, at their edge, and with a tail of half the mass."""
    logits = scale * torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    p = (logits / temperature).double().softmax(-1)
    token = torch.cat(
        [
            BaseGuide(temperature).emit(torch.empty(0), logits.expand(len(part), -1), Noise(part, 3)).token
            for part in keys().split(20_000)
        ]
    )
    counts = token.bincount(minlength=vocabulary).numpy()
    expected = (N * p).numpy()
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
    # The test has power where a few tokens hold the mass.
    if vocabulary == 12:
        skewed = p.roll(1) * 0.05 + p * 0.95
        assert stats.chisquare(counts, N * skewed.numpy()).pvalue < 1e-3


def test_the_tail_is_drawn_from() -> None:
    """A flat distribution over 640 tokens has nine tenths of its mass beyond the head."""
    token = BaseGuide(1.0).emit(torch.empty(0), torch.zeros(20_000, 640), Noise(keys(20_000), 0)).token
    assert len(token.unique()) == 640
    counts = token.bincount(minlength=640).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_head_that_holds_everything_leaves_no_tail() -> None:
    """All mass on one token: log(total − head) is −inf to rounding, and never wins."""
    logits = torch.full((1000, 300), -80.0)
    logits[:, 7] = 10.0
    assert set(BaseGuide(1.0).emit(torch.empty(0), logits, Noise(keys(1000), 0)).token.tolist()) == {7}


@pytest.mark.slow
def test_rounding_changes_draws_more_rarely_than_an_inverse_cdf_would() -> None:
    """Logits perturbed by 1e-5, as another batch size does: far fewer draws move than with an inverse CDF."""
    logits = 1.8 * torch.randn(2000, 300, generator=torch.Generator().manual_seed(0))
    other = logits + 1e-5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    moved = moved_cdf = 0
    for position in range(60):
        noise = Noise(keys(2000), position)
        first, second = (BaseGuide(1.0).emit(torch.empty(0), x, noise).token for x in (logits, other))
        moved += int((first != second).sum())
        u = noise.uniform(0)
        moved_cdf += int((draw(logits.softmax(-1), u) != draw(other.softmax(-1), u)).sum())
    assert moved_cdf >= 10
    assert moved <= moved_cdf / 3


def test_greedy_takes_the_likeliest_and_has_no_divergence() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    emission = BaseGuide(1.0).emit(torch.empty(0), logits, Noise(keys(2), 0), do_sample=False)
    assert emission.token.tolist() == [1, 0]
    assert emission.kl_choice is None and emission.kl_restriction is None
    assert [entry.acceptance for entry in BaseGuide(1.0).trace(emission, Noise(keys(2), 0))] == [None, None]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_the_kl_of_the_base_is_that_of_its_temperature(temperature: float) -> None:
    """KL(p_T ‖ p_1), and nothing else."""
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    found = BaseGuide(temperature).emit(torch.empty(0), logits, Noise(keys(2), 0))
    log_p, at_one = (logits / temperature).log_softmax(-1), logits.log_softmax(-1)
    assert found.kl_temperature is not None and found.kl_choice is not None
    torch.testing.assert_close(found.kl_temperature, (log_p.exp() * (log_p - at_one)).sum(-1))
    assert float(found.kl_choice.abs().max()) == 0.0


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
def test_tokens_that_the_base_rules_out_add_nothing_to_its_kl(lowest: float) -> None:
    """Some models set the logits of image tokens to the lowest number, which overflows at a low temperature."""
    logits = torch.tensor([[lowest, 1.0, 2.0, lowest]])
    found, wanted = (BaseGuide(0.5).emit(torch.empty(0), x, Noise(keys(1), 0)) for x in (logits, logits[:, 1:3]))
    assert found.kl_temperature is not None and wanted.kl_temperature is not None
    torch.testing.assert_close(found.kl_temperature, wanted.kl_temperature)


def test_log_probs_are_those_of_the_model_at_its_temperature() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(BaseGuide(0.5).log_probs(torch.empty(0), logits), (logits / 0.5).log_softmax(-1))
