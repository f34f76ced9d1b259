"""Options of `frugalign psle`, without torch: its `--help` reads this file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.options.run import option


@dataclass
class PSLEOptions:
    """Options of `frugalign psle`: principle-guided self-enhancement in rounds. Names are TRL's where it has one."""

    model_name_or_path: str | None = option(None, "The model to align: hub id, folder, or package.module:attribute.")
    dataset_name: str | None = option(
        None, "Prompts: hub id, file or folder with a `prompt` column (strings or messages); `weight` weighs a row."
    )
    principles: str | None = option(
        None,
        "What the model is told: harmless, helpful-and-honest, courteous, a .yaml, .md or .txt file, or package.module:attribute.",
    )
    reward: list[str] = option(
        [], "Reward, repeatable: package.module:name, file.py:name, or a sequence-classification model."
    )
    eval_reward: list[str] = option([], "Judge, repeatable: measured on held-out prompts, never trained on.")
    output_dir: str | None = option(None, "Run folder; every round is a folder in it.")
    overwrite_output_dir: bool = option(False, "Delete the earlier run that output_dir holds; else it is refused.")

    revision: str | None = option(None, "Revision of the model on the hub.")
    dtype: str | None = option(None, "Dtype of the model: float32, bfloat16, float16, auto. Default: float32 on a CPU.")
    device_map: str | None = option(None, "Device map of the model, as in transformers.")
    load_in_4bit: bool = option(False, "Load the model in 4-bit NF4 (needs bitsandbytes).")
    use_peft: bool = option(True, "Train a LoRA; --no_use_peft trains every weight.")
    lora_r: int = option(16, "Rank of the LoRA.")
    lora_alpha: int = option(32, "Scale of the LoRA.")

    method: Literal["psle", "context_distillation", "raft", "dpo", "rejection", "sft"] = option(
        "psle",
        "What is learned from the scored responses; all but psle are for comparison: those under the principles alone (context_distillation), "
        "each prompt's best (raft), the ranked couples by DPO (dpo) or by our ranking loss (rejection), or everything alike (sft).",
    )
    rounds: int = option(3, "Rounds of sampling, scoring and training.")
    prompts_per_round: int | None = option(
        None, "Prompts of a round, the next ones each time. Default: all of them, in every round."
    )
    num_generations: int = option(1, "Responses per prompt of each kind (k): plain, and under the principles.")
    use_principles: bool = option(
        True, "Sample half of the responses under the principles; --no_use_principles: all of them plainly (ablation)."
    )
    tau: float = option(0.2, "τ_0: a gain above τ is ranked, in units of tau_scale.")
    tau_decay: float = option(0.9, "α: τ of the next round over τ of this one; 1 keeps it.")
    tau_scale: Literal["std", "raw"] = option(
        "std", "Unit of τ and of the weights: the standard deviation of round 0's rewards, or the reward's own."
    )
    use_ranking: bool = option(True, "Rank clear gains; --no_use_ranking makes every couple demonstrations (ablation).")
    ranking_temperature: float = option(0.5, "t: log-likelihood per token at which the ranking loss is soft.")
    sft_weight: float = option(1.0, "η: weight of the demonstrations beside the ranking.")
    weighting: Literal["round", "pair", "none"] = option(
        "round",
        "Weights of demonstrations: exp of the reward over the round, a softmax inside each couple, or all alike.",
    )
    weight_temperature: float = option(1.0, "T_w: units of tau_scale by which a weight grows e-fold.")
    weight_cap: float = option(5.0, "The largest weight, in means of the round.")
    kl_weight: float = option(0.0, "Weight of the KL to the starting model, nats a token.")
    beta: float = option(0.1, "β of DPO (method dpo).")

    max_new_tokens: int = option(128, "Most tokens of a response.")
    temperature: float = option(1.0, "Temperature of sampling.")
    sampling_batch_size: int = option(64, "Responses sampled at once.")
    share_prefix: bool = option(True, "Feed the principles to the model once, not once per prompt.")
    skip_long_prompts: bool = option(
        False, "Leave out prompts that exceed the context under the principles (counted); else they are an error."
    )
    prompt_format: Literal["auto", "raw", "chat"] = option(
        "auto",
        "String prompts: one user turn where the tokenizer has a chat template (auto, chat), or as they are (raw).",
    )
    reward_weights: list[float] | None = option(None, "Weights of several rewards. Default: 1 each.")
    reward_on_error: Literal["raise", "skip"] = option(
        "raise", "A reward that fails stops the run, or drops its couples (counted)."
    )
    eval_prompts: int = option(
        128,
        "Held-out prompts that every round is measured on: the validation split, else a tenth of the prompts; 0: none.",
    )

    num_train_epochs: float = option(1, "Passes over a round's couples.")
    max_steps: int = option(-1, "Optimiser steps of a round, in place of epochs.")
    per_device_train_batch_size: int = option(16, "Couples of a step on one device.")
    learning_rate: float = option(
        1e-4, "Peak learning rate of each round, of a LoRA; for every weight try a tenth of it."
    )
    lr_scheduler_type: str = option("linear", "Learning-rate schedule of each round, as in transformers.")
    warmup_steps: float = option(0, "Warm-up steps of each round.")
    logging_steps: float = option(5, "Log every so many steps.")
    save_steps: float = option(200, "Checkpoint within a round every so many steps; every round is kept anyway.")
    save_total_limit: int | None = option(1, "Checkpoints kept within a round; those of a finished one go.")
    report_to: str | list[str] | None = option(
        "none", "Experiment trackers, as in transformers; nothing is sent unless you ask."
    )
    seed: int = option(0, "Seed of the LoRA's weights, of the order and of all noise.")
    resume_from_checkpoint: str | None = option(None, "`true`: go on where the run in output_dir stopped.")
    from_round: int | None = option(
        None,
        "With resume_from_checkpoint: train this round again, on its responses as they lie there, and do all later ones anew.",
    )
