"""`frugalign evaluate`: the quality and cost of a policy beside its base."""

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
    dataset_name="It has prompts in a `prompt` column.",
    reward="The first is the main one. The win rate is by it.",
    output_dir="It gets metrics.json, costs.json and samples.jsonl.",
    max_prompt_length="Default: the proxy's, else no limit.",
    chat_template_kwargs="Default: the proxy's.",
)
class EvaluateOptions(
    groups.Seed,
    groups.OutputDir,
    groups.Decoding,
    groups.PromptLength,
    groups.ChatTemplate,
    groups.Rewards,
    groups.Data,
    PolicyOptions,
):
    """Options of `frugalign evaluate`. A proxy's own settings are the defaults."""

    split: str | None = option(
        None,
        "The split to evaluate on, or all. Default: test if there is one, else the rows held out in training, else all.",
    )
    max_new_tokens: int | None = like(groups.Sampling, "max_new_tokens", None, "Default: the proxy's, else 128.")
    temperature: float | None = like(
        groups.Sampling,
        "temperature",
        None,
        "A proxy allows only the one of its training. Default: that, else the model's own, else 1.",
    )
    num_samples: int = option(1, "Completions per prompt.", COUNT)
    batch_size: int = option(64, "Completions generated at once. The result does not depend on it.", COUNT)
    prompt_format: Literal["auto", "raw", "chat"] | None = like(
        groups.PromptFormat, "prompt_format", None, "Default: the proxy's, else auto."
    )


_FEW = " few"
COMMAND = Command(
    "evaluate",
    "Compare a policy with its base: rewards, win rate, exact KL, diversity and refusals, each with a 95 % interval, and the cost.",
    EvaluateOptions,
)


def run(argv: list[str]) -> int:
    """Evaluate, write metrics.json and costs.json, and print the table."""
    options: EvaluateOptions = parse(COMMAND, argv)
    if not options.reward:
        raise FrugalignError("--reward is missing.")
    output_dir = options.output_dir or "runs/evaluate"
    from frugalign.evaluation.settings import EvaluationSettings
    from frugalign.policies.spec import PolicySpec

    spec = PolicySpec.from_dict(options.policy_values())
    settings = EvaluationSettings(**{name: getattr(options, name) for name in EvaluationSettings.__dataclass_fields__})
    from frugalign.base.progress_display import showing
    from frugalign.evaluation import evaluate
    from frugalign.runs.processes import is_main_process

    with showing(is_main_process()):
        metrics = evaluate(spec, options.dataset_name, options.reward, settings, output_dir=output_dir)
    if not is_main_process():
        return 0
    print_table(metrics, f"{spec.title()} on {options.dataset_name}")
    print(f"Written to {output_dir}: metrics.json, costs.json.")
    return 0


def print_table(metrics: Mapping[str, Any], title: str) -> None:
    """Print the content of metrics.json as a table: the base beside the policy, or the base alone."""
    from rich.table import Table

    from frugalign.base.terminal import console
    from frugalign.evaluation.schema import FEW_PROMPTS

    shown, alone = list(rows(metrics)), _is_base(metrics)
    note = (
        f"few: below {FEW_PROMPTS} prompts, little evidence" if any(row[-1].endswith(_FEW) for row in shown) else None
    )
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    for heading in ("metric", *(() if alone else ("base",)), "mean" if alone else "policy", "95 % interval", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, base, *rest in shown:
        table.add_row(name, *(() if alone else (base,)), *rest)
    console().print(table)


def rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Name, the base's mean, the policy's mean, its interval and its n of every metric.

    A dash means that a metric does not apply. Texts and settings are left out. A KL that is only an upper bound is marked, and so is an n of few
    prompts. Of the base alone, what compares a policy with it is left out.
    """
    from frugalign.evaluation.schema import MEASURES, is_few

    bounded = metrics.get("settings", {}).get("kl_is_bound", False)
    num_samples = metrics.get("settings", {}).get("num_samples", 1)
    for name, base, value in _flat(metrics):
        measure = MEASURES.get(name.partition(".")[0])
        if _is_base(metrics) and not (measure and (measure.of_base or name == "perplexity_base")):
            continue
        title = f"{name} (at most)" if bounded and name in ("kl_per_sequence", "kl_per_token") else name
        before = _number(base["mean"]) if base else ""
        if isinstance(value, Mapping):
            interval = f"{value['ci_low']:.4g} … {value['ci_high']:.4g}" if value["ci_low"] is not None else "—"
            n = f"{value['n']}{_FEW if is_few(value, num_samples) else ''}"
            yield title, before, _number(value["mean"]), interval, n
        elif value is None:
            yield title, before, "—", "—", "—"
        else:
            yield title, before, _number(value), "", ""


def _is_base(metrics: Mapping[str, Any]) -> bool:
    return bool(metrics.get("settings", {}).get("policy") == "base")


def _flat(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, the base's estimate or None, the policy's estimate or number or None), every reward as `rewards.NAME`."""
    for name, value in metrics.items():
        base = metrics.get(f"base_{name}")
        if name == "rewards":
            yield from ((f"{name}.{each}", (base or {}).get(each), estimate) for each, estimate in value.items())
        elif name.startswith("base_") or isinstance(value, (str, bool)):
            continue
        elif not isinstance(value, Mapping) or {"mean", "ci_low", "ci_high", "n"} <= set(value):
            yield name, base, value


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
