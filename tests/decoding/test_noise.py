"""Noise is a pure function of (seed, epoch, prompt, sample, position, stream, index), uniform, and independent across all of them."""

import numpy as np
import torch
from scipy import stats

from frugalign.decoding.noise import Noise, alternative_keys, draw, row_keys

N = 20_000


def uniforms(seed: int = 0, epoch: int = 0, position: int = 0, stream: int = 0, sample: int = 0) -> np.ndarray:
    keys = row_keys(seed, epoch, range(N), [sample] * N)
    return Noise(keys, position).uniform(stream).numpy()


def test_equal_arguments_give_equal_draws_whatever_the_batch() -> None:
    whole = Noise(row_keys(3, 1, [5, 9, 2], [0, 1, 7]), 4).uniform(0)
    for row, (prompt, sample) in enumerate([(5, 0), (9, 1), (2, 7)]):
        alone = Noise(row_keys(3, 1, [prompt], [sample]), 4).uniform(0)
        assert alone.item() == whole[row].item()


def test_alternatives_are_new_noise() -> None:
    """Uncorrelated with each other, |r| < 4/√n, and equal to the row's own noise at no position, stream or token."""
    first = row_keys(0, 0, range(N), [0] * N)
    several = [alternative_keys(first, number) for number in range(4)]
    assert torch.equal(several[0], first)
    assert len(torch.cat(several).unique()) == 4 * N
    columns = torch.stack([Noise(found, 0).uniform(0) for found in several])
    assert float((torch.corrcoef(columns) - torch.eye(4)).abs().max()) < 4 / N**0.5
    few, index = first[:50], torch.arange(20).expand(50, -1)
    own = torch.cat([Noise(few, position).uniform(stream, index) for position in range(8) for stream in range(5)])
    theirs = [Noise(found[:50], position).uniform(4) for found in several[1:] for position in range(8)]
    assert not torch.isin(torch.cat(theirs), own).any()


def test_uniform_in_the_open_interval() -> None:
    """Kolmogorov-Smirnov on 20,000 keys that differ by one in the prompt's number, at α = 1e-3."""
    for position, stream in ((0, 0), (1, 0), (0, 3), (95, 2)):
        u = uniforms(position=position, stream=stream)
        assert u.min() > 0 and u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_the_test_of_uniformity_sees_a_bias() -> None:
    assert stats.kstest(uniforms() ** 1.05, "uniform").pvalue < 1e-3


def test_every_argument_changes_the_draws_and_leaves_them_uncorrelated() -> None:
    """|r| of independent columns stays below 4/√n = 0.028 with probability 1 − 6e-5."""
    first = uniforms()
    others = [
        uniforms(seed=1),
        uniforms(epoch=1),
        uniforms(position=1),
        uniforms(stream=1),
        uniforms(sample=1),
        np.roll(first, 1),
    ]
    for other in others:
        assert not np.array_equal(first, other)
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / N**0.5


def test_negative_epochs_and_large_indices_are_keys_like_any_other() -> None:
    keys = row_keys(2**40, -1, [0, 2**50], [0, 0])
    assert keys[0] != keys[1] and keys[0] != row_keys(2**40, 1, [0], [0])[0]


def test_indexed_draws_depend_on_the_index_alone() -> None:
    """A candidate's coin is its own, in whatever column it stands."""
    noise = Noise(row_keys(0, 0, [1, 2], [0, 0]), 3)
    ids = torch.tensor([[7, 1, 4], [4, 7, 1]])
    u = noise.uniform(1, ids)
    turned = noise.uniform(1, ids.flip(1)).flip(1)
    assert torch.equal(u, turned)
    assert len(u.unique()) == 6


def test_gumbel_draws_have_the_gumbel_distribution() -> None:
    keys = row_keys(0, 0, range(N // 4), [0] * (N // 4))
    draws = Noise(keys, 0).gumbel(1, torch.arange(4).expand(N // 4, 4)).flatten().numpy()
    assert stats.kstest(draws, "gumbel_r").pvalue > 1e-3


def test_draw_follows_the_weights_and_never_takes_a_weight_of_zero() -> None:
    """Chi-square of 200,000 draws from (0.5, 0, 0.3, 0.2), unnormalised; power against a total variation of 0.02 is 1 here."""
    n = 200_000
    weights = torch.tensor([1.0, 0.0, 0.6, 0.4])
    u = Noise(row_keys(0, 0, range(n), [0] * n), 0).uniform(0)
    counts = draw(weights.expand(n, 4), u).bincount(minlength=4).numpy()
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]], n * np.array([0.5, 0.3, 0.2])).pvalue > 1e-3
    assert stats.chisquare(counts[[0, 2, 3]], n * np.array([0.48, 0.32, 0.2])).pvalue < 1e-3


def test_draw_at_the_ends_of_the_interval() -> None:
    """u → 0 takes the first column with weight, u → 1 the last, also where rounding reaches the total."""
    weights = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).expand(2, 4)
    assert draw(weights, torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [1, 2]
