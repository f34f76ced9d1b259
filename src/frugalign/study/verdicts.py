"""Pairwise verdicts on a study's responses: every line's against the reference's, in both orders, kept beside the cell that they are about.

A judge reads what the test has left, so it can be added, changed or left out without running a cell again.
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
from frugalign.base.files import read_json, write_json_atomic
from frugalign.engines.loading import load_model
from frugalign.evaluation.judges.openai_server import LLMJudge, LLMJudgeOptions
from frugalign.evaluation.judges.pairwise import ModelJudge, PairJudge, both_orders
from frugalign.study.layout import JUDGE_CACHE_FILE, verdicts_file
from frugalign.study.options import StudyOptions
from frugalign.study.responses import compared, is_reference, reference_of
from frugalign.study.runner import Finished, Outcome

_log = logging.getLogger(__name__)


def judges_of(options: StudyOptions) -> list[tuple[str, dict[str, Any]]]:
    """(name, what is asked of it) for the pairwise judges that the study names.

    Raises:
        FrugalignError: options that such a judge does not have.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    if options.llm_judge is not None:
        known = {each.name for each in fields(LLMJudgeOptions)}
        unknown = sorted(set(options.llm_judge) - known)
        if unknown or not {"base_url", "model"} <= set(options.llm_judge):
            what = f"not {', '.join(unknown)}" if unknown else "base_url and model at least"
            raise FrugalignError(f"llm_judge takes {', '.join(sorted(known))}; {what}.")
        try:
            asked = LLMJudgeOptions(**options.llm_judge)
        except TypeError as error:
            raise FrugalignError(f"llm_judge has a value of the wrong kind: {error}.") from error
        if asked.api_key_env is not None and not os.environ.get(asked.api_key_env):
            raise FrugalignError(f"llm_judge names the variable {asked.api_key_env}, which is not set.")
        found.append((str(options.llm_judge["model"]), dict(options.llm_judge)))
    if options.model_judge:
        found.append((Path(options.model_judge).name, {"model_judge": options.model_judge}))
    return found


def verdicts_of(outcome: Outcome, asked: dict[str, Any], found: Finished) -> Path:
    """Where a judge's verdicts on a cell are: another file for another judge, wherever it is reached, and another reference."""
    said: dict[str, Any] = {"reference": reference_of(outcome, found)} | {
        name: asked.get(name) for name in ("model", "criterion", "temperature", "max_tokens", "model_judge")
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
    return verdicts_file(outcome.folder, digest)


def judge_study(found: Finished) -> None:
    """Ask every judge about every finished cell that it has not judged whole yet; the reference is compared with nobody."""
    for name, asked in judges_of(found.options):
        waiting = [
            outcome
            for outcome in found.outcomes
            if outcome.result is not None
            and not is_reference(outcome, found)
            and read_json(verdicts_of(outcome, asked, found)).get("to_ask", 1)
        ]
        if not waiting:
            continue
        judge = _judge(asked, found.options)
        for outcome in waiting:
            samples = compared(outcome, found)
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
                # A model on this machine says the same again; a server may have been out of reach.
                "to_ask": 0 if isinstance(judge, ModelJudge) else unanswered,
                "counts": dict(getattr(judge, "counts", {})),
            }
            write_json_atomic(verdicts_of(outcome, asked, found), verdicts)
            if unanswered:
                _log.warning(
                    "%s gave no verdict on %d of %d pairs of %s.", name, unanswered, len(samples), outcome.cell.name
                )


def _judge(asked: dict[str, Any], options: StudyOptions) -> PairJudge:
    if "model_judge" in asked:
        return ModelJudge(load_model(asked["model_judge"], device_map="cpu" if options.use_cpu else None))
    study = Path(options.output_dir)
    return LLMJudge(LLMJudgeOptions(**{"cache_path": study / JUDGE_CACHE_FILE} | asked))
