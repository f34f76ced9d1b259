"""`frugalign reward`: probes on a model's own hidden states become a reward."""

from __future__ import annotations

from typing import Any

from frugalign.cli.parser import Command, parse
from frugalign.methods.representation_reward.options import RewardOptions

COMMAND = Command(
    "reward",
    "Train a representation reward: gated linear probes on a frozen model's hidden states, from judged answers, with an honest report.",
    RewardOptions,
)


def run(argv: list[str]) -> int:
    """Train, save, write the report, say how good it is beside its controls."""
    options: RewardOptions = parse(COMMAND, argv)
    options.output_dir = options.output_dir or "runs/reward"
    from frugalign.methods.representation_reward.run import train_reward
    from frugalign.reports.render import MissingLibrary
    from frugalign.reports.reward_page import write_reward_report

    report = train_reward(options)
    print("\n".join(lines(report)))
    print(f"The reward is in {options.output_dir}.")
    try:
        print(f"Its report is {write_reward_report(options.output_dir)}.")
    except MissingLibrary as error:  # the reward itself is trained and saved
        print(error)
    print(
        f"Next: frugalign proxy --model_name_or_path {options.model_name_or_path} --dataset_name PROMPTS --reward {options.output_dir}"
    )
    return 0


def lines(report: dict[str, Any]) -> list[str]:
    """The headline numbers in words."""
    test, shuffled = report["test"], report["shuffled"]["mean"]
    accuracy = test["accuracy"]
    found = [
        f"Held-out accuracy {100 * accuracy['mean']:.1f} % [{100 * accuracy['ci_low']:.1f}, {100 * accuracy['ci_high']:.1f}] on "
        f"{accuracy['n']:,} examples of unseen prompts; shuffled labels {'—' if shuffled is None else format(100 * shuffled, '.1f')} %, "
        f"length alone {100 * report['length_only']:.1f} %, words alone {100 * report['bag_of_words']:.1f} %."
    ]
    for name, other in report["elsewhere"].items():
        found.append(f"On {name}: {100 * other['accuracy']['mean']:.1f} %.")
    return found
