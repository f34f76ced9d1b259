"""Decided positions of responses: what the proxy reads there, and what it makes of it.

They hold all that training needs of the language model, so training runs no forward pass of it. They come from a rollout, or from
a pass over stored answers (`methods/answer_features`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from frugalign.proxy import overseer
from frugalign.proxy.proposal_clocks import ProposalClocks


@dataclass
class Positions:
    """`N` decided positions, padded to `K` candidates, of which a kept tail is one.

    `sequence`, `position [N]`; `hidden [N, D]`; `ids [N, K]`, `log_p [N, K]` (proposals, −inf at padding), `mask [N, K]`; `choice [N]`;
    `rejected [N, K]`, `coin_flipped [N]`: the coin flips of the sequential overseer; `lookahead [N, K, D]`.
    """

    sequence: Tensor
    position: Tensor
    hidden: Tensor
    ids: Tensor
    log_p: Tensor
    mask: Tensor
    choice: Tensor
    rejected: Tensor | None = None
    coin_flipped: Tensor | None = None
    lookahead: Tensor | None = None

    def select(self, rows: Tensor) -> Positions:
        """The positions where `rows [N]` is true, with padding trimmed."""
        index = rows.nonzero().squeeze(-1)
        width = max(1, int(self.mask[index].sum(-1).max())) if len(index) else 1

        def pick(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value[index][:, :width] if value.dim() > 1 else value[index]

        wide: dict[str, Any] = {
            name: pick(getattr(self, name)) for name in ("ids", "log_p", "mask", "rejected", "lookahead")
        }
        narrow = {name: getattr(self, name)[index] for name in ("sequence", "position", "hidden", "choice")}
        coin_flipped = None if self.coin_flipped is None else self.coin_flipped[index]
        return replace(self, **wide, **narrow, coin_flipped=coin_flipped)

    @classmethod
    def joined(cls, parts: Sequence[Positions]) -> Positions:
        """All positions of `parts`, padded to the widest of them."""
        width = max(part.ids.shape[1] for part in parts)

        def join(name: str, fill: float = 0.0, wide: bool = True) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            if values[0] is None:
                return None
            if wide:
                trailing = [0, 0] if values[0].dim() == 3 else []
                values = [pad(value, [*trailing, 0, width - value.shape[1]], value=fill) for value in values]
            return torch.cat(values)

        narrow = {name: join(name, wide=False) for name in ("sequence", "position", "hidden", "choice", "coin_flipped")}
        wide = {name: join(name) for name in ("ids", "mask", "rejected", "lookahead")}
        return cls(**narrow, **wide, log_p=join("log_p", -math.inf))  # type: ignore[arg-type]

    @cached_property
    def clocks(self) -> ProposalClocks:
        """What a sequential overseer computes of the proposals alone, once for all steps."""
        return ProposalClocks(self.log_p, self.mask)

    def __len__(self) -> int:
        return len(self.sequence)


def log_probabilities(score: Tensor, positions: Positions, objective: overseer.Objective) -> tuple[Tensor, Tensor]:
    """Log-probability of the recorded choice at each position under the objective `[N]`, and `log π` of every candidate `[N, K]`.

    `score [N, K]`: the proxy's acceptance logits.
    """
    log_a, log_1ma = overseer.log_acceptance(score)
    if objective == "marginal":
        log_pi = overseer.marginal_log_pi(positions.log_p, log_a, positions.mask)
    else:
        log_pi = overseer.sequential_log_pi(positions.log_p, log_a, log_1ma, positions.mask, positions.clocks)
    if objective == "sequential":
        assert positions.rejected is not None and positions.coin_flipped is not None
        path = overseer.sequential_path_log_prob(
            log_a, log_1ma, positions.rejected, positions.choice, positions.coin_flipped
        )
        return path, log_pi
    return log_pi.gather(-1, positions.choice[:, None]).squeeze(-1), log_pi


def distinct(positions: Positions, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The embedding rows `[U, D]` of the distinct candidates, and the index `[N, K]` into them. The tail's index is U."""
    if rows is None:
        return None, None
    ids, index = positions.ids.unique(return_inverse=True)
    return rows[ids[ids < len(rows)]], index  # the tail's id is the vocabulary's size, the last of all
