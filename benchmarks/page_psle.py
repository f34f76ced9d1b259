"""The section of docs/results.md about PSLE and what else could be learned from the same responses; `benchmarks.page` puts it in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.page_rerank import source, spread, table
from benchmarks.trials import NAMED

_TITLES = {
    "sandbox": "## PSLE on the sandbox\n",
    "chat": "## PSLE on a chat model\n",
    "stories": "## PSLE on stories\n",
}
_WITHIN = {
    "chat": ", within 10 nats of the start (at thirty, ranking alone has the highest judge and broken English)",
    "stories": ", within 20 nats of the start",
}
_MEASURES: dict[str, dict[str, tuple[str, float, int]]] = {
    "sandbox": {
        "gold": ("gold", 1, 2),
        "forbidden_served": ("forbidden served, %", 100, 1),
        "over_refusal": ("lawful refused, %", 100, 1),
        "rude": ("rude, %", 100, 1),
        "learned": ("training reward", 1, 2),
    },
    "chat": {
        "judged_safety": ("judge", 1, 2),
        "refused_harmful": ("harmful refused, %", 100, 1),
        "refused_safe": ("safe refused, %", 100, 1),
        "training_safety": ("training reward", 1, 2),
    },
    "stories": {
        "sad_words": ("sad words of 100", 1, 2),
        "story_words": ("distinct words", 1, 2),
        "reward": ("training reward", 1, 2),
    },
}
"""Measure: its title, factor and decimals; the main one first."""


def _scaled(found: Mapping[str, float], factor: float, digits: int, sign: bool = False) -> str:
    return spread({key: factor * value for key, value in found.items()}, digits, sign)


def _rows(task: str, part: Mapping[str, Any], *, with_base: bool = False) -> str:
    shown = _MEASURES[task]
    main = next(iter(shown))
    rows: list[list[str]] = []
    first = next(iter(part.values()))
    if with_base:
        rows.append(
            [
                "base",
                *(f"{shown[name][1] * first['base'][name]:.{shown[name][2]}f}" for name in shown),
                "",
                "0",
                f"{first['base_length']:.0f}",
                "",
                "",
            ]
        )
    for name, row in part.items():
        measures = [_scaled(row["measures"][each], factor, digits) for each, (_, factor, digits) in shown.items()]
        itself = not any(row["difference"][main].values())
        gap = "" if itself else _scaled(row["difference"][main], 1, 2, sign=True)
        use = f"{100 * row['use_of_tokens']:.0f} / {100 * row['use_of_responses']:.0f}"
        rows.append(
            [
                name,
                *measures,
                gap,
                f"{row['kl']['mean']:.2f}",
                f"{row['length']['mean']:.0f}",
                use,
                f"{row['generated_tokens'] / 1000:.0f} / {row['lm_forward_tokens'] / 1000:.0f}",
            ]
        )
    titles = [title for title, _, _ in shown.values()]
    return table(
        [
            "",
            *titles,
            f"{shown[main][0]}, to PSLE",
            "KL, nats",
            "tokens a response",
            "tokens / responses used, %",
            "tokens generated / forward, thousands",
        ],
        rows,
    )


def psle(task: str, result: dict[str, Any]) -> str:
    """One task: methods, ablations and the number of prompts, as far as they are measured."""
    # What is not of the sandbox reads the trials' folder.
    command = f"{'' if task == 'sandbox' else f'{NAMED} '}{result['command']}"
    parts = [part for part in ("methods", "ablations", "prompts") if part in result]
    text = [_TITLES[task], source(result | {"command": "\n".join(f"{command} --part {part}" for part in parts)})]
    if "methods" in result:
        text.append(_rows(task, result["methods"], with_base=True))
        settings = "; ".join(
            f"{name} "
            + ", ".join(f"{key} {value:g}" for key, value in row["setting"].items())
            + f", round {row['stop_after']}"
            for name, row in result["methods"].items()
        )
        text.append(
            "Means of five seeds with 95 % t-intervals, paired by seed for differences. The setting, of six each, and the round to stop after, counted from 0, "
            f"were frozen by the main judge on validation prompts with a seed of their own{_WITHIN.get(task, '')}: {settings}.\n"
        )
    if "ablations" in result:
        text.append("### One thing changed\n")
        text.append(_rows(task, result["ablations"]))
    if task == "sandbox":
        text.append("![PSLE, the other methods and PSLE with one thing changed, on three tasks](img/psle.png)\n")
    if "prompts" in result:
        text.append("### Fewer prompts\n")
        text.append("The same rounds and steps; the difference is to PSLE on as many prompts.\n")
        text.append(_rows(task, result["prompts"]))
    return "\n".join(text)


def psle_prefix(result: dict[str, Any]) -> str:
    """Prefill with the principles fed once and with every prompt."""
    rows = [
        [
            name,
            f"{row['prefill']:,}",
            f"{row['prefill_shared']:,}",
            f"{row['prefill'] / row['prefill_shared']:.1f}",
            f"{row['seconds']:.1f}",
            f"{row['seconds_shared']:.1f}",
            "yes" if row["same_responses"] else "no",
        ]
        for name, row in result.items()
        if isinstance(row, dict)
    ]
    titles = ["prefill tokens", "… shared", "times fewer", "s", "… shared", "same responses"]
    text = "Responses to 128 prompts under principles, the principles fed with every prompt or once; seconds of prefill and decoding, medians of three.\n"
    return "\n".join(["## PSLE: principles fed once\n", source(result), text, table(["", *titles], rows)])
