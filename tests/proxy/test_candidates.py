"""Candidates by hand: the threshold, the cap, the kept tail, and the shared ones of two proxies."""

import math

import pytest
import torch
from tests.proxy.scripted import P

from frugalign.proxy.candidates import Limits, candidates, shared_candidates


def test_candidates_by_hand() -> None:
    """p = (.05, .5, .15, .3), p_t = .1: C = {1, 3, 2}, p_T(C) = .95; the second row keeps its argmax alone."""
    found = candidates(P.log(), 1.0, Limits(0.1, 256))
    assert found.ids.tolist() == [[1, 3, 2], [0, 0, 0]]
    assert found.mask.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(found.log_p[0].exp(), torch.tensor([0.5, 0.3, 0.15]) / 0.95)
    torch.testing.assert_close(found.log_mass.exp(), torch.tensor([0.95, 0.97]))
    assert found.capped.tolist() == [False, False]


def test_the_argmax_is_a_candidate_also_under_the_threshold() -> None:
    found = candidates(torch.zeros(1, 100), 1.0, Limits(0.5, 256))
    assert found.mask.sum() == 1 and math.isclose(float(found.log_mass), math.log(0.01), rel_tol=1e-5)


def test_a_threshold_of_zero_keeps_the_vocabulary_and_the_cap_is_reported() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    everything = candidates(logits, 1.0, Limits(0.0, 50))
    assert bool(everything.mask.all()) and float(everything.log_mass.abs().max()) < 1e-5
    cut = candidates(logits, 1.0, Limits(0.0, 8))
    assert cut.ids.shape == (3, 8) and bool(cut.capped.all())
    torch.testing.assert_close(cut.ids, logits.topk(8).indices)
    torch.testing.assert_close(cut.log_mass, logits.log_softmax(-1).topk(8).values.logsumexp(-1))


def test_a_large_batch_is_searched_for_the_same_candidates() -> None:
    """Where the vocabulary is large the candidates are searched for and not sorted out: the same ones, also under a cap that bites."""
    logits = 4 * torch.randn(40, 500, generator=torch.Generator().manual_seed(0))
    for p_t, cap in ((0.01, 256), (0.01, 5), (0.5, 256)):
        together = candidates(logits, 0.9, Limits(p_t, cap))
        for row in range(40):
            alone = candidates(logits[row : row + 1], 0.9, Limits(p_t, cap))
            width = alone.ids.shape[1]
            assert torch.equal(together.ids[row, :width], alone.ids[0]) and int(together.mask[row].sum()) == width
            torch.testing.assert_close(together.log_p[row, :width], alone.log_p[0])
            torch.testing.assert_close(together.log_mass[row], alone.log_mass[0])


def test_the_temperature_comes_before_the_threshold() -> None:
    """At T = 0.5 the probabilities are squared: (.0025, .25, .0225, .09)/.365; only two are above .1."""
    found = candidates(P[:1].log(), 0.5, Limits(0.1, 256))
    assert found.ids[0][found.mask[0]].tolist() == [1, 3]
    torch.testing.assert_close(found.log_mass.exp(), torch.tensor([(0.25 + 0.09) / 0.365]))


def test_a_kept_tail_is_one_more_candidate() -> None:
    """p = (.05, .5, .15, .3), p_t = .2: C = {1, 3}, the tail has .2, and nothing is renormalised."""
    found = candidates(P.log(), 1.0, Limits(0.2, 256), "keep")
    assert found.ids.tolist() == [[1, 3, 4], [0, 4, 0]]
    assert found.mask.tolist() == [[True, True, True], [True, True, False]]
    assert found.tail.tolist() == [[False, False, True], [False, True, False]]
    torch.testing.assert_close(found.log_p.exp(), torch.tensor([[0.5, 0.3, 0.2], [0.97, 0.03, 0.0]]))
    assert found.log_mass.tolist() == [0.0, 0.0]


def test_a_vocabulary_of_candidates_has_no_tail() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    found = candidates(logits, 1.0, Limits(0.0, 20), "keep")
    assert not bool(found.tail.any()) and bool(found.mask[:, :20].all()) and not bool(found.mask[:, 20].any())
    torch.testing.assert_close(found.log_p.exp().sum(-1), torch.ones(3))


def test_the_mass_of_a_tail_is_exact_however_small() -> None:
    """Where the candidates' mass rounds to one, one minus it would be zero."""
    logits = torch.tensor([[0.0, -40.0, -41.0]])
    found = candidates(logits, 1.0, Limits(0.1, 8), "keep")
    assert found.log_p[0, 1].item() == pytest.approx(-40 + math.log1p(math.exp(-1.0)), rel=1e-6)


def test_the_candidates_of_two_proxies_are_shared() -> None:
    """p_t = .01 and .2: the stricter set with the tail dropped, the wider one with it kept."""
    wide, narrow = Limits(0.01, 256), Limits(0.2, 256)
    for limits in ([wide, narrow], [narrow, wide]):
        found, own = shared_candidates(P.log(), 1.0, limits, "drop")
        assert found.ids[0][found.mask[0]].tolist() == [1, 3]
        torch.testing.assert_close(found.log_mass, candidates(P.log(), 1.0, narrow).log_mass)
        torch.testing.assert_close(found.log_p[0][found.mask[0]].exp(), torch.tensor([0.625, 0.375]))
        found, own = shared_candidates(P.log(), 1.0, limits, "keep")
        torch.testing.assert_close(found.log_p[1], candidates(P.log(), 1.0, wide, "keep").log_p[1])
        sizes = [each.sum(-1).tolist() for each in own]
        assert sorted(sizes) == [[2, 1], [4, 4]] and not any(bool((each & found.tail).any()) for each in own)


def test_two_caps_are_shared_too() -> None:
    """Neither the threshold of one nor the cap of the other lets a token in that both leave out."""
    found, own = shared_candidates(P.log(), 1.0, [Limits(0.2, 4), Limits(0.01, 1)], "keep")
    assert found.ids[0][found.mask[0]].tolist() == [1, 3, 4]
    assert [each[0].sum().item() for each in own] == [2, 1]
    torch.testing.assert_close(found.log_p[0].exp()[found.mask[0]], torch.tensor([0.5, 0.3, 0.2]))
