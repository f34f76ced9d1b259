"""The proxy's own options, without torch: `frugalign proxy --help` reads this file, `ProxyConfig` adds `TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.options.run import option


@dataclass
class ProxyOptions:
    """Options of `frugalign proxy`. Names are TRL's and transformers' where they have one."""

    model_name_or_path: str | None = option(None, "The frozen base: hub id, folder, or package.module:attribute.")
    dataset_name: str | None = option(
        None, "Prompts: hub id, file or folder with a `prompt` column (strings or messages)."
    )
    reward: list[str] = option(
        [], "Reward, repeatable: package.module:name, file.py:name, or a sequence-classification model."
    )
    output_dir: str | None = option(None, "Run folder.")
    overwrite_output_dir: bool = option(False, "Delete the earlier run that output_dir holds; else it is refused.")

    revision: str | None = option(None, "Revision of the base on the hub.")
    dtype: str | None = option(None, "Dtype of the base: float32, bfloat16, float16, auto. Default: float32 on a CPU.")
    device_map: str | None = option(None, "Device map of the base, as in transformers.")
    load_in_4bit: bool = option(False, "Load the base in 4-bit NF4 (needs bitsandbytes).")
    adapter: str | None = option(None, "A PEFT adapter that belongs to the frozen base.")

    objective: Literal["marginal", "sequential", "sequential_integrated"] = option(
        "marginal",
        "What the coin flips mean: proposals with replacement (marginal), without (sequential), and integrated out.",
    )
    candidate_features: Literal["embedding", "lookahead", "token_bias"] = option(
        "embedding",
        "What the proxy knows of a candidate: its embedding, the state after it, or (control) only its identity.",
    )
    p_t: float = option(0.01, "Candidates have at least this probability under the base (the argmax always is one).")
    temperature: float = option(1.0, "Temperature T of the proposal distribution.")
    max_candidates: int | None = option(None, "Most candidates of a position. Default: 256, lookahead 8.")
    max_new_tokens: int = option(128, "Most tokens of a completion.")
    max_prompt_length: int | None = option(
        None, "Cut longer prompts on the left (counted). Default: a prompt over the context is an error."
    )
    prompt_format: Literal["auto", "raw", "chat"] = option(
        "auto",
        "String prompts: one user turn where the tokenizer has a chat template (auto, chat), or as they are (raw).",
    )
    hidden: int | None = option(None, "Hidden width of q. Default: what keeps the proxy under 1 % of the base.")
    dim: int | None = option(None, "Width d of q and k. Default: as `hidden`.")
    initial_bias: float | None = option(None, "b of an untrained proxy. Default: 0 (marginal), 2 (sequential).")

    beta: float = option(
        0.05, "Cost of KL to the base, reward units per nat per sequence; the start where target_kl adapts it."
    )
    target_kl: float | None = option(
        None, "Adapt beta towards this KL to the base, nats per sequence, restriction included."
    )
    num_generations: int = option(8, "Completions of a prompt in one rollout (the leave-one-out group).")
    per_device_train_batch_size: int = option(128, "Completions per device and rollout; a multiple of num_generations.")
    num_iterations: int = option(2, "Passes over a rollout.")
    num_mini_batches: int = option(2, "Optimiser steps per pass.")
    epsilon: float = option(0.2, "PPO's clip range.")
    advantage: Literal["leave_one_out", "gae"] = option(
        "leave_one_out", "Baseline: the prompt's other completions, or a value head."
    )
    gae_lambda: float = option(0.95, "λ of GAE.")
    vf_coef: float = option(0.5, "Weight of the value loss (GAE).")
    reward_weights: list[float] | None = option(None, "Weights of several rewards. Default: 1 each.")
    reward_on_error: Literal["raise", "skip"] = option(
        "raise", "A reward that fails stops the run, or drops its rows (counted)."
    )
    missing_eos_penalty: float = option(0.0, "Added to the reward of a completion cut at max_new_tokens.")
    mask_truncated_completions: bool = option(False, "Leave cut completions out of the loss.")

    max_steps: int = option(
        960, "Optimiser steps, rounded up to whole rollouts; -1 for num_train_epochs passes over the prompts."
    )
    learning_rate: float = option(1e-2, "Peak learning rate.")
    lr_scheduler_type: str = option("linear", "Learning-rate schedule, as in transformers.")
    warmup_steps: float = option(0, "Warm-up steps.")
    max_grad_norm: float = option(1.0, "Gradient clipping.")
    logging_steps: float = option(10, "Log every so many steps.")
    eval_steps: float | None = option(None, "Evaluate on the held-out prompts every so many steps.")
    save_steps: float = option(100, "Checkpoint every so many steps, rounded up to whole rollouts.")
    save_total_limit: int | None = option(2, "Checkpoints kept.")
    log_completions: bool = option(False, "Write some completions of every logged rollout to completions.jsonl.")
    report_to: str | list[str] | None = option(
        "none", "Experiment trackers, as in transformers; nothing is sent unless you ask."
    )
    seed: int = option(0, "Seed of the proxy's weights and of all noise.")
    resume_from_checkpoint: str | None = option(
        None, "A checkpoint folder, or `true` for the newest one in output_dir."
    )
