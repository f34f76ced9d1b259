"""`frugalign proxy`: load, hold out, train, save. Callable from Python with a `ProxyConfig`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from transformers import TrainerCallback

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress_display import showing
from frugalign.base.wording import pluralize
from frugalign.data import training_prompts
from frugalign.data.stored_lists import lengths_of
from frugalign.engines.loading import default_device, load_model
from frugalign.engines.sharding import replica
from frugalign.evaluation.schema import few_prompts
from frugalign.methods.proxies import given_proxy, save_proxy
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer
from frugalign.options.loading import model_arguments
from frugalign.rewards import load_rewards
from frugalign.runs.checkpoints import checkpoint_to_resume
from frugalign.runs.folder import open_run_folder
from frugalign.runs.lock import in_use
from frugalign.runs.progress import TrainingProgress, say_size

_log = logging.getLogger(__name__)
_SHOWN = ("reward", "kl", "beta", "acceptance", "eval_reward", "eval_kl_per_sequence")


def train_proxy(config: ProxyConfig, callbacks: Sequence[TrainerCallback] = ()) -> ProxyTrainer:
    """Train a proxy and save it in the run folder, with its card, `config.yaml`, `metrics.jsonl` and `costs.json`.

    Training uses the `train` split if there is one. Otherwise it holds out a tenth of the prompts, which `evaluate` later
    finds and uses. `eval_steps` evaluates on the `validation` split, or else on that tenth.

    Raises:
        FrugalignError: a user error.
    """
    for name in ("model_name_or_path", "dataset_name", "reward"):
        if not getattr(config, name):
            raise FrugalignError(f"--{name} is missing.")
    assert config.model_name_or_path is not None and config.dataset_name is not None and config.output_dir is not None
    is_main = config.process_index == 0
    with in_use(config.output_dir, main_process=is_main), showing(is_main, bars=not config.disable_tqdm):
        return _train(config, callbacks)


def _train(config: ProxyConfig, callbacks: Sequence[TrainerCallback]) -> ProxyTrainer:
    assert config.model_name_or_path is not None and config.dataset_name is not None and config.output_dir is not None
    checkpoint = checkpoint_to_resume(config.output_dir, config.resume_from_checkpoint, config.overwrite_output_dir)
    folder = open_run_folder(config.output_dir)
    ledger = Ledger()
    rewards = load_rewards(config.reward, device=default_device(config.use_cpu))
    train, held_out, trained_on = training_prompts(config.dataset_name, hold_out=config.eval_steps is not None)
    with ledger.phase("load"):
        loaded = load_model(config.model_name_or_path, **model_arguments(config))
    seconds_before = ledger.wall_clock_seconds
    trainer = ProxyTrainer(
        loaded, rewards, config, train, eval_dataset=held_out, proxy=given_proxy(config), callbacks=list(callbacks)
    )
    trainer.ledger.add(ledger, wall_clock=seconds_before)
    trainer.accelerator.unwrap_model(trainer.model).config.trained_on = trained_on
    TrainingProgress("training the proxy", _SHOWN, "rollout", config.steps_per_rollout).replace_defaults(trainer)
    _say_size(trainer)
    with closing(trainer.rollouts.pool):
        trainer.train(resume_from_checkpoint=checkpoint)
    save_proxy(trainer, folder, "Learned by a reward, from its own responses.")
    return trainer


def _say_size(trainer: ProxyTrainer) -> None:
    """Say how many tokens the whole run samples and feeds."""
    args, ids = trainer.args, trainer.prompt_ids
    rollouts, size = args.max_steps // args.steps_per_rollout, args.per_device_train_batch_size * replica().number
    how = f"{pluralize(rollouts, 'rollout')} of {size} responses of at most {args.max_new_tokens} tokens"
    responses = rollouts * size
    prompts = responses // args.num_generations  # a prompt is fed once for all its completions
    if args.eval_steps and trainer.eval_dataset is not None:
        held_out: Any = trainer.eval_dataset
        if few := few_prompts(len(held_out), said="eval_steps measures on"):
            _log.warning(few)
        times, each = args.max_steps // int(args.eval_steps), len(held_out)
        responses, prompts = responses + times * each, prompts + times * each
        how += f", {pluralize(times, 'evaluation')} on {pluralize(each, 'prompt')}"
    prompt_tokens = prompts * float(lengths_of(ids).mean())
    # With lookahead, every candidate of a position is fed as well.
    per_token = 1 + (args.network()["max_candidates"] if args.candidate_features == "lookahead" else 0)
    sampled = responses * args.max_new_tokens
    say_size(sampled, prompt_tokens + sampled * per_token, how)
