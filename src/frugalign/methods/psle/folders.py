"""The folders of a PSLE run: start and resume a run, reset a round, and describe a round's responses for its manifest.

`run.json` holds the run's settings, and is written before the first sample. Neither it nor a manifest depends on the clock,
so a resumed run writes the same files.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.responses import Round, assign_branches, read_round
from frugalign.runs.checkpoints import check_settings, clear_earlier_run, discard, refuse_earlier_run
from frugalign.runs.layout import (
    COSTS_FILE,
    MANIFEST_FILE,
    RESPONSES_COSTS_FILE,
    RESPONSES_FILE,
    RUN_FILE,
    STAGING_FOLDER,
    START_FOLDER,
    Manifest,
    checkpoints_in,
    is_finished,
    read_costs,
    read_manifest,
    read_run_state,
    round_folder,
    rounds_in,
)


def clear_folder(folder: Path, *, overwrite: bool) -> None:
    """Delete an earlier run from the run folder.

    Raises:
        FrugalignError: if there is an earlier run, unless `overwrite`.
    """
    earlier = [round_folder(folder, number) for number in rounds_in(folder)]
    refuse_earlier_run(folder, overwrite, [path.name for path in earlier])
    for path in [*earlier, folder / START_FOLDER]:
        shutil.rmtree(path, ignore_errors=True)
    (folder / RUN_FILE).unlink(missing_ok=True)
    clear_earlier_run(folder)


def is_unfinished(folder: Path) -> bool:
    """Whether the folder holds a run that was stopped before it saved its policy."""
    return (folder / RUN_FILE).is_file() and not is_finished(folder)


def check_resumable(folder: Path, settings: dict[str, Any], from_round: int | None, rounds: int) -> None:
    """Check that the run in the folder can be resumed with these settings, from this round.

    Raises:
        FrugalignError: there is no run, it has other settings, or the round has no responses to train on.
    """
    if not (folder / RUN_FILE).is_file():
        raise FrugalignError(f"There is no run in {folder} to resume.")
    check_settings(folder, read_run_state(folder), settings)
    if from_round is None:
        return
    path = round_folder(folder, from_round) / RESPONSES_FILE
    if from_round >= rounds or not path.is_file():
        raise FrugalignError(f"There is no round {from_round} of {rounds} with its {RESPONSES_FILE} to train again.")
    read_round(path)


def reset_round(folder: Path, number: int) -> None:
    """Keep a round's responses and costs only, and delete all later rounds.

    The earlier training and evaluation of the round were paid for, so their costs stay, as costs of its responses. The last
    round is deleted first, and each manifest before the other files. A kill then leaves complete rounds and one incomplete
    round.
    """
    for later in reversed(rounds_in(folder)):
        there = round_folder(folder, later)
        if later < number:
            break
        if later == number and (there / MANIFEST_FILE).is_file():
            write_json_atomic(there / RESPONSES_COSTS_FILE, read_costs(there))
        (there / MANIFEST_FILE).unlink(missing_ok=True)
        if later > number:
            shutil.rmtree(there)
            continue
        for path in there.iterdir():
            if path.name not in (RESPONSES_FILE, RESPONSES_COSTS_FILE):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def ledger_of(folder: Path, name: str = COSTS_FILE) -> Ledger:
    """The stored ledger of a round, or of a part of it."""
    found = Ledger()
    found.load_dict(read_costs(folder, name))
    return found


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest in a round's folder; None if the round is incomplete.

    Raises:
        FrugalignError: the manifest is damaged.
    """
    found = read_manifest(folder)
    if found is not None and not (
        "weights" in found.get("end", {}) and "optimizer_steps" in found and "round" in found
    ):
        raise FrugalignError(f"{folder / MANIFEST_FILE} is damaged. Delete it to finish the round again.")
    return found


def tidy_round(folder: Path) -> None:
    """Delete what a complete round no longer needs: checkpoints and partial work."""
    for checkpoint in checkpoints_in(folder):
        discard(checkpoint)
    for path in folder.glob(".*.partial"):
        path.unlink()
    shutil.rmtree(folder / STAGING_FOLDER, ignore_errors=True)


def describe_responses(done: Round, args: PSLEConfig, tau: float, scale: float) -> Manifest:
    """The manifest's entries on a round's responses: τ, σ_0, branches, rewards of both kinds, and their use compared with RAFT's."""
    scored = done.scored
    ids = [each for group in scored.completion_ids for each in group]
    known = scored.is_scored
    kinds = {"plain": scored.plain[known], "guided": scored.guided[known]}
    as_raft = copy.copy(args)
    as_raft.method = "raft"
    return {
        "tau": tau,
        "reward_scale": scale,
        "threshold": tau * scale,
        "branches": done.counts(),
        "rewards": {
            name: {"mean": float(values.mean()), "std": float(values.std(correction=0))}
            for name, values in kinds.items()
        },
        "reward_metrics": scored.metrics(),
        "use": asdict(done.use()),
        "use_of_raft": asdict(assign_branches(scored, as_raft, tau, scale).use()),
        "responses": {
            "prompts": len(scored.prompts),
            "number": len(ids),
            "tokens": sum(map(len, ids)),
            "empty": sum(not text.strip() for group in scored.completions for text in group),
        },
    }
