"""The representation reward as a method: its command, and its fit for methods that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frugalign.methods.job import Job
from frugalign.methods.method import Method, Verb

if TYPE_CHECKING:
    from pathlib import Path

    from frugalign.methods.representation_reward.options import RewardOptions


def fit(job: Job, pairs: str, folder: Path) -> None:
    """Fit probes of the base on these pairs, at the run's cost."""
    from frugalign.base.ledger import Ledger
    from frugalign.methods.representation_reward.options import RewardOptions
    from frugalign.methods.representation_reward.run import train_reward
    from frugalign.runs.layout import read_costs

    train_reward(
        RewardOptions(
            model_name_or_path=job.request["model_name_or_path"],
            dataset_name=pairs,
            output_dir=str(folder),
            overwrite_output_dir=True,
            use_cpu=job.use_cpu,
            n_shuffles=1,
            cache_dir=str(folder / "states"),
            seed=job.seed,
            **job.shared("prompt_format", "chat_template_kwargs"),
        )
    )
    spent = Ledger()
    spent.load_dict(read_costs(folder))
    # The parameters of the run are the policy's, not the probes'.
    job.ledger.add(spent)


def closing(options: RewardOptions, report: dict[str, Any]) -> list[str]:
    """The reward's accuracy with its controls, and the command that trains with it."""
    return [
        *headline(report),
        f"The reward is in {options.output_dir}.",
        f"Next: frugalign proxy --model_name_or_path {options.model_name_or_path} --dataset_name PROMPTS --reward {options.output_dir}",
    ]


def headline(report: dict[str, Any]) -> list[str]:
    """The accuracy on held-out examples, with the controls, and on other data."""
    test, shuffled = report["test"], report["shuffled"]["mean"]
    accuracy = test["accuracy"]
    found = [
        f"Held-out accuracy {100 * accuracy['mean']:.1f} % [{100 * accuracy['ci_low']:.1f}, {100 * accuracy['ci_high']:.1f}] on "
        f"{accuracy['n']:,} examples{_of_prompts(report.get('shared_prompts'))}; shuffled labels {'—' if shuffled is None else format(100 * shuffled, '.1f')} %, "
        f"length alone {100 * report['length_only']:.1f} %, words alone {100 * report['bag_of_words']:.1f} %."
    ]
    for name, other in report["elsewhere"].items():
        found.append(f"On {name}: {100 * other['accuracy']['mean']:.1f} %{_of_prompts(other.get('shared_prompts'))}.")
        if other["groups"]:
            each = ", ".join(
                f"{group['group']} {'—' if group['auroc'] is None else format(group['auroc'], '.2f')}"
                for group in other["groups"]
            )
            found.append(f"AUROC by group on {name}: {each}.")
    return [*found, report["group_note"]]


def _of_prompts(shared: dict[str, int] | None) -> str:
    """Whether the test prompts are new: those that are also trained on are counted."""
    if shared is None:
        return ""
    if not shared["trained_on"]:
        return " of unseen prompts"
    return f" ({shared['trained_on']:,} of {shared['test']:,} test prompts are also trained on)"


ENTRIES = (
    Method(
        "representation_reward",
        "linear probes on a model's own hidden states become a reward",
        fit=fit,
        verb=Verb(
            "reward",
            "train a reward on a model's own hidden states",
            "Train a representation reward on preference data: linear probes on a frozen model's hidden states. The report compares it with controls.",
            options="frugalign.methods.representation_reward.options:RewardOptions",
            train="frugalign.methods.representation_reward.run:train_reward",
            closing=closing,
            reads=("preference", "unpaired-preference"),
            writes_report=True,
        ),
    ),
)
