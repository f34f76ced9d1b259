"""`frugalign rerank`: load, hold out, train, save. Callable from Python with a `RerankConfig`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress_display import say, showing
from frugalign.base.wording import pluralize
from frugalign.data import load_splits
from frugalign.data.groups import Groups, groups_from_dataset, read_groups
from frugalign.data.load_files import columns_of
from frugalign.data.pairs import preference_pairs
from frugalign.data.splits import column, distinct, split_for, training_data_record, training_name
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import device_of
from frugalign.methods.proxies import given_proxy, settle_temperature
from frugalign.methods.rerank.config import RerankConfig, check_reward_of_groups
from frugalign.methods.rerank.groups import sample_for
from frugalign.methods.rerank.shift_monitor import ShiftMonitor
from frugalign.methods.rerank.trainer import RerankTrainer, TrackedReward
from frugalign.options.loading import policy_arguments
from frugalign.rewards.loading import NamedReward, load_reward
from frugalign.rewards.representation.network import load_probes
from frugalign.runs.checkpoints import checkpoint_to_resume
from frugalign.runs.folder import open_run_folder
from frugalign.runs.layout import ranking_file
from frugalign.runs.lock import in_use
from frugalign.runs.progress import TrainingProgress, say_size
from frugalign.runs.save_policy import save_policy

_SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "confidence/mean")
_SHIFT_SIZE = 8
_MEASURED = 256
"""Pairs whose length stands for that of all."""


def train_reranked(config: RerankConfig, callbacks: Sequence[TrainerCallback] = ()) -> RerankTrainer:
    """Align a model on preference pairs or on ranked responses. The run folder receives the adapter (or model), card, log and costs.

    `eval_steps` evaluates on the `test` or `validation` split if there is one, else on a held-out tenth of the prompts.

    Raises:
        FrugalignError: a user error.
    """
    for name in ("model_name_or_path", "dataset_name"):
        if not getattr(config, name):
            raise FrugalignError(f"--{name} is missing.")
    if config.reward is None and config.confidence != "constant":
        raise FrugalignError("--reward is missing: a representation reward of this model, or --confidence constant.")
    is_main = config.process_index == 0
    with in_use(str(config.output_dir), main_process=is_main), showing(is_main, bars=not config.disable_tqdm):
        return _train(config, callbacks)


def _train(config: RerankConfig, callbacks: Sequence[TrainerCallback]) -> RerankTrainer:
    assert config.model_name_or_path is not None and config.dataset_name is not None
    folder = str(config.output_dir)
    checkpoint = checkpoint_to_resume(folder, config.resume_from_checkpoint, config.overwrite_output_dir)
    open_run_folder(folder)
    ledger = Ledger()
    hold_out = config.eval_steps is not None
    stored_groups = "completions" in columns_of(config.dataset_name)
    if stored_groups and config.sample:
        raise FrugalignError(f"{config.dataset_name} holds completions already; sample would draw others.")
    ranked = config.sample > 0 or stored_groups
    _check_labelled(config, ranked=ranked)
    train: Dataset | Groups | None = None
    held_out = labelled = None
    if not ranked:
        train, held_out, trained_on = preference_pairs(config.dataset_name, hold_out=hold_out, weights=True)
    if config.reward_dataset_name is not None:
        labelled, held_out_labelled, _ = preference_pairs(config.reward_dataset_name, hold_out=hold_out, weights=True)
        held_out = held_out_labelled if ranked else held_out
    probes = load_probes(config.reward) if config.reward is not None else None
    with ledger.phase("load"):
        arguments = policy_arguments(config, trains_every_weight=config.train == "full")
        loaded = load_model(config.model_name_or_path, **arguments)
    settle_temperature(config, loaded.model, given_proxy(config))
    shift_reward = _shift_reward(config, loaded)
    loaded.model.requires_grad_(config.train == "full")
    if ranked:
        train = first_groups(config, loaded, ledger, resuming=checkpoint is not None)
        trained_on = training_data_record(config.dataset_name, prompts_in(config.dataset_name), held_out_fraction=0.0)
    assert train is not None
    seconds_before = ledger.wall_clock_seconds
    trainer = RerankTrainer(
        loaded.model,
        probes if probes is None or labelled is None else TrackedReward(probes, labelled),
        config,
        train,
        held_out,
        processing_class=loaded.tokenizer,
        callbacks=list(callbacks),
    )
    trainer.ledger.add(ledger, wall_clock=seconds_before)
    if shift_reward is not None:
        trainer.add_callback(shift_monitor(config, trainer, shift_reward))
    TrainingProgress("re-ranking", _SHOWN).replace_defaults(trainer)
    if trainer.carrier.passes:
        _say_size(trainer)
    elif trainer.probed_layers():
        say("The base's states do not move, so the confidence in every label stays what it is now.")
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        save_policy(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            config,
            trainer.ledger,
            trained_on=trained_on,
            done="re-ranked",
            description="DPO with label confidence from the model's own hidden states (arXiv 2503.10093).",
        )
    return trainer


def _say_size(trainer: RerankTrainer) -> None:
    """Say how many tokens the training feeds."""
    pairs: Any = trainer.train_dataset
    args = trainer.args
    some = [pairs[row] for row in range(min(len(pairs), _MEASURED))]
    sides = [2 * len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in some]
    a_pair = sum(sides) / len(sides)
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs = args.max_steps * batch / len(pairs) if args.max_steps > 0 else args.num_train_epochs
    # Every pair goes through the policy and through the reference.
    times = "1 epoch" if epochs == 1 else f"{epochs:.3g} epochs"
    say_size(0, 2 * epochs * len(pairs) * a_pair, f"{pluralize(len(pairs), 'pair')} for {times}")


def _check_labelled(config: RerankConfig, *, ranked: bool) -> None:
    """Check, before sampling, that labelled pairs are given exactly if they are used."""
    uses = config.reward_refresh_steps > 0 or (ranked and config.eval_steps is not None)
    if ranked and uses and config.reward_dataset_name is None:
        raise FrugalignError(
            "eval_steps and reward_refresh_steps with groups of responses need labelled pairs: reward_dataset_name."
        )
    if config.reward_dataset_name is not None and not uses:
        raise FrugalignError(
            "reward_dataset_name is for reward_refresh_steps, or eval_steps with groups; neither is set."
        )
    if ranked:
        check_reward_of_groups(config, has_reward=config.reward is not None)


def _shift_reward(config: RerankConfig, loaded: LoadedModel) -> NamedReward | None:
    if config.shift_reward is None:
        return None
    if config.reward is None:
        raise FrugalignError("shift_reward needs reward: half of the shift is measured with frozen probes.")
    return load_reward(config.shift_reward, device=str(device_of(loaded.model)))


def shift_monitor(config: RerankConfig, trainer: RerankTrainer, reward: NamedReward) -> ShiftMonitor:
    """The monitor for `shift_reward`, on held-out prompts if the data has any."""
    assert config.dataset_name is not None
    kind = "prompt-only" if "prompt" in columns_of(config.dataset_name) else "preference"
    splits = load_splits(config.dataset_name, kind=kind)
    found = (split_for(splits, role) for role in ("test", "validation", "train"))
    rows = splits[next(split for split in found if split is not None)]
    return ShiftMonitor(
        trainer,
        distinct(column(rows, "prompt"))[: config.shift_prompts],
        reward,
        size=config.sample or _SHIFT_SIZE,
        every=config.shift_steps,
    )


def first_groups(config: RerankConfig, loaded: LoadedModel, ledger: Ledger, *, resuming: bool) -> Groups:
    """The first responses: those of the resumed run, those in the data set, or samples from the model.

    Stored rewards are used only if there is no reward to rank by.
    """
    kept = ranking_file(Path(str(config.output_dir)), 0)
    if resuming and kept.is_file():
        return read_groups(kept)
    assert config.dataset_name is not None
    rows = prompts_in(config.dataset_name)
    if "completions" in rows.column_names:
        found = groups_from_dataset(rows, config.dataset_name)
        if found.completion_ids is not None and not _ids_match_texts(found, loaded):
            found = replace(found, completion_ids=None)
        return found if config.reward is None else replace(found, rewards=None)
    prompts = distinct(column(rows, "prompt"))
    passes = math.ceil(config.num_train_epochs) if config.resample else 1
    how = (
        f"{pluralize(len(prompts), 'prompt')} with {config.sample} responses of at most {config.max_new_tokens} tokens"
    )
    again = f", in each of {passes} epochs" if passes > 1 else ""
    say_size(passes * len(prompts) * config.sample * config.max_new_tokens, 0, how + again)
    return sample_for(prompts, loaded.model, loaded.tokenizer, config, 0, ledger)


def prompts_in(name: str) -> Dataset:
    """The training prompts, with stored groups if there are any: the split `train`, or the only one."""
    splits = load_splits(name, kind="groups" if "completions" in columns_of(name) else "prompt-only")
    return splits[training_name(splits, name)]


def _ids_match_texts(groups: Groups, loaded: LoadedModel) -> bool:
    """Whether the token ids decode to the texts. Ids from another tokenizer do not."""
    _, texts, ids = groups.flat()
    try:
        return ids is not None and loaded.tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    except (IndexError, OverflowError, TypeError):  # ids that this tokenizer does not have
        return False
