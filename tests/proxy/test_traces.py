"""Traces: what was rejected on the way to a token, by hand and as often as it should be."""

import pytest
import torch
from tests.proxy.scripted import SCORES, A, P, guide, scripted

from frugalign.decoding.chooser import Emission
from frugalign.decoding.noise import Noise, row_keys
from frugalign.proxy.guide import Decision, ProxyGuide


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
