"""Candidates, strength, composition and traces against numbers by hand."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats

from frugalign.base.errors import FrugalignError
from frugalign.decoding.chooser import Emission
from frugalign.decoding.noise import Noise, row_keys
from frugalign.proxy.candidates import Limits, candidates, shared_candidates
from frugalign.proxy.guide import Decision, ProxyGuide

P = torch.tensor([[0.05, 0.5, 0.15, 0.3], [0.97, 0.01, 0.01, 0.01]])


def scripted(
    scores: list[float],
    objective: str = "marginal",
    p_t: float = 0.1,
    temperature: float = 1.0,
    tail: float | None = None,
) -> Any:
    """A proxy whose logit of token c is `scores[c]`, whatever the state, and of a kept tail `tail`."""
    config = SimpleNamespace(
        objective=objective,
        temperature=temperature,
        tail="drop" if tail is None else "keep",
        vocabulary=len(scores),
        width=2,
        p_t=p_t,
        max_candidates=4,
        candidate_features="embedding",
    )

    class Scripted:
        def __init__(self) -> None:
            self.config = config

        @property
        def limits(self) -> Limits:
            return Limits(config.p_t, config.max_candidates)

        def offset(self, log_p: torch.Tensor) -> float:
            return 0.0  # the scores are the whole of it

        def __call__(self, h: torch.Tensor, ids: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.tensor([*scores, 0.0 if tail is None else tail])[ids]

        def score_vocabulary(self, h: torch.Tensor, keys: Any) -> torch.Tensor:
            return torch.tensor([*scores, *([] if tail is None else [tail])]).expand(len(h), -1)

    return Scripted()


def guide(*proxies: Any, strengths: list[float] | None = None) -> ProxyGuide:
    return ProxyGuide(proxies, [None] * len(proxies), strengths or [1.0] * len(proxies))


def policy(found: ProxyGuide, p: torch.Tensor = P) -> torch.Tensor:
    return found.log_probs(torch.zeros(len(p), 2), p.log()).exp()


# -- candidates -------------------------------------------------------------------------------------------------------


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


def test_two_proxies_compose_on_the_intersection_if_their_tails_are_dropped() -> None:
    """log a = Σ λ_i log a_i."""
    first, second = scripted(SCORES, p_t=0.1), scripted(OTHER, p_t=0.2)
    weights = torch.tensor([0.0, 0.5 * A[1] ** 0.5 * B[1] ** 2, 0.0, 0.3 * A[3] ** 0.5 * B[3] ** 2])
    torch.testing.assert_close(policy(guide(first, second, strengths=[0.5, 2.0]))[0], weights / weights.sum())


A_TAIL, B_TAIL = 0.3, 0.8
TAIL, OTHER_TAIL = (math.log(a / (1 - a)) for a in (A_TAIL, B_TAIL))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_strength_with_a_tail(strength: float) -> None:
    """p_t = .1: token 0 is the tail, and takes a_R. λ = 0 is the base itself."""
    judged = [A_TAIL, *A[1:]]
    weights = torch.tensor([float(P[0, c]) * judged[c] ** strength for c in range(4)])
    found = policy(guide(scripted(SCORES, tail=TAIL), strengths=[strength]))[0]
    torch.testing.assert_close(found, weights / weights.sum())
    if strength == 0:
        torch.testing.assert_close(found, P[0])


@pytest.mark.parametrize("capped", [True, False])
def test_two_proxies_compose_on_the_union_if_their_tails_are_kept(capped: bool) -> None:
    """C = {1, 3, 2} and {1, 3}: 0 is in both tails, and 2 in the second proxy's."""
    first, second = scripted(SCORES, p_t=0.1, tail=TAIL), scripted(OTHER, p_t=0.2, tail=OTHER_TAIL)
    for proxy in (first, second):  # a cap of 1/p_t has no effect, so nothing need be sorted
        proxy.config.max_candidates = 4 if capped else 10
    one, two = [A_TAIL, A[1], A[2], A[3]], [B_TAIL, B[1], B_TAIL, B[3]]
    weights = torch.tensor([float(P[0, c]) * one[c] ** 0.5 * two[c] ** 2 for c in range(4)])
    torch.testing.assert_close(policy(guide(first, second, strengths=[0.5, 2.0]))[0], weights / weights.sum())


@pytest.mark.parametrize("objective", ["sequential", "sequential_integrated"])
def test_two_sequential_proxies_compose_on_the_union_too(objective: str) -> None:
    """C = {1, 3, 2} and {1, 3}, against enumeration of (1, 2, 3, tail): 2 takes the second proxy's a_R."""
    first = scripted(SCORES, objective, p_t=0.1, tail=TAIL)
    second = scripted(OTHER, objective, p_t=0.2, tail=OTHER_TAIL)
    judged = [(A[1], B[1]), (A[2], B_TAIL), (A[3], B[3]), (A_TAIL, B_TAIL)]
    whole = emission([0.5, 0.15, 0.3, 0.05], [a**0.5 * b**2 for a, b in judged])
    found = policy(guide(first, second, strengths=[0.5, 2.0]))[0]
    torch.testing.assert_close(found, torch.tensor([whole[3], *whole[:3]]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("objective", ["sequential", "sequential_integrated"])
@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_a_tail_in_the_sequential_form(strength: float, objective: str) -> None:
    """Proposed and rejected as a whole, p = (.5, .15, .3, tail .05). What it emits is drawn from p within it."""
    p, tail = torch.tensor([[0.03, 0.5, 0.15, 0.3, 0.02]]), [0, 4]
    scores = [*SCORES, 0.0]
    found = policy(guide(scripted(scores, objective, tail=TAIL), strengths=[strength]), p)[0]
    whole = emission([0.5, 0.15, 0.3, 0.05], [a**strength for a in (A[1], A[2], A[3], A_TAIL)])
    torch.testing.assert_close(found[[1, 2, 3]], torch.tensor(whole[:3]), atol=2e-6, rtol=0)
    torch.testing.assert_close(found[tail], whole[3] * torch.tensor([0.6, 0.4]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("objective", ["marginal", "sequential", "sequential_integrated"])
def test_tokens_of_the_tail_are_emitted_as_often_as_they_should(objective: str) -> None:
    """Chi-square of 20,000 draws at α = 1e-3 over the whole vocabulary."""
    p, n = torch.tensor([[0.03, 0.5, 0.15, 0.3, 0.02]]), 20_000
    found = guide(scripted([*SCORES, 0.0], objective, tail=1.0))
    noise = Noise(row_keys(0, 0, range(n), [0] * n), 0)
    token = found.emit(torch.zeros(n, 2), p.log().expand(n, 5), noise).token
    wanted = policy(found, p)[0].double()
    counts = token.bincount(minlength=5)
    assert stats.chisquare(counts.numpy(), (n * wanted / wanted.sum()).numpy()).pvalue > 1e-3
    assert counts[0] > 0 and counts[4] > 0


def test_greedy_takes_the_likeliest_token_wherever_it_is() -> None:
    """Under π: .5·.002 and .3·.002 are candidates; .12 and .08 in the tail, accepted by .5, are likelier."""
    p = torch.tensor([[0.12, 0.5, 0.08, 0.3]])
    noise = Noise(row_keys(0, 0, [0], [0]), 0)
    refusing = guide(scripted([math.log(0.002 / 0.998)] * 4, p_t=0.2, tail=0.0))
    assert refusing.emit(torch.zeros(1, 2), p.log(), noise, do_sample=False).token.item() == 0
    assert policy(refusing, p).argmax().item() == 0
    even = guide(scripted([0.0] * 4, p_t=0.2, tail=5.0))
    assert even.emit(torch.zeros(1, 2), p.log(), noise, do_sample=False).token.item() == 1


@pytest.mark.parametrize(("name", "value"), [("objective", "sequential"), ("temperature", 0.5), ("tail", 0.0)])
def test_proxies_that_do_not_compose(name: str, value: Any) -> None:
    with pytest.raises(FrugalignError, match=f"do not compose: {name} is"):
        guide(scripted(SCORES), scripted(OTHER, **{name: value}))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("tail", [None, 2.0])
@pytest.mark.parametrize("objective", ["marginal", "sequential", "sequential_integrated"])
def test_kl_of_an_emission_is_that_of_the_full_vocabulary(
    objective: str, tail: float | None, temperature: float
) -> None:
    """To the base at temperature 1, in three parts."""
    found = guide(scripted(SCORES, objective, temperature=temperature, tail=tail))
    made = found.emit(torch.zeros(2, 2), P.log(), Noise(row_keys(0, 0, [0, 1], [0, 0]), 0))
    pi = policy(found)
    wanted = torch.where(pi > 0, pi * (pi / P).log(), torch.zeros_like(pi)).sum(-1)
    assert made.kl_temperature is not None and made.kl_restriction is not None and made.kl_choice is not None
    whole = made.kl_temperature + made.kl_restriction + made.kl_choice
    torch.testing.assert_close(whole, wanted, atol=1e-5, rtol=0)
    assert bool((made.kl_temperature == 0).all()) == (temperature == 1.0)
    p_t = (P.log() / temperature).log_softmax(-1)
    among = found.log_probs(torch.zeros(2, 2), P.log())
    to_p_t = torch.where(pi > 0, pi * (among - p_t), torch.zeros_like(pi)).sum(-1)
    torch.testing.assert_close(made.kl_restriction + made.kl_choice, to_p_t, atol=1e-5, rtol=0)
    assert bool((made.kl_restriction == 0).all()) == (tail is not None)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("p_t", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("tail", [None, 2.0])
@pytest.mark.parametrize("objective", ["marginal", "sequential", "sequential_integrated"])
def test_tokens_that_the_base_rules_out_cost_nothing(
    objective: str, tail: float | None, p_t: float, temperature: float
) -> None:
    """Of four tokens, a base without the first and the last is one with two tokens."""
    logits = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]])
    noise = Noise(row_keys(0, 0, [0], [0]), 0)
    found = guide(scripted([0.1, 0.2, 1.3, 0.4], objective, p_t, temperature, tail))
    made = found.emit(torch.zeros(1, 2), logits, noise)
    alone = guide(scripted([0.2, 1.3], objective, p_t, temperature, tail))
    wanted = alone.emit(torch.zeros(1, 2), logits[:, 1:3], noise)
    for name in ("kl_temperature", "kl_restriction", "kl_choice"):
        torch.testing.assert_close(getattr(made, name), getattr(wanted, name))
    assert not bool(made.details.candidates.mask[made.details.candidates.log_p == -math.inf].any())
    torch.testing.assert_close(
        found.log_probs(torch.zeros(1, 2), logits)[:, 1:3], alone.log_probs(torch.zeros(1, 2), logits[:, 1:3])
    )


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


@pytest.mark.parametrize("tail", [None, TAIL])
@pytest.mark.parametrize("strengths", [[1.0], [0.5, 2.0]])
def test_the_dense_form_is_the_sorted_one(
    strengths: list[float], tail: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the whole vocabulary and without sorting: the same policy, for one proxy and for two."""
    proxies = [scripted(SCORES, p_t=0.1, tail=tail), scripted(OTHER, p_t=0.2, tail=tail)][: len(strengths)]
    for proxy in proxies:
        proxy.config.max_candidates = 10
    found, states = guide(*proxies, strengths=strengths), torch.zeros(2, 2)
    dense = found._dense_log_probs(states, P.log())
    assert dense is not None
    monkeypatch.setattr(ProxyGuide, "_dense_log_probs", lambda *_: None)
    torch.testing.assert_close(dense.exp(), policy(found))


@pytest.mark.parametrize("objective", ["marginal", "sequential"])
def test_many_logits_are_worked_on_some_rows_at_a_time(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows of bfloat16, two at a time: the same as at once, in float32."""
    found = guide(scripted([*SCORES, 0.0], objective, tail=1.0))
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = found.log_probs(torch.zeros(7, 2), logits)
    sizes: list[int] = []
    some = ProxyGuide._log_probs
    monkeypatch.setattr("frugalign.proxy.guide._AT_ONCE", 14)
    monkeypatch.setattr(
        ProxyGuide, "_log_probs", lambda self, h, *rest: (sizes.append(len(h)), some(self, h, *rest))[1]
    )
    parts = found.log_probs(torch.zeros(7, 2), logits)
    assert sizes == [2, 2, 2, 1] and parts.dtype == torch.float32
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_where_the_dense_form_does_not_apply() -> None:
    uncapped = scripted([0.0] * 20, p_t=0.1)
    uncapped.config.max_candidates = 10
    assert guide(uncapped)._dense_log_probs(torch.zeros(2, 2), torch.zeros(2, 20)) is None, "no token reaches p_t"
    capped = guide(scripted(SCORES, p_t=0.1))
    assert capped._dense_log_probs(torch.zeros(2, 2), P.log()) is None, "1/p_t tokens could exceed the cap"


def test_the_trace_of_a_tail_has_no_token() -> None:
    """A rejected tail is shown as one proposal, and what it emitted as the token."""
    n, p = 2000, torch.tensor([[0.1, 0.45, 0.35, 0.1]])
    noise = Noise(row_keys(0, 0, range(n), [0] * n), 0)
    found = guide(scripted([0.0] * 4, "sequential", p_t=0.2, tail=-1.0))
    made = found.emit(torch.zeros(n, 2), p.log().expand(n, 4), noise)
    traces = found.trace(made, noise)
    rejected = [token for trace in traces for token, _ in trace.rejected]
    assert None in rejected and set(rejected) <= {None, 1, 2}
    assert {trace.token for trace in traces} == {0, 1, 2, 3}
    assert all(not any(token is None for token, _ in trace.rejected) for trace in traces if trace.token in (0, 3))


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
