"""Does training change how a policy *ranks* responses, or what it *samples*? (`docs/methods/rerank.md#rankings-and-samples`)

Re-ranking rests on two hypotheses. First, training changes the order of stored responses. It is measured by Spearman's ρ
within a prompt, between the likelihoods before and now, and between the rewards of frozen probes. Second, the policy's samples
hardly change. It is measured by the Wasserstein distance under a reward that is not trained on, compared with the distance
between two sample sets of the starting model. If the second fails, stored responses no longer represent the policy, and it
should be sampled again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr, wasserstein_distance
from transformers import TrainerCallback, TrainerControl, TrainerState

from frugalign.base.files import write_json_atomic
from frugalign.data.encode import as_completions
from frugalign.data.groups import Groups, read_groups, save_groups
from frugalign.data.templating import Rendering
from frugalign.decoding.chooser import Guide
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.decoding.loop import SamplingParams
from frugalign.decoding.sample_groups import GroupOptions, sample_groups
from frugalign.engines.encode import encode_for_model
from frugalign.engines.transformers import TransformersEngine
from frugalign.methods.rerank.groups import rank_groups
from frugalign.metrics.intervals import mean_interval
from frugalign.rewards.loading import NamedReward
from frugalign.rewards.scoring import CompletionBatch, score
from frugalign.runs.folder import saving
from frugalign.runs.layout import SHIFT_FILE, shift_responses_file

_SPLITS = 500
_EPOCH = -100
"""The noise epochs of the samples: two for the starting model, then one per measurement."""


@dataclass(frozen=True)
class NoiseFloor:
    """Wasserstein distances between two sample sets of the same model: their mean, and their 97.5 % quantile."""

    mean: float
    high: float


def within_prompt_spearman(before: Sequence[Sequence[float]], now: Sequence[Sequence[float]]) -> list[float]:
    """Spearman's ρ of each group's values before and now. Groups with constant values are left out."""
    found = []
    for old, new in zip(before, now, strict=True):
        if len(set(old)) > 1 and len(set(new)) > 1:
            found.append(float(spearmanr(old, new).statistic))
    return found


def noise_floor(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0) -> NoiseFloor:
    """The distance between two sample sets of the same model by chance, from random halves of both together.

    Both sets answer the same prompts, so every half keeps the number of values per prompt. Prompts differ more than the answers
    to one prompt. Halves that mix prompts would be further apart than two sample sets ever are.
    """
    rng, found = np.random.default_rng(seed), []
    both = [(np.array([*one, *other]), len(one)) for one, other in zip(first, second, strict=True)]
    for _ in range(_SPLITS):
        shuffled = [(rng.permutation(values), size) for values, size in both]
        halves = [values[:size] for values, size in shuffled], [values[size:] for values, size in shuffled]
        found.append(wasserstein_distance(*map(np.concatenate, halves)))
    return NoiseFloor(float(np.mean(found)), float(np.quantile(found, 0.975)))


class ShiftMonitor(TrainerCallback):
    """Logs the shift at the start, every `every` steps and at the end, as `shift/…` in metrics.jsonl.

    Args:
        trainer: a `RerankTrainer` with probes.
        prompts: the prompts to measure on, preferably not used in training.
        reward: a reward that is not trained on.
        size: responses per prompt.
    """

    def __init__(self, trainer: Any, prompts: Sequence[Any], reward: NamedReward, *, size: int, every: int) -> None:
        self.trainer, self.prompts, self.size, self.every = trainer, list(prompts), size, every
        self.reward = reward
        self.probes = copy.deepcopy(trainer.probes)
        self.stored: Groups | None = None
        self.start: dict[str, list[list[float]]] = {}
        self.samples: list[list[float]] = []

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir)
        kept, groups = folder / SHIFT_FILE, shift_responses_file(folder)
        ledger = self.trainer.ledger
        # A resumed run repeats what it needs in memory, and has counted it before.
        counting = ledger.uncounted() if state.global_step > 0 else nullcontext()
        with ledger.phase("evaluate"), counting, self.trainer.starting_model() as start:
            if state.global_step > 0 and groups.is_file():
                self.stored = read_groups(groups)
            else:
                self.stored = self._sample(_EPOCH, start)
                if state.is_world_process_zero:
                    with saving(groups):
                        save_groups(self.stored, groups)
            self.start = self._rankings(start)
            self.samples = self._rewards(self.stored)
            floor = noise_floor(self.samples, self._rewards(self._sample(_EPOCH - 1, start)))
        if state.is_world_process_zero:
            about = {"reward": self.reward.name, "prompts": len(self.prompts), "responses": self.size}
            write_json_atomic(kept, {"floor": asdict(floor), **about})
        if state.global_step == 0:
            self._log_shift(0)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._log_shift(state.global_step)

    def _log_shift(self, step: int) -> None:
        policy = self.trainer.carrier.lm, self.trainer.carrier.guide()
        with self.trainer.ledger.phase("evaluate"):
            now = self._rankings(*policy)
            samples = self.samples if step == 0 else self._rewards(self._sample(_EPOCH - 2 - step, *policy))
        found: dict[str, float] = {}
        for name in ("log_likelihood", "probe_reward"):
            estimate = mean_interval(within_prompt_spearman(self.start[name], now[name]))
            if estimate is not None:
                found |= {f"shift/{name}_spearman": estimate.mean}
                found |= {
                    f"shift/{name}_spearman_low": estimate.ci_low,
                    f"shift/{name}_spearman_high": estimate.ci_high,
                }
        before, after = np.concatenate(self.samples), np.concatenate(samples)
        found["shift/wasserstein"] = float(wasserstein_distance(before, after))
        found["shift/reward"] = float(after.mean())
        self.trainer.log_separately(found)

    def _rankings(self, model: Any, guide: Guide | None = None) -> dict[str, list[list[float]]]:
        """Log-likelihoods of the stored responses, and their rewards by the frozen probes."""
        assert self.stored is not None
        trainer, args = self.trainer, self.trainer.args
        prompts, texts, ids = self.stored.flat()
        encoded = encode_for_model(
            model,
            trainer.processing_class,
            prompts,
            texts,
            completion_ids=ids,
            max_length=args.max_length,
            rendering=Rendering.of(args),
        )
        each = sequence_log_probs(
            model,
            encoded.prompt_ids,
            encoded.completion_ids,
            batch_size=args.sampling_batch_size,
            ledger=trainer.ledger,
            guide=guide,
        )
        ranked = rank_groups(self.stored, model, trainer.processing_class, self.probes, args, trainer.ledger)
        likelihoods = self.stored.ranked([float(row.double().sum()) for row in each]).rewards
        assert likelihoods is not None and ranked.rewards is not None
        return {"log_likelihood": likelihoods, "probe_reward": ranked.rewards}

    def _sample(self, epoch: int, model: Any, guide: Guide | None = None) -> Groups:
        trainer, args = self.trainer, self.trainer.args
        return sample_groups(
            TransformersEngine(model, trainer.processing_class),
            trainer.processing_class,
            self.prompts,
            self.size,
            SamplingParams(args.max_new_tokens, args.temperature),
            GroupOptions(
                seed=args.seed,
                epoch=epoch,
                batch_size=args.sampling_batch_size,
                rendering=Rendering.of(args),
                guide=guide,
            ),
            ledger=trainer.ledger,
        )

    def _rewards(self, groups: Groups) -> list[list[float]]:
        """The rewards that apply, grouped by prompt."""
        prompts, texts, ids = groups.flat()
        found = score(
            [self.reward],
            CompletionBatch(prompts, as_completions(prompts, texts), completion_ids=ids or []),
            ledger=self.trainer.ledger,
        )
        totals = iter(found.total)
        return [[value for _ in group if (value := next(totals)) is not None] for group in groups.completions]
