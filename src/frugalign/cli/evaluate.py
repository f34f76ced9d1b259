"""`frugalign evaluate`: a policy against its base, quality and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from frugalign.base.errors import FrugalignError
from frugalign.cli.parser import Command, parse
from frugalign.options import groups
from frugalign.options.declare import REQUIRED, defaults, like, notes, option
from frugalign.options.kinds import COUNT
from frugalign.options.policy import PolicyOptions


@dataclass(kw_only=True)
@defaults(dataset_name=REQUIRED, reward=REQUIRED, output_dir="runs/evaluate")
@notes(
    dataset_name="Prompts in a `prompt` column.",
    reward="The first is the main one, whose win rate is measured.",
    output_dir="It gets metrics.json, costs.json and samples.jsonl.",
    max_prompt_length="Default: the proxy's, else no cut.",
)
class EvaluateOptions(
    groups.Seed, groups.OutputDir, groups.Decoding, groups.PromptLength, groups.Rewards, groups.Data, PolicyOptions
):
    """Options of `frugalign evaluate`; what is not given comes from the proxy."""

    split: str | None = option(
        None,
        "train, test, all, or another split. Default: test where there is one; the held-out rows where the policy was trained on this "
        "data; else all.",
    )
    max_new_tokens: int | None = like(groups.Sampling, "max_new_tokens", None, "Default: the proxy's, else 128.")
    temperature: float | None = like(groups.Sampling, "temperature", None, "A proxy brings its own. Default: 1.")
    num_samples: int = option(1, "Completions per prompt.", COUNT)
    batch_size: int = option(64, "Completions generated together; the result does not depend on it.", COUNT)
    prompt_format: Literal["auto", "raw", "chat"] | None = like(
        groups.PromptFormat, "prompt_format", None, "Default: the proxy's, else auto."
    )


COMMAND = Command(
    "evaluate",
    "Measure a policy against its base on prompts: rewards, win rate, exact KL, diversity and refusals, each with an "
    "interval, and the cost.",
    EvaluateOptions,
)


def run(argv: list[str]) -> int:
    """Evaluate, write metrics.json and costs.json, print the table."""
    options: EvaluateOptions = parse(COMMAND, argv)
    if not options.reward:
        raise FrugalignError("--reward is missing.")
    output_dir = options.output_dir or "runs/evaluate"
    from frugalign.evaluation.settings import EvaluationSettings
    from frugalign.policies.spec import PolicySpec

    spec = PolicySpec.from_dict(options.policy_values())
    settings = EvaluationSettings(**{name: getattr(options, name) for name in EvaluationSettings.__dataclass_fields__})
    from frugalign.evaluation import evaluate

    metrics = evaluate(spec, options.dataset_name, options.reward, settings, output_dir=output_dir)
    print_table(metrics, title=f"{spec.title()} on {options.dataset_name}")
    print(f"Written to {output_dir}: metrics.json, costs.json.")
    return 0


def print_table(metrics: Mapping[str, Any], title: str) -> None:
    """The content of metrics.json for reading."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("metric", "mean", "95 % interval", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for row in rows(metrics):
        table.add_row(*row)
    Console().print(table)


def rows(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, mean, interval and n of every metric; a dash where a metric is null, as it does not apply. Texts and
    settings stay in the file. A KL that is only bounded is marked as such."""
    bounded = metrics.get("settings", {}).get("kl_is_bound", False)
    for key, value in metrics.items():
        name = f"{key} (at most)" if bounded and key in ("kl_per_sequence", "kl_per_token") else key
        if isinstance(value, Mapping) and {"mean", "ci_low", "ci_high", "n"} <= set(value):
            interval = f"{value['ci_low']:.4g} … {value['ci_high']:.4g}" if value["ci_low"] is not None else "—"
            yield prefix + name, f"{value['mean']:.4g}", interval, str(value["n"])
        elif isinstance(value, Mapping) and name == "rewards":
            yield from rows(value, f"{prefix}{name}.")
        elif value is None:
            yield prefix + name, "—", "—", "—"
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}", "", ""
