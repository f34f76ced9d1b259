"""`RerankConfig`: the re-ranking options on TRL's `DPOConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl.trainer.dpo_config import DPOConfig

from frugalign.base.errors import FrugalignError
from frugalign.methods.rerank.options import RerankOptions
from frugalign.options.run import RunOptions, refused_settings

_NOT_TAKEN: dict[str, Any] = {
    "label_smoothing": 0.0,
    "loss_weights": None,
    "sync_ref_model": False,
    "router_aux_loss_coef": None,
    "truncation_mode": "keep_start",
}
"""Options of `DPOConfig` that must stay at these defaults."""
_INSTEAD = {
    "label_smoothing": "conservative DPO is confidence constant with constant_confidence 1 − ε",
    "sync_ref_model": "a moving reference would not be in the checkpoints",
    "truncation_mode": "exchanges are cut on the left",
}


@dataclass
class RerankConfig(RunOptions, RerankOptions, DPOConfig):
    """All of `RerankOptions` and `DPOConfig`, with defaults that run anywhere.

    Raises:
        FrugalignError: values that contradict each other, and options of DPOConfig that our loss does not take part in.
    """

    own: ClassVar[type] = RerankOptions
    own_may_change: ClassVar[frozenset[str]] = frozenset({"num_train_epochs"})

    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir = "runs/rerank"
        if self.eval_steps is not None:
            self.eval_strategy = "steps"
        try:
            super().__post_init__()
        except ValueError as error:
            raise refused_settings(error) from error
        for name, default in _NOT_TAKEN.items():
            if getattr(self, name, default) not in (default, None):
                raise FrugalignError(
                    f"{name} is not carried over: {_INSTEAD.get(name, 'our loss does not take part in it')}."
                )
        if self.label_noise is not None and self.confidence != "pair":
            raise FrugalignError(
                "label_noise is weighed per pair: it needs confidence pair (conservative DPO: constant_confidence 1 − ε)."
            )
        kinds = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        if kinds != ["sigmoid"] or self.ld_alpha is not None or self.use_weighting:
            raise FrugalignError(
                "loss_type, ld_alpha and use_weighting are not carried over: the loss is the confidence-weighted one."
            )
        if getattr(self.f_divergence_type, "value", self.f_divergence_type) != "reverse_kl":
            raise FrugalignError(
                "f_divergence_type is not carried over: the confidence-weighted loss is of the reverse KL."
            )
        if self.load_best_model_at_end:
            raise FrugalignError("load_best_model_at_end is not carried over: load a checkpoint from its folder.")
        for name in ("constant_confidence", "confidence_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise FrugalignError(f"{name} is {getattr(self, name)}; a confidence lies in [0, 1].")
        if self.confidence not in ("pair", "batch", "constant"):
            raise FrugalignError(f"confidence is {self.confidence!r}; it must be one of pair, batch, constant.")
        if self.label_noise is not None and not 0 < self.label_noise < 0.5:
            raise FrugalignError(f"label_noise is {self.label_noise}; a share of wrong labels lies between 0 and 0.5.")
        if self.sample < 0 or self.sample == 1:
            raise FrugalignError(
                f"sample is {self.sample}; a ranking needs at least 2 responses (0: none are sampled)."
            )
        if self.resample and not self.sample:
            raise FrugalignError("resample needs sample: how many responses per prompt are drawn at every epoch.")
        for name in ("max_new_tokens", "sampling_batch_size", "shift_steps", "shift_prompts"):
            if getattr(self, name) < 1:
                raise FrugalignError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("temperature", "reward_learning_rate"):
            if not getattr(self, name) > 0:
                raise FrugalignError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if not -math.inf < self.missing_eos_penalty <= 0:
            raise FrugalignError(
                f"missing_eos_penalty is {self.missing_eos_penalty}; it is added to a reward, so it must be a finite number of at most 0."
            )
        if not self.sft_weight >= 0:
            raise FrugalignError(f"sft_weight is {self.sft_weight}; it must be at least 0.")
        if self.reward_refresh_steps < 0:
            raise FrugalignError(f"reward_refresh_steps is {self.reward_refresh_steps}; it must be at least 0.")
        if not self.beta > 0:
            raise FrugalignError(f"beta is {self.beta}; it must be above 0.")
        if self.learning_rate < 0:
            raise FrugalignError(f"learning_rate is {self.learning_rate}; it must be at least 0.")


def check_reward_of_groups(args: RerankConfig, *, has_reward: bool) -> None:
    """Raises where groups are to be ranked anew and there is nothing to rank them by."""
    if not has_reward and (args.resample or args.rerank_groups):
        raise FrugalignError("Ranking groups anew needs a representation reward; give reward, or no_rerank_groups.")
