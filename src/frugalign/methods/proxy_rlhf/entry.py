"""Proxy-RLHF as a method: its command, and its rollouts within a study's budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from frugalign.methods.job import Job
from frugalign.methods.method import Method, PolicyValues, Verb
from frugalign.methods.proxy_network import is_control, trained_in_words

if TYPE_CHECKING:
    from frugalign.methods.proxy_rlhf.config import ProxyConfig
    from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer


def run(job: Job) -> PolicyValues:
    """Train a proxy with the study's reward. A token budget sets the rollouts' size and number; a step budget without one sets their number.

    With both, the steps are the proxy's own affair: they never feed the model, and the trust region says how many a rollout carries.
    """
    from frugalign.methods.proxy_rlhf.config import ProxyConfig, default_completions
    from frugalign.methods.proxy_rlhf.run import train_proxy

    setting = job.setting
    mini_batches = int(setting.get("num_mini_batches", 2))
    # Prompts divide into the minibatches.
    group = int(setting.get("num_generations", 8)) * mini_batches
    completions, budget = int(setting.get("per_device_train_batch_size", -1)), job.budget
    if (responses := budget.responses) is not None:
        budget = replace(budget, optimizer_steps=None)
        completions = default_completions(responses, group) if completions == -1 else completions
    sizes = budget.on_policy(
        completions, group=group, steps_per_rollout=int(setting.get("num_iterations", 8)) * mini_batches
    )
    # Without a budget of tokens the base's size decides, as for the command.
    completions = sizes.pop("completions")
    options = job.common() | job.shared("reward", "reward_weights")
    options |= {"dataset_name": job.observed_dataset if "eval_steps" in setting else job.dataset}
    options |= {"save_strategy": "no"} | setting | sizes | {"per_device_train_batch_size": completions}
    trainer = train_proxy(ProxyConfig(**options), callbacks=job.callbacks())
    job.spend(trainer.ledger)
    return {"proxy": str(job.run_folder)}


def closing(config: ProxyConfig, trainer: ProxyTrainer) -> list[str]:
    """The cost of the proxy, and the command that evaluates it."""
    if not trainer.is_world_process_zero():
        return []
    rewards = " ".join(f"--reward {spec}" for spec in config.reward)
    return [
        trained_in_words(config, trainer),
        f"Next: frugalign evaluate --model_name_or_path {config.model_name_or_path} --proxy {config.output_dir} "
        f"--dataset_name {config.dataset_name} {rewards} --output_dir {config.output_dir}/evaluation",
    ]


ENTRIES = (
    Method(
        "proxy",
        "a proxy accepts or rejects the frozen model's tokens (Proxy-RLHF)",
        run,
        needs=("reward",),
        config="frugalign.methods.proxy_rlhf.config:ProxyConfig",
        observers=("eval_steps",),
        is_control=is_control,
        verb=Verb(
            "proxy",
            "train a proxy for a frozen model (Proxy-RLHF)",
            "Train a proxy of under 1 % of a frozen model's parameters that accepts or rejects every token it proposes. By a reward, on "
            "responses that it samples to prompts.",
            options="frugalign.methods.proxy_rlhf.options:ProxyOptions",
            config="frugalign.methods.proxy_rlhf.config:ProxyConfig",
            train="frugalign.methods.proxy_rlhf.run:train_proxy",
            closing=closing,
            reads=("prompt-only",),
            when="prompts and a reward",
        ),
    ),
)
