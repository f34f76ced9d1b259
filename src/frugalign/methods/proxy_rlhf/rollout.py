"""Rollouts: completions under the current proxy, with every position that the optimisation needs.

The buffer holds the LM head's inputs, candidate ids and proposal log-probabilities, so the optimisation runs no LM forward
pass. At a position with a single candidate there is nothing to decide, and only its KL is kept. A value head needs the
states of all positions, and then all are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from frugalign.base.ledger import Ledger
from frugalign.base.quantities import KL_PARTS
from frugalign.decoding.loop import Generation, LoopOptions, SamplingParams, Step, generate
from frugalign.decoding.looping_engine import LoopingEngine
from frugalign.engines.engine import Engine
from frugalign.proxy.guide import Decision, ProxyGuide
from frugalign.proxy.overseer import entropy, expected_rejections, mass_of, relative_acceptance
from frugalign.proxy.positions import Positions

_STATISTICS = ("acceptance", "rejections_per_token", "entropy", "candidates", "capped", "tail_mass_base", "tail_mass")
_SETTLE_EVERY = 1 << 24
"""Numbers in the states of positions between two looks at which ones are decided. So many of those that are not are kept meanwhile."""


@dataclass
class Rollout:
    """Completions and decided positions of `S` sequences. `kl [S, n]` (restriction + choice) and `valid [S, n]` are per position."""

    generation: Generation
    positions: Positions
    kl: Tensor
    valid: Tensor
    statistics: dict[str, float]


class _Recorder:
    """A decoding observer that keeps what the optimisation needs.

    Everything stays on the device. Which positions are decided is looked up for many positions at once.
    """

    def __init__(self, n_sequences: int, n_positions: int, keep_all: bool, device: torch.device) -> None:
        self.kl = torch.zeros(n_sequences, n_positions, device=device)
        self.valid = torch.zeros(n_sequences, n_positions, dtype=torch.bool, device=device)
        self.keep_all = keep_all
        self._noted: list[Positions] = []
        self._decided: list[Tensor] = []
        self._parts: list[Positions] = []
        self._sums = torch.zeros(len(_STATISTICS), dtype=torch.float64, device=device)
        self.n = 0

    def __call__(self, step: Step) -> None:
        details: Decision = step.emission.details
        found, rows = details.candidates, step.rows
        assert step.emission.kl_restriction is not None and step.emission.kl_choice is not None
        self.kl[rows, step.position] = (step.emission.kl_restriction + step.emission.kl_choice).float()
        self.valid[rows, step.position] = True
        self._count(details)
        decided = found.mask.sum(-1) >= 2
        self._decided.append(torch.ones_like(decided) if self.keep_all else decided)
        self._noted.append(
            Positions(
                sequence=rows,
                position=torch.zeros_like(rows) + step.position,
                hidden=step.hidden,
                ids=found.ids,
                log_p=found.log_p,
                mask=found.mask,
                choice=details.choice,
                rejected=details.rejected,
                coin_flipped=details.coin_flipped,
                lookahead=details.lookahead,
            )
        )
        if sum(each.hidden.numel() for each in self._noted) >= _SETTLE_EVERY:
            self._settle()

    def _settle(self) -> None:
        """Keep the decided ones of the positions noted since the last time."""
        if not self._noted:
            return
        kept = Positions.joined(self._noted).select(torch.cat(self._decided))
        if len(kept):
            self._parts.append(kept)
        self._noted, self._decided = [], []

    def _count(self, details: Decision) -> None:
        found = details.candidates
        accepted = relative_acceptance(details.log_a, found.mask).gather(-1, details.choice[:, None])
        if details.rejected is not None:
            rejections = details.rejected.sum(-1).float()
        else:
            rejections = expected_rejections(found.log_p, details.log_a, found.mask)
        values = (
            accepted,
            rejections,
            entropy(details.log_pi, found.mask),
            found.mask.sum(-1),
            found.capped,
            mass_of(found.log_p, found.tail),
            mass_of(details.log_pi, found.tail),
        )
        self._sums += torch.stack([each.float().sum() for each in values])
        self.n += len(found.ids)

    def sums(self) -> dict[str, float]:
        """What is logged as means, summed over all `n` positions."""
        return dict(zip(_STATISTICS, self._sums.tolist(), strict=True))

    def positions(self) -> Positions | None:
        """All decided positions. None if there are none."""
        self._settle()
        return Positions.joined(self._parts) if self._parts else None


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


@dataclass(frozen=True)
class Recorded:
    """What one piece of a rollout gave: `S` completions and their decided positions, None without any. `kl`, `valid [S, n]`. `sums` over the
    `n_emitted` tokens give the means that are logged."""

    generation: Generation
    positions: Positions | None
    kl: Tensor
    valid: Tensor
    sums: dict[str, float]
    n_emitted: int


def sample_piece(
    engine: Engine | LoopingEngine,
    guide: ProxyGuide,
    prompt_ids: Sequence[Sequence[int]],
    keys: Tensor,
    options: RolloutOptions,
    ledger: Ledger | None = None,
) -> Recorded:
    """Sample one completion per row, and record the positions that the proxy decided."""
    recorder = _Recorder(len(prompt_ids), options.max_new_tokens, options.keep_all, engine.device)
    generation = generate(
        engine,
        prompt_ids,
        SamplingParams(max_new_tokens=options.max_new_tokens, temperature=guide.temperature),
        keys=keys,
        guide=guide,
        options=LoopOptions(batch_size=options.batch_size, observer=recorder, state_layers=options.state_layers),
        ledger=ledger,
    )
    longest = int(recorder.valid.any(0).sum())
    return Recorded(
        generation,
        recorder.positions(),
        recorder.kl[:, :longest],
        recorder.valid[:, :longest],
        recorder.sums(),
        recorder.n,
    )


def joined(pieces: Sequence[Recorded]) -> Rollout | None:
    """The pieces of a rollout as one, in this order. None if every position had a single candidate."""
    first, found = 0, []
    for piece in pieces:
        if piece.positions is not None:
            found.append(replace(piece.positions, sequence=piece.positions.sequence + first))
        first += len(piece.kl)
    if not found:
        return None
    positions = found[0] if len(found) == 1 else Positions.joined(found)
    longest = max(piece.kl.shape[1] for piece in pieces)
    device = positions.hidden.device
    kl, valid = (
        torch.cat([pad(getattr(piece, name), (0, longest - piece.kl.shape[1])) for piece in pieces]).to(device)
        for name in ("kl", "valid")
    )
    generation = _one_generation([piece.generation for piece in pieces])
    parts = {name: float(getattr(generation, name).mean()) for name in KL_PARTS}
    lengths = torch.tensor([float(len(ids)) for ids in generation.completion_ids])
    ended = torch.tensor([float(done) for done in generation.ended])
    n = max(1, sum(piece.n_emitted for piece in pieces))
    statistics = {name: sum(piece.sums[name] for piece in pieces) / n for name in pieces[0].sums} | {
        "kl": sum(parts.values()),
        **parts,
        "completion_length": float(lengths.mean()),
        "cut_share": float(1 - ended.mean()),
    }
    return Rollout(generation, positions, kl, valid, statistics)


def _one_generation(parts: Sequence[Generation]) -> Generation:
    def together(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return Generation(
        [ids for part in parts for ids in part.completion_ids],
        [ended for part in parts for ended in part.ended],
        **{name: together(name) for name in KL_PARTS},
        states=together("states"),
        traces=None,
    )


def roll_out(
    engine: Engine,
    guide: ProxyGuide,
    prompt_ids: Sequence[Sequence[int]],
    keys: Tensor,
    options: RolloutOptions,
    ledger: Ledger | None = None,
) -> Rollout | None:
    """A rollout in one piece. None if every position had a single candidate."""
    return joined([sample_piece(engine, guide, prompt_ids, keys, options, ledger)])
