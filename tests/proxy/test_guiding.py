"""Strength and composition against numbers by hand."""

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from tests.proxy.scripted import A_TAIL, B_TAIL, OTHER, OTHER_TAIL, SCORES, TAIL, A, B, P, guide, policy, scripted

from frugalign.base.errors import FrugalignError
from frugalign.decoding.noise import Noise, row_keys
from frugalign.proxy.guide import ProxyGuide


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


@pytest.mark.parametrize("objective", ["marginal", "sequential_integrated"])
def test_a_union_of_the_whole_vocabulary_leaves_each_proxy_its_tail(objective: str) -> None:
    """C = {0, 1, 2, 3} and {1, 3}: there is no joint tail, and 0 and 2 are in the second proxy's."""
    first = scripted(SCORES, objective, p_t=0.01, tail=TAIL)
    second = scripted(OTHER, objective, p_t=0.2, tail=OTHER_TAIL)
    judged = [A[c] ** 0.5 * (B[c] if c in (1, 3) else B_TAIL) ** 2 for c in range(4)]
    p = [float(each) for each in P[0]]
    weights = [p[c] * judged[c] for c in range(4)]
    wanted = [each / sum(weights) for each in weights] if objective == "marginal" else emission(p, judged)
    found = policy(guide(first, second, strengths=[0.5, 2.0]))[0]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=2e-6, rtol=0)


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
