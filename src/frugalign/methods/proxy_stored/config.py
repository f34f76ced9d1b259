"""`StoredProxyConfig`: the options of a proxy from stored data on `transformers.TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.methods.proxy_network import LEARNING_RATE, default_learning_rate, network_settings
from frugalign.methods.proxy_stored.options import StoredProxyOptions
from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT, POSITIVE
from frugalign.options.training_config import TrainingConfig

_FLOAT32 = "the proxy trains in float32; dtype is the frozen LM's"
_NOT_CARRIED_OVER: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), (False, _FLOAT32)),
    "load_best_model_at_end": (False, "the best evaluation is kept anyway, unless patience is 0"),
    "auto_find_batch_size": (False, "the batch size is a part of what is trained"),
    "gradient_checkpointing": (False, "the frozen LM has no gradients, and the proxy is small"),
    "neftune_noise_alpha": (0.0, "the frozen LM has no noise, and the proxy has no embeddings of its own"),
}


@dataclass
class StoredProxyConfig(TrainingConfig, StoredProxyOptions, TrainingArguments):
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
        # `size_to` chooses it by the proxy's size.
        self._rate_by_proxy = self.learning_rate == -1
        if self._rate_by_proxy:
            self.learning_rate = LEARNING_RATE
        self.remove_unused_columns = False
        self.dataloader_pin_memory = False

    def check(self) -> None:
        """Check what values mean together."""
        if self.candidate_features == "lookahead":
            raise FrugalignError(
                "candidate_features lookahead needs the states after every candidate, which stored answers do not have."
            )
        if self.tail == "drop":
            raise FrugalignError(
                "tail drop gives every answer with a token outside the candidates no probability: stored answers need tail keep."
            )
        if self.loss != "sigmoid" and self.reward is not None:
            raise FrugalignError(f"The confidence of a reward is for the loss sigmoid, not {self.loss}.")
        if self.target_kl is not None and self.kl_weight == 0:
            raise FrugalignError("target_kl adapts kl_weight by a factor, so kl_weight must start above 0.")
        check_value("beta", self.beta, POSITIVE)

    def size_to(self, network: Any) -> None:
        """Set a learning rate that was not given by the proxy's `ProxyModelConfig`, in place."""
        if self._rate_by_proxy:
            self.learning_rate = default_learning_rate(network)

    def network(self) -> dict[str, Any]:
        """The options that the proxy's config stores. None stands for a default that depends on the base."""
        return network_settings(self) | {
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_length": None,
            "value_head": False,
        }
