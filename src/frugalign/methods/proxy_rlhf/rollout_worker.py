"""Rollouts in pieces: workers that hold the frozen base, and complete prompts under the proxy that is shared with them each round.

A piece is some prompts with all of their responses. Its record depends on nothing but its content, since the noise is keyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frugalign.base.ledger import Ledger
from frugalign.base.progress import SAMPLED
from frugalign.base.quantities import KL_PARTS
from frugalign.decoding.loop import Generation
from frugalign.engines.fingerprints import BaseFingerprint
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import TransformersEngine, device_of
from frugalign.methods.base_workers import asks_for_workers, engine_of, open_pool
from frugalign.methods.proxy_rlhf.rollout import Recorded, Rollout, RolloutOptions, joined, sample_piece
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel, proxy_of, settings_of
from frugalign.proxy.positions import Positions
from frugalign.workers.pool import LocalPool, Pool
from frugalign.workers.record import Piece, Record

if TYPE_CHECKING:
    from frugalign.decoding.vllm import VllmEngine

_COUNTED = ("lm_forward_tokens", "generated_tokens")
_PREFIX = "positions."


class RolloutWorker:
    """Completes prompts with a base and the proxy that was shared last.

    `travels`: the records leave this process. Then states are in the base's own dtype and ids are short, which loses nothing.
    """

    def __init__(self, engine: TransformersEngine | VllmEngine, *, travels: bool = False) -> None:
        self._engine, self._travels = engine, travels
        self._guide: ProxyGuide

    def share(self, record: Record) -> None:
        proxy = proxy_of(record.values["proxy"], record.tensors)
        self._guide = ProxyGuide.build([proxy], self._engine.output_embeddings())

    def answer(self, piece: Record) -> Record:
        spent = Ledger()
        found = sample_piece(
            self._engine,
            self._guide,
            piece.values["prompt_ids"],
            piece.tensors["keys"],
            RolloutOptions(**piece.values["options"]),
            spent,
        )
        return _to_record(found, spent, self._engine.dtype if self._travels else None)


def worker_on(about: Record) -> RolloutWorker:
    """A worker in a process of its own."""
    return RolloutWorker(engine_of(about), travels=True)


def rollouts_of(base: LoadedModel, about: BaseFingerprint, args: Any) -> Rollouts:
    """How a trainer with `args` makes its rollouts: in this process, or by workers on Ray."""
    if asks_for_workers(args):
        pool: Pool = open_pool(args, base, about, f"{__name__}:{worker_on.__name__}")
    else:
        pool = LocalPool(RolloutWorker(TransformersEngine(base.model, base.tokenizer)))
    return Rollouts(pool, base, args.num_generations, args.sampling_batch_size)


@dataclass
class Rollouts:
    """The rollouts of a trainer.

    Args:
        pool: of `RolloutWorker`s.
        piece: responses of a piece, at most. It has whole groups of `group` responses to one prompt, and at least one.
    """

    pool: Pool
    base: LoadedModel
    group: int
    piece: int | None = None

    def complete(
        self,
        proxy: ProxyModel,
        prompt_ids: Sequence[Sequence[int]],
        keys: Tensor,
        options: RolloutOptions,
        ledger: Ledger,
    ) -> Rollout | None:
        """One completion per row, under `proxy`. None if every position had a single candidate."""
        n = len(prompt_ids)
        pieces = []
        for rows in self._parts(n):
            values = {"prompt_ids": [list(ids) for ids in prompt_ids[rows]], "options": asdict(options)}
            size = (rows.stop - rows.start) * options.max_new_tokens
            pieces.append(Piece(Record(values, {"keys": keys[rows]}), SAMPLED, size))
        weights = {name: value.detach() for name, value in proxy.state_dict().items()}
        found = []
        for answer in self.pool.run(pieces, Record({"proxy": settings_of(proxy)}, weights)):
            ledger.count(**{name: answer.values[name] for name in _COUNTED})
            found.append(_from_record(answer, device_of(self.base.model)))
        return joined(found)

    def _parts(self, n: int) -> list[slice]:
        """Whole groups, at most `piece` responses each; by default as many parts as there are workers, all alike."""
        groups = n // self.group
        most = -(-groups // self.pool.size) if self.piece is None else max(1, self.piece // self.group)
        return [slice(start, min(start + most * self.group, n)) for start in range(0, n, most * self.group)]


_OF_POSITION = tuple(each.name for each in fields(Positions))
_SHORT = ("sequence", "position", "ids", "choice")
"""Whole numbers below 2^31."""
_STATES = ("hidden", "lookahead")


def _to_record(found: Recorded, spent: Ledger, dtype: torch.dtype | None) -> Record:
    """`dtype`: of the base, where the record is to be small. What was computed in it loses nothing in it."""
    generation, positions = found.generation, found.positions
    parts: dict[str, Tensor | None] = {name: getattr(generation, name) for name in (*KL_PARTS, "states")}
    parts |= {"kl": found.kl, "valid": found.valid}
    for name in () if positions is None else _OF_POSITION:
        value = getattr(positions, name)
        if dtype is not None and value is not None:
            small = value.to(dtype) if name in _STATES else value.int() if name in _SHORT else value
            value = small if torch.equal(small.to(value.dtype), value) else value
        parts[_PREFIX + name] = value
    values: dict[str, Any] = {name: getattr(spent, name) for name in _COUNTED}
    values |= {"completion_ids": generation.completion_ids, "ended": generation.ended}
    values |= {"sums": found.sums, "n_emitted": found.n_emitted}
    return Record(values, {name: value for name, value in parts.items() if value is not None})


def _from_record(answer: Record, device: torch.device) -> Recorded:
    values, tensors = answer.values, answer.tensors
    parts = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    dtypes = dict.fromkeys(_SHORT, torch.long) | dict.fromkeys(_STATES, torch.float32)
    parts = {name: value.to(device, dtypes.get(name, value.dtype)) for name, value in parts.items()}
    generation = Generation(
        values["completion_ids"],
        values["ended"],
        **{name: tensors.get(name) for name in KL_PARTS},
        states=tensors.get("states"),
        traces=None,
    )
    return Recorded(
        generation,
        Positions(**parts) if parts else None,
        tensors["kl"],
        tensors["valid"],
        values["sums"],
        values["n_emitted"],
    )
