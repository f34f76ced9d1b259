"""`StoredProxyConfig`: the options of a proxy from stored data on `transformers.TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.methods.proxy_stored.options import StoredProxyOptions
from frugalign.methods.train_options import NO_LM_IN_TRAINING, TrainedConfig, check_reads_stored
from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT, POSITIVE
from frugalign.options.training_config import TrainingConfig

_NOT_CARRIED_OVER: dict[str, tuple[Any, str]] = {
    **NO_LM_IN_TRAINING,
    "load_best_model_at_end": (False, "the best evaluation is kept anyway, unless patience is 0"),
    "auto_find_batch_size": (False, "the batch size is a part of what is trained"),
}


@dataclass
class StoredProxyConfig(TrainedConfig, TrainingConfig, StoredProxyOptions, TrainingArguments):
    """The configuration of a run: every field of `StoredProxyOptions` and of `TrainingArguments`.

    Raises:
        FrugalignError: values that contradict each other, in one sentence.
    """

    own: ClassVar[type] = StoredProxyOptions
    own_may_change: ClassVar[frozenset[str]] = frozenset(
        {"num_train_epochs", "cache_dir", "max_cache_gib", "sampling_batch_size"}
    )
    not_carried_over: ClassVar[dict[str, tuple[Any, str]]] = _NOT_CARRIED_OVER

    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Examples of one device that are evaluated at once.", "kind": COUNT}
    )

    def prepare(self) -> None:
        """Fill in the folder, and what stored features need."""
        if self.output_dir is None:
            self.output_dir = "runs/proxy"
        self.eval_strategy = "steps"
        self.settle_rate()
        self.remove_unused_columns = False
        self.dataloader_pin_memory = False

    @property
    def has_teacher(self) -> bool:
        """Whether the proxy imitates a model: another one, or the base under principles."""
        return self.teacher is not None or self.principles is not None

    def check(self) -> None:
        """Check what values mean together."""
        check_reads_stored(self)
        if self.loss != "sigmoid" and self.reward is not None:
            raise FrugalignError(f"The confidence of a reward is for the loss sigmoid, not {self.loss}.")
        check_value("beta", self.beta, POSITIVE)
