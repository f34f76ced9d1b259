"""Every option shared by several verbs or methods, declared once. A verb inherits its groups; see `declare`.

Groups are never compared or printed, so they have no `==` and `repr`. This makes `--help` start faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from frugalign.options.declare import Group, option
from frugalign.options.kinds import (
    COUNT,
    COUNT_OR_ZERO,
    FINITE,
    LABEL_NOISE,
    LEARNING_RATE,
    MAX_STEPS,
    NON_NEGATIVE,
    NON_POSITIVE,
    PART,
    PATH,
    POSITIVE,
    SEED,
    SHARE,
    SIZE,
    STEPS_OR_FRACTION,
    TEMPERATURE,
    TEMPLATE_ARGUMENTS,
    TEXT,
    WARM_UP,
)

# -- model --------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class ModelName(Group, section="model"):
    """Which model."""

    model_name_or_path: str | None = option(None, "The model: hub id, folder, GGUF file, or package.module:attribute.")


@dataclass(eq=False, repr=False)
class Device(Group, section="model"):
    """Where it runs."""

    use_cpu: bool = option(False, "Use the CPU even where there is a GPU.")


@dataclass(eq=False, repr=False)
class Model(Device, ModelName, section="model"):
    """Which model, and how it is loaded."""

    revision: str | None = option(None, "Revision of the model on the hub.")
    dtype: str | None = option(None, "Dtype of the model: float32, bfloat16, float16, auto. Default: float32 on a CPU.")
    device_map: str | None = option(None, "Device map of the model, as in transformers.")
    load_in_4bit: bool = option(False, "Load the model in 4-bit NF4 (needs bitsandbytes).")


@dataclass(eq=False, repr=False)
class Spread(Group, section="model"):
    """A frozen model over several processes, with the names of transformers' `DistributedConfig`."""

    tp_size: int = option(1, "Tensor parallelism: this many processes of torchrun compute every layer together.", COUNT)
    fsdp_size: int = option(1, "FSDP2: this many processes of torchrun hold the weights together.", COUNT)


@dataclass(eq=False, repr=False)
class ModelAdapter(Group, section="model"):
    """An adapter that comes with the model."""

    adapter: str | None = option(None, "A PEFT adapter of the model.")


@dataclass(eq=False, repr=False)
class Lora(Group, section="trained weights"):
    """What is trained."""

    train: Literal["lora", "full", "proxy"] = option(
        "lora", "What is trained: a LoRA adapter (lora), every weight (full), or a proxy of the frozen model (proxy)."
    )
    lora_r: int = option(16, "Rank of the LoRA adapter.", SIZE)
    lora_alpha: int = option(32, "Scale (alpha) of the LoRA adapter.", COUNT)


KINDS = {"lora": "adapter", "full": "policy", "proxy": "proxy"}
"""The part of a policy that each choice of `train` gives, by its option's name (`--adapter` and so on)."""


# -- data and rewards ---------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Data(Group, section="data"):
    """What is read."""

    dataset_name: str | None = option(None, "The data set: hub id, file or folder.")


@dataclass(eq=False, repr=False)
class EvalPrompts(Group, section="data"):
    """How many prompts are evaluated."""

    eval_prompts: int | None = option(None, "Held-out prompts to evaluate on.", COUNT_OR_ZERO)


@dataclass(eq=False, repr=False)
class Principles(Group, section="data"):
    """Written principles."""

    principles: str | None = option(
        None,
        "Written principles: harmless, helpful-and-honest, courteous, a .yaml, .md or .txt file, or package.module:attribute.",
    )


@dataclass(eq=False, repr=False)
class Rewards(Group, section="rewards"):
    """What scores responses."""

    reward: list[str] = option(
        [],
        "A reward: package.module:name, file.py:name, the folder of a representation reward, or a "
        "sequence-classification model.",
    )


@dataclass(eq=False, repr=False)
class RewardWeights(Group, section="rewards"):
    """How several rewards add up."""

    reward_weights: list[float] | None = option(None, "Weights of several rewards. Default: 1 each.", FINITE)


@dataclass(eq=False, repr=False)
class RewardErrors(Group, section="rewards"):
    """What a failing reward does."""

    reward_on_error: Literal["raise", "skip"] = option(
        "raise", "When a reward fails: stop the run (raise), or leave out and count what it could not score (skip)."
    )


@dataclass(eq=False, repr=False)
class TruncationPenalty(Group, section="rewards"):
    """What a response loses by being cut."""

    missing_eos_penalty: float = option(
        0.0, "Added to the reward of a response that is cut at max_new_tokens.", NON_POSITIVE
    )


@dataclass(eq=False, repr=False)
class HeldOut(Group, section="data"):
    """What is left out of the training."""

    test_fraction: float = option(
        0.2, "Share of the prompts held out for a report, where there is no test split.", PART
    )
    validation_fraction: float = option(
        0.15, "Share of the other prompts that stop the training, where there is no validation split.", PART
    )


@dataclass(eq=False, repr=False)
class Cache(Group, section="data"):
    """Where what a model computed is kept."""

    cache_dir: str | None = option(None, "Where hidden states are kept. Default: ~/.cache/frugalign.", PATH)
    max_cache_gib: float = option(
        20.0, "Largest size of that cache, in GiB; what was used longest ago leaves first.", POSITIVE
    )


# -- sampling -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class ChatTemplate(Group, section="sampling"):
    """How the chat template is rendered."""

    chat_template_kwargs: dict[str, Any] | None = option(
        None, "Arguments of the chat template, such as '{\"enable_thinking\": false}'.", TEMPLATE_ARGUMENTS
    )


@dataclass(eq=False, repr=False)
class PromptFormat(ChatTemplate, section="sampling"):
    """How a prompt becomes text."""

    prompt_format: Literal["auto", "raw", "chat"] = option(
        "auto",
        "How a text prompt is formatted: as a user turn if the tokenizer has a chat template (auto, chat), or unchanged (raw).",
    )


@dataclass(eq=False, repr=False)
class Sampling(PromptFormat, section="sampling"):
    """How responses are sampled."""

    max_new_tokens: int = option(128, "Maximum length of a response, in tokens.", COUNT)
    temperature: float | None = option(None, "Sampling temperature.", TEMPERATURE)


@dataclass(eq=False, repr=False)
class Decoding(Group, section="sampling"):
    """Sampling or greedy decoding."""

    do_sample: bool = option(True, "Sample; --no_do_sample decodes greedily.")


@dataclass(eq=False, repr=False)
class PromptLength(Group, section="sampling"):
    """How long a prompt may be."""

    max_prompt_length: int | None = option(
        None, "Maximum length of a prompt, in tokens. Longer ones are cut on the left, and counted.", COUNT
    )


@dataclass(eq=False, repr=False)
class PairLength(Group, section="data"):
    """How long a prompt and its answer may be."""

    max_length: int | None = option(
        None,
        "Maximum length of prompt and answer, in tokens. Prompts are cut on the left. Default: the model's context.",
        COUNT,
    )


@dataclass(eq=False, repr=False)
class SamplingBatch(Group, section="sampling"):
    """How many responses are sampled at once."""

    sampling_batch_size: int = option(64, "Responses sampled at once.", COUNT)


@dataclass(eq=False, repr=False)
class Generations(Group, section="sampling"):
    """How many responses a prompt gets."""

    num_generations: int = option(8, "Responses sampled per prompt.", COUNT)


# -- optimisation -------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Steps(Group, section="optimisation"):
    """How the optimiser runs, and what it leaves behind."""

    max_steps: int = option(-1, "Optimiser steps; -1 for num_train_epochs passes.", MAX_STEPS)
    per_device_train_batch_size: int = option(16, "Training batch size of one device.", COUNT)
    learning_rate: float = option(1e-4, "Peak learning rate.", LEARNING_RATE)
    lr_scheduler_type: str = option("linear", "Learning-rate schedule, as in transformers.")
    warmup_steps: float = option(0, "Warm-up steps; below 1, a fraction of all steps.", WARM_UP)
    logging_steps: float = option(10, "Log every this many steps.", STEPS_OR_FRACTION)
    save_steps: float = option(200, "Save a checkpoint every this many steps.", STEPS_OR_FRACTION)
    save_total_limit: int | None = option(2, "Keep at most this many checkpoints.", COUNT)


@dataclass(eq=False, repr=False)
class Epochs(Group, section="optimisation"):
    """How often the data is seen."""

    num_train_epochs: float = option(1, "Passes over the training data.", POSITIVE)


@dataclass(eq=False, repr=False)
class EvalSteps(Group, section="optimisation"):
    """When a training is evaluated."""

    eval_steps: float | None = option(
        None, "Evaluate on held-out data every this many steps. Default: never.", STEPS_OR_FRACTION
    )


@dataclass(eq=False, repr=False)
class Beta(Group, section="objective"):
    """The pull towards the starting model."""

    beta: float = option(0.1, "Weight β of staying close to the starting model.", NON_NEGATIVE)


@dataclass(eq=False, repr=False)
class SFTWeight(Group, section="objective"):
    """The pull towards good responses."""

    sft_weight: float = option(0.0, "Weight of the log-likelihood of good responses in the loss.", NON_NEGATIVE)


@dataclass(eq=False, repr=False)
class Margin(Group, section="objective"):
    """The margin of probes."""

    margin: float = option(1.0, "Margin of the probes' pair loss −log σ(r_chosen − r_rejected − margin).", FINITE)


@dataclass(eq=False, repr=False)
class KLWeight(Group, section="objective"):
    """The weight of an exact KL."""

    kl_weight: float = option(0.0, "Weight of the KL to the starting model in the loss.", NON_NEGATIVE)


@dataclass(eq=False, repr=False)
class TargetKL(Group, section="objective"):
    """The KL to hold."""

    target_kl: float | None = option(None, "Hold this KL to the base, in nats per response.", POSITIVE)


@dataclass(eq=False, repr=False)
class ConfidenceFloor(Group, section="objective"):
    """How far a reward may doubt a label."""

    confidence_floor: float = option(
        0.5, "The least γ of a pair: 0.5 weakens doubtful labels, 0 lets them flip.", SHARE
    )


@dataclass(eq=False, repr=False)
class LabelNoise(Group, section="objective"):
    """What is known of the labels."""

    label_noise: float | None = option(None, "Share of wrong labels, where it is known.", LABEL_NOISE)


@dataclass(eq=False, repr=False)
class Patience(Group, section="optimisation"):
    """When a training ends early."""

    patience: int = option(20, "Evaluations without a lower validation loss before the training ends.", COUNT_OR_ZERO)


# -- run ----------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class OutputDir(Group, section="run"):
    """Where results go."""

    output_dir: str | None = option(None, "Folder for the results.", PATH)


@dataclass(eq=False, repr=False)
class Seed(Group, section="run"):
    """The noise."""

    seed: int = option(0, "Random seed.", SEED)


@dataclass(eq=False, repr=False)
class Run(Seed, OutputDir, section="run"):
    """A run and its folder."""

    overwrite_output_dir: bool = option(
        False, "Replace an earlier run in output_dir. Without this flag, the command refuses such a folder."
    )


@dataclass(eq=False, repr=False)
class Tracking(Group, section="run"):
    """Who is told of a run."""

    report_to: str | list[str] | None = option(
        "none",
        "Experiment trackers, as in transformers: wandb, mlflow, trackio, tensorboard and others. Nothing is sent unless you name one.",
    )
    push_to_hub: bool = option(
        False, "Upload the finished artefact to the Hugging Face Hub. Nothing is uploaded without this flag."
    )
    hub_model_id: str | None = option(
        None, "Repository of that upload, NAME or OWNER/NAME. Default: the name of output_dir."
    )
    hub_private_repo: bool | None = option(
        None, "Whether a new repository is private. Default: as its owner's settings on the hub say."
    )


@dataclass(eq=False, repr=False)
class Completions(Group, section="run"):
    """Which samples are logged."""

    log_completions: bool = option(
        False, "Send some responses to the trackers as a table, with their rewards, as TRL does."
    )


@dataclass(eq=False, repr=False)
class TrainingRun(Tracking, Run, section="run"):
    """A training run: its folder, how it resumes, what tracks it."""

    resume_from_checkpoint: str | None = option(
        None, "Resume from this checkpoint folder, or from the newest checkpoint in output_dir (`true`).", TEXT
    )
