"""Options of `frugalign proxy` on stored data, without torch. `StoredProxyConfig` adds `TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.methods.proxy_network import ProxyNetwork
from frugalign.options import cluster, groups
from frugalign.options.declare import defaults, like, notes, option
from frugalign.options.kinds import Kind

_FRACTION = Kind("at least 0 and below 1", lambda x: 0 <= x < 1)


@dataclass
@defaults(
    num_train_epochs=5,
    patience=10,
    validation_fraction=0.1,
)
@notes(
    model_name_or_path="The model stays frozen. It reads the data once.",
    dataset_name="Preference pairs (prompt, chosen, rejected, and confidence, weight) or demonstrations (prompt, completion, and weight). "
    "With --principles or --teacher also prompts alone, which the teacher answers.",
    adapter="It is part of the frozen base.",
    beta="It is that of DPO.",
    sft_weight="Here per token of the favoured answer of a pair.",
    principles="The model under these principles is the teacher.",
    target_kl="Here on the stored answers, and a step beyond it returns.",
    confidence_floor="Here of --reward.",
    label_noise="With --reward, γ weighs the label too, by Bayes' rule. The losses conservative and robust assume 0.1 by default.",
    patience="Then the best is kept. 0: train to the end, and keep the last.",
    output_dir="Default: runs/proxy.",
    per_device_train_batch_size="It counts pairs, or single answers.",
    num_train_epochs="They cost little, since the base's features are stored. The best evaluation is kept.",
)
class StoredProxyOptions(
    ProxyNetwork,
    cluster.Workers,
    groups.TrainingRun,
    groups.Patience,
    groups.Steps,
    groups.Epochs,
    groups.ConfidenceFloor,
    groups.LabelNoise,
    groups.TargetKL,
    groups.Beta,
    groups.SFTWeight,
    groups.SamplingBatch,
    groups.PromptFormat,
    groups.Cache,
    groups.HeldOut,
    groups.PairLength,
    groups.Principles,
    groups.Data,
    groups.ModelAdapter,
    groups.Spread,
    groups.Model,
):
    """Options of `frugalign proxy` on pairs, demonstrations or a teacher. Names are TRL's where it has one."""

    reward: str | None = like(
        groups.Rewards,
        "reward",
        None,
        "With pairs: a representation reward of this model (`frugalign reward`), which gives the confidence in every label.",
    )
    teacher: str | None = option(
        None, "A model to imitate, larger and of the same tokenizer. With --principles, it reads those."
    )
    loss: Literal["sigmoid", "conservative", "robust", "ipo"] = option(
        "sigmoid", "The loss of pairs: DPO's, with smoothed labels, corrected for wrong labels, or IPO's."
    )
    kl_weight: float | None = like(
        groups.KLWeight,
        "kl_weight",
        None,
        "Here per nat and answer, exact, on the stored answers. Default: 0.02 with pairs, whose loss has no end of its own; else 0.",
    )
    eval_steps: float | None = like(
        groups.EvalSteps,
        "eval_steps",
        0.05,
        "Here on the validation data.",
    )
    test_fraction: float = like(groups.HeldOut, "test_fraction", 0.1, "For `frugalign evaluate`. 0: none.", _FRACTION)
