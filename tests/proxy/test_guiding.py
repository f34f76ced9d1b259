"""Candidates, strength, composition and traces against numbers by hand."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from frugalign.base.errors import FrugalignError
from frugalign.decoding.chooser import Emission
from frugalign.decoding.noise import Noise, row_keys
from frugalign.proxy.candidates import candidates, intersect
from frugalign.proxy.guide import Decision, ProxyGuide

P = torch.tensor([[0.05, 0.5, 0.15, 0.3], [0.97, 0.01, 0.01, 0.01]])


def scripted(scores: list[float], objective: str = "marginal", p_t: float = 0.1, temperature: float = 1.0) -> Any:
    """A proxy whose logit of token c is `scores[c]`, whatever the state."""
    config = SimpleNamespace(
        objective=objective,
        temperature=temperature,
        vocabulary=len(scores),
        width=2,
        p_t=p_t,
        max_candidates=4,
        candidate_features="embedding",
    )

    class Scripted:
        def __init__(self) -> None:
            self.config = config

        def __call__(self, h: torch.Tensor, ids: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.tensor(scores)[ids]

    return Scripted()


def guide(*proxies: Any, strengths: list[float] | None = None) -> ProxyGuide:
    return ProxyGuide(proxies, [None] * len(proxies), strengths or [1.0] * len(proxies))


def policy(found: ProxyGuide, p: torch.Tensor = P) -> torch.Tensor:
    ids, log_pi = found.log_probs(torch.zeros(len(p), 2), p.log())
    return torch.zeros(len(p), p.shape[1]).scatter_add_(-1, ids, log_pi.exp())


# -- candidates -------------------------------------------------------------------------------------------------------


def test_candidates_by_hand() -> None:
    """p = (.05, .5, .15, .3), p_t = .1: C = {1, 3, 2}, p_T(C) = .95; the second row keeps its argmax alone."""
    found = candidates(P.log(), 1.0, 0.1, 256)
    assert found.ids.tolist() == [[1, 3, 2], [0, 0, 0]]
    assert found.mask.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(found.log_p[0].exp(), torch.tensor([0.5, 0.3, 0.15]) / 0.95)
    torch.testing.assert_close(found.log_mass.exp(), torch.tensor([0.95, 0.97]))
    assert found.capped.tolist() == [False, False]


def test_the_argmax_is_a_candidate_also_under_the_threshold() -> None:
    found = candidates(torch.zeros(1, 100), 1.0, 0.5, 256)
    assert found.mask.sum() == 1 and math.isclose(float(found.log_mass), math.log(0.01), rel_tol=1e-5)


def test_a_threshold_of_zero_keeps_the_vocabulary_and_the_cap_is_reported() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    everything = candidates(logits, 1.0, 0.0, 50)
    assert bool(everything.mask.all()) and float(everything.log_mass.abs().max()) < 1e-5
    cut = candidates(logits, 1.0, 0.0, 8)
    assert cut.ids.shape == (3, 8) and bool(cut.capped.all())
    torch.testing.assert_close(cut.ids, logits.topk(8).indices)
    torch.testing.assert_close(cut.log_mass, logits.log_softmax(-1).topk(8).values.logsumexp(-1))


def test_a_large_batch_is_searched_for_the_same_candidates() -> None:
    """Where the vocabulary is large the candidates are searched for and not sorted out: the same ones, also under a cap that bites."""
    logits = 4 * torch.randn(40, 500, generator=torch.Generator().manual_seed(0))
    for p_t, cap in ((0.01, 256), (0.01, 5), (0.5, 256)):
        together = candidates(logits, 0.9, p_t, cap)
        for row in range(40):
            alone = candidates(logits[row : row + 1], 0.9, p_t, cap)
            width = alone.ids.shape[1]
            assert torch.equal(together.ids[row, :width], alone.ids[0]) and int(together.mask[row].sum()) == width
            torch.testing.assert_close(together.log_p[row, :width], alone.log_p[0])
            torch.testing.assert_close(together.log_mass[row], alone.log_mass[0])


def test_the_temperature_comes_before_the_threshold() -> None:
    """At T = 0.5 the probabilities are squared: (.0025, .25, .0225, .09)/.365; only two are above .1."""
    found = candidates(P[:1].log(), 0.5, 0.1, 256)
    assert found.ids[0][found.mask[0]].tolist() == [1, 3]
    torch.testing.assert_close(found.log_mass.exp(), torch.tensor([(0.25 + 0.09) / 0.365]))


def test_the_intersection_of_two_thresholds_is_the_stricter_one() -> None:
    wide, narrow = candidates(P.log(), 1.0, 0.01, 256), candidates(P.log(), 1.0, 0.2, 256)
    for found in (intersect(wide, narrow), intersect(narrow, wide)):
        assert sorted(found.ids[0][found.mask[0]].tolist()) == [1, 3]
        torch.testing.assert_close(found.log_mass, narrow.log_mass)
        torch.testing.assert_close(found.log_p[0][found.mask[0]].exp(), torch.tensor([0.625, 0.375]))


# -- strength and composition -----------------------------------------------------------------------------------------

A = [0.9, 0.2, 0.6, 0.4]
SCORES = [math.log(a / (1 - a)) for a in A]
B = [0.5, 0.7, 0.1, 0.9]
OTHER = [math.log(a / (1 - a)) for a in B]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_strength_of_the_marginal_form(strength: float) -> None:
    """π ∝ p·a^λ on C = {1, 2, 3}; λ = 0 is the restricted base."""
    weights = torch.tensor([0.0, *(float(P[0, c]) * A[c] ** strength for c in (1, 2, 3))])
    torch.testing.assert_close(policy(guide(scripted(SCORES), strengths=[strength]))[0], weights / weights.sum())


def emission(p: list[float], a: list[float]) -> list[float]:
    """The sequential process by enumeration of every order: accept in turn, the last one unasked."""
    total = [0.0] * len(p)
    for order in itertools.permutations(range(len(p))):
        probability, left = 1.0, sum(p)
        for place, c in enumerate(order):
            probability *= p[c] / left
            left -= p[c]
            if place == len(order) - 1:
                break
        alive = probability
        for place, c in enumerate(order):
            take = 1.0 if place == len(order) - 1 else a[c]
            total[c] += alive * take
            alive *= 1 - take
    return total


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_strength_of_the_sequential_form(strength: float) -> None:
    """It accepts with a^λ; λ = 0 accepts everything."""
    p = [float(P[0, c]) / 0.95 for c in (1, 2, 3)]
    wanted = [0.0, *emission(p, [A[c] ** strength for c in (1, 2, 3)])]
    found = policy(guide(scripted(SCORES, "sequential"), strengths=[strength]))[0]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=2e-6, rtol=0)


def test_two_proxies_compose() -> None:
    """C is the intersection, log a = Σ λ_i log a_i."""
    first, second = scripted(SCORES, p_t=0.1), scripted(OTHER, p_t=0.2)
    weights = torch.tensor([0.0, 0.5 * A[1] ** 0.5 * B[1] ** 2, 0.0, 0.3 * A[3] ** 0.5 * B[3] ** 2])
    torch.testing.assert_close(policy(guide(first, second, strengths=[0.5, 2.0]))[0], weights / weights.sum())


@pytest.mark.parametrize(("name", "value"), [("objective", "sequential"), ("temperature", 0.5)])
def test_proxies_that_do_not_compose(name: str, value: Any) -> None:
    with pytest.raises(FrugalignError, match=f"do not compose: {name} is"):
        guide(scripted(SCORES), scripted(OTHER, **{name: value}))


@pytest.mark.parametrize("objective", ["marginal", "sequential", "sequential_integrated"])
def test_kl_of_an_emission_is_that_of_the_full_vocabulary(objective: str) -> None:
    found = guide(scripted(SCORES, objective))
    made = found.emit(torch.zeros(2, 2), P.log(), Noise(row_keys(0, 0, [0, 1], [0, 0]), 0))
    pi = policy(found)
    wanted = torch.where(pi > 0, pi * (pi / P).log(), torch.zeros_like(pi)).sum(-1)
    assert made.kl_restriction is not None and made.kl_choice is not None
    torch.testing.assert_close(made.kl_restriction + made.kl_choice, wanted, atol=1e-5, rtol=0)


# -- traces -----------------------------------------------------------------------------------------------------------


def emitted(objective: str, n: int, do_sample: bool = True) -> tuple[ProxyGuide, Emission, Noise]:
    found = guide(scripted(SCORES, objective))
    noise = Noise(row_keys(0, 0, range(n), [0] * n), 0)
    return found, found.emit(torch.zeros(n, 2), P[:1].expand(n, 4).log(), noise, do_sample=do_sample), noise


@pytest.mark.slow
def test_the_marginal_trace_rejects_as_often_as_it_should() -> None:
    """Mean of the geometric number 1/Σ p·ã − 1, here .95/(.5·.2 + .15·.6 + .3·.4)·.6 − 1 = 0.839, cut at 8."""
    found, made, noise = emitted("marginal", 6000)
    counts = torch.tensor([float(len(trace.rejected)) for trace in found.trace(made, noise)])
    kept = sum(float(P[0, c]) * A[c] for c in (1, 2, 3)) / 0.95 / 0.6
    wanted = 1 / kept - 1
    assert abs(float(counts.mean()) - wanted) < 4 * float(counts.std()) / 6000**0.5 + 9 * (1 - kept) ** 9
    best = [trace for trace in found.trace(made, noise) if trace.token == 2]
    assert {trace.acceptance for trace in best} == {1.0}, "relative to the best candidate"


def test_the_sequential_trace_is_the_coin_flips() -> None:
    """Rejected proposals are distinct, never the emitted token, and as frequent as the process says."""
    found, made, noise = emitted("sequential", 6000)
    traces = found.trace(made, noise)
    for trace in traces:
        tokens = [token for token, _ in trace.rejected]
        assert len(set(tokens)) == len(tokens) and trace.token not in tokens
    p = {c: float(P[0, c]) / 0.95 for c in (1, 2, 3)}
    first_rejected = sum(p[c] * (1 - A[c]) for c in p)
    share = sum(bool(trace.rejected) for trace in traces) / 6000
    assert abs(share - first_rejected) < 4 * (first_rejected * (1 - first_rejected) / 6000) ** 0.5


@pytest.mark.slow
def test_the_integrated_trace_replays_the_same_process() -> None:
    """Joint distribution of (emitted, set of rejected) equals that of the coin-flipping form, which it never ran."""
    shares = []
    for objective in ("sequential", "sequential_integrated"):
        found, made, noise = emitted(objective, 6000)
        outcomes = [
            (trace.token, frozenset(token for token, _ in trace.rejected)) for trace in found.trace(made, noise)
        ]
        shares.append({outcome: outcomes.count(outcome) / 6000 for outcome in set(outcomes)})
    for outcome in set(shares[0]) | set(shares[1]):
        first, second = (share.get(outcome, 0.0) for share in shares)
        assert abs(first - second) < 5 * (max(first, second, 1e-3) * 2 / 6000) ** 0.5


def test_greedy_traces_and_positions_without_a_choice() -> None:
    """Greedy proposes in descending p: 1 (a = .2), 3 (.4), 2 (.6); sequential takes the first a ≥ ½, which is 2."""
    found, made, noise = emitted("sequential", 1, do_sample=False)
    trace = found.trace(made, noise)[0]
    assert trace.token == 2 and [token for token, _ in trace.rejected] == [1, 3]
    alone = guide(scripted(SCORES))
    made = alone.emit(torch.zeros(1, 2), P[1:].log(), Noise(row_keys(0, 0, [0], [0]), 0))
    trace = alone.trace(made, Noise(row_keys(0, 0, [0], [0]), 0))[0]
    assert (trace.token, trace.acceptance, trace.rejected) == (0, None, ())


def test_a_decision_can_be_narrowed_to_some_rows() -> None:
    _, made, _ = emitted("sequential", 6)
    decision: Decision = made.details
    rows = torch.tensor([True, False, False, True, False, False])
    part = decision.select(rows)
    assert (
        torch.equal(part.choice, decision.choice[rows]) and part.rejected is not None and decision.rejected is not None
    )
    assert torch.equal(part.rejected, decision.rejected[rows]) and len(part.candidates.ids) == 2


@pytest.mark.parametrize("strengths", [[1.0], [0.5, 2.0]])
def test_the_dense_form_is_the_sorted_one(strengths: list[float]) -> None:
    """Over the whole vocabulary and without sorting: the same policy, for one proxy and for two."""

    def scoring(scores: list[float], p_t: float) -> Any:
        found = scripted(scores, p_t=p_t)
        found.config.max_candidates = 10
        found.score_vocabulary = lambda h, keys: torch.tensor(scores).expand(len(h), -1)
        return found

    proxies = [scoring(SCORES, 0.1), scoring(OTHER, 0.2)][: len(strengths)]
    found = guide(*proxies, strengths=strengths)
    dense = found.dense_log_probs(torch.zeros(2, 2), P.log())
    assert dense is not None
    torch.testing.assert_close(dense.exp(), policy(found))
    flat = torch.zeros(2, 20)
    assert guide(scoring([0.0] * 20, 0.1)).dense_log_probs(torch.zeros(2, 2), flat) is None, "no token reaches p_t"
    proxies[0].config.max_candidates = 4
    found = guide(*proxies, strengths=strengths)
    assert found.dense_log_probs(torch.zeros(2, 2), P.log()) is None, "1/p_t tokens could exceed the cap"


def test_a_greedy_trace_where_nothing_was_accepted() -> None:
    """a < ½ everywhere: all were asked and turned down before argmax p·a = 2 (.15·.45) over 1 (.5·.1) and 3 (.3·.2)."""
    scores = torch.tensor([0.1, 0.1, 0.45, 0.2]).logit().tolist()
    noise = Noise(row_keys(0, 0, [0], [0]), 0)
    found = guide(scripted(scores, "sequential"))
    trace = found.trace(found.emit(torch.zeros(1, 2), P[:1].log(), noise, do_sample=False), noise)[0]
    assert trace.token == 2 and [token for token, _ in trace.rejected] == [1, 3]


def test_a_trace_of_composed_proxies_shows_shared_candidates_only() -> None:
    """C = {1, 3, 2} ∩ {1, 3} = {1, 3}: 3 is best, 1 was turned down, 2 was never proposed."""
    pair = [scripted([0.0, -5.0, 0.0, 5.0], "sequential", p_t) for p_t in (0.1, 0.2)]
    noise = Noise(row_keys(0, 0, [0], [0]), 0)
    found = guide(*pair)
    trace = found.trace(found.emit(torch.zeros(1, 2), P[:1].log(), noise, do_sample=False), noise)[0]
    assert trace.token == 3 and [token for token, _ in trace.rejected] == [1]
