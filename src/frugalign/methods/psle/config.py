"""`PSLEConfig`: the options of PSLE on transformers' `TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.methods.psle.options import PSLEOptions
from frugalign.methods.train_options import TrainedConfig, check_train
from frugalign.options.check import check_value
from frugalign.options.kinds import POSITIVE
from frugalign.options.resuming import is_resuming
from frugalign.options.training_config import TrainingConfig

_ABLATIONS: dict[str, Any] = {
    "use_ranking": True,
    "sft_weight": 1.0,
    "weighting": "round",
}
"""Options of method psle only, with their defaults."""
_MEASURED = "every round is measured on held-out prompts (eval_prompts)"
_NOT_CARRIED_OVER: dict[str, tuple[Any, str]] = {
    "load_best_model_at_end": (False, "every round is kept: choose one by its evaluation and load it from its folder"),
    "auto_find_batch_size": (False, "a step's couples are part of what is trained"),
    "train_sampling_strategy": ("random", "the order of a round's couples is a function of the seed alone"),
    "eval_strategy": ("no", _MEASURED),
    **dict.fromkeys(("eval_steps", "eval_accumulation_steps"), (None, _MEASURED)),
    **dict.fromkeys(("eval_on_start", "bf16_full_eval", "fp16_full_eval"), (False, _MEASURED)),
    "eval_delay": (0, _MEASURED),
    "per_device_eval_batch_size": (8, _MEASURED),
    "deepspeed": (None, "rounds sample from the model that they train"),
}
"""Options of TrainingArguments that must keep these values, and why."""


@dataclass
class PSLEConfig(TrainedConfig, TrainingConfig, PSLEOptions, TrainingArguments):
    """The fields of `PSLEOptions` and of `TrainingArguments`. Steps, epochs and the learning-rate schedule are per round.

    Raises:
        FrugalignError: values that contradict each other, in one sentence.
    """

    own: ClassVar[type] = PSLEOptions
    own_may_change: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "principles", "eval_reward", "share_prefix", "cache_dir", "max_cache_gib"}
    )
    also_fixed: ClassVar[tuple[str, ...]] = ("max_steps",)
    not_carried_over: ClassVar[dict[str, tuple[Any, str]]] = _NOT_CARRIED_OVER

    def prepare(self) -> None:
        """Fill in the folder, and what rounds fix."""
        if self.output_dir is None:
            self.output_dir = "runs/psle"
        self.settle_rate()
        self.remove_unused_columns = False

    def check(self) -> None:
        """Check what values mean together."""

        def demand(condition: bool, sentence: str) -> None:
            if not condition:
                raise FrugalignError(sentence)

        check_train(self)
        check_value("beta", self.beta, POSITIVE)
        demand(
            self.reward_weights is None or not self.reward or len(self.reward_weights) == len(self.reward),
            f"There are {len(self.reward)} rewards, but {len(self.reward_weights or [])} reward_weights.",
        )
        for name, default in _ABLATIONS.items():
            demand(
                self.method == "psle" or getattr(self, name) == default,
                f"{name} is an ablation of psle itself and has no part in method {self.method}.",
            )
        demand(
            self.method != "context_distillation" or self.use_principles,
            "method context_distillation learns from responses under the principles; no_use_principles leaves none.",
        )
        demand(
            self.use_ranking or self.sft_weight > 0,
            "no_use_ranking and sft_weight 0 together leave nothing to learn from.",
        )
        demand(
            self.from_round is None or is_resuming(self.resume_from_checkpoint),
            "from_round goes with resume_from_checkpoint true: it changes a run that is there.",
        )

    @property
    def has_brake(self) -> bool:
        """Whether the KL to the starting model has a weight or a target, and so is measured at every step."""
        return bool(self.kl_weight) or self.target_kl is not None

    @property
    def needs_principles(self) -> bool:
        """Whether some responses are sampled under the principles. RAFT samples none of them so."""
        return self.use_principles and self.method != "raft"
