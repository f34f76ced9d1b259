"""`ProxyConfig`: the proxy's options on transformers' `TrainingArguments`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.engines.sharding import replica
from frugalign.methods.proxy_network import LEARNING_RATE, default_learning_rate, network_settings
from frugalign.methods.proxy_rlhf.options import ProxyOptions
from frugalign.options.training_config import TrainingConfig

_NO_LOADER = "rollouts generate the data, so nothing is loaded"
_NOT_CARRIED_OVER: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(
        ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"),
        (False, "the proxy trains in float32; dtype is the frozen LM's"),
    ),
    "dataloader_num_workers": (0, _NO_LOADER),
    **dict.fromkeys(("dataloader_prefetch_factor", "dataloader_multiprocessing_context"), (None, _NO_LOADER)),
    **dict.fromkeys(("dataloader_persistent_workers", "dataloader_drop_last"), (False, _NO_LOADER)),
    "per_device_eval_batch_size": (8, "held-out prompts are sampled in batches of their own"),
    "train_sampling_strategy": ("random", "the order of the prompts is a function of the seed alone"),
    "eval_accumulation_steps": (None, "held-out prompts are sampled in batches of their own"),
    "data_seed": (None, "the order of the prompts is a function of the seed alone"),
    "gradient_checkpointing": (False, "the frozen LM has no gradients, and the proxy is small"),
    "load_best_model_at_end": (False, "choose a checkpoint by its eval_reward and load it from its folder"),
    "auto_find_batch_size": (False, "a rollout's size is part of what is trained"),
    "neftune_noise_alpha": (0.0, "the frozen LM has no noise, and the proxy has no embeddings of its own"),
}


_COMPLETIONS = 128
_ROLLOUTS = 30
_LEAST = 50_000
_WORK, _OVERHEAD = 1e13, 1e7
"""What one core does in a quarter of an hour, in parameters times tokens, and what a token of the smallest base costs: calls and candidates."""


def default_budget(base_parameters: int) -> int:
    """The tokens that a training samples if nothing is said about its length: what takes minutes, not the night."""
    return int(max(_WORK / (base_parameters + _OVERHEAD), _LEAST))


def default_completions(responses: float, group: int) -> int:
    """The completions of a rollout, a multiple of `group`, when a training samples this many responses: some thirty rollouts of at most 128."""
    return group * max(1, min(_COMPLETIONS // group, int(responses / (_ROLLOUTS * group))))


@dataclass
class ProxyConfig(TrainingConfig, ProxyOptions, TrainingArguments):
    """The configuration of a run: every field of `ProxyOptions` and of `TrainingArguments`.

    Raises:
        FrugalignError: values that contradict each other, in one sentence.
    """

    own: ClassVar[type] = ProxyOptions
    own_may_change: ClassVar[frozenset[str]] = frozenset({"budget_tokens", "num_train_epochs", "sampling_batch_size"})
    not_carried_over: ClassVar[dict[str, tuple[Any, str]]] = _NOT_CARRIED_OVER

    def prepare(self) -> None:
        """Fill in the folder, and what a proxy fixes."""
        # What `size_to` chooses by the base's size holds a value that transformers accepts until then.
        open_ones = ("per_device_train_batch_size", "num_train_epochs", "learning_rate")
        self._by_base = {name for name in open_ones if getattr(self, name) == -1}
        if "per_device_train_batch_size" in self._by_base:
            self.per_device_train_batch_size = self._group * max(1, _COMPLETIONS // self._group)
        if "num_train_epochs" in self._by_base:
            self.num_train_epochs = 1.0
        if "learning_rate" in self._by_base:
            self.learning_rate = LEARNING_RATE
        if self.output_dir is None:
            self.output_dir = "runs/proxy"
        if self.eval_steps is not None:
            self.eval_strategy = "steps"
        self.remove_unused_columns = False

    def check(self) -> None:
        """Check what values mean together."""

        def demand(condition: bool, sentence: str) -> None:
            if not condition:
                raise FrugalignError(sentence)

        demand(
            self.target_kl is None or self.beta != 0, "target_kl adapts beta by a factor, so beta must start above 0."
        )
        demand(
            self.num_generations >= 2,
            "num_generations must be at least 2: the baseline is the prompt's other completions.",
        )
        demand(
            self.per_device_train_batch_size % self.num_generations == 0,
            f"per_device_train_batch_size ({self.per_device_train_batch_size}) counts completions and must be a multiple of "
            f"num_generations ({self.num_generations}).",
        )
        demand(
            self.gradient_accumulation_steps == 1,
            "gradient_accumulation_steps must be 1: num_mini_batches splits a rollout, and memory is bounded by the frozen LM.",
        )
        prompts = self.per_device_train_batch_size // self.num_generations
        demand(
            prompts % self.num_mini_batches == 0,
            f"A rollout's {prompts} prompts per device do not divide into num_mini_batches = {self.num_mini_batches}.",
        )

    @property
    def _group(self) -> int:
        """The fewest completions of a rollout on one device."""
        return self.num_generations * self.num_mini_batches

    def size_to(self, base_parameters: int, network: Any) -> None:
        """Set what was not given, in place: the completions of a rollout and `max_steps` by the base's size, the learning rate by the
        proxy's."""
        if "learning_rate" in self._by_base:
            self.learning_rate = default_learning_rate(network)
        budget = self.budget_tokens or default_budget(base_parameters)
        each = self.max_new_tokens * replica().number
        if "per_device_train_batch_size" in self._by_base:
            self.per_device_train_batch_size = default_completions(budget / each, self._group)
        rollouts = max(1, budget // (each * self.per_device_train_batch_size))
        if self.budget_tokens is not None and self.max_steps > 0:
            self.max_steps = min(self.max_steps, rollouts * self.steps_per_rollout)
        elif self.max_steps <= 0 and "num_train_epochs" in self._by_base:
            self.max_steps = rollouts * self.steps_per_rollout

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps per rollout."""
        return self.num_iterations * self.num_mini_batches

    def round_steps(self, rounds_per_epoch: int) -> None:
        """Round all step counts up to whole rollouts, in place.

        If max_steps is -1, it follows from the epochs. Counts below 1 are shares of max_steps, as in transformers. So a log line describes
        whole rollouts.
        """

        def whole(steps: float) -> int:
            return max(1, math.ceil(steps / self.steps_per_rollout)) * self.steps_per_rollout

        if self.max_steps <= 0:
            self.max_steps = math.ceil(self.num_train_epochs * rounds_per_epoch) * self.steps_per_rollout
        self.max_steps = whole(self.max_steps)
        for name in ("save_steps", "eval_steps", "logging_steps"):
            steps = getattr(self, name)
            if steps is not None:
                setattr(self, name, whole(steps if steps >= 1 else steps * self.max_steps))

    @property
    def prompts_per_device(self) -> int:
        """Prompts per rollout on one device."""
        return self.per_device_train_batch_size // self.num_generations

    def network(self) -> dict[str, Any]:
        """The options that the proxy's config stores. None stands for a default that depends on the base."""
        return network_settings(self) | {
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_length": self.max_prompt_length,
            "value_head": self.advantage == "gae",
        }
