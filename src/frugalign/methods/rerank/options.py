"""Options of `frugalign rerank`, without torch: its `--help` reads this file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.options.run import option


@dataclass
class RerankOptions:
    """Options of `frugalign rerank`: DPO with confidence that follows the policy. Names are TRL's where it has one."""

    model_name_or_path: str | None = option(None, "The model to align: hub id, folder, or package.module:attribute.")
    dataset_name: str | None = option(
        None,
        "Preference pairs: prompt, chosen, rejected (and confidence, weight); prompts to sample for; or prompts with their completions.",
    )
    reward: str | None = option(None, "Folder or hub id of a representation reward of this model (`frugalign reward`).")
    output_dir: str | None = option(None, "Run folder.")
    overwrite_output_dir: bool = option(False, "Delete the earlier run that output_dir holds; else it is refused.")

    revision: str | None = option(None, "Revision of the model on the hub.")
    dtype: str | None = option(None, "Dtype of the model: float32, bfloat16, float16, auto. Default: float32 on a CPU.")
    device_map: str | None = option(None, "Device map of the model, as in transformers.")
    load_in_4bit: bool = option(False, "Load the model in 4-bit NF4 (needs bitsandbytes).")
    use_peft: bool = option(True, "Train a LoRA; --no_use_peft trains every weight.")
    lora_r: int = option(16, "Rank of the LoRA.")
    lora_alpha: int = option(32, "Scale of the LoRA.")

    confidence: Literal["pair", "batch", "constant"] = option(
        "pair", "γ from the current policy's states: per pair, per batch (the published code's form), or constant."
    )
    constant_confidence: float = option(1.0, "γ where it is constant: 1 is DPO, 1 − ε conservative DPO.")
    confidence_floor: float = option(0.5, "The least γ of a pair: 0.5 weakens doubtful labels, 0 lets them flip.")
    label_noise: float | None = option(
        None, "Share of wrong labels, where it is known: γ per pair then weighs the label too, by Bayes' rule."
    )
    kappa: float = option(7.5, "Steepness of the batch confidence.")
    beta: float = option(0.1, "β of DPO.")
    sft_weight: float = option(
        0.0, "Weight of the favoured answer's log-likelihood per token, times |2γ − 1| (the term of RPO)."
    )
    max_length: int | None = option(None, "Most tokens of prompt and answer; cut on the left. Default: the context.")
    prompt_format: Literal["auto", "raw", "chat"] = option(
        "auto",
        "String prompts: one user turn where the tokenizer has a chat template (auto, chat), or as they are (raw).",
    )

    sample: int = option(
        0, "Responses per prompt, sampled once from the model and ranked by the reward, in place of stored pairs."
    )
    rerank_groups: bool = option(
        True, "Rank the responses of each prompt by the current policy's states at every epoch."
    )
    resample: bool = option(False, "Sample the responses anew at every epoch: online DPO.")
    max_new_tokens: int = option(128, "Most tokens of a sampled response.")
    missing_eos_penalty: float = option(
        0.0,
        "Added to the reward of a sampled response that is cut at max_new_tokens: probes fitted on whole answers may give one anything.",
    )
    temperature: float = option(1.0, "Temperature of sampling.")
    sampling_batch_size: int = option(64, "Responses sampled at once.")
    reward_refresh_steps: int = option(
        0, "The probes follow the policy by one margin step every so many steps; 0: never."
    )
    reward_learning_rate: float = option(0.1, "Length of that step, as a share of the margin.")
    reward_dataset_name: str | None = option(
        None, "Labelled pairs that the probes follow by. Default: the training pairs."
    )
    margin: float = option(1.0, "Margin of that step's pair loss −log σ(r_c − r_r − margin).")

    shift_reward: str | None = option(
        None, "A reward that training never sees: log how rankings and samples shift (see `frugalign report`)."
    )
    shift_steps: int = option(50, "Look at the shift every so many steps.")
    shift_prompts: int = option(64, "Prompts to look at: of the test or validation split where there is one.")

    num_train_epochs: float = option(1, "Passes over the pairs.")
    max_steps: int = option(-1, "Optimiser steps, in place of epochs.")
    per_device_train_batch_size: int = option(16, "Pairs of a step on one device.")
    learning_rate: float = option(1e-4, "Peak learning rate of a LoRA; for every weight try a tenth of it.")
    lr_scheduler_type: str = option("linear", "Learning-rate schedule, as in transformers.")
    warmup_steps: float = option(0, "Warm-up steps.")
    logging_steps: float = option(10, "Log every so many steps.")
    eval_steps: float | None = option(None, "Evaluate on the held-out pairs every so many steps.")
    save_steps: float = option(200, "Checkpoint every so many steps.")
    save_total_limit: int | None = option(2, "Checkpoints kept.")
    report_to: str | list[str] | None = option(
        "none", "Experiment trackers, as in transformers; nothing is sent unless you ask."
    )
    seed: int = option(0, "Seed of the LoRA's weights and of the order.")
    resume_from_checkpoint: str | None = option(None, "A checkpoint folder, or `true` for the newest in output_dir.")
