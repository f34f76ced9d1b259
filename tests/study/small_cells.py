"""Cells on the sandbox with real trainings, a few steps each."""

import json
from pathlib import Path
from typing import Any

from tests.two_layers import two_layers

from frugalign.study.cell import run_cell
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Line, cell_of
from frugalign.study.runner import Outcome, outcome_of

TOKENS, STEPS = 1500, 4
N_TEST = 6


def options(data: Path, study: Path, **given: Any) -> StudyOptions:
    common: dict[str, Any] = {
        "model_name_or_path": two_layers(),
        "dataset_name": str(data / "prompts"),
        "reward": ["frugalign.sandbox:gold"],
        "judges": ["frugalign.sandbox:gold", "frugalign.sandbox:over_refusal"],
        "principles": "frugalign.sandbox:PRINCIPLES",
        "preferences": str(data / "pairs"),
        "budget": {"generated_tokens": TOKENS, "optimizer_steps": STEPS},
        "max_new_tokens": 24,
        "seeds": [1],
        "use_cpu": True,
        "output_dir": str(study),
    }
    return StudyOptions(**common | given)


def planned_cell(data: Path, study: Path, method: str, setting: dict[str, Any], **given: Any) -> Outcome:
    """A cell whose folder has its request."""
    given_options = options(data, study, methods={method: setting}, **given)
    found = outcome_of(cell_of(Line(method, method, setting), 1, "test", given_options), given_options)
    found.folder.mkdir(parents=True)
    (found.folder / "request.json").write_text(json.dumps(found.cell.request))
    return found


def run(data: Path, study: Path, method: str, setting: dict[str, Any], **given: Any) -> tuple[dict[str, Any], Outcome]:
    found = planned_cell(data, study, method, setting, **given)
    return run_cell(found.folder, study / "start", study / "trainings"), found
