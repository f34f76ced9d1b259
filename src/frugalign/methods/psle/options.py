"""Options of `frugalign psle`, without torch. Its `--help` reads only this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.methods.proxy_network import RATE
from frugalign.methods.train_options import Trained
from frugalign.options import groups
from frugalign.options.declare import defaults, like, notes, option
from frugalign.options.kinds import COUNT, COUNT_OR_ZERO, NON_NEGATIVE, POSITIVE, TEMPERATURE


@dataclass
@defaults(num_generations=1, sft_weight=1.0, logging_steps=5, save_total_limit=1)
@notes(
    dataset_name="It holds prompts in a `prompt` column (strings or messages); a `weight` column weighs rows.",
    principles="The model is told them for half of its responses.",
    temperature="Default: what the model's generation config samples at, else 1.",
    output_dir="Every round is a folder in it. Default: runs/psle.",
    num_generations="It counts each kind: plain, and under the principles (k).",
    sft_weight="η: that of the demonstrations, beside the ranking.",
    beta="For method dpo.",
    kl_weight="Here per token, exact, on the round's responses.",
    target_kl="Here on the round's responses: a step beyond it returns.",
    max_steps="They are those of one round.",
    num_train_epochs="The data are the couples of a round.",
    per_device_train_batch_size="It counts couples.",
    train="The options under `proxy` go with the last.",
    cache_dir="Of a proxy.",
    max_cache_gib="Of a proxy.",
    lr_scheduler_type="Every round has its own.",
    warmup_steps="Every round has its own.",
    save_steps="They count within a round; every finished round is kept anyway.",
    save_total_limit="They are those of the current round; a finished one needs none.",
    resume_from_checkpoint="Rounds take `true` only.",
    log_completions="responses.jsonl of a round has all of them.",
)
class PSLEOptions(
    groups.Completions,
    groups.TrainingRun,
    groups.Steps,
    groups.Epochs,
    groups.TargetKL,
    groups.Beta,
    groups.KLWeight,
    groups.SFTWeight,
    groups.SamplingBatch,
    groups.Generations,
    groups.Sampling,
    groups.RewardErrors,
    groups.RewardWeights,
    groups.Rewards,
    groups.Principles,
    groups.Data,
    Trained,
    groups.Spread,
    groups.Model,
):
    """Options of `frugalign psle`, with TRL's names where they exist: principle-guided self-enhancement in rounds."""

    learning_rate: float = like(
        groups.Steps,
        "learning_rate",
        -1,
        "-1: 1e-4, and 0.002 for a proxy. When training every weight, try 1e-5. Every round starts anew.",
        RATE,
    )
    eval_reward: list[str] = option([], "A reward to measure held-out prompts by, repeatable; never trained on.")
    method: Literal["psle", "context_distillation", "raft", "dpo", "rejection", "sft"] = option(
        "psle",
        "What is learned from the scored responses. All but psle are for comparison: those under the principles alone (context_distillation), "
        "each prompt's best (raft), the ranked couples by DPO (dpo) or by our ranking loss (rejection), or everything alike (sft).",
    )
    rounds: int = option(3, "Rounds of sampling, scoring and training.", COUNT)
    prompts_per_round: int | None = option(
        None, "Prompts of a round, the next ones each time. Default: all of them, in every round.", COUNT
    )
    use_principles: bool = option(
        True, "Sample half of the responses under the principles; --no_use_principles: all of them plainly (ablation)."
    )
    tau: float = option(0.2, "τ_0: a gain above τ is ranked, in units of tau_scale.", NON_NEGATIVE)
    tau_decay: float = option(0.9, "α: τ of the next round over τ of this one; 1 keeps it.", NON_NEGATIVE)
    tau_scale: Literal["std", "raw"] = option(
        "std", "Unit of τ and of the weights: the standard deviation of round 0's rewards, or the reward's own."
    )
    use_ranking: bool = option(True, "Rank clear gains; --no_use_ranking makes every couple demonstrations (ablation).")
    ranking_temperature: float = option(
        0.5, "t: the scale of the ranking loss, in log-likelihood per token.", TEMPERATURE
    )
    weighting: Literal["round", "pair", "none"] = option(
        "round",
        "Weights of demonstrations: exp of the reward over the round, a softmax inside each couple, or all alike.",
    )
    weight_temperature: float = option(
        1.0, "T_w: the rise of the reward that multiplies a weight by e, in units of tau_scale.", TEMPERATURE
    )
    weight_cap: float = option(5.0, "The largest weight, as a multiple of the round's mean weight.", POSITIVE)

    share_prefix: bool = option(True, "Feed the principles to the model once, not once per prompt.")
    skip_long_prompts: bool = option(
        False, "Leave out prompts that exceed the context under the principles (counted); else they are an error."
    )
    eval_prompts: int = like(
        groups.EvalPrompts,
        "eval_prompts",
        128,
        "They are of the validation split, else of a tenth of the prompts that is held out. 0: no evaluation.",
    )
    from_round: int | None = option(
        None,
        "With resume_from_checkpoint: train this round again on its stored responses, and run all later rounds anew.",
        COUNT_OR_ZERO,
    )
