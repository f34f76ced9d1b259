"""Features of stored answers by workers on Ray: each holds the base, and the teacher where there is one, and reads a shard at a time."""

from __future__ import annotations

from typing import Any

import torch

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import BaseFingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.sentences import sentence_ends
from frugalign.methods.answer_features import Answers, FeaturePass, Proposals, Teacher
from frugalign.methods.base_workers import asks_for_workers, base_of, open_pool, seen_from_anywhere
from frugalign.proxy.candidates import Limits
from frugalign.workers.pool import Pool
from frugalign.workers.record import Record


class FeatureWorker:
    """Computes shards of `answer_features`. `teacher`: the model of a `Teacher`."""

    def __init__(
        self, base: LoadedModel, teacher: LoadedModel | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._base, self._teacher, self._dtype = base, teacher, dtype
        self._settings: dict[str, Any] = {}

    def share(self, record: Record) -> None:
        self._settings = dict(record.values)

    def answer(self, piece: Record) -> Record:
        settings, ids, teacher = self._settings, piece.values, None
        layers = tuple(settings["layers"])
        if self._teacher is not None:
            teacher = Teacher(
                self._teacher.model, self._teacher.tokenizer, ids["teacher_prompt_ids"], settings["teacher_temperature"]
            )
        given = settings["proposals"]
        reading = FeaturePass(
            self._base.model,
            Answers(ids["prompt_ids"], ids["answer_ids"], ids["masks"]),
            Proposals(given["temperature"], Limits(**given["limits"])),
            teacher,
            layers,
            sentence_ends(self._base.tokenizer) if layers else None,
            self._dtype,
            None,
        )
        return Record({}, reading.shard(range(len(ids["answer_ids"]))))


def worker_on(about: Record) -> FeatureWorker:
    """A worker in a process of its own."""
    base, teacher = base_of(about), about.values["teacher"]
    if teacher is None:
        return FeatureWorker(base)
    taught_by = (
        base
        if teacher == ""
        else load_model(teacher, **about.values["arguments"] | {"revision": None, "adapter": None})
    )
    return FeatureWorker(base, taught_by)


def feature_pool(args: Any, base: LoadedModel, about: BaseFingerprint, teacher: LoadedModel | None) -> Pool | None:
    """Workers on Ray, if `args` asks for them. `teacher`: the base itself, or the model that `args.teacher` names."""
    if not asks_for_workers(args):
        return None
    if args.ray_engine == "vllm":
        if teacher is not None or args.reward is not None:
            raise FrugalignError(
                "Workers in vLLM read answers for no teacher and no representation reward: these need --ray_engine transformers."
            )
        from frugalign.methods import features_in_vllm

        return open_pool(args, base, about, f"{features_in_vllm.__name__}:{features_in_vllm.worker_on.__name__}")
    name = None if teacher is None else "" if args.teacher is None else seen_from_anywhere(args.teacher)
    return open_pool(args, base, about, f"{__name__}:{worker_on.__name__}", teacher=name)
