"""The numbers of a study's page, as the JSON values of `study.json`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugalign.metrics import Estimate
from frugalign.study.runner import StudyState
from frugalign.study.table import Row

Summary = dict[str, Any]
"""name, command, judge, prompts, lines, chosen, undecided, missing, machines, options: see `summary_of`."""
SummaryLine = dict[str, Any]
"""One line of the study; see `_line`."""


def summary_of(found: StudyState, rows: Sequence[Row], recipe: str, flags: Sequence[str] = ()) -> Summary:
    """The study's numbers. `recipe`, `flags`: the YAML and the flags of its command."""
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
        (outcome.cell.name, f"{outcome.training} was deleted, so figures of its training are missing")
        for outcome in gone
    ]
    options = {name: value for name, value in vars(found.options).items() if value not in (None, []) and name != "only"}
    return {
        "name": Path(recipe).stem,
        "command": shlex.join(["frugalign", "study", recipe, *flags]),
        "judge": rows[0].judge if rows else None,
        "prompts": min((row.prompts for row in rows), default=0),
        "lines": [_line(row) for row in rows],
        "chosen": found.chosen,
        "undecided": [label for label, what in found.chosen.items() if what["setting"] is None],
        "missing": [{"cell": name, "why": why} for name, why in missing],
        "machines": [json.loads(each) for each in sorted(machines)],
        "options": options,
    }


def _line(row: Row) -> SummaryLine:
    share = row.trainable_parameters / row.base_parameters if row.trainable_parameters and row.base_parameters else None
    return {
        "label": row.line.label,
        "method": row.line.method,
        "setting": row.line.setting,
        "seeds": [outcome.cell.seed for outcome in row.outcomes],
        "measures": {
            name: {
                "value": _plain(measured.value),
                "difference": _plain(measured.difference),
                "p_value": measured.p_value,
                "p_holm": measured.p_holm,
            }
            for name, measured in row.measures.items()
        },
        "win_rate": _plain(row.win_rate),
        "length_controlled": _plain(row.length_controlled),
        "preferred": {
            name: {"share": _plain(said.share), "contradictions": said.contradictions, "unanswered": said.unanswered}
            for name, said in row.preferred.items()
        },
        "others": {name: _plain(estimate) for name, estimate in row.others.items()},
        "costs": row.costs,
        "decoding": row.decoding,
        "trainable_parameters": row.trainable_parameters,
        "trainable_share": share,
    }


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()


def main_measure(summary: Summary, line: SummaryLine) -> dict[str, Any]:
    """The main judge's numbers for a line; empty where it has none."""
    main: dict[str, Any] = line["measures"].get(summary["judge"], {})
    return main


def reference_in_words(summary: Summary) -> str:
    """What the lines are compared with."""
    return str(summary["options"].get("reference", "the base"))
