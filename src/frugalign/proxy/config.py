"""`ProxyConfig`: the proxy's options on transformers' `TrainingArguments`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from frugalign.errors import FrugalignError
from frugalign.proxy.options import ProxyOptions


@dataclass
class ProxyConfig(ProxyOptions, TrainingArguments):
    """All that a run needs; every field of `ProxyOptions` and of `TrainingArguments`.

    Raises:
        FrugalignError: values that contradict each other, in one sentence.
    """

    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir = "runs/proxy"
        if self.eval_steps is not None:
            self.eval_strategy = "steps"
        # The proxy trains in float32 whatever the base is; the data are made in the loop, one rollout a batch.
        self.bf16 = self.fp16 = False
        self.remove_unused_columns = False
        self.dataloader_num_workers = 0
        self.disable_tqdm = bool(self.disable_tqdm) if self.disable_tqdm is not None else None
        super().__post_init__()
        self._check()

    def _check(self) -> None:
        def demand(condition: bool, sentence: str) -> None:
            if not condition:
                raise FrugalignError(sentence)

        demand(self.temperature > 0, f"temperature is {self.temperature}; the proposals need one above 0.")
        demand(0 <= self.p_t < 1, f"p_t is {self.p_t}; a threshold on probability lies in [0, 1).")
        demand(self.max_new_tokens > 0, "max_new_tokens must be at least 1.")
        demand(self.beta >= 0 and math.isfinite(self.beta), "beta must be a finite number, 0 or more.")
        demand(self.target_kl is None or self.target_kl > 0, "target_kl must be above 0.")
        demand(
            self.target_kl is None or self.beta > 0, "target_kl adapts beta by a factor, so beta must start above 0."
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
        demand(
            self.num_mini_batches >= 1 and self.num_iterations >= 1,
            "num_mini_batches and num_iterations must be at least 1.",
        )
        prompts = self.per_device_train_batch_size // self.num_generations
        demand(
            prompts % self.num_mini_batches == 0,
            f"A rollout's {prompts} prompts per device do not divide into num_mini_batches = {self.num_mini_batches}.",
        )

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that one rollout feeds."""
        return self.num_iterations * self.num_mini_batches

    @property
    def prompts_per_device(self) -> int:
        """Distinct prompts of a rollout on one device."""
        return self.per_device_train_batch_size // self.num_generations

    def network(self) -> dict[str, Any]:
        """The part of the options that the proxy's own config stores; None where a default depends on the base."""
        bias = 0.0 if self.objective == "marginal" else 2.0
        cap = 8 if self.candidate_features == "lookahead" else 256
        return {
            "hidden": self.hidden,
            "dim": self.dim or self.hidden,
            "objective": self.objective,
            "candidate_features": self.candidate_features,
            "temperature": self.temperature,
            "p_t": self.p_t,
            "max_candidates": self.max_candidates or cap,
            "max_new_tokens": self.max_new_tokens,
            "initial_bias": bias if self.initial_bias is None else self.initial_bias,
            "value_head": self.advantage == "gae",
            "prompt_format": self.prompt_format,
        }
