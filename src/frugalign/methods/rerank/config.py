"""`RerankConfig`: the re-ranking options on TRL's `DPOConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl.trainer.dpo_config import DPOConfig

from frugalign.base.errors import FrugalignError
from frugalign.methods.rerank.options import RerankOptions
from frugalign.options.check import check_value
from frugalign.options.kinds import POSITIVE
from frugalign.options.training_config import TrainingConfig

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
class RerankConfig(TrainingConfig, RerankOptions, DPOConfig):
    """All of `RerankOptions` and `DPOConfig`, with defaults that run anywhere.

    Raises:
        FrugalignError: values that contradict each other, and options of DPOConfig that our loss does not take part in.
    """

    own: ClassVar[type] = RerankOptions
    own_may_change: ClassVar[frozenset[str]] = frozenset({"num_train_epochs"})

    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir = "runs/rerank"
        if self.eval_steps is not None:
            self.eval_strategy = "steps"
        super().__post_init__()
        check_value("beta", self.beta, POSITIVE)
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
        if self.resample and not self.sample:
            raise FrugalignError("resample needs sample: how many responses per prompt are drawn at every epoch.")


def check_reward_of_groups(args: RerankConfig, *, has_reward: bool) -> None:
    """Raises where groups are to be ranked anew and there is nothing to rank them by."""
    if not has_reward and (args.resample or args.rerank_groups):
        raise FrugalignError("Ranking groups anew needs a representation reward; give reward, or no_rerank_groups.")
