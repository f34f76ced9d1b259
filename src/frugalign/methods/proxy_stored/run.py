"""`frugalign proxy` on stored data: load, hold out, read once, train, save. Callable from Python with a `StoredProxyConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress_display import showing
from frugalign.data import load_splits
from frugalign.data.groups import Groups, read_groups, save_groups
from frugalign.data.load_files import columns_of
from frugalign.data.pairs import ANSWER_IDS, ANSWERS, different_answers
from frugalign.data.splits import (
    column,
    held_out_split,
    split_for,
    training_data_record,
    training_name,
    warn_of_shared_splits,
)
from frugalign.data.weights import WEIGHTS, check_weights
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.methods.proxies import given_proxy, save_proxy, settle_temperature
from frugalign.methods.proxy_stored.config import StoredProxyConfig
from frugalign.methods.proxy_stored.pairs_report import pairs_report, write_report
from frugalign.methods.proxy_stored.teacher import taught_prompts, teacher_model
from frugalign.methods.proxy_stored.trainer import StoredProxyTrainer
from frugalign.methods.signals import signal_of
from frugalign.options.loading import model_arguments
from frugalign.runs.checkpoints import checkpoint_to_resume
from frugalign.runs.folder import open_run_folder, saving
from frugalign.runs.layout import ranking_file
from frugalign.runs.lock import in_use
from frugalign.runs.progress import TrainingProgress, say_size
from frugalign.runs.shared_sampling import GroupRequest, sample_on_all_processes

_DESCRIBED = {
    "pairs": "Learned from preference pairs, without sampling.",
    "demonstrations": "Learned from demonstrations, without sampling.",
    "teacher": "Learned to imitate a teacher, token by token.",
}
_SHOWN = ("loss", "rewards/accuracies", "kl", "eval_loss", "eval_rewards/accuracies", "eval_kl")
_OTHER_SEED = 1
"""Draws the validation prompts, among those that the test prompts, drawn by seed 0, leave."""


@dataclass(frozen=True)
class StoredData:
    """The rows to train on, those that stop the training, pairs that it never sees, if there are any, and the record of the whole."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    trained_on: dict[str, Any]


def train_stored(config: StoredProxyConfig, callbacks: Sequence[TrainerCallback] = ()) -> StoredProxyTrainer:
    """Train a proxy on stored data and save it in the run folder, with its card, `config.yaml`, `metrics.jsonl` and `costs.json`.

    The `validation` split stops the training, or else a tenth of the prompts. Without a test split, another tenth is held out, which
    `evaluate` finds and uses.

    Raises:
        FrugalignError: a user error.
    """
    for name in ("model_name_or_path", "dataset_name"):
        if not getattr(config, name):
            raise FrugalignError(f"--{name} is missing.")
    is_main = config.process_index == 0
    with in_use(str(config.output_dir), main_process=is_main), showing(is_main, bars=not config.disable_tqdm):
        return _train(config, callbacks)


def _train(config: StoredProxyConfig, callbacks: Sequence[TrainerCallback]) -> StoredProxyTrainer:
    assert config.model_name_or_path is not None and config.dataset_name is not None
    checkpoint = checkpoint_to_resume(
        str(config.output_dir), config.resume_from_checkpoint, config.overwrite_output_dir
    )
    folder = open_run_folder(str(config.output_dir))
    ledger = Ledger()
    data = read_stored(config)
    with ledger.phase("load"):
        base = load_model(config.model_name_or_path, **model_arguments(config))
    proxy = given_proxy(config)
    settle_temperature(config, base.model, proxy)
    # Once for answers and training, since it may be large.
    teacher = teacher_model(base, config) if config.has_teacher else None
    train, validation, answers = data.train, data.validation, None
    if teacher is not None and "completion" not in train.column_names:
        kept = ranking_file(folder, 0)
        answers = read_groups(kept) if checkpoint is not None and kept.is_file() else None
        if answers is None:
            prompts = column(train, "prompt") + column(validation, "prompt")
            answers = _answers(prompts, teacher, base, config, ledger)
        train, validation = _with_answers(train, answers, 0), _with_answers(validation, answers, len(train))
    seconds_before = ledger.wall_clock_seconds
    trainer = StoredProxyTrainer(
        base, config, train, validation, proxy=proxy, teacher=teacher, callbacks=list(callbacks)
    )
    trainer.ledger.add(ledger, wall_clock=seconds_before)
    trainer.accelerator.unwrap_model(trainer.model).config.trained_on = data.trained_on
    TrainingProgress("training the proxy", _SHOWN).replace_defaults(trainer)
    with closing(trainer.reader):
        trainer.train(resume_from_checkpoint=checkpoint)
        # All processes read the pairs.
        report = pairs_report(trainer, data.train, data.validation, data.test) if trainer.signal == "pairs" else None
    if trainer.is_world_process_zero():
        if report is not None:
            write_report(report, folder)
        if answers is not None:
            _keep(answers, ranking_file(folder, 0))
    save_proxy(trainer, folder, _DESCRIBED[trainer.signal])
    return trainer


def read_stored(config: StoredProxyConfig) -> StoredData:
    """The data of a run, with what is held out.

    Raises:
        FrugalignError: it cannot be read, or teaches nothing.
    """
    name = str(config.dataset_name)
    columns = columns_of(name)
    signal = signal_of(columns, has_teacher=config.has_teacher, name=name)
    kind = "preference" if signal == "pairs" else "prompt-completion" if "completion" in columns else "prompt-only"
    splits = load_splits(name, kind=kind)
    trained = training_name(splits, name)
    warn_of_shared_splits(name, splits, trained)
    rows = splits[trained]
    test_name, named = (split_for(splits, role, trained) for role in ("test", "validation"))
    for each in (trained, test_name, named):
        if each is not None:
            check_weights(splits[each])
    held_out = config.test_fraction if test_name is None else 0.0
    trained_on = training_data_record(name, rows, held_out_fraction=held_out)
    test = None if test_name is None else splits[test_name]
    if held_out:
        rows, test = held_out_split(rows, held_out, 0)
    if named is not None:
        validation = splits[named]
    else:
        rows, validation = held_out_split(rows, config.validation_fraction, _OTHER_SEED)
    test = None if test is None or kind != "preference" else _used(test, kind)
    found = StoredData(_used(rows, kind), _used(validation, kind), test if test else None, trained_on)
    if not (found.train and found.validation):
        raise FrugalignError(f"{name} holds no pair of two different answers.")
    return found


def _used(rows: Dataset, kind: str) -> Dataset:
    """The columns that training reads, and of pairs those of two different answers."""
    answers = {"preference": ANSWERS, "prompt-completion": ("completion",)}.get(kind, ())
    known = [*(ANSWER_IDS if kind == "preference" else ()), *WEIGHTS]
    found = rows.select_columns(["prompt", *answers, *(name for name in known if name in rows.column_names)])
    return different_answers(found) if kind == "preference" else found


def _answers(
    every: list[Any], teacher: LoadedModel, base: LoadedModel, config: StoredProxyConfig, ledger: Ledger
) -> Groups:
    """One answer of the teacher to each prompt. A resumed run reads those that the interrupted one had sampled."""
    kept = ranking_file(Path(str(config.output_dir)), 0)
    say_size(len(every) * config.max_new_tokens, 0, f"one answer of the teacher to each of {len(every):,} prompts")
    request = GroupRequest(
        taught_prompts(every, base, config), 1, 0, kept.with_name(f".{kept.stem}"), share_prefix=True
    )
    groups = sample_on_all_processes(teacher.model, teacher.tokenizer, request, config, ledger)
    return replace(groups, prompts=every)


def _keep(answers: Groups, path: Path) -> None:
    """Write the answers where they can be read, in place of the partial work."""
    with saving(path):
        save_groups(answers, path)
        for partial in path.parent.glob(f".{path.stem}-*.partial"):
            partial.unlink()


def _with_answers(rows: Dataset, groups: Groups, first: int) -> Dataset:
    """The rows with the answers to them, which are those of `groups` from `first` on."""
    here = slice(first, first + len(rows))
    texts, ids = ([each[0] for each in found[here]] for found in (groups.completions, groups.completion_ids or []))
    return rows.add_column("completion", texts).add_column("completion_ids", ids)
