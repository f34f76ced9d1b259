"""π over the whole vocabulary: a distribution, of finite log-likelihoods, and the base at strength 0."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from tests.proxy.tiny_llama import llama

from frugalign.engines.transformers import embedding_rows
from frugalign.proxy.full_support import FullSupport
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import new_proxy

Tail = Literal["keep", "drop"]


def guides(tail: Tail, strength: float, objective: str = "marginal") -> tuple[ProxyGuide, torch.Tensor, torch.Tensor]:
    model = llama()
    proxy = new_proxy(model, {"tail": tail, "p_t": 0.02, "hidden": 4, "dim": 4, "objective": objective})
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    rng = torch.Generator().manual_seed(0)
    h, logits = torch.randn(5, 16, generator=rng), 2 * torch.randn(5, 60, generator=rng)
    return ProxyGuide.build([proxy], embedding_rows(model), [strength]), h, logits


@pytest.mark.parametrize("objective", ["marginal", "sequential"])
@pytest.mark.parametrize("tail", ["keep", "drop"])
def test_it_is_a_distribution_without_zeros_and_the_base_at_strength_0(tail: Tail, objective: str) -> None:
    guide, h, logits = guides(tail, 1.0, objective)
    found = FullSupport(guide).log_probs(h, logits)
    assert torch.isfinite(found).all() and torch.allclose(found.exp().sum(-1), torch.ones(5), atol=1e-6)
    log_p = torch.log_softmax(logits, -1)
    assert (found - log_p).abs().max() > 0.1
    guide, h, logits = guides(tail, 0.0, objective)
    if objective == "marginal":
        assert torch.allclose(FullSupport(guide).log_probs(h, logits), log_p, atol=1e-6)


def test_outside_the_candidates_it_is_the_base_and_inside_it_keeps_their_shares() -> None:
    guide, h, logits = guides("drop", 1.0)
    dropped, found, log_p = (
        guide.log_probs(h, logits),
        FullSupport(guide).log_probs(h, logits),
        torch.log_softmax(logits, -1),
    )
    outside = dropped == -math.inf
    assert outside.any() and torch.equal(found[outside], log_p[outside])
    for row in range(len(h)):
        inside = ~outside[row]
        mass = log_p[row][inside].exp().sum()
        assert torch.allclose(found[row][inside].exp(), dropped[row][inside].exp() * mass, atol=1e-6)
    kept, h, logits = guides("keep", 1.0)
    assert torch.equal(FullSupport(kept).log_probs(h, logits), kept.log_probs(h, logits))
