"""Options of `frugalign reward`, without torch: its `--help` reads this file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.options.run import option


@dataclass
class RewardOptions:
    """Options of `frugalign reward`: probes on a model's own hidden states become a reward."""

    model_name_or_path: str | None = option(
        None, "The model whose states are read: hub id, folder, or package.module:attribute."
    )
    dataset_name: str | None = option(
        None,
        "Judged answers: pairs (prompt, chosen, rejected) or labelled ones (prompt, completion, label true/false).",
    )
    eval_dataset_name: list[str] = option(
        [], "Judged answers from elsewhere, repeatable: reported, never learned from."
    )
    output_dir: str | None = option(None, "Where the reward and its report go.")
    overwrite_output_dir: bool = option(False, "Replace the reward that output_dir holds; else it is refused.")

    revision: str | None = option(None, "Revision of the model on the hub.")
    dtype: str | None = option(None, "Dtype of the model: float32, bfloat16, float16, auto. Default: float32 on a CPU.")
    device_map: str | None = option(None, "Device map of the model, as in transformers.")
    load_in_4bit: bool = option(False, "Load the model in 4-bit NF4 (needs bitsandbytes).")
    adapter: str | None = option(None, "A PEFT adapter that belongs to the model.")
    use_cpu: bool = option(False, "Stay on the CPU where there is a GPU.")

    layers: list[int] | None = option(
        None, "Layers to read, as indices into hidden_states (negative: from the end). Default: 1 to the last."
    )
    max_length: int | None = option(
        None, "Most tokens of prompt and answer; prompts are cut on the left. Default: the model's context."
    )
    prompt_format: Literal["auto", "raw", "chat"] = option(
        "auto",
        "String prompts: one user turn where the tokenizer has a chat template (auto, chat), or as they are (raw).",
    )
    test_fraction: float = option(0.2, "Share of the prompts held out for the report, where there is no test split.")
    validation_fraction: float = option(0.15, "Share of the other prompts that stop the fit and calibrate the reward.")

    margin: float = option(1.0, "Margin of the pair loss −log σ(r_c − r_r − margin).")
    weight_decay: list[float] = option(
        [0.01, 0.1, 1.0, 10.0], "L2 penalties tried on standardised states; the validation loss chooses."
    )
    max_iterations: int = option(200, "Most L-BFGS iterations.")
    patience: int = option(20, "Iterations without a lower validation loss before the fit ends.")

    full_model: bool = option(
        False, "Also train a whole reward model with TRL on the same pairs: its accuracy and cost, beside the probes'."
    )
    full_model_epochs: int = option(2, "Passes of that training; the best by the validation pairs is kept.")
    full_model_learning_rate: float = option(1e-4, "Its learning rate.")

    n_shuffles: int = option(5, "Fits on shuffled labels for the control.")
    cache_dir: str | None = option(None, "Where hidden states are kept. Default: ~/.cache/frugalign/states.")
    max_cache_gib: float = option(20.0, "The most that the cache may take; the states used longest ago leave first.")
    seed: int = option(0, "Seed of splits, order and controls.")
