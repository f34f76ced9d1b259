"""The proxy's loss: its gradient against enumeration and finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from frugalign.methods.proxy_rlhf.loss import Minibatch, proxy_loss
from frugalign.proxy import overseer
from frugalign.proxy.network import ProxyModel, ProxyModelConfig
from frugalign.proxy.positions import Positions, distinct, log_probabilities

OBJECTIVES = ["marginal", "sequential", "sequential_integrated"]
WIDTH, VOCABULARY = 4, 3


def random_proxy(seed: int = 0, **options: Any) -> ProxyModel:
    """A proxy in float64 all of whose weights are drawn: a fresh one scores every candidate alike."""
    torch.manual_seed(seed)
    config = ProxyModelConfig(**{"width": WIDTH, "vocabulary": VOCABULARY, "hidden": 3, "dim": 3} | options)
    proxy = ProxyModel(config).double()
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.normal_(0.0, 0.7)
    return proxy


def at(
    hidden: Tensor, log_p: Tensor, choice: int, rejected: list[bool] | None = None, coin_flipped: bool | None = None
) -> Positions:
    """One position with the candidates 0, 1, 2."""
    return Positions(
        sequence=torch.tensor([0]),
        position=torch.tensor([0]),
        hidden=hidden[None],
        ids=torch.arange(VOCABULARY)[None],
        log_p=log_p[None],
        mask=torch.ones(1, VOCABULARY, dtype=torch.bool),
        choice=torch.tensor([choice]),
        rejected=None if rejected is None else torch.tensor([rejected]),
        coin_flipped=None if coin_flipped is None else torch.tensor([coin_flipped]),
        lookahead=None,
    )


def joined(parts: list[Positions]) -> Positions:
    values = {name: [getattr(part, name) for part in parts] for name in (field.name for field in fields(Positions))}
    return Positions(**{name: None if value[0] is None else torch.cat(value) for name, value in values.items()})


class Toy:
    """Two positions, three candidates; the state at the second depends on the first; every pair has a reward of its own.

    `tail`: the third is the tail of a vocabulary of two.
    """

    def __init__(self, tail: bool = False) -> None:
        generator = torch.Generator().manual_seed(5)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.rewards = 2 * normal(VOCABULARY, VOCABULARY)
        self.embeddings = normal(VOCABULARY, WIDTH)[: VOCABULARY - tail]
        self.hidden = normal(1 + VOCABULARY, WIDTH)
        self.log_p = torch.log_softmax(1.5 * normal(1 + VOCABULARY, VOCABULARY), -1)

    def acts(self, state: int, objective: str) -> Iterator[tuple[float, Positions]]:
        """(probability with which the base orders it, what was done at `state`); the overseer's own factor is left to the proxy."""
        hidden, log_p = self.hidden[state], self.log_p[state]
        if objective != "sequential":
            yield from ((1.0, at(hidden, log_p, choice)) for choice in range(VOCABULARY))
            return
        for length in range(1, VOCABULARY + 1):
            for prefix in itertools.permutations(range(VOCABULARY), length):
                weight, left = 1.0, 1.0
                for c in prefix:
                    weight, left = weight * float(log_p[c].exp()) / left, left - float(log_p[c].exp())
                turned_down = [c in prefix[:-1] for c in range(VOCABULARY)]
                yield weight, at(hidden, log_p, prefix[-1], turned_down, length < VOCABULARY)

    def log_pi_and_kl(self, proxy: ProxyModel, act: Positions, objective: Any) -> tuple[Tensor, Tensor]:
        rows, index = distinct(act, self.embeddings)
        score = proxy(act.hidden, act.ids, embeddings=rows, index=index)
        log_prob, log_pi = log_probabilities(score, act, objective)
        return log_prob[0], overseer.kl_choice(log_pi, act.log_p, act.mask)[0]

    def paths(self, proxy: ProxyModel, objective: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Positions, Positions]]:
        """(probability, KL at the first position, KL at the second, what was done at each) of every whole path."""
        for weight, first in self.acts(0, objective):
            log_first, kl_first = self.log_pi_and_kl(proxy, first, objective)
            for other, second in self.acts(1 + int(first.choice), objective):
                log_second, kl_second = self.log_pi_and_kl(proxy, second, objective)
                yield weight * other * (log_first + log_second).exp(), kl_first, kl_second, first, second


def gradients(value: Tensor, proxy: ProxyModel) -> Tensor:
    parts = torch.autograd.grad(value, list(proxy.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if part is None else part.flatten()
            for p, part in zip(proxy.parameters(), parts, strict=True)
        ]
    )


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.slow
def test_the_expected_policy_gradient_is_the_exact_gradient(objective: Any, tail: bool) -> None:
    """Σ_y π(y) ∇ proxy_loss(y) = −∇ (E[r] − β E[Σ_t KL_t]), with A_t = r − β Σ_{t'>t} KL_{t'}, on all 9 sequences (225 paths of flips)."""
    toy, beta = Toy(tail), 1.0
    proxy = random_proxy(vocabulary=VOCABULARY - tail, tail="keep" if tail else "drop")
    exact, total = torch.zeros((), dtype=torch.float64), 0.0
    estimate = torch.zeros(sum(p.numel() for p in proxy.parameters()), dtype=torch.float64)
    without_future = estimate.clone()
    for probability, kl_first, kl_second, first, second in toy.paths(proxy, objective):
        reward = toy.rewards[first.choice, second.choice].squeeze()
        exact = exact + probability * (reward - beta * (kl_first + kl_second))
        total += float(probability.detach())
        both = joined([first, second])
        rows, index = distinct(both, toy.embeddings)
        with torch.no_grad():
            score = proxy(both.hidden, both.ids, embeddings=rows, index=index)
            old, old_log_pi = log_probabilities(score, both, objective)
        for to_go, sink in ((beta * kl_second, estimate), (torch.zeros_like(kl_second), without_future)):
            advantage = torch.stack([reward - to_go, reward]).detach()
            batch = Minibatch(both, rows, index, advantage, None, old, old_log_pi, kl_weight=beta, n_sequences=1)
            loss, logs = proxy_loss(proxy, batch, objective, 0.2, 0.5)
            assert logs["clip_fraction"] == 0.0
            sink += float(probability.detach()) * gradients(loss, proxy)
    assert total == pytest.approx(1.0, abs=1e-9)
    if tail:
        (of_tail,) = torch.autograd.grad(exact, proxy.tail_key, retain_graph=True)
        assert float(of_tail.abs().max()) > 1e-3
    expected = -gradients(exact, proxy)
    assert float(expected.abs().max()) > 0.05
    torch.testing.assert_close(estimate, expected, atol=1e-5, rtol=0)
    # The KL that an early choice leads to is part of its advantage: without it the gradient is another one.
    assert float((without_future - expected).abs().max()) > 1e-3


def random_batch(objective: str, n: int = 12, value: bool = False) -> tuple[Minibatch, Tensor]:
    generator = torch.Generator().manual_seed(7)
    toy = Toy()
    acts = [act for state in range(4) for _, act in toy.acts(state, objective)]
    positions = joined([acts[int(i)] for i in torch.randint(len(acts), (n,), generator=generator)])
    rows, index = distinct(positions, toy.embeddings)
    advantage = torch.randn(n, generator=generator, dtype=torch.float64)
    returns = torch.randn(n, generator=generator, dtype=torch.float64) if value else None
    old = torch.zeros(n, dtype=torch.float64)
    batch = Minibatch(positions, rows, index, advantage, returns, old, positions.log_p, kl_weight=0.4, n_sequences=5)
    return batch, toy.embeddings


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("value", [False, True])
def test_gradient_of_the_loss_by_finite_differences(objective: Any, value: bool) -> None:
    """(L(w + ε) − L(w − ε)) / 2ε for every weight, away from ratio 1, where some clips are active and others not."""
    proxy = random_proxy(1, value_head=value)
    batch, _ = random_batch(objective, value=value)
    with torch.no_grad():
        score = proxy(batch.positions.hidden, batch.positions.ids, embeddings=batch.embeddings, index=batch.index)
        now, _ = log_probabilities(score, batch.positions, objective)
        batch.old_log_prob = now + 0.35 * torch.sin(torch.arange(len(now), dtype=torch.float64))
    loss, logs = proxy_loss(proxy, batch, objective, 0.2, 0.5)
    assert 0 < logs["clip_fraction"] < 1
    assert ("value_loss" in logs) is value
    analytic = gradients(loss, proxy)
    numeric = []
    with torch.no_grad():
        for parameter in proxy.parameters():
            flat = parameter.view(-1)
            for place in range(len(flat)):
                sides = []
                for sign in (1, -1):
                    flat[place] += sign * 1e-6
                    sides.append(float(proxy_loss(proxy, batch, objective, 0.2, 0.5)[0]))
                    flat[place] -= sign * 1e-6
                numeric.append((sides[0] - sides[1]) / 2e-6)
    torch.testing.assert_close(analytic, torch.tensor(numeric, dtype=torch.float64), atol=1e-7, rtol=1e-5)
    assert float(analytic.abs().max()) > 0.01


def test_loss_worked_number() -> None:
    """An untrained marginal overseer is p: KL 0, ratio 1, so the loss is −ΣA/S; with targets 1 and V = 0 it adds ½·1."""
    batch, _ = random_batch("marginal", value=True)
    batch.returns = torch.ones_like(batch.advantage)
    proxy = ProxyModel(ProxyModelConfig(width=WIDTH, vocabulary=VOCABULARY, hidden=3, dim=3, value_head=True)).double()
    batch.old_log_prob = batch.positions.log_p.gather(-1, batch.positions.choice[:, None]).squeeze(-1)
    loss, logs = proxy_loss(proxy, batch, "marginal", 0.2, 0.5)
    assert float(loss.detach()) == pytest.approx(-float(batch.advantage.sum()) / 5 + 0.5)
    assert logs == {"clip_fraction": 0.0, "value_loss": pytest.approx(1.0)}


def test_distinct_candidates_are_few_rows_and_an_index() -> None:
    """Ids (7, 2), (2, 9): rows of 2, 7, 9, and the index leads back to each candidate's own row."""
    embeddings = torch.arange(20.0).reshape(10, 2)
    positions = joined([at(torch.zeros(WIDTH), torch.zeros(VOCABULARY), 0)] * 2)
    positions.ids = torch.tensor([[7, 2], [2, 9]])
    rows, index = distinct(positions, embeddings)
    assert rows is not None and index is not None
    assert rows.tolist() == embeddings[[2, 7, 9]].tolist()
    assert torch.equal(rows[index], embeddings[positions.ids])
    assert distinct(positions, None) == (None, None)
