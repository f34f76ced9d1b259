"""Gold against KL along a training on pairs: what a policy samples, and how it orders validation pairs, at some steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import softplus
from transformers import TrainerCallback

from frugalign import sandbox
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.engines.encode import tokenize_pairs
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import embedding_rows
from frugalign.methods.answer_features import AnswerFeatures, Answers, Proposals, answer_features
from frugalign.methods.answer_scores import score_stored
from frugalign.policies.policy import Policy
from frugalign.policies.prompt_rows import PromptRows
from frugalign.policies.spec import PolicySpec, SamplingSettings
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel
from frugalign.runs.shard_store import ShardStore
from frugalign.sandbox.judging import judge

NEW_TOKENS = 64
_SCALES = torch.logspace(-3, 2, 101, dtype=torch.float64)


def load_sandbox() -> LoadedModel:
    """The base, on the CPU."""
    return load_model(sandbox.model, device_map="cpu", dtype="float32")


@dataclass(frozen=True)
class Orders:
    """How a policy orders validation pairs by its log-ratio to the base: the share as labelled, and the loss of the labels."""

    accuracy: float
    loss: float


def orders(margins: Sequence[float]) -> Orders:
    """`margins`: log-ratio of the preferred answer minus that of the other one.

    The loss is `mean −log σ(s·margin)` at its best scale `s ≥ 0`. So it compares methods whose margins have different sizes.
    """
    values = torch.tensor(margins, dtype=torch.float64)
    each = softplus(-_SCALES[:, None] * values).mean(1)
    accuracy = float((values > 0).double().mean() + 0.5 * (values == 0).double().mean())
    return Orders(accuracy, min(math.log(2), float(each.min())))


class Measure:
    """Measures any policy on the same prompts, noise and validation pairs.

    Args:
        prompts: to sample for.
        pairs: validation pairs, with labels as noisy as in training.
        seed: of the noise.
    """

    def __init__(self, prompts: Sequence[str], pairs: Sequence[dict[str, Any]], seed: int, store: ShardStore) -> None:
        from datasets import Dataset

        self.base, self.prompts, self.store = load_sandbox(), PromptRows(list(prompts)), store
        self.settings = SamplingSettings(max_new_tokens=NEW_TOKENS, temperature=1.0, seed=1000 + seed)
        ids = tokenize_pairs(Dataset.from_list(list(pairs)), self.base.model, self.base.tokenizer)
        self.answers = Answers(ids["prompt_ids"] * 2, ids["chosen_ids"] + ids["rejected_ids"])
        self._base_log_probs = self._log_probs(self.base.model)
        self._features: AnswerFeatures | None = None

    def _log_probs(self, model: Any) -> torch.Tensor:
        found = sequence_log_probs(model, self.answers.prompt_ids, self.answers.answer_ids, batch_size=64)
        return torch.stack([each.double().sum() for each in found])

    def of(self, model: Any, strength: float = 1.0) -> dict[str, Any]:
        """Measure a model in training, or the base itself (None). `strength`: of a proxy."""
        if model is None:
            return self._measured(self._policy(self.base.model), None)
        if isinstance(model, ProxyModel):
            # The guide computes keys of the proxy as it is now.
            guide = ProxyGuide.build([model], embedding_rows(self.base.model), [strength])
            policy = Policy(
                PolicySpec(), self.base, self.base.model, self.base.model, guide=guide, artefact=model.config
            )
            return self._measured(policy, self._ratios_of_proxy(model))
        adapted = hasattr(model, "disable_adapter")
        policy = self._policy(model, **({"base_context": model.disable_adapter} if adapted else {}))
        if not adapted:
            policy = self._policy(model, base_model=self.base.model)
        return self._measured(policy, self._log_probs(model) - self._base_log_probs)

    def _policy(self, model: Any, **more: Any) -> Policy:
        return Policy(PolicySpec(), self.base, **{"model": model, "base_model": model, **more})

    @torch.no_grad()
    def _ratios_of_proxy(self, proxy: ProxyModel) -> torch.Tensor:
        model = self.base.model
        if self._features is None:
            proposals = Proposals(proxy.config.temperature, proxy.limits)
            self._features = answer_features(model, self.base.tokenizer, self.answers, proposals, self.store)
        features = self._features.read(range(len(self._features)))
        embeddings = embedding_rows(model) if proxy.config.candidate_features == "embedding" else None
        return score_stored(proxy, features, proxy.config.objective, embeddings).log_ratio.double()

    def _measured(self, policy: Policy, ratios: torch.Tensor | None) -> dict[str, Any]:
        was_training = policy.model.training
        policy.model.eval()
        settings = policy.with_defaults(self.settings)
        batch = policy.encode(self.prompts, settings)
        sampled = policy.sample(batch, settings, batch_size=256)
        kl = policy.divergence(batch, sampled, settings).kl or [0.0] * len(batch.ids)
        policy.model.train(was_training)
        texts = policy.base.tokenizer.batch_decode(sampled.completion_ids, skip_special_tokens=True)
        verdicts = [judge(prompt, text) for prompt, text in zip(self.prompts.prompts, texts, strict=True)]
        found: dict[str, Any] = {
            "gold": [verdict.reward for verdict in verdicts],
            "kl": kl,
            "well_formed": [float(verdict.well_formed) for verdict in verdicts],
            "texts": texts,
        }
        if ratios is not None:
            chosen, rejected = ratios.chunk(2)
            order = orders((chosen - rejected).tolist())
            found |= {"accuracy": order.accuracy, "loss": order.loss}
        return found


class Curve(TrainerCallback):
    """Measures the model at some steps, without counting what that costs. `points`: what was found.

    Args:
        measure: of a model.
        steps: at which to measure, besides the last.
        uncounted: of the run's ledger; entered around a measurement.
    """

    def __init__(self, measure: Callable[[Any], dict[str, Any]], steps: Sequence[int], uncounted: Any) -> None:
        self._measure, self._steps, self._uncounted = measure, set(steps), uncounted
        self.points: list[dict[str, Any]] = []
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in self._steps or state.global_step == state.max_steps:
            self.take(model, state.global_step)

    def take(self, model: Any, step: int) -> None:
        """Measure now."""
        started, drawn = time.process_time(), torch.get_rng_state()
        with self._uncounted():
            found = self._measure(model)
        torch.set_rng_state(drawn)
        self.seconds += time.process_time() - started
        self.points.append({"step": step, **found})
