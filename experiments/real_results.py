"""What the tasks of a real model show: a table a task, a figure of quality against cost, and twelve samples side by side.

    FRUGALIGN_TRIALS=folder FRUGALIGN_MODELS=folder python -m experiments.real_results [--smoke]

Reads the studies `studies/real-*.yaml` as far as they have run, and runs nothing. It writes `results/real-TASK.json`, `docs/img/real-tasks.png`
and `docs/samples-real.md`, and prints the tables for `docs/results.md`. `--smoke` reads what `experiments.smoke` left and writes beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.smoke import STUDIES, WORK, smallest
from experiments.summary import estimate, script_options, write_summary

from frugalign.base.files import write_atomic
from frugalign.cli.parser import read_config
from frugalign.metrics import Estimate
from frugalign.reports.figures import canvas, tidy
from frugalign.reports.in_words import number, prompt_in_words, signed
from frugalign.reports.study.style import BASE, COLOURS
from frugalign.study.options import StudyOptions
from frugalign.study.plan import is_base
from frugalign.study.responses import responses_of
from frugalign.study.runner import StudyState, read_study
from frugalign.study.table import Row, rows_of

MODEL = "SmolLM2-135M-Instruct"
FIGURE, SAMPLES = Path("docs/img/real-tasks.png"), Path("docs/samples-real.md")
SHOWN = 4
"""Prompts of each task among the samples."""
_ANSWERS = 1000
"""Answers over which the figure spreads the cost of a training."""
_RIVALS = (
    *("best_of_n", "reward_guided", "steering", "sft", "dpo", "conservative_dpo", "ipo", "rloo"),
    *("robust_dpo", "kto", "grpo", "online_dpo"),
)
"""Methods that a reader would try instead."""
FED, SPENT = "k tokens fed / an answer", "CPU s / MB"


@dataclass(frozen=True)
class Task:
    """What a task's table shows.

    `quality`: a judge, by its name in the study. `kept`: judges and measures of what should not get worse. `titles`: of these two columns.
    """

    name: str
    quality: str
    kept: tuple[str, ...]
    titles: tuple[str, str]

    @property
    def study(self) -> Path:
        """The study's YAML."""
        return STUDIES / f"real-{self.name}.yaml"


TASKS = (
    Task(
        "instructions",
        "reward",
        ("ended_rate", "distinct_2", "perplexity_base", "sounds_harmful"),
        ("constraints met, share", "ended / distinct-2 / perplexity / harmful"),
    ),
    Task("safety", "harmful", ("xstest_refused",), ("unsafe answers, share", "XSTest's safe prompts refused")),
    Task("sentiment", "judge", ("distinct_2", "perplexity_base"), ("positive, by SST-2", "distinct-2 / perplexity")),
)


# -- numbers ------------------------------------------------------------------------------------------------------------


def against_base(row: Row, name: str) -> list[float] | None:
    """A judge's mean, then its difference to the base with an interval over seeds × prompts. The base has its own interval instead."""
    found = row.measures.get(name)
    if found is None:
        return None
    if found.difference is None:
        return [found.value.mean, found.value.ci_low, found.value.ci_high]
    return [found.value.mean, found.difference.mean, found.difference.ci_low, found.difference.ci_high]


def value_of(row: Row, name: str) -> float | None:
    """The mean of a judge or of a measure."""
    found: Estimate | None = row.measures[name].value if name in row.measures else row.others.get(name)
    return None if found is None else found.mean


def memory_of(row: Row) -> float:
    """Peak memory of training and answering in MB, the median over seeds."""
    results = [each.result for each in row.outcomes if each.result is not None]
    peaks = [max(each[name].get("peak_memory_mb", 0.0) for name in ("costs", "evaluation_costs")) for each in results]
    return statistics.median(peaks)


def summarised(task: Task, row: Row) -> dict[str, Any]:
    """A line's numbers, by the columns of the table, and the others of its study."""
    kept = [value_of(row, name) for name in task.kept]
    quality, kept_title = task.titles
    kl = row.others["kl_per_sequence"]
    judged = {name: estimate(each.value.to_dict()) for name, each in row.measures.items()}
    return {
        quality: against_base(row, task.quality),
        kept_title: kept if len(task.kept) > 1 else against_base(row, task.kept[0]),
        "KL, nats": None if kl is None else estimate(kl.to_dict()),
        FED: [row.costs["lm_forward_tokens"] / 1000, row.decoding["lm_forward_tokens"]],
        SPENT: [row.costs["cpu_seconds"], memory_of(row)],
        "seconds an answer": row.decoding["seconds"],
        "k tokens sampled": row.costs["generated_tokens"] / 1000,
        "trained numbers": row.trainable_parameters or 0,
        "seeds": len(row.outcomes),
        "p (Holm), main judge": row.main.p_holm if row.main is not None else None,
        **{name: value for name, value in judged.items() if name not in task.titles},
    }


def table(task: Task, rows: dict[str, dict[str, Any]]) -> str:
    """The task's table in Markdown. Its columns are those of the summary, by name."""
    head = [MODEL, *task.titles, "KL, nats", FED, SPENT]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for label, row in rows.items():
        shown = [
            _difference(row[task.titles[0]]),
            _difference(row[task.titles[1]]) if len(task.kept) == 1 else _several(row[task.titles[1]]),
            "—" if row["KL, nats"] is None else number(row["KL, nats"][0]),
            f"{row[FED][0]:,.0f} / {row[FED][1]:,.0f}",
            f"{row[SPENT][0]:,.0f} / {row[SPENT][1]:,.0f}",
        ]
        lines.append(f"| {' | '.join([label, *shown])} |")
    return "\n".join([f"<!-- numbers: real-{task.name} -->", *lines, ""])


def _difference(found: Sequence[float] | None) -> str:
    if found is None:
        return "—"
    mean, *rest = found
    if len(rest) == 2:  # the base
        return f"{number(mean)} [{number(rest[0])}, {number(rest[1])}]"
    return f"{number(mean)}, {signed(rest[0])} [{signed(rest[1])}, {signed(rest[2])}]"


def _several(found: Sequence[float | None]) -> str:
    return " / ".join("—" if value is None else number(value) for value in found)


# -- figure -------------------------------------------------------------------------------------------------------------


def cost_of(row: Row) -> float:
    """CPU seconds of the training and of a thousand answers."""
    return row.costs["cpu_seconds"] + _ANSWERS * row.decoding["seconds"]


def draw(found: dict[Task, list[Row]], file: Path) -> None:
    """The main judge's difference to the base against cost, a panel for each task. A line has one mark in all panels."""
    figure = canvas(4.2 * len(found) + 2.2, 4.6)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    labels = list(dict.fromkeys(row.line.label for rows in found.values() for row in rows))
    for axes, (task, rows) in zip(panels, found.items(), strict=True):
        for row in rows:
            place = labels.index(row.line.label)
            if row.main is None or row.main.difference is None:
                continue
            difference = row.main.difference
            axes.errorbar(
                [cost_of(row)],
                [difference.mean],
                yerr=[[difference.mean - difference.ci_low], [difference.ci_high - difference.mean]],
                color=COLOURS[place % len(COLOURS)],
                marker="osD^vP"[place // len(COLOURS) % 6],
                linestyle="",
                capsize=2,
                label=row.line.label,
            )
        axes.axhline(0, color=BASE, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set_title(f"{task.name}: {rows[0].judge.replace('_', ' ')}", fontsize=9)
        axes.set_xlabel(f"seconds of training and {_ANSWERS:,} answers")
        axes.set_ylabel("difference to the base")
        tidy(axes)
    marks = {text: mark for axes in panels for mark, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks.keys(), frameon=False, fontsize=7, loc="outside right upper")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


# -- samples ------------------------------------------------------------------------------------------------------------


def best_rival(task: Task, rows: Sequence[Row]) -> Row | None:
    """The rival whose main judge is highest on average. The samples show it whatever its distance to the base."""
    known = [row for row in rows if row.line.method in _RIVALS and row.main is not None]
    return max(known, key=lambda row: row.main.value.mean if row.main is not None else 0.0, default=None)


def samples(task: Task, rows: Sequence[Row]) -> list[str]:
    """The answers of the base, of the base under its system prompt, of the proxy and of the best rival to the same test prompts."""
    named = {row.line.label: row for row in rows}
    rival = best_rival(task, rows)
    shown = [named[label] for label in ("base", "system prompt", "proxy") if label in named]
    answers = [(row.line.label, responses_of(row.outcomes[0])) for row in [*shown, *([rival] if rival else [])]]
    size = min(len(lines) for _, lines in answers)
    found = [f"## {task.name.capitalize()}", ""]
    for place in [row_number * size // SHOWN for row_number in range(min(SHOWN, size))]:
        found += [f"**{_in_one_line(prompt_in_words(answers[0][1][place]['prompt']))}**", ""]
        for label, lines in answers:
            text = lines[place]["policy"].strip() or "(nothing)"
            found += [f"{label}:", "", *(f"> {_escaped(line)}".rstrip() for line in text.split("\n")), ""]
    return found


def _in_one_line(text: str) -> str:
    return " ".join(_escaped(text).split())


def _escaped(text: str) -> str:
    for mark in "\\`*_<>#|":
        text = text.replace(mark, f"\\{mark}")
    return text


# -- all ----------------------------------------------------------------------------------------------------------------


def state_of(task: Task, *, is_smoke: bool) -> StudyState:
    """The study as far as it has run."""
    options = smallest(task.study) if is_smoke else StudyOptions(**read_config(str(task.study), StudyOptions))
    return read_study(options)


def main() -> None:
    is_smoke = script_options(__doc__).smoke
    found = {task: rows_of(state_of(task, is_smoke=is_smoke)) for task in TASKS}
    done = {
        task: rows for task, rows in found.items() if any(is_base(row.line.method, row.line.setting) for row in rows)
    }
    text = [
        "# Samples",
        "",
        "The same prompts, evenly spread over each test, seed 1. Nothing is left out for how it reads.",
        "",
    ]
    for task, rows in done.items():
        numbers = {row.line.label: summarised(task, row) for row in rows}
        print(table(task, numbers), flush=True)
        text += samples(task, rows)
        if not is_smoke:
            command = (
                f"FRUGALIGN_TRIALS=folder FRUGALIGN_MODELS=folder frugalign study experiments/studies/{task.study.name}"
            )
            options = state_of(task, is_smoke=False).options
            ran = sorted({each.cell.request["seed"] for row in rows for each in row.outcomes})
            facts = {"budget": options.budget, "test prompts": options.eval_prompts, "seeds": ran}
            write_summary(f"real-{task.name}", command, f"{MODEL}, 135 million", numbers, facts)
    if not done:
        print("No study has run yet.")
        return
    write_atomic(WORK / "samples-real.md" if is_smoke else SAMPLES, "\n".join(text))
    draw(done, WORK / "real-tasks.png" if is_smoke else FIGURE)


if __name__ == "__main__":
    main()
