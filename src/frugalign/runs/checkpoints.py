"""Atomic checkpoints. They are not overwritten unless `overwrite_output_dir` is set, nor resumed under other settings.

Trainer writes a checkpoint file by file. A kill in between would leave a partial folder that Trainer later resumes from.
`WholeCheckpoints` makes it write into a staging folder, which is then moved into place in one step. Every trainer of this
package lists it before its Trainer class.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput

from frugalign.base.errors import FrugalignError, saved_by_another_version
from frugalign.base.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_RECORD_FILE,
    ADAPTER_WEIGHTS_FILE,
    CARD_FILE,
    MODEL_CONFIG_FILE,
    MODEL_RECORD_FILE,
    WEIGHTS_FILE,
    announce,
    hash_file,
    write_atomic,
    write_json_atomic,
)
from frugalign.base.json_files import read_json
from frugalign.base.ledger import Ledger
from frugalign.engines.fingerprints import base_differences
from frugalign.options.resuming import is_resuming
from frugalign.runs.folder import keep_lines, saving
from frugalign.runs.hub import OnlyWhenFinished
from frugalign.runs.layout import (
    CHECKPOINT_HASHES_FILE,
    CHECKPOINT_PREFIX,
    CHECKPOINT_STATE_FILE,
    COMPLETIONS_FILE,
    CONFIG_FILE,
    COSTS_FILE,
    EVALUATION_COSTS_FILE,
    LOG_FILE,
    METRICS_FILE,
    PAIRS_REPORT_FILE,
    REPORT_FILE,
    SAMPLES_FILE,
    SHIFT_FILE,
    STAGING_FOLDER,
    TRAINED_ON_FILE,
    checkpoint_folder,
    checkpoints_in,
    is_finished,
    rankings_in,
    shift_responses_file,
)
from frugalign.runs.lock import check_not_deleted, in_use

_log = logging.getLogger(__name__)
_RUN_FILES = (
    *(LOG_FILE, COSTS_FILE, CONFIG_FILE, COMPLETIONS_FILE, TRAINED_ON_FILE, SHIFT_FILE, PAIRS_REPORT_FILE),
    *(WEIGHTS_FILE, ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE, ADAPTER_RECORD_FILE, MODEL_CONFIG_FILE, CARD_FILE),
    *(METRICS_FILE, SAMPLES_FILE, EVALUATION_COSTS_FILE, REPORT_FILE, MODEL_RECORD_FILE, f"{WEIGHTS_FILE}.index.json"),
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"),
)
"""The files that a training or an evaluation writes into a run folder, and that overwriting deletes."""
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
"""Names of the files of a large model's weights."""


class WholeCheckpoints(OnlyWhenFinished, ABC):
    """A mixin for a `transformers.Trainer` with a `ledger`. Its checkpoints also hold what `run_state` returns."""

    args: Any
    state: TrainerState
    control: TrainerControl
    ledger: Ledger
    accelerator: Any
    callback_handler: Any
    _staging = False
    _resumed_loss: dict[str, float]

    @abstractmethod
    def run_settings(self) -> dict[str, Any]:
        """JSON-ready settings that must not change between a checkpoint and its resumption."""

    @abstractmethod
    def run_state(self) -> dict[str, Any]:
        """The JSON-ready state of training, apart from weights, optimiser, scheduler and ledger."""

    @abstractmethod
    def load_run_state(self, state: dict[str, Any]) -> None:
        """Restore what `run_state` returned."""

    @abstractmethod
    def reset_run_state(self) -> None:
        """Drop the state that an earlier, interrupted `train` left in memory."""

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train from the start, or resume from a checkpoint. True means the newest one in the run folder.

        Raises:
            FrugalignError: a run folder that another command is using, or that holds an earlier run (unless `overwrite_output_dir`), or a
                checkpoint with other settings.
        """
        with in_use(str(self.args.output_dir), main_process=self.args.process_index == 0):
            return self._train_or_resume(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _train_or_resume(
        self, resume_from_checkpoint: str | bool | None, trial: Any, ignore_keys_for_eval: list[str] | None
    ) -> TrainOutput:
        trainer: Any = super()
        self.reset_run_state()
        folder = str(self.args.output_dir)
        checkpoint = find_checkpoint(folder, resume_from_checkpoint)
        if checkpoint is None:
            refuse_earlier_run(folder, self.args.overwrite_output_dir)
            self.accelerator.wait_for_everyone()
            if self.state.is_world_process_zero:
                clear_earlier_run(folder)
            self.accelerator.wait_for_everyone()
            found: TrainOutput = trainer.train(None, trial, ignore_keys_for_eval)
            return found
        check_whole(Path(checkpoint))
        stored = checkpoint_state(Path(checkpoint))
        check_settings(checkpoint, stored.get("settings", {}), self.run_settings())
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if state.global_step < self._last_step() and not stored.get("stopped", False):
            restored = _LossSoFar(self)
            self.callback_handler.add_callback(restored)
            try:
                found = trainer.train(checkpoint, trial, ignore_keys_for_eval)
            finally:
                self.callback_handler.remove_callback(restored)
            return found
        # Training had ended, but the artefact was not saved yet. Trainer would take one more step.
        self._load_from_checkpoint(checkpoint)
        self.state = state
        if state.is_world_process_zero:
            keep_lines(Path(folder), state.global_step)
            # A kill right after the last checkpoint leaves one too many.
            keep_newest(Path(folder), self.args.save_total_limit)
        return TrainOutput(state.global_step, float("nan"), {})

    def _last_step(self) -> int:
        """The last optimiser step, as Trainer computes it from the settings."""
        trainer: Any = self
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return int(trainer.set_initial_training_values(self.args, trainer.get_train_dataloader())[-1])

    def _get_output_dir(self, trial: Any) -> str:
        trainer: Any = super()
        folder = str(trainer._get_output_dir(trial))
        return str(Path(folder) / STAGING_FOLDER) if self._staging else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = super()
        step = self.state.global_step
        self._staging = True
        try:
            with self.ledger.phase("save"), saving(checkpoint_folder(Path(str(self.args.output_dir)), step)):
                trainer._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
        finally:
            self._staging = False
        loss = self._loss()
        if self.args.should_save:
            stopped = self.control.should_training_stop and step < self.state.max_steps
            state = {"settings": self.run_settings(), "ledger": self.ledger.to_dict(), "loss": loss, "stopped": stopped}
            state |= self.run_state()
            publish_checkpoint(Path(self._get_output_dir(trial)), step, state, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trainer: Any = super()
        trainer._save(output_dir, state_dict)
        # A pickle that nothing reads. The options are in config.yaml.
        (Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trainer: Any = super()
        trainer._load_from_checkpoint(resume_from_checkpoint, model)
        state = checkpoint_state(Path(resume_from_checkpoint))
        try:
            self.ledger.load_dict(state["ledger"])
            self._resumed_loss = state["loss"]
            self.load_run_state(state)
        except KeyError as error:
            raise saved_by_another_version(resume_from_checkpoint, str(error.args[0])) from error

    def _loss(self) -> dict[str, float]:
        """Trainer's sum of losses since the last log line, a mean over processes, and the step of that line."""
        trainer: Any = self
        total = self.accelerator.reduce(trainer._tr_loss.detach().clone(), "mean")
        return {"sum": float(total), "since": trainer._globalstep_last_logged}


class _LossSoFar(TrainerCallback):
    """Restores the sum of losses that a checkpoint holds. Trainer would restart it, and the next log line would have another mean."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._tr_loss += self.trainer._resumed_loss["sum"]
        self.trainer._globalstep_last_logged = self.trainer._resumed_loss["since"]


def refuse_earlier_run(folder: str | Path, overwrite: bool, also: Sequence[str] = ()) -> None:
    """Refuse a folder that holds an earlier run's checkpoints or artefact, unless `overwrite`.

    Args:
        also: names of further results in the folder that count as an earlier run.

    Raises:
        FrugalignError: if the folder holds an earlier run.
    """
    marks = (CHECKPOINT_PREFIX, WEIGHTS_FILE, ADAPTER_WEIGHTS_FILE)
    found = [path.name for path in _results(Path(folder)) if path.name.startswith(marks) or _SHARD.match(path.name)]
    found += also
    if found and not overwrite:
        raise FrugalignError(
            f"{folder} holds an earlier run ({sorted(found)[-1]}): resume it (resume_from_checkpoint true), replace it "
            "(overwrite_output_dir), or choose another output_dir."
        )


def clear_earlier_run(folder: str | Path) -> None:
    """Delete the files of an earlier run, and nothing else."""
    for path in _results(Path(folder)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _results(folder: Path) -> list[Path]:
    files = [*(folder / name for name in _RUN_FILES), shift_responses_file(folder)]
    shards = [path for path in sorted(folder.glob("model-*")) if _SHARD.fullmatch(path.name)]
    return [path for path in files + shards if path.is_file()] + rankings_in(folder) + checkpoints_in(folder)


def publish_checkpoint(run_dir: Path, step: int, state: dict[str, Any], keep: int | None) -> None:
    """Complete the staged checkpoint with `state` and the hashes of its files, move it into place in one step, and delete
    the oldest ones."""
    staged = checkpoint_folder(run_dir / STAGING_FOLDER, step)
    write_atomic(staged / CHECKPOINT_STATE_FILE, json.dumps(state, indent=1))  # a diverged run's state may hold NaN
    hashes = {path.name: hash_file(path) for path in sorted(staged.iterdir()) if path.is_file()}
    write_json_atomic(staged / CHECKPOINT_HASHES_FILE, hashes)
    target = checkpoint_folder(run_dir, step)
    check_not_deleted(run_dir)
    if target.exists():
        discard(target)
    announce("move", target)
    os.replace(staged, target)
    announce("moved", target)
    keep_newest(run_dir, keep)
    shutil.rmtree(run_dir / STAGING_FOLDER, ignore_errors=True)


def keep_newest(run_dir: Path, keep: int | None) -> None:
    """Delete all checkpoints but the newest `keep`. None keeps all."""
    for old in checkpoints_in(run_dir)[: -keep if keep else 0]:
        discard(old)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint. It leaves its place in one step, so a kill leaves no part of it there."""
    staging = checkpoint.parent / STAGING_FOLDER
    staging.mkdir(exist_ok=True)
    leaving = staging / f"old-{checkpoint.name}"
    shutil.rmtree(leaving, ignore_errors=True)
    announce("move", checkpoint)
    os.replace(checkpoint, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """The state that `publish_checkpoint` stored beside the weights.

    Raises:
        FrugalignError: there is none, or it is damaged.
    """
    path = checkpoint / CHECKPOINT_STATE_FILE
    if not path.is_file():
        raise FrugalignError(f"{checkpoint} is not a checkpoint of this trainer: it holds no {CHECKPOINT_STATE_FILE}.")
    return read_json(path, nan=True)


def check_whole(checkpoint: Path) -> None:
    """Check that every file of a checkpoint is as it was saved.

    Raises:
        FrugalignError: one is missing or has changed; the message names it and the checkpoint before.
    """
    hashes = {CHECKPOINT_STATE_FILE: ""} | read_json(checkpoint / CHECKPOINT_HASHES_FILE, dict[str, str])
    for name, digest in hashes.items():
        if not (checkpoint / name).is_file() or hash_file(checkpoint / name) != digest:
            raise FrugalignError(f"{checkpoint / name} is missing or damaged. {_instead(checkpoint)}")


def _instead(damaged: Path) -> str:
    """What to do about a damaged checkpoint."""
    others = [path for path in checkpoints_in(damaged.parent) if path != damaged]
    if others:
        return f"Resume from another checkpoint (resume_from_checkpoint {others[-1]})."
    return "Start again (overwrite_output_dir)."


_BY_HASH = {"prompts", "held-out prompts", "pairs", "labelled pairs", "groups", "probes"}
_BY_HASH |= {"data", "validation", "principles", "teacher"}
"""Settings whose values are hashes, and are not shown in messages."""


def check_settings(checkpoint: str | Path, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume under settings other than the checkpoint's.

    Raises:
        FrugalignError: naming the settings that differ.
    """
    now = json.loads(json.dumps(now))  # tuples become lists, as they are stored
    found = [_difference(name, stored[name], now[name]) for name in now if name in stored and stored[name] != now[name]]
    if different := [words for words in found if words is not None]:
        raise FrugalignError(
            f"{checkpoint} was made with {'; '.join(different)}: resume with the same settings, or start a new run."
        )


def _difference(name: str, stored: Any, now: Any) -> str | None:
    """How a setting differs, in words; None for a base that is the same in another dtype."""
    if name == "base":
        parts = base_differences(stored if isinstance(stored, dict) else {}, now)
        return f"another base (it differs in {'; '.join(parts)})" if parts else None
    if name == "rewards" and isinstance(stored, dict):
        if list(stored) != list(now):
            return f"rewards {list(stored)}, not {list(now)}"
        changed = [reward for reward in now if stored[reward] != now[reward]]
        return f"another reward {changed[0]!r} (its code, settings or weights have changed)"
    return f"other {name}" if name in _BY_HASH else f"{name} {stored}, not {now}"


def find_checkpoint(output_dir: str, wanted: str | bool | None) -> str | None:
    """The checkpoint folder to resume from: the given path, or for `true` the newest one in the run folder.

    Raises:
        FrugalignError: if there is no checkpoint.
    """
    if not is_resuming(wanted):
        return None
    if wanted is True or str(wanted).lower() in ("true", "latest", "1"):
        found = checkpoints_in(Path(output_dir))
        if not found:
            raise FrugalignError(f"There is no checkpoint in {output_dir} to resume from.")
        return str(found[-1])
    if not Path(str(wanted)).is_dir():
        raise FrugalignError(f"There is no checkpoint folder {wanted}.")
    checkpoint_state(Path(str(wanted)))
    return str(wanted)


def checkpoint_to_resume(output_dir: str, wanted: str | bool | None, overwrite: bool) -> str | None:
    """The checkpoint that a command resumes from; None to start from the beginning.

    A run that was stopped before it saved its artefact is resumed by the same command, from its newest checkpoint.

    Raises:
        FrugalignError: `wanted` names no checkpoint, or the folder holds a finished run (unless `overwrite`).
    """
    if is_resuming(wanted):
        return find_checkpoint(output_dir, wanted)
    folder = Path(output_dir)
    if overwrite:
        return None
    if is_finished(folder):
        refuse_earlier_run(folder, overwrite)
    found = checkpoints_in(folder)
    if not found:
        return None
    _log.warning("Resuming the unfinished run in %s from %s.", output_dir, found[-1].name)
    return str(found[-1])
