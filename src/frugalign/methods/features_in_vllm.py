"""Features of stored answers by workers in vLLM (`feature_worker` has those in transformers). It imports what vLLM's environment has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frugalign.decoding.vllm import VllmEngine
from frugalign.methods.base_in_vllm import engine_of
from frugalign.methods.position_features import by_answer, features_at, shard_of
from frugalign.proxy.candidates import Limits
from frugalign.workers.record import Record

_LOGIT_BYTES = 256 * 2**20
"""Float32 logits that are worked on at once."""


class VllmFeatureWorker:
    """Computes shards of `answer_features`, without a teacher and without states of layers."""

    def __init__(self, engine: VllmEngine, dtype: torch.dtype = torch.bfloat16) -> None:
        self._engine, self._dtype = engine, dtype
        self._settings: dict[str, Any] = {}

    def share(self, record: Record) -> None:
        self._settings = dict(record.values)

    def answer(self, piece: Record) -> Record:
        ids = piece.values
        proposals = self._settings["proposals"]
        reading = _Answers(ids["prompt_ids"], ids["answer_ids"], ids["masks"], proposals, self._dtype)
        # The last token of an answer predicts nothing.
        texts = [[*prompt, *answer[:-1]] for prompt, answer in zip(ids["prompt_ids"], ids["answer_ids"], strict=True)]
        self._engine.read(texts, reading.take)
        return Record({}, shard_of(reading.finish(), sum(map(len, texts))))


class _Answers:
    """The answers of a shard, whose positions come in parts."""

    def __init__(
        self,
        prompt_ids: Sequence[Sequence[int]],
        answer_ids: Sequence[Sequence[int]],
        masks: Sequence[Sequence[int]] | None,
        proposals: dict[str, Any],
        dtype: torch.dtype,
    ) -> None:
        self._prompt_ids, self._answer_ids, self._masks = prompt_ids, answer_ids, masks
        self._temperature, self._limits = proposals["temperature"], Limits(**proposals["limits"])
        self._dtype = dtype
        self._parts: list[list[dict[str, Tensor]]] = [[] for _ in answer_ids]

    def take(self, parts: Sequence[tuple[int, int, int]], hidden: Tensor, logits: Tensor) -> None:
        """As `VllmEngine.read` calls it."""
        offset, index, places, rows = 0, list[int](), list[int](), list[int]()
        for row, start, stop in parts:
            if start == 0:  # also of a text that is fed anew
                self._parts[row].clear()
            first = len(self._prompt_ids[row]) - 1
            for token in range(max(start, first), stop):
                place = token - first
                if self._masks is None or self._masks[row][place]:
                    index.append(offset + token - start)
                    places.append(place)
                    rows.append(row)
            offset += stop - start
        most = max(1, _LOGIT_BYTES // (4 * logits.shape[-1]))
        for begin in range(0, len(index), most):
            part = slice(begin, begin + most)
            self._add(rows[part], places[part], hidden[index[part]], logits[index[part]])

    def _add(self, rows: list[int], places: list[int], hidden: Tensor, logits: Tensor) -> None:
        tokens = [self._answer_ids[row][place] for row, place in zip(rows, places, strict=True)]
        given = torch.tensor(tokens, device=logits.device)
        made = features_at(hidden, logits.float(), given, self._temperature, self._limits, self._dtype)
        distinct = list(dict.fromkeys(rows))
        made["position"] = torch.tensor(places, dtype=torch.int32)
        for row, part in zip(distinct, by_answer(made, [rows.count(row) for row in distinct]), strict=True):
            self._parts[row].append(part)

    def finish(self) -> list[dict[str, Tensor]]:
        return [{name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in self._parts]


def worker_on(about: Record) -> VllmFeatureWorker:
    """A worker in a process of its own."""
    return VllmFeatureWorker(engine_of(about))
