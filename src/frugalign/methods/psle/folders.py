"""A run of rounds as folders: what is there, what may go on, what each round has cost, and what its manifest says of its responses.

`run.json` holds what the run was begun with, from before the first sample on. Nothing in it or in a manifest depends on the clock: a run that was
killed and went on leaves the same ones.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.responses import Round, read_round, split
from frugalign.runs.checkpoints import check_settings, clear_earlier_run, refuse_earlier_run
from frugalign.runs.layout import (
    COSTS_FILE,
    MANIFEST_FILE,
    RESPONSES_FILE,
    RUN_FILE,
    START_FOLDER,
    Manifest,
    read_costs,
    read_run_state,
    round_folder,
    rounds_in,
)


def begin(folder: Path, *, overwrite: bool) -> None:
    """Make room for a new run.

    Raises:
        FrugalignError: where an earlier one is, unless it is to be overwritten.
    """
    earlier = [round_folder(folder, number) for number in rounds_in(folder)]
    refuse_earlier_run(folder, overwrite, [path.name for path in earlier])
    for path in [*earlier, folder / START_FOLDER]:
        shutil.rmtree(path, ignore_errors=True)
    (folder / RUN_FILE).unlink(missing_ok=True)
    clear_earlier_run(folder)


def check_resumable(folder: Path, about: dict[str, Any], from_round: int | None, rounds: int) -> None:
    """Raises where there is no run, where it was begun otherwise, or where the round to be trained again cannot be."""
    if not (folder / RUN_FILE).is_file():
        raise FrugalignError(f"There is no run in {folder} to resume.")
    check_settings(folder, read_run_state(folder), about)
    if from_round is None:
        return
    path = round_folder(folder, from_round) / RESPONSES_FILE
    if from_round >= rounds or not path.is_file():
        raise FrugalignError(f"There is no round {from_round} of {rounds} with its {RESPONSES_FILE} to train again.")
    read_round(path)


def reopen(folder: Path, number: int) -> None:
    """Leave of a round its responses and what it has cost, and nothing of later ones. The last goes first, each one's manifest before the rest, so
    that a kill leaves whole rounds and one that is not finished."""
    for later in reversed(rounds_in(folder)):
        there = round_folder(folder, later)
        if later < number:
            break
        (there / MANIFEST_FILE).unlink(missing_ok=True)
        if later > number:
            shutil.rmtree(there)
            continue
        for path in there.iterdir():
            if path.name not in (RESPONSES_FILE, COSTS_FILE):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def ledger_of(folder: Path) -> Ledger:
    """The round's own ledger, gone on with where the round was begun before."""
    found, costs = Ledger(), read_costs(folder)
    if costs:
        found.load_dict(costs)
    return found


def account(done: Round, args: PSLEConfig, tau: float, scale: float) -> Manifest:
    """What a manifest says of a round's responses: τ and σ_0, branches, rewards of both kinds, the use made of them beside RAFT's of the same."""
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
        "use_of_raft": asdict(split(scored, as_raft, tau, scale).use()),
        "responses": {
            "prompts": len(scored.prompts),
            "number": len(ids),
            "tokens": sum(map(len, ids)),
            "empty": sum(not text.strip() for group in scored.completions for text in group),
        },
    }


def weights_digest(model: Any) -> str:
    """A hash of every trained number."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
