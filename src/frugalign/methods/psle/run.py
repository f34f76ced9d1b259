"""`frugalign psle`: load, hold out, run the rounds, save. Callable from Python with a `PSLEConfig`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.data import training_prompts
from frugalign.engines.loading import load_model
from frugalign.engines.transformers import device_of
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.folders import is_unfinished
from frugalign.methods.psle.trainer import PSLETrainer
from frugalign.options.loading import policy_arguments
from frugalign.options.resuming import is_resuming
from frugalign.rewards.loading import load_rewards
from frugalign.runs.lock import in_use
from frugalign.runs.save_policy import save_policy

_log = logging.getLogger(__name__)


def train_psle(config: PSLEConfig, callbacks: Sequence[TrainerCallback] = ()) -> PSLETrainer:
    """Align a model with its own responses under principles.

    Every round is a folder. The run folder receives the last round's adapter (or model), its card, `config.yaml` and the costs.

    Raises:
        FrugalignError: a user error.
    """
    needed = ["model_name_or_path", "dataset_name", "reward", *(["principles"] * config.needs_principles)]
    for name in needed:
        if not getattr(config, name):
            raise FrugalignError(f"--{name} is missing.")
    with in_use(str(config.output_dir), main_process=config.process_index == 0):
        return _train(config, callbacks)


def _train(config: PSLEConfig, callbacks: Sequence[TrainerCallback]) -> PSLETrainer:
    assert config.model_name_or_path is not None and config.dataset_name is not None
    folder, resume = Path(str(config.output_dir)), config.resume_from_checkpoint
    if not is_resuming(resume) and not config.overwrite_output_dir and is_unfinished(folder):
        _log.warning("Resuming the unfinished run in %s.", folder)
        resume = "true"
    ledger = Ledger()
    train, held_out, trained_on = training_prompts(config.dataset_name, hold_out=config.eval_prompts > 0, weights=True)
    with ledger.phase("load"):
        arguments = policy_arguments(config, trains_every_weight=config.train == "full")
        loaded = load_model(config.model_name_or_path, **arguments)
    rewards = load_rewards(config.reward, device=str(device_of(loaded.model)))
    extra_rewards = (
        load_rewards(config.eval_reward, device=str(device_of(loaded.model))) if config.eval_reward else None
    )
    seconds_before = ledger.wall_clock_seconds
    trainer = PSLETrainer(
        loaded.model,
        rewards,
        config,
        train,
        eval_dataset=held_out,
        eval_reward_funcs=extra_rewards,
        processing_class=loaded.tokenizer,
        callbacks=list(callbacks),
    )
    trainer.ledger.add(ledger, wall_clock=seconds_before)
    trainer.train(resume_from_checkpoint=resume)
    if config.process_index == 0:
        save_policy(
            trainer.model,
            loaded.tokenizer,
            config,
            trainer.ledger,
            trained_on=trained_on,
            done="aligned by principles",
            description=f"Self-enhancement under written principles, method {config.method} (PSLE, arXiv 2408.02599).",
        )
    return trainer
