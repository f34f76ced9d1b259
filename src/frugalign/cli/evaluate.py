"""`frugalign evaluate`: a policy against its base, quality and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from frugalign.base.errors import FrugalignError
from frugalign.cli.parser import Command, parse


@dataclass
class EvaluateOptions:
    """Options of `frugalign evaluate`; what is not given comes from the artefact."""

    model_name_or_path: str = field(metadata={"help": "The base: hub id, folder, or package.module:attribute."})
    dataset_name: str = field(metadata={"help": "Prompts: hub id, file or folder with a `prompt` column."})
    reward: list[str] = field(
        metadata={
            "help": "Reward, [name=]SPEC, repeatable; the first is the main one, whose values the intervals are on."
        }
    )
    proxy: str | None = field(default=None, metadata={"help": "Folder or hub id of a proxy that guides the base."})
    adapter: str | None = field(default=None, metadata={"help": "A PEFT adapter of the base, as the policy."})
    policy: str | None = field(default=None, metadata={"help": "A whole model, as the policy."})
    best_of_n: int | None = field(
        default=None,
        metadata={
            "help": "Draw so many completions of the base and keep the best by --selection_reward, as the policy."
        },
    )
    selection_reward: list[str] = field(
        default_factory=list, metadata={"help": "What --best_of_n chooses by: [name=]SPEC, repeatable; summed."}
    )
    guiding_reward: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Reward-guided decoding (ARGS), as the policy: this reward of the text so far, [name=]SPEC, repeatable, "
            "summed, is added to the logits of the likeliest tokens at every position."
        },
    )
    guiding_weight: float = field(default=1.0, metadata={"help": "Weight w of --guiding_reward."})
    guiding_top_k: int = field(
        default=10, metadata={"help": "Tokens that --guiding_reward judges at a position, a reward call each."}
    )
    decoding_reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of several selection or guiding rewards. Default: 1 each."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Where metrics.json and costs.json go. Default: runs/evaluate."}
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "train, test, all, or another split. Default: test where there is one; the held-out rows where the "
            "artefact was trained on this data; else all."
        },
    )
    max_new_tokens: int | None = field(default=None, metadata={"help": "Most tokens of a completion."})
    temperature: float | None = field(default=None, metadata={"help": "Sampling temperature."})
    do_sample: bool | None = field(
        default=None, metadata={"help": "Sample (--do_sample) or decode greedily (--no_do_sample)."}
    )
    num_samples: int = field(default=1, metadata={"help": "Completions per prompt."})
    batch_size: int = field(
        default=64, metadata={"help": "Completions generated together; the result does not depend on it."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of all noise."})
    strength: float = field(default=1.0, metadata={"help": "Strength λ of the proxy."})
    prompt_format: Literal["auto", "raw", "chat"] | None = field(
        default=None,
        metadata={
            "help": "String prompts: one user turn where there is a chat template (auto, chat), or as they are (raw)."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the base on the hub."})
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Cut longer prompts on the left (counted). Default: the artefact's, else no cut."},
    )
    dtype: str | None = field(default=None, metadata={"help": "Dtype of the base: float32, bfloat16, float16, auto."})
    device_map: str | None = field(default=None, metadata={"help": "Device map of the base, as in transformers."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the base in 4-bit NF4 (needs bitsandbytes)."})


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
    from frugalign.evaluation import evaluate
    from frugalign.runs.lock import in_use

    arguments = asdict(options) | {"output_dir": output_dir}
    with in_use(output_dir):
        metrics = evaluate(arguments.pop("model_name_or_path"), **arguments)
    print_table(metrics, title=f"{_policy(options)} on {options.dataset_name}")
    print(f"Written to {output_dir}: metrics.json, costs.json.")
    return 0


def _policy(options: EvaluateOptions) -> str:
    if options.best_of_n is not None:
        return f"best of {options.best_of_n} by {', '.join(options.selection_reward)}"
    if options.guiding_reward:
        return f"the base guided by {', '.join(options.guiding_reward)}"
    return options.proxy or options.adapter or options.policy or "the base"


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
