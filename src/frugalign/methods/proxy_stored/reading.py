"""Read data sets once through the frozen base, and hand out batches of what it said.

Batches hold what `StoredProxyTrainer` learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from datasets import Dataset
from torch import Tensor

from frugalign.base.ledger import Ledger
from frugalign.engines.loading import LoadedModel
from frugalign.methods.answer_features import AnswerFeatures, Features, Proposals, answer_features
from frugalign.methods.confidence import confidence_by_settings, prefer_given
from frugalign.methods.proxies import feature_store
from frugalign.methods.proxy_stored.config import StoredProxyConfig
from frugalign.methods.proxy_stored.examples import Examples, examples_of
from frugalign.methods.proxy_stored.teacher import teacher_of
from frugalign.methods.signals import Signal
from frugalign.rewards.representation.network import RepresentationModel
from frugalign.workers.pool import Pool

_SCORED = 1024
"""Answers whose states probes read at once."""


@dataclass(frozen=True)
class Batch:
    """The features of some examples' answers, the examples' `weights [B]`, and the `confidence [B]` in pairs' labels, if any is known."""

    features: Features
    weights: Tensor
    confidence: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        confidence = None if self.confidence is None else self.confidence.to(device)
        return Batch(self.features.to(device), self.weights.to(device), confidence)


@dataclass(frozen=True)
class Stored:
    """Examples with the features of their answers. Called with numbers of examples, it returns their batch."""

    examples: Examples
    features: AnswerFeatures

    def __call__(self, numbers: Sequence[int]) -> dict[str, Batch]:
        examples = self.examples
        confidence = None
        if examples.confidence is not None:
            confidence = torch.tensor([examples.confidence[number] for number in numbers])
        weights = torch.tensor([examples.weights[number] for number in numbers])
        return {"batch": Batch(self.features.read(examples.rows(numbers)), weights, confidence)}


@dataclass(frozen=True)
class Reader:
    """Reads data sets once through the base, and through the teacher or for the probes where there are any. `pool`: workers that do so."""

    base: LoadedModel
    signal: Signal
    proposals: Proposals
    args: StoredProxyConfig
    ledger: Ledger
    taught_by: LoadedModel | None = None
    probes: RepresentationModel | None = None
    pool: Pool | None = None

    def __call__(self, data: Dataset) -> Stored:
        """The examples of `data` with their features, from the store as far as it holds them."""
        args, base = self.args, self.base
        examples = examples_of(self.signal, data, base, args)
        teacher = None
        if self.taught_by is not None:
            teacher = teacher_of(data["prompt"], examples.answers.answer_ids, self.taught_by, base, args)
        store = feature_store(args)
        layers = [] if self.probes is None else list(self.probes.config.layers)
        features = answer_features(
            base.model,
            base.tokenizer,
            examples.answers,
            self.proposals,
            store,
            teacher=teacher,
            layers=layers,
            pool=self.pool,
        )
        # Features that the store already holds count as what they cost when they were computed.
        self.ledger.count(lm_forward_tokens=features.n_tokens)
        return Stored(self._with_confidence(examples, features), features)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self.pool is not None:
            self.pool.close()

    def _with_confidence(self, examples: Examples, features: AnswerFeatures) -> Examples:
        """The confidence of the probes in every label, unless a row has its own. It is fixed, since the base's states are."""
        if self.probes is None:
            return examples
        chosen, rejected = self.rewards(features)
        gamma = confidence_by_settings(chosen, rejected, self.args)
        given = None if examples.confidence is None else torch.tensor(list(examples.confidence))
        return replace(examples, confidence=prefer_given(gamma, given).tolist())

    @torch.no_grad()
    def rewards(self, features: AnswerFeatures) -> tuple[Tensor, Tensor]:
        """The probes' calibrated rewards of all pairs' better and worse answers, `[n]` each."""
        assert self.probes is not None
        starts = range(0, len(features), _SCORED)
        states = (features.states(range(start, min(start + _SCORED, len(features)))) for start in starts)
        chosen, rejected = torch.cat([self.probes.calibrated(part) for part in states]).reshape(-1, 2).unbind(1)
        return chosen, rejected
