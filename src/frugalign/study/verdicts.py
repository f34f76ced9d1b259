"""Pairwise verdicts on a study's responses: each line's against the reference's, in both orders. They are stored in the cell's folder.

A judge reads the stored responses, so it can be added, changed or removed without running a cell again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.engines.loading import load_model
from frugalign.evaluation.judges.openai_server import LLMJudge, LLMJudgeOptions
from frugalign.evaluation.judges.pairwise import ModelJudge, PairJudge, both_orders
from frugalign.study.layout import JUDGE_CACHE_FILE, verdicts_file
from frugalign.study.options import StudyOptions
from frugalign.study.responses import beside_reference, is_reference, reference_of
from frugalign.study.runner import Outcome, StudyState

_log = logging.getLogger(__name__)


def judges_of(options: StudyOptions) -> list[tuple[str, dict[str, Any]]]:
    """(name, its settings) for the pairwise judges that the study names.

    Raises:
        FrugalignError: options that such a judge does not have.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    if options.llm_judge is not None:
        known = {each.name for each in fields(LLMJudgeOptions)}
        unknown = sorted(map(str, set(options.llm_judge) - known))
        if unknown or not {"base_url", "model"} <= set(options.llm_judge):
            what = f"not {', '.join(unknown)}" if unknown else "base_url and model at least"
            raise FrugalignError(f"llm_judge takes {', '.join(sorted(known))}; {what}.")
        try:
            settings = LLMJudgeOptions(**options.llm_judge)
        except TypeError as error:
            raise FrugalignError(f"llm_judge has a value of the wrong kind: {error}.") from error
        if settings.api_key_env is not None and not os.environ.get(settings.api_key_env):
            raise FrugalignError(f"llm_judge names the environment variable {settings.api_key_env}, which is not set.")
        found.append((str(options.llm_judge["model"]), dict(options.llm_judge)))
    if options.model_judge:
        found.append((Path(options.model_judge).name, {"model_judge": options.model_judge}))
    return found


def verdicts_of(outcome: Outcome, settings: dict[str, Any], found: StudyState) -> Path:
    """The file of a judge's verdicts on a cell. It depends on the judge, but not on the server's address, and on the reference."""
    said: dict[str, Any] = {"reference": reference_of(outcome, found)} | {
        name: settings.get(name) for name in ("model", "criterion", "temperature", "max_tokens", "model_judge")
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
    return verdicts_file(outcome.folder, digest)


def judge_study(found: StudyState) -> None:
    """Let every judge compare every finished cell with the reference. A cell with all of its verdicts is skipped."""
    for name, settings in judges_of(found.options):
        waiting = [
            outcome
            for outcome in found.outcomes
            if outcome.result is not None
            and not is_reference(outcome, found)
            and read_json(verdicts_of(outcome, settings, found)).get("to_ask", 1)
        ]
        if not waiting:
            continue
        judge = _judge(settings, found.options)
        for outcome in waiting:
            samples = beside_reference(outcome, found)
            if not samples:
                continue
            prompts, ours, theirs = ([sample[key] for sample in samples] for key in ("prompt", "policy", "base"))
            said = both_orders(judge, prompts, ours, theirs)
            unanswered = sum(preference is None for preference in said.preferences)
            verdicts = {
                "judge": name,
                "preferences": said.preferences,
                "contradictions": said.contradictions,
                "unanswered": unanswered,
                # A local model would repeat itself; a server may have been unreachable.
                "to_ask": 0 if isinstance(judge, ModelJudge) else unanswered,
                "counts": dict(getattr(judge, "counts", {})),
            }
            write_json_atomic(verdicts_of(outcome, settings, found), verdicts)
            if unanswered:
                _log.warning(
                    "%s gave no verdict on %d of %d pairs of %s.", name, unanswered, len(samples), outcome.cell.name
                )


def _judge(settings: dict[str, Any], options: StudyOptions) -> PairJudge:
    if "model_judge" in settings:
        return ModelJudge(load_model(settings["model_judge"], device_map="cpu" if options.use_cpu else None))
    study = Path(options.output_dir)
    return LLMJudge(LLMJudgeOptions(**{"cache_path": study / JUDGE_CACHE_FILE} | settings))
