"""`frugalign proxy` on stored data: load, hold out, read once, train, save. Callable from Python with a `StoredProxyConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress_display import showing
from frugalign.data import load_splits
from frugalign.data.groups import read_groups, save_groups
from frugalign.data.load_files import columns_of
from frugalign.data.splits import (
    column,
    held_out_split,
    split_for,
    training_data_record,
    training_name,
    warn_of_shared_splits,
)
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import sampling_temperature
from frugalign.methods.proxies import save_proxy
from frugalign.methods.proxy_stored.config import StoredProxyConfig
from frugalign.methods.proxy_stored.examples import EXTRA
from frugalign.methods.proxy_stored.teacher import taught_prompts, teacher_model
from frugalign.methods.proxy_stored.trainer import StoredProxyTrainer
from frugalign.options.loading import model_arguments
from frugalign.proxy.network import load_proxy
from frugalign.runs.checkpoints import checkpoint_to_resume
from frugalign.runs.folder import open_run_folder
from frugalign.runs.layout import ranking_file
from frugalign.runs.lock import in_use
from frugalign.runs.progress import TrainingProgress, say_size
from frugalign.runs.shared_sampling import GroupRequest, sample_on_all_processes

_SHOWN = ("loss", "rewards/accuracies", "kl", "eval_loss", "eval_rewards/accuracies", "eval_kl")
_OTHER_SEED = 1
"""Draws the validation prompts, among those that the test prompts, drawn by seed 0, leave."""


@dataclass(frozen=True)
class StoredData:
    """The rows to train on, those that stop the training, and the record of the whole."""

    train: Dataset
    validation: Dataset | None
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
    proxy = None if config.initial_proxy is None else load_proxy(config.initial_proxy)
    if config.temperature is None:
        config.temperature = sampling_temperature(base.model) if proxy is None else float(proxy.config.temperature)
    train, validation = data.train, data.validation
    if "completion" not in train.column_names and "chosen" not in train.column_names:
        train, validation = _answered(train, validation, base, config, ledger)
    seconds_before = ledger.wall_clock_seconds
    trainer = StoredProxyTrainer(base, config, train, validation, proxy=proxy, callbacks=list(callbacks))
    trainer.ledger.add(ledger, wall_clock=seconds_before)
    trainer.accelerator.unwrap_model(trainer.model).config.trained_on = data.trained_on
    TrainingProgress("training the proxy", _SHOWN).replace_defaults(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    save_proxy(trainer, folder)
    return trainer


def read_stored(config: StoredProxyConfig) -> StoredData:
    """The data of a run, with what is held out.

    Raises:
        FrugalignError: it cannot be read, or teaches nothing.
    """
    name = str(config.dataset_name)
    has_teacher = config.teacher is not None or config.principles is not None
    columns = columns_of(name)
    kind = (
        "preference"
        if "chosen" in columns and not has_teacher
        else "prompt-completion"
        if "completion" in columns
        else "prompt-only"
    )
    if "label" in columns and "chosen" not in columns:
        raise FrugalignError(
            f"{name} labels single answers as good or bad. A proxy learns from pairs or from good answers alone: keep those, or fit a reward "
            "on it (`frugalign reward`) and train the proxy by that."
        )
    if kind == "prompt-only" and not has_teacher:
        raise FrugalignError(
            f"{name} holds prompts alone, which teach nothing by themselves: give --reward, --principles or --teacher, or preference pairs or "
            "demonstrations."
        )
    splits = load_splits(name, kind=kind)
    trained = training_name(splits, name)
    warn_of_shared_splits(name, splits, trained)
    rows, has_test = splits[trained], split_for(splits, "test", trained) is not None
    held_out = 0.0 if has_test else config.test_fraction
    trained_on = training_data_record(name, rows, held_out_fraction=held_out)
    if held_out:
        rows, _ = held_out_split(rows, held_out, 0)
    named = split_for(splits, "validation", trained)
    if named is not None:
        validation = splits[named]
    else:
        rows, validation = held_out_split(rows, config.validation_fraction, _OTHER_SEED)
    return StoredData(_used(rows, kind), _used(validation, kind), trained_on)


def _used(rows: Dataset, kind: str) -> Dataset:
    """The columns that training reads, and of pairs those of two different answers."""
    answers = {"preference": ["chosen", "rejected"], "prompt-completion": ["completion"]}.get(kind, [])
    found = rows.select_columns(["prompt", *answers, *(name for name in EXTRA if name in rows.column_names)])
    if kind != "preference":
        return found
    sides = zip(column(rows, "chosen"), column(rows, "rejected"), strict=True)
    differ = [row for row, (chosen, rejected) in enumerate(sides) if chosen != rejected]
    if not differ:
        raise FrugalignError("The data holds no pair of two different answers.")
    return found.select(differ)


def _answered(
    train: Dataset, validation: Dataset | None, base: LoadedModel, config: StoredProxyConfig, ledger: Ledger
) -> tuple[Dataset, Dataset | None]:
    """Prompts with one answer each, sampled from the teacher. A resumed run reads those of the interrupted one."""
    prompts = [column(part, "prompt") for part in (train, validation) if part is not None]
    every = [prompt for part in prompts for prompt in part]
    kept = ranking_file(Path(str(config.output_dir)), 0)
    if kept.is_file():
        groups = read_groups(kept)
    else:
        model = teacher_model(base, config)
        say_size(len(every) * config.max_new_tokens, 0, f"one answer of the teacher to each of {len(every):,} prompts")
        request = GroupRequest(taught_prompts(every, base, config), 1, 0, kept.with_suffix(""), share_prefix=True)
        groups = sample_on_all_processes(model.model, model.tokenizer, request, config, ledger)
        save_groups(groups, kept)
    rows = [
        {"prompt": prompt, "completion": texts[0], "completion_ids": ids[0]}
        for prompt, texts, ids in zip(every, groups.completions, groups.completion_ids or [], strict=True)
    ]
    parts = [Dataset.from_list(rows[: len(prompts[0])])]
    parts += [Dataset.from_list(rows[len(prompts[0]) :])] if validation is not None else []
    return parts[0], parts[1] if validation is not None else None
