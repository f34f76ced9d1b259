"""A proxy from stored data as a method: its part of the command, and its lines in a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.methods.budget import GROUP_SIZE, PAIRS_PER_STEP
from frugalign.methods.job import Job
from frugalign.methods.method import Method, PolicyValues, Verb
from frugalign.methods.proxy_network import is_control, trained_in_words

if TYPE_CHECKING:
    from frugalign.methods.proxy_stored.config import StoredProxyConfig
    from frugalign.methods.proxy_stored.trainer import StoredProxyTrainer

_CONFIG = "frugalign.methods.proxy_stored.config:StoredProxyConfig"


def from_pairs(job: Job) -> PolicyValues:
    """Train a proxy on the study's preference pairs, else on ranked pairs of the base's responses.

    A line with a `dataset_name` of its own learns from that instead. A step has as many pairs as that of the methods that feed them to the model.
    """
    setting = job.setting
    size = int(setting.pop("sample", GROUP_SIZE))
    data = setting.pop("dataset_name", None) or job.pairs(size)
    return _train(job, {"per_device_train_batch_size": PAIRS_PER_STEP} | setting | {"dataset_name": data})


def distilled(job: Job) -> PolicyValues:
    """Train a proxy to say plainly what the base says under principles, to as many prompts as the budget allows."""
    prompts = job.some_prompts(job.budget.prompts(1))
    return _train(job, {"dataset_name": str(prompts)} | job.shared("principles") | job.setting)


def _train(job: Job, options: dict[str, Any]) -> PolicyValues:
    """Train within the budget. The model reads the data once, so where tokens say how much there is, the steps are the proxy's own affair."""
    from frugalign.methods.proxy_stored.config import StoredProxyConfig
    from frugalign.methods.proxy_stored.run import train_stored

    budget = job.budget
    steps = {} if budget.steps is None or budget.generated_tokens is not None else {"max_steps": budget.steps}
    config = StoredProxyConfig(**job.common() | {"save_strategy": "no", "test_fraction": 0.0} | options | steps)
    trainer = train_stored(config, callbacks=job.callbacks())
    job.spend(trainer.ledger)
    return {"proxy": str(job.run_folder)}


def closing(config: StoredProxyConfig, trainer: StoredProxyTrainer) -> list[str]:
    """The cost of the proxy, and the command that evaluates it."""
    if not trainer.is_world_process_zero():
        return []
    from frugalign.methods.proxy_stored.pairs_report import in_words
    from frugalign.runs.layout import read_pairs_report

    best = f", the best of step {trainer.best.step}" if config.patience and trainer.best.step else ""
    report = read_pairs_report(Path(str(config.output_dir)))
    return [
        trained_in_words(config, trainer, best),
        *([] if report is None else [in_words(report)]),
        f"Next: frugalign evaluate --model_name_or_path {config.model_name_or_path} --proxy {config.output_dir} "
        f"--dataset_name PROMPTS --reward REWARD --output_dir {config.output_dir}/evaluation",
    ]


ENTRIES = (
    Method(
        "proxy_from_pairs",
        "a proxy that learns from preference pairs, without sampling",
        from_pairs,
        needs=(("preferences", "reward"),),
        config=_CONFIG,
        options=("sample",),
        is_control=is_control,
        verb=Verb(
            "proxy",
            "train a proxy for a frozen model (Proxy-RLHF)",
            "Train a proxy on preference pairs, demonstrations or a teacher. The frozen model reads them once, and nothing is sampled.",
            options="frugalign.methods.proxy_stored.options:StoredProxyOptions",
            config=_CONFIG,
            train="frugalign.methods.proxy_stored.run:train_stored",
            closing=closing,
            reads=("preference", "prompt-completion"),
            when="preference pairs, demonstrations, principles or a teacher",
            takes="frugalign.methods.signals:is_stored",
        ),
    ),
    Method(
        "proxy_distilled",
        "a proxy that learns to answer as the base does under principles",
        distilled,
        needs=("principles",),
        config=_CONFIG,
        is_control=is_control,
    ),
)
