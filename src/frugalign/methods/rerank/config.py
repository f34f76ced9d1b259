"""`RerankConfig`: the re-ranking options on `transformers.TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.methods.brake import KL_WEIGHT
from frugalign.methods.rerank.options import RerankOptions
from frugalign.methods.train_options import TrainedConfig, check_train
from frugalign.options.check import check_value
from frugalign.options.kinds import POSITIVE
from frugalign.options.training_config import TrainingConfig

_NOT_CARRIED_OVER: dict[str, tuple[Any, str]] = {
    "load_best_model_at_end": (False, "load a checkpoint from its folder"),
    "label_smoothing_factor": (0.0, "conservative DPO is confidence constant with constant_confidence 1 − ε"),
    "label_smoothing": (0.0, "conservative DPO is confidence constant with constant_confidence 1 − ε"),
    "sync_ref_model": (False, "the checkpoints would not contain a moving reference"),
    "truncation_mode": ("keep_start", "a prompt with its answer is cut on the left"),
    "loss_type": ("sigmoid", "the loss is the confidence-weighted one"),
    "ld_alpha": (None, "the loss is the confidence-weighted one"),
    "use_weighting": (False, "the loss is the confidence-weighted one"),
    "f_divergence_type": ("reverse_kl", "the confidence-weighted loss is of the reverse KL"),
}
"""Most are options of TRL's `DPOConfig`."""


@dataclass
class RerankConfig(TrainedConfig, TrainingConfig, RerankOptions, TrainingArguments):
    """The fields of `RerankOptions` and `TrainingArguments`, with defaults that run on any machine.

    Raises:
        FrugalignError: values that contradict each other, and options of TRL's DPOConfig that our loss does not take.
    """

    own: ClassVar[type] = RerankOptions
    own_may_change: ClassVar[frozenset[str]] = frozenset({"num_train_epochs", "cache_dir", "max_cache_gib"})
    not_carried_over: ClassVar[dict[str, tuple[Any, str]]] = _NOT_CARRIED_OVER

    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16."})

    precompute_ref_log_probs: bool | None = field(
        default=None,
        metadata={
            "help": "Compute the reference's log-probabilities once, before training. Default: where that saves a copy of the "
            "model (every weight) or passes (several epochs)."
        },
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without the model's dropout."})
    pad_to_multiple_of: int | None = field(default=None, metadata={"help": "Pad batches to a multiple of this length."})

    label_smoothing: float = field(default=0.0, metadata={"help": "Must stay 0: see constant_confidence."})
    sync_ref_model: bool = field(default=False, metadata={"help": "Must stay false: the reference does not move."})
    truncation_mode: str = field(
        default="keep_start", metadata={"help": "Not used: a prompt with its answer is cut on the left."}
    )
    loss_type: str | list[str] = field(default="sigmoid", metadata={"help": "Must stay sigmoid."})
    ld_alpha: float | None = field(default=None, metadata={"help": "Must stay unset."})
    use_weighting: bool = field(default=False, metadata={"help": "Must stay false."})
    f_divergence_type: str = field(default="reverse_kl", metadata={"help": "Must stay reverse_kl."})

    def prepare(self) -> None:
        """Fill in the folder, and what our data sets need."""
        if self.output_dir is None:
            self.output_dir = "runs/rerank"
        self.settle_rate()
        if self.train == "proxy":
            self.rerank_groups = False  # the states that rank do not move
            if self.kl_weight is None:
                self.kl_weight = KL_WEIGHT
        if self.eval_steps is not None:
            self.eval_strategy = "steps"
        # Our data sets hold only the columns that the collator reads.
        self.remove_unused_columns = False

    def check(self) -> None:
        """Check what values mean together."""
        check_train(self)
        if self.train != "proxy" and (self.kl_weight or self.target_kl is not None):
            raise FrugalignError(
                "kl_weight and target_kl go with train proxy: beta holds other weights near their start."
            )
        if self.train == "proxy" and self.reward_refresh_steps:
            raise FrugalignError(
                "reward_refresh_steps follows states that move, and those of a proxy's base do not: leave it at 0."
            )
        check_value("beta", self.beta, POSITIVE)
        if self.label_noise is not None and self.confidence != "pair":
            raise FrugalignError(
                "label_noise is weighed per pair: it needs confidence pair (conservative DPO: constant_confidence 1 − ε)."
            )
        if self.resample and not self.sample:
            raise FrugalignError("resample needs sample: how many responses per prompt are drawn at every epoch.")


def check_reward_of_groups(args: RerankConfig, *, has_reward: bool) -> None:
    """Check that there is a reward if groups are ranked again.

    Raises:
        FrugalignError: there is none.
    """
    if not has_reward and (args.resample or args.rerank_groups):
        raise FrugalignError("Ranking groups anew needs a representation reward; give reward, or no_rerank_groups.")
