"""Write a study as `study.json`, `study.md` and one self-contained page. Missing cells are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.evaluation.schema import few_prompts
from frugalign.methods import registry
from frugalign.reports.in_words import prompt_in_words, scores_in_words
from frugalign.reports.render import drawing, render
from frugalign.reports.study.comparison_figures import figures_of
from frugalign.reports.study.headline import headline
from frugalign.reports.study.method_figures import run_figures_of
from frugalign.reports.study.summary import Summary, reference_in_words, summary_of
from frugalign.reports.study.tables import cost_note, cost_table, quality_table, wins_table
from frugalign.runs.layout import REPORT_FILE
from frugalign.study.cell import shown_rows
from frugalign.study.layout import MARKDOWN_FILE, SUMMARY_FILE, read_trace
from frugalign.study.responses import responses_of
from frugalign.study.runner import Outcome, StudyState
from frugalign.study.table import Row, rows_of


def write_study(found: StudyState, recipe: str, flags: Sequence[str] = ()) -> Path:
    """Write the study's three files into its folder and return the page's path. `recipe`, `flags`: the YAML and the flags of its command."""
    folder = Path(found.options.output_dir)
    with drawing(folder):
        return _write(folder, found, recipe, flags)


def _write(folder: Path, found: StudyState, recipe: str, flags: Sequence[str]) -> Path:
    rows = rows_of(found)
    summary = summary_of(found, rows, recipe, flags)
    write_json_atomic(folder / SUMMARY_FILE, summary)
    write_atomic(folder / MARKDOWN_FILE, markdown(summary))
    judge, reference = rows[0].judge if rows else "", reference_in_words(summary)
    page = render(
        "study.html",
        title=summary["name"],
        summary=summary,
        headline=_headline(summary),
        reference=reference,
        table=quality_table(summary),
        wins=wins_table(summary),
        costs=cost_table(summary),
        cost_note=cost_note(summary),
        figures=[asdict(figure) for figure in [*figures_of(rows, judge, reference), *run_figures_of(rows)]],
        samples=_samples(rows),
        commands=[(each.cell.name, command(each, summary)) for each in (*found.unchosen, *found.outcomes)],
        methods=[(line["label"], registry.get(line["method"]).summary) for line in summary["lines"]],
    )
    write_atomic(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def _headline(summary: Summary) -> list[str]:
    """The sentences at the top, with a warning if the test has few prompts."""
    few = few_prompts(summary["prompts"]) if summary["lines"] else None
    return [*([few] if few else []), *headline(summary)]


def markdown(summary: Summary) -> str:
    """The study as Markdown: headline, tables, missing cells and the command."""
    parts = [f"# {summary['name']}", *_headline(summary)]
    shown = {"Quality": quality_table(summary), "Wins and distance": wins_table(summary), "Cost": cost_table(summary)}
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


def command(outcome: Outcome, summary: Summary) -> str:
    """The command that runs only this cell."""
    return f'{summary["command"]} --only "{outcome.cell.line.label}:{outcome.cell.seed}"'


def _request(outcome: Outcome) -> dict[str, Any]:
    assert outcome.result is not None  # a row has finished cells only
    return outcome.result["request"]


# -- samples ------------------------------------------------------------------------------------------------------------


def _samples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every line's answers to the same prompts, evenly spread over the test, first seed. A proxy's answers have their rejected tokens."""
    if not rows:
        return []
    answers = [(row, responses_of(row.outcomes[0])) for row in rows]
    found = []
    size = int(_request(rows[0].outcomes[0])["eval_samples"])
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
