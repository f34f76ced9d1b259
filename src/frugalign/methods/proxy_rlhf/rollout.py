"""Rollouts: completions under the current proxy, with every position that the optimisation needs.

The buffer holds the LM head's inputs, candidate ids and proposal log-probabilities, so the optimisation runs no LM forward
pass. At a position with a single candidate there is nothing to decide, and only its KL is kept. A value head needs the
states of all positions, and then all are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from frugalign.base.ledger import Ledger
from frugalign.base.quantities import KL_PARTS
from frugalign.decoding.loop import Generation, LoopOptions, SamplingParams, Step, generate
from frugalign.engines.transformers import TransformersEngine
from frugalign.proxy.guide import Decision, ProxyGuide
from frugalign.proxy.overseer import entropy, expected_rejections, mass_of, relative_acceptance
from frugalign.proxy.positions import Positions


@dataclass
class Rollout:
    """Completions and decided positions of `S` sequences. `kl [S, n]` (restriction + choice) and `valid [S, n]` are per position."""

    generation: Generation
    positions: Positions
    kl: Tensor
    valid: Tensor
    statistics: dict[str, float]


class _Recorder:
    """A decoding observer that keeps what the optimisation needs."""

    def __init__(self, n_sequences: int, n_positions: int, keep_all: bool) -> None:
        self.kl = torch.zeros(n_sequences, n_positions)
        self.valid = torch.zeros(n_sequences, n_positions, dtype=torch.bool)
        self.keep_all = keep_all
        self.parts: list[Positions] = []
        self.sums: dict[str, float] = {}
        self.n = 0

    def __call__(self, step: Step) -> None:
        details: Decision = step.emission.details
        found = details.candidates
        assert step.emission.kl_restriction is not None and step.emission.kl_choice is not None
        rows = step.rows
        self.kl[rows, step.position] = (step.emission.kl_restriction + step.emission.kl_choice).float().cpu()
        self.valid[rows, step.position] = True
        self._count(details)
        decided = found.mask.sum(-1) >= 2
        if self.keep_all:
            decided = torch.ones_like(decided)
        if not bool(decided.any()):
            return
        kept, device = details.select(decided), decided.device
        self.parts.append(
            Positions(
                sequence=rows[decided.cpu()].to(device),
                position=torch.full((int(decided.sum()),), step.position, device=device),
                hidden=step.hidden[decided],
                ids=kept.candidates.ids,
                log_p=kept.candidates.log_p,
                mask=kept.candidates.mask,
                choice=kept.choice,
                rejected=kept.rejected,
                coin_flipped=kept.coin_flipped,
                lookahead=kept.lookahead,
            )
        )

    def _count(self, details: Decision) -> None:
        found = details.candidates
        accepted = relative_acceptance(details.log_a, found.mask).gather(-1, details.choice[:, None])
        if details.rejected is not None:
            rejections = details.rejected.sum(-1).float()
        else:
            rejections = expected_rejections(found.log_p, details.log_a, found.mask)
        for name, values in {
            "acceptance": accepted,
            "rejections_per_token": rejections,
            "entropy": entropy(details.log_pi, found.mask),
            "candidates": found.mask.sum(-1),
            "capped": found.capped,
            "tail_mass_base": mass_of(found.log_p, found.tail),
            "tail_mass": mass_of(details.log_pi, found.tail),
        }.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values.float().sum())
        self.n += len(found.ids)

    def positions(self) -> Positions | None:
        if not self.parts:
            return None
        width = max(part.ids.shape[1] for part in self.parts)

        def join(name: str, fill: float = 0.0, wide: bool = True) -> Tensor | None:
            values = [getattr(part, name) for part in self.parts]
            if values[0] is None:
                return None
            if wide:
                trailing = [0, 0] if values[0].dim() == 3 else []
                values = [pad(value, [*trailing, 0, width - value.shape[1]], value=fill) for value in values]
            return torch.cat(values)

        narrow = {name: join(name, wide=False) for name in ("sequence", "position", "hidden", "choice", "coin_flipped")}
        wide = {name: join(name) for name in ("ids", "mask", "rejected", "lookahead")}
        return Positions(**narrow, **wide, log_p=join("log_p", -math.inf))  # type: ignore[arg-type]


@dataclass(frozen=True)
class RolloutOptions:
    """How a rollout is sampled and what it keeps.

    Args:
        max_new_tokens: longest completion.
        batch_size: completions generated together.
        keep_all: keep positions with a single candidate, too. A value head needs their states.
        state_layers: hidden layers whose endpoint states state rewards read.
    """

    max_new_tokens: int
    batch_size: int
    keep_all: bool = False
    state_layers: Sequence[int] = ()


def roll_out(
    engine: TransformersEngine,
    guide: ProxyGuide,
    prompt_ids: list[list[int]],
    keys: Tensor,
    options: RolloutOptions,
    ledger: Ledger | None = None,
) -> Rollout | None:
    """Sample one completion per row and keep the positions that the proxy decided.

    Returns:
        None if every position had a single candidate.
    """
    recorder = _Recorder(len(prompt_ids), options.max_new_tokens, options.keep_all)
    generation = generate(
        engine,
        prompt_ids,
        SamplingParams(max_new_tokens=options.max_new_tokens, temperature=guide.temperature),
        keys=keys,
        guide=guide,
        options=LoopOptions(batch_size=options.batch_size, observer=recorder, state_layers=options.state_layers),
        ledger=ledger,
    )
    positions = recorder.positions()
    if positions is None:
        return None
    longest = int(recorder.valid.any(0).sum())
    parts = {name: float(getattr(generation, name).mean()) for name in KL_PARTS}
    lengths = torch.tensor([float(len(ids)) for ids in generation.completion_ids])
    ended = torch.tensor([float(done) for done in generation.ended])
    statistics = {name: total / max(1, recorder.n) for name, total in recorder.sums.items()} | {
        "kl": sum(parts.values()),
        **parts,
        "completion_length": float(lengths.mean()),
        "cut_share": float(1 - ended.mean()),
    }
    device = positions.hidden.device
    return Rollout(
        generation, positions, recorder.kl[:, :longest].to(device), recorder.valid[:, :longest].to(device), statistics
    )
