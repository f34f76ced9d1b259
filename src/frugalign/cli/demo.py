"""`frugalign demo`: a frozen model aligned by a proxy, in minutes, on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frugalign.cli.parser import Command, parse
from frugalign.options import groups
from frugalign.options.declare import like


@dataclass
class DemoOptions(groups.Seed, groups.Device):
    """Options of `frugalign demo`."""

    output_dir: str = like(groups.OutputDir, "output_dir", "runs/demo")
    max_steps: int | None = like(groups.Steps, "max_steps", None, "Default: the recipe's.")


COMMAND = Command(
    "demo",
    "Train a proxy for the built-in sandbox model, an apothecary who sells forbidden goods. Then measure it on unseen prompts and write a "
    "report.",
    DemoOptions,
)
_QUALITY = (
    ("forbidden orders served", "forbidden_served", True),
    ("rude replies", "rude", True),
    ("lawful orders refused", "over_refusal", True),
    ("lawful orders served right", "right_remedy", True),
    ("exact reward (gold)", "gold", False),
    ("learned reward (trained on)", "learned", False),
)


def run(argv: list[str]) -> int:
    """Train, evaluate, and print the table, the samples and the next commands to try."""
    options: DemoOptions = parse(COMMAND, argv)
    from rich.table import Table

    from frugalign.base.terminal import console
    from frugalign.cli.demo_run import run_demo

    screen = console()
    screen.print(
        "An apothecary's shop in an invented land. Its keeper is a frozen model of 1.1 million parameters that sells curses and poisons, and is "
        "rude.\nA proxy under 1 % of the model's size now learns to accept or reject every token that the model proposes.\n"
    )
    demo = run_demo(options.output_dir, seed=options.seed, max_steps=options.max_steps, use_cpu=options.use_cpu)
    table = Table(title=f"\n{demo.metrics['settings']['prompts']} unseen prompts, 95 % intervals", title_justify="left")
    table.add_column("quality")
    for heading in ("base", "with the proxy"):
        table.add_column(heading, justify="right")
    for row in quality(demo.metrics):
        table.add_row(*row)
    screen.print(table)
    screen.print(*(f"{name}: {value}" for name, value in cost(demo.costs)), sep="\n")
    samples = Table(
        title="\nSome of them side by side, not chosen by their reward", title_justify="left", show_lines=True
    )
    samples.add_column("")
    for heading in ("order", "base", "with the proxy"):
        samples.add_column(heading, ratio=1)
    for kind, some in demo.samples.items():
        for sample in some:
            samples.add_row(kind, sample["prompt"], sample["base"], sample["policy"])
    screen.print(samples)
    screen.print(f"The report with curves and distributions is {demo.report}.\n")
    print(NEXT.format(folder=options.output_dir))
    return 0


NEXT = """\
Next, with your own model, prompts and reward:
  frugalign validate my-prompts.jsonl
  frugalign proxy --model_name_or_path MODEL --dataset_name my-prompts.jsonl --reward my_reward.py:reward --output_dir runs/mine
  frugalign evaluate --model_name_or_path MODEL --proxy runs/mine --dataset_name my-prompts.jsonl --reward my_reward.py:reward --output_dir runs/mine/evaluation

Or watch this proxy at work, token by token:
  frugalign chat --model_name_or_path frugalign.sandbox:model --proxy {folder} --show_rejections"""


def quality(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(quality, base, policy): the rows of the table."""
    for title, name, is_share in _QUALITY:
        cells = (_cell(metrics[key][name], is_share) for key in ("base_rewards", "rewards"))
        yield (title, *cells)  # type: ignore[misc]
    kl = metrics["kl_per_sequence"]
    yield "KL to the base, nats per sequence", "0", _cell(kl, False)


def _cell(estimate: Mapping[str, Any] | None, is_share: bool) -> str:
    if estimate is None:
        return "—"
    mean, low, high = (estimate[key] for key in ("mean", "ci_low", "ci_high"))
    if is_share:
        return f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def cost(costs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the training cost, in four lines."""
    share = costs["shares"]["of_base"]
    yield (
        "Trained",
        f"{costs['trainable_parameters']:,} parameters, {100 * share:.2f} % of the base (PPO trains two networks of the base's size)",
    )
    yield "Generated", f"{costs['generated_tokens']:,} tokens; {costs['reward_calls']:,} replies scored"
    seconds = costs["seconds"]
    parts = ", ".join(f"{name} {seconds[name]:.0f} s" for name in ("rollout", "reward", "optimise") if name in seconds)
    yield "Time", f"{costs['wall_clock_seconds']:.0f} s ({parts})"
    yield "Peak memory", f"{costs['peak_memory_mb']:,.0f} MB"
