"""A finished study as `study.json`, `study.md` and one self-contained `report.html`; what is missing is named, never made up."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.metrics import Estimate
from frugalign.reports.render import render
from frugalign.reports.run_page import prompt_in_words, scores_in_words
from frugalign.reports.study_figures import figures_of
from frugalign.reports.study_run_figures import run_figures_of
from frugalign.runs.layout import REPORT_FILE
from frugalign.study.budgeted import WATCHES
from frugalign.study.cell import shown_rows
from frugalign.study.layout import MARKDOWN_FILE, SUMMARY_FILE, read_trace
from frugalign.study.plan import METHODS, STAND_FOR_PPO
from frugalign.study.responses import responses_of
from frugalign.study.runner import Finished, Outcome
from frugalign.study.table import Row, rows_of

_COSTS = (
    ("generated tokens", "generated_tokens"),
    ("LM tokens fed", "lm_forward_tokens"),
    ("reward calls", "reward_calls"),
    ("optimiser steps", "optimizer_steps"),
    ("seconds", "wall_clock_seconds"),
    ("peak memory, MB", "peak_memory_mb"),
)
_DECODING = (
    ("LM tokens", "lm_forward_tokens", 1),
    ("reward calls", "reward_calls", 1),
    ("ms", "seconds", 1000),
)
_LEVEL = 0.05
_UNMOVED = 0.005
"""Nats a response below which a training has not moved the model: 0.00 in the table."""
_OTHERS = (("KL, nats", "kl_per_sequence"), ("length", "mean_length"), ("refusals", "refusal_rate"))


def write_study(found: Finished, recipe: str, flags: Sequence[str] = ()) -> Path:
    """Write the study's three files into its folder and return the page's path. `recipe`: the YAML, and `flags` beside it, for the commands."""
    folder = Path(found.options.output_dir)
    rows = rows_of(found)
    summary = summary_of(found, rows, recipe, flags)
    write_json_atomic(folder / SUMMARY_FILE, summary)
    write_atomic(folder / MARKDOWN_FILE, markdown(summary))
    judge, reference = rows[0].judge if rows else "", reference_in_words(summary)
    page = render(
        "study.html",
        title=summary["name"],
        summary=summary,
        headline=headline(summary),
        reference=reference,
        table=table(summary),
        wins=wins_table(summary),
        costs=cost_table(summary),
        cost_note=cost_note(summary),
        in_words=_in_words,
        figures=[asdict(figure) for figure in [*figures_of(rows, judge, reference), *run_figures_of(rows)]],
        samples=_samples(rows),
        commands=[(each.cell.name, command(each, summary)) for each in (*found.unchosen, *found.outcomes)],
        methods=[(line["label"], METHODS[line["method"]]) for line in summary["lines"]],
    )
    write_atomic(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def summary_of(found: Finished, rows: Sequence[Row], recipe: str, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that the page says in numbers, JSON-ready."""
    machines = {
        json.dumps(machine, sort_keys=True)
        for outcome in found.outcomes
        if outcome.result is not None
        for machine in (outcome.result["machine"], outcome.result.get("training_machine"))
        if machine is not None
    }
    gone = [each for each in found.outcomes if each.result is not None and not each.training.is_dir()]
    missing = [(outcome.cell.name, outcome.error) for outcome in found.missing]
    missing += [
        (outcome.cell.name, f"{outcome.training} is gone, and with it figures of its training") for outcome in gone
    ]
    asked = {name: value for name, value in vars(found.options).items() if value not in (None, []) and name != "only"}
    return {
        "name": Path(recipe).stem,
        "command": shlex.join(["frugalign", "study", recipe, *flags]),
        "judge": rows[0].judge if rows else None,
        "lines": [_line(row) for row in rows],
        "chosen": found.chosen,
        "undecided": [label for label, what in found.chosen.items() if what["setting"] is None],
        "missing": [{"cell": name, "why": why} for name, why in missing],
        "machines": [json.loads(each) for each in sorted(machines)],
        "options": asked,
    }


def _line(row: Row) -> dict[str, Any]:
    def plain(estimate: Estimate | None) -> dict[str, Any] | None:
        return None if estimate is None else estimate.to_dict()

    return {
        "label": row.line.label,
        "method": row.line.method,
        "setting": row.line.setting,
        "seeds": [outcome.cell.seed for outcome in row.outcomes],
        "measures": {
            name: {
                "value": plain(measured.value),
                "difference": plain(measured.difference),
                "p_value": measured.p_value,
                "p_holm": measured.p_holm,
            }
            for name, measured in row.measures.items()
        },
        "win_rate": plain(row.win_rate),
        "length_controlled": plain(row.length_controlled),
        "preferred": {
            name: {"share": plain(said.share), "contradictions": said.contradictions, "unanswered": said.unanswered}
            for name, said in row.preferred.items()
        },
        "others": {name: plain(estimate) for name, estimate in row.others.items()},
        "costs": row.costs,
        "decoding": row.decoding,
        "trainable_parameters": row.trainable_parameters,
        "trainable_share": None
        if not row.trainable_parameters or not row.base_parameters
        else row.trainable_parameters / row.base_parameters,
    }


# -- in words and tables -------------------------------------------------------------------------------------------------


def headline(summary: dict[str, Any]) -> list[str]:
    """Sentences that the table bears out: the best line, what it costs, and who is not told apart from the base."""
    judge, reference = summary["judge"], reference_in_words(summary)
    tried = [line for line in summary["lines"] if _main(summary, line).get("difference") is not None]
    if not tried:
        return []
    best = max(tried, key=lambda line: float(_main(summary, line)["value"]["mean"]))
    gap, corrected = _main(summary, best)["difference"], _main(summary, best)["p_holm"]
    found = [
        f"By {judge}, no line differs from {reference}."
        if not any(_main(summary, line)["difference"]["mean"] for line in tried)
        else f"By {judge}, {best['label']} is highest{'' if gap['mean'] > 0 else f' of those that are compared, and not above {reference}'}: {_number(_main(summary, best)['value']['mean'])}, {_signed(gap['mean'])} "
        f"[{_signed(gap['ci_low'])}, {_signed(gap['ci_high'])}] to {reference}"
        + ("." if corrected is None else f", p = {corrected:.2g} after Holm's correction over {len(tried)} lines.")
    ]
    trained = [line for line in tried if line["costs"]["lm_forward_tokens"] > 0]
    gained = [line for line in trained if _tells(summary, line) > 0 and not _is_control(line)]
    if gained:
        cheap = min(gained, key=lambda line: line["costs"]["lm_forward_tokens"])
        found.append(
            f"The cheapest that gains, among those that train, is {cheap['label']}: {_signed(_main(summary, cheap)['difference']['mean'])} for "
            f"{cheap['costs']['lm_forward_tokens']:,.0f} tokens fed through the model."
        )
    below = [line["label"] for line in tried if _tells(summary, line) < 0]
    if below:
        found.append(f"Below {reference}: {'; '.join(below)}.")
    refusing = _refusing(summary)
    if refusing:
        found.append(f"Refuse more of the prompts that are labelled safe: {refusing}.")
    level = [line["label"] for line in tried if _tells(summary, line) == 0]
    if level:
        found.append(f"Not told apart from {reference} after the correction: {'; '.join(level)}.")
    still = [
        line["label"] for line in trained if (kl := line["others"]["kl_per_sequence"]) and abs(kl["mean"]) < _UNMOVED
    ]
    if still:
        found.append(f"Hardly moved, so that its training did next to nothing: {'; '.join(still)}.")
    if not summary["options"].get("eval_do_sample", True):
        found.append("Responses are decoded greedily, those of best-of-n are sampled.")
    if any(line["method"] in STAND_FOR_PPO for line in tried):
        found.append("RLOO and GRPO stand for RLHF where the papers have PPO, which TRL no longer has.")
    return found


def _tells(summary: dict[str, Any], line: dict[str, Any]) -> int:
    """1 where a line is surely above what it is compared with, -1 where below, 0 where neither: by Holm's p, without one by the interval."""
    main = _main(summary, line)
    gap = main["difference"]
    sure = main["p_holm"] < _LEVEL if main["p_holm"] is not None else not gap["ci_low"] <= 0 <= gap["ci_high"]
    return (1 if gap["mean"] > 0 else -1) if sure else 0


def _refusing(summary: dict[str, Any]) -> str:
    """Lines that refuse surely more of the safe prompts than what they are compared with, the intervals being apart; empty where there is none, or nothing is labelled."""
    named = summary["options"].get("reference")
    rates = [(line, rate) for line in summary["lines"] if (rate := line["others"].get("over_refusal_rate"))]
    known = (rate for line, rate in rates if (line["label"] == named if named else line["method"] == "base"))
    limit = next(known, None)
    if limit is None:
        return ""
    more = [(rate["mean"], line["label"]) for line, rate in rates if rate["ci_low"] > limit["ci_high"]]
    said = ", ".join(f"{label} {mean:.0%}" for mean, label in sorted(more, reverse=True))
    return f"{said}; {reference_in_words(summary)} refuses {limit['mean']:.0%}" if said else ""


def _is_control(line: dict[str, Any]) -> bool:
    """A line that is there to be beaten: a proxy that does not read the state."""
    return bool(line["setting"].get("candidate_features") == "token_bias")


def table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of quality: every measure, and the main judge's difference to the line compared with."""
    names = list(dict.fromkeys(name for line in summary["lines"] for name in line["measures"]))
    head = [
        "method",
        *(str(name).replace("_", " ") for name in names),
        f"difference to {reference_in_words(summary)}",
        "p (Holm)",
    ]
    rows = []
    for line in summary["lines"]:
        main = _main(summary, line)
        rows.append(
            [
                line["label"],
                *(_estimate(line["measures"][name]["value"]) if name in line["measures"] else "—" for name in names),
                _estimate(main.get("difference"), signed=True),
                "—" if main.get("p_holm") is None else f"{main['p_holm']:.2g}",
            ]
        )
    return head, rows


def wins_table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of what is beside the measures: who wins, how far the model moved, how its responses changed."""
    judges = list(dict.fromkeys(name for line in summary["lines"] for name in line["preferred"]))
    head = ["method", "win rate", "… at equal length"]
    head += [*(title for name in judges for title in (f"preferred by {name}", "… orders at odds, no verdict"))]
    head += [title for title, _ in _OTHERS]
    rows = [
        [
            line["label"],
            _estimate(line["win_rate"]),
            _estimate(line["length_controlled"]),
            *(cell for name in judges for cell in _verdicts(line["preferred"].get(name))),
            *(_estimate(line["others"][name]) for _, name in _OTHERS),
        ]
        for line in summary["lines"]
    ]
    return head, rows


def cost_table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of training costs, medians over the seeds."""
    head = ["method", *(title for title, _ in _COSTS), "trainable parameters", "… of the base"]
    head += [f"a response: {title}" if not place else f"… {title}" for place, (title, _, _) in enumerate(_DECODING)]
    head.append("tokens a second")
    rows = []
    for line in summary["lines"]:
        share = line["trainable_share"]
        rows.append(
            [
                f"{line['label']} †" if _is_watched(line) else line["label"],
                *(f"{line['costs'][name]:,.0f}" for _, name in _COSTS),
                f"{line['trainable_parameters'] or 0:,}",
                "—" if share is None else f"{share:.2%}",
                *(f"{factor * line['decoding'].get(name, 0.0):,.0f}" for _, name, factor in _DECODING),
                _speed(line),
            ]
        )
    return head, rows


def _speed(line: dict[str, Any]) -> str:
    """Tokens of the responses for each second that they took, in the test's batches; what best-of-n throws away is none of them."""
    length, seconds = line["others"]["mean_length"], line["decoding"].get("seconds")
    return f"{length['mean'] / seconds:,.0f}" if length and seconds else "—"


def cost_note(summary: dict[str, Any]) -> str:
    """What the daggers of the cost table mean; empty without one."""
    if not any(_is_watched(line) for line in summary["lines"]):
        return ""
    return "† With what its looks at the training cost (eval_steps, shift_reward), which another training would not need: tokens, reward calls and seconds."


def _is_watched(line: dict[str, Any]) -> bool:
    return not WATCHES.keys().isdisjoint(line["setting"])


def markdown(summary: dict[str, Any]) -> str:
    """The study as Markdown: headline, the tables, what is missing, and the command."""
    parts = [f"# {summary['name']}", *headline(summary)]
    shown = {"Quality": table(summary), "Wins and distance": wins_table(summary), "Cost": cost_table(summary)}
    for title, (head, rows) in shown.items():
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
        parts += [f"## {title}", "\n".join(lines)]
    parts += [note] if (note := cost_note(summary)) else []
    failed = [f"- {name} failed: {why}" for what in summary["chosen"].values() for name, why in what["failed"].items()]
    if failed:
        parts += ["## Settings that could not be tried", "\n".join(failed)]
    if summary["missing"] or summary["undecided"]:
        said = [f"- {each['cell']}: {each['why']}" for each in summary["missing"]]
        said += [f"- {label}: its setting is not chosen yet" for label in summary["undecided"]]
        parts += ["## Missing", "\n".join(said)]
    parts.append(f"`{summary['command']}` · {'; '.join(_machine(each) for each in summary['machines'])}")
    return "\n\n".join(parts) + "\n"


def _machine(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def command(outcome: Outcome, summary: dict[str, Any]) -> str:
    """What runs one cell alone."""
    return f'{summary["command"]} --only "{outcome.cell.line.label}:{outcome.cell.seed}"'


def reference_in_words(summary: dict[str, Any]) -> str:
    """What the lines are compared with."""
    return str(summary["options"].get("reference", "the base"))


def _in_words(value: Any) -> str:
    """A setting or an option as the YAML has it."""
    if value is None:
        return "—"
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).removesuffix("...\n").strip()


def _main(summary: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """The main judge's numbers of a line; empty where it has none."""
    main: dict[str, Any] = line["measures"].get(summary["judge"], {})
    return main


def _verdicts(said: dict[str, Any] | None) -> tuple[str, str]:
    if said is None:
        return "—", "—"
    odds = "—" if said["contradictions"] is None else f"{said['contradictions']:.0%}"
    return _estimate(said["share"]), f"{odds}, {said['unanswered']:,}"


def _number(value: float) -> str:
    said = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return said.removeprefix("-") if float(said.replace(",", "")) == 0 else said.replace("-", "−")


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + _number(abs(value))


def _estimate(estimate: dict[str, Any] | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "—"
    write = _signed if signed else _number
    return f"{write(estimate['mean'])} [{write(estimate['ci_low'])}, {write(estimate['ci_high'])}]"


def _asks(outcome: Outcome) -> dict[str, Any]:
    assert outcome.result is not None  # a row has finished cells only
    return outcome.result["asks"]


# -- samples ------------------------------------------------------------------------------------------------------------


def _samples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same prompts answered by every line, evenly spread over the test, first seed; a proxy's with what it rejected."""
    if not rows:
        return []
    answers = [(row, responses_of(row.outcomes[0])) for row in rows]
    found = []
    size = int(_asks(rows[0].outcomes[0])["eval_samples"])
    for row_number in shown_rows(min(len(lines) for _, lines in answers) // size):
        place = row_number * size
        found.append(
            {
                "prompt": prompt_in_words(answers[0][1][place]["prompt"]),
                "answers": [
                    {
                        "label": row.line.label,
                        "text": lines[place]["policy"],
                        "rewards": scores_in_words(lines[place]["rewards"]),
                        "trace": read_trace(row.outcomes[0].folder, row_number),
                    }
                    for row, lines in answers
                ],
            }
        )
    return found
