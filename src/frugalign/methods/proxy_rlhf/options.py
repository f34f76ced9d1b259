"""The proxy's own options, without torch. `frugalign proxy --help` reads this file; `ProxyConfig` adds `TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.methods.proxy_network import ProxyNetwork
from frugalign.options import cluster, groups
from frugalign.options.declare import defaults, like, notes, option
from frugalign.options.kinds import COUNT, NON_NEGATIVE, POSITIVE, SHARE, Kind

_BATCH = Kind("at least 1, or -1 for a size that fits the base", lambda x: x >= 1 or x == -1, whole=True)
_EPOCHS = Kind("above 0, or -1", lambda x: x > 0 or x == -1)


@dataclass
@defaults(save_steps=100)
@notes(
    model_name_or_path="The model stays frozen.",
    dataset_name="It holds prompts in a `prompt` column (strings or messages).",
    adapter="It is part of the frozen base.",
    max_prompt_length="Default: a prompt over the context is an error.",
    num_generations="Each is the others' baseline.",
    target_kl="It adapts beta, and counts what the proxy chooses (`kl_choice`).",
    max_steps="They are rounded up to whole rollouts; without epochs, -1 stands for those of budget_tokens.",
    output_dir="Default: runs/proxy.",
    save_steps="They are rounded up to whole rollouts.",
    log_completions="completions.jsonl has some of every rollout.",
)
class ProxyOptions(
    ProxyNetwork,
    cluster.Workers,
    groups.TargetKL,
    groups.Completions,
    groups.TrainingRun,
    groups.EvalSteps,
    groups.Steps,
    groups.Generations,
    groups.PromptLength,
    groups.PromptFormat,
    groups.TruncationPenalty,
    groups.RewardErrors,
    groups.RewardWeights,
    groups.Rewards,
    groups.Data,
    groups.ModelAdapter,
    groups.Spread,
    groups.Model,
):
    """Options of `frugalign proxy`, with the names of TRL and transformers where they exist."""

    budget_tokens: int | None = option(
        None,
        "Most tokens to sample in training, if every response has its full length. Default: what takes minutes on a laptop, "
        "a million for a small base and fewer for a larger one.",
        COUNT,
    )
    num_train_epochs: float = like(groups.Epochs, "num_train_epochs", -1, "-1: those of budget_tokens.", _EPOCHS)
    per_device_train_batch_size: int = like(
        groups.Steps,
        "per_device_train_batch_size",
        -1,
        "It counts the responses of a rollout and is a multiple of num_generations. -1: 128, or fewer if the budget "
        "would not last for 30 rollouts.",
        _BATCH,
    )
    sampling_batch_size: int | None = like(
        groups.SamplingBatch,
        "sampling_batch_size",
        None,
        "Default: a whole rollout, or on Ray an even share for each worker. With a number the result is the same, bit by bit, for any number of workers.",
        COUNT,
    )
    beta: float | None = like(
        groups.Beta,
        "beta",
        None,
        "Its unit is reward per nat of KL to the base, over a response. With target_kl it is the starting value. "
        "Default: 0.05, with target_kl what a nat there is worth by the rewards' spread.",
    )
    max_update_kl: float = option(
        1.0,
        "How far one rollout may move the policy, in nats per response: KL of the new policy to the old one.",
        POSITIVE,
    )
    num_iterations: int = option(
        8, "Most passes over a rollout. They end once it has moved the policy half of max_update_kl.", COUNT
    )
    num_mini_batches: int = option(2, "Optimiser steps per pass.", COUNT)
    epsilon: float = option(0.2, "Clip range of PPO.", NON_NEGATIVE)
    advantage: Literal["leave_one_out", "gae"] = option(
        "leave_one_out", "Baseline: the prompt's other responses, or a value head."
    )
    gae_lambda: float = option(0.95, "λ of GAE.", SHARE)
    vf_coef: float = option(0.5, "Weight of the value loss (GAE).", NON_NEGATIVE)
    mask_truncated_completions: bool = option(False, "Leave responses that are cut out of the loss.")
    max_grad_norm: float = option(1.0, "Gradient clipping.", NON_NEGATIVE)
