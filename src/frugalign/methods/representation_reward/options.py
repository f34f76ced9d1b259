"""Options of `frugalign reward`, without torch. Its `--help` reads only this file."""

from __future__ import annotations

from dataclasses import dataclass

from frugalign.options import groups
from frugalign.options.check import check_options
from frugalign.options.declare import defaults, like, notes, option
from frugalign.options.kinds import COUNT, COUNT_OR_ZERO, LAYER, LEARNING_RATE, NON_NEGATIVE


@dataclass
@defaults(output_dir="runs/reward")
@notes(
    model_name_or_path="Its hidden states are read.",
    dataset_name="It holds labelled answers: pairs (prompt, chosen, rejected) or single ones (prompt, completion, label true/false).",
    output_dir="Default: runs/reward.",
)
class RewardOptions(
    groups.Tracking,
    groups.Run,
    groups.Margin,
    groups.Cache,
    groups.HeldOut,
    groups.PromptFormat,
    groups.PairLength,
    groups.Data,
    groups.ModelAdapter,
    groups.Model,
):
    """Options of `frugalign reward`, which fits probes on a model's own hidden states.

    Raises:
        FrugalignError: a value that breaks its rule.
    """

    eval_dataset_name: list[str] = option(
        [], "Labelled answers from elsewhere, repeatable: reported, never learned from."
    )
    eval_group_column: str | None = option(
        None,
        "Column of those sets that names each row's group, such as safe and unsafe prompts: the AUROC is reported for each group.",
    )
    layers: list[int] | None = option(
        None,
        "Layers to read, as indices into hidden_states (negative: from the end). Default: a third of the depth or all "
        "layers, as the validation loss chooses.",
        LAYER,
    )
    weight_decay: list[float] = option(
        [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
        "L2 penalties to try on standardised states, each times the number of features; the validation loss chooses.",
        NON_NEGATIVE,
    )
    max_iterations: int = option(200, "Most L-BFGS iterations.", COUNT)
    patience: int = like(groups.Patience, "patience", 20, "An evaluation is an L-BFGS iteration.", COUNT)

    full_model: bool = option(
        False, "Also train a whole reward model on the same pairs: its accuracy and cost, beside the probes'."
    )
    full_model_epochs: int = option(2, "Passes of that training; the best by the validation pairs is kept.", COUNT)
    full_model_learning_rate: float = option(1e-4, "Its learning rate.", LEARNING_RATE)

    n_shuffles: int = option(5, "Fits on shuffled labels for the control.", COUNT_OR_ZERO)

    def __post_init__(self) -> None:
        check_options(self)
