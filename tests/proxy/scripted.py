"""Proxies whose scores are given, and their guides."""

import math
from types import SimpleNamespace
from typing import Any

import torch

from frugalign.proxy.candidates import Limits
from frugalign.proxy.guide import ProxyGuide

P = torch.tensor([[0.05, 0.5, 0.15, 0.3], [0.97, 0.01, 0.01, 0.01]])
A = [0.9, 0.2, 0.6, 0.4]
SCORES = [math.log(a / (1 - a)) for a in A]
B = [0.5, 0.7, 0.1, 0.9]
OTHER = [math.log(a / (1 - a)) for a in B]
A_TAIL, B_TAIL = 0.3, 0.8
TAIL, OTHER_TAIL = (math.log(a / (1 - a)) for a in (A_TAIL, B_TAIL))


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
