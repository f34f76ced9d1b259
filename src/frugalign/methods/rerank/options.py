"""Options of `frugalign rerank`, without torch. Its `--help` reads only this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.methods.proxy_network import RATE
from frugalign.methods.train_options import Trained
from frugalign.options import groups
from frugalign.options.declare import like, notes, option
from frugalign.options.kinds import COUNT, COUNT_OR_ZERO, POSITIVE, SHARE, Kind

_GROUP_SIZE = Kind("at least 2, or 0 for none", lambda x: x >= 2 or x == 0, whole=True)


@dataclass
@notes(
    dataset_name="It holds preference pairs: prompt, chosen, rejected (and confidence, weight). Or prompts to sample for, or prompts with completions.",
    beta="It is that of DPO.",
    sft_weight="Here per token of the favoured answer, times |2γ − 1| (the term of RPO).",
    missing_eos_penalty="Probes fitted on whole answers can score a cut one wrongly.",
    label_noise="γ per pair then weighs the label too, by Bayes' rule.",
    target_kl="Here of a proxy, on the stored answers: a step beyond it returns.",
    margin="It is that of the updates every reward_refresh_steps.",
    temperature="Default: what the model's generation config samples at, else 1.",
    output_dir="Default: runs/rerank.",
    per_device_train_batch_size="It counts pairs.",
    train="The options under `proxy` go with the last. The base's states do not move under a proxy, so γ and the ranking of stored responses "
    "stay fixed.",
    cache_dir="Of a proxy.",
    max_cache_gib="Of a proxy.",
)
class RerankOptions(
    groups.TrainingRun,
    groups.EvalSteps,
    groups.Steps,
    groups.Epochs,
    groups.ConfidenceFloor,
    groups.LabelNoise,
    groups.TargetKL,
    groups.Beta,
    groups.SFTWeight,
    groups.Margin,
    groups.SamplingBatch,
    groups.Sampling,
    groups.TruncationPenalty,
    groups.PairLength,
    groups.Data,
    Trained,
    groups.Spread,
    groups.Model,
):
    """Options of `frugalign rerank`: DPO with confidence that follows the policy. Names are TRL's where it has one."""

    learning_rate: float = like(
        groups.Steps,
        "learning_rate",
        -1,
        "-1: 1e-4, and 0.002 for a proxy. When training every weight, try 1e-5.",
        RATE,
    )
    kl_weight: float | None = like(
        groups.KLWeight,
        "kl_weight",
        None,
        "Here of a proxy, per nat and answer, exact, on the stored answers. Default: 0.02, since the loss has no end of its own.",
    )
    reward: str | None = like(
        groups.Rewards, "reward", None, "Here a representation reward of this model (`frugalign reward`)."
    )
    confidence: Literal["pair", "batch", "constant"] = option(
        "pair", "γ from the current policy's states: per pair, per batch (the published code's form), or constant."
    )
    constant_confidence: float = option(1.0, "γ where it is constant: 1 is DPO, 1 − ε conservative DPO.", SHARE)
    kappa: float = option(7.5, "Steepness of the batch confidence.", POSITIVE)

    sample: int = option(
        0,
        "Responses per prompt, sampled once from the model and ranked by the reward, in place of stored pairs.",
        _GROUP_SIZE,
    )
    rerank_groups: bool = option(
        True, "Rank the responses of each prompt by the current policy's states at every epoch."
    )
    resample: bool = option(False, "Sample the responses anew at every epoch: online DPO.")
    reward_refresh_steps: int = option(
        0, "Update the probes by one margin step every this many steps, to follow the policy; 0: never.", COUNT_OR_ZERO
    )
    reward_learning_rate: float = option(0.1, "Length of that step, as a share of the margin.", POSITIVE)
    reward_dataset_name: str | None = option(
        None, "Labelled pairs that those updates learn from. Default: the training pairs."
    )

    shift_reward: str | None = option(
        None, "A reward that training never sees: log how rankings and samples shift (see `frugalign report`)."
    )
    shift_steps: int = option(50, "Measure that shift every this many steps.", COUNT)
    shift_prompts: int = option(
        64, "Prompts to measure it on: of the test or validation split where there is one.", COUNT
    )
