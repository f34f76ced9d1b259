"""PSLE and its baselines as methods: the command, and the size of the rounds within a study's budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frugalign.base.wording import pluralize
from frugalign.methods.budget import GROUP_SIZE, batch_of
from frugalign.methods.job import Job
from frugalign.methods.method import Method, PolicyValues, Verb
from frugalign.methods.proxy_network import is_control
from frugalign.options.groups import KINDS

if TYPE_CHECKING:
    from frugalign.methods.psle.config import PSLEConfig
    from frugalign.methods.psle.trainer import PSLETrainer

_CONFIG = "frugalign.methods.psle.config:PSLEConfig"


def psle(job: Job) -> PolicyValues:
    """Ranking and weighted demonstrations, split by a moving threshold."""
    return _rounds(job, "psle", k=1)


def context_distillation(job: Job) -> PolicyValues:
    """Fine-tuning on the responses under the principles."""
    return _rounds(job, "context_distillation", k=1)


def raft(job: Job) -> PolicyValues:
    """Fine-tuning on the best response to each prompt, out of four by default."""
    return _rounds(job, "raft", k=GROUP_SIZE // 2, one_example_a_prompt=True)


def _rounds(job: Job, method: str, k: int, *, one_example_a_prompt: bool = False) -> PolicyValues:
    """Sample `2k` responses per prompt in every round, for as many prompts as the budget allows. If there are too few prompts, `k` grows."""
    from frugalign.methods.psle.config import PSLEConfig
    from frugalign.methods.psle.run import train_psle

    setting, size = job.setting, job.n_prompts()
    rounds, k = int(setting.get("rounds", 3)), int(setting.get("num_generations", k))
    prompts = job.budget.prompts(2 * k, rounds)
    if prompts is not None and prompts > size and "num_generations" not in setting:
        k = -(-k * prompts // size)
        prompts = job.budget.prompts(2 * k, rounds)
    sizes: dict[str, Any] = {"rounds": rounds, "num_generations": k}
    if prompts is not None:
        sizes["prompts_per_round"] = prompts
    options: dict[str, Any] = {"method": method, "eval_prompts": 0, "dataset_name": job.dataset}
    if job.budget.steps is not None:
        sizes["max_steps"] = steps = max(1, job.budget.steps // rounds)
        examples = min(prompts or size, size) * (1 if one_example_a_prompt else k)
        options["per_device_train_batch_size"] = batch_of(examples, steps)
    shared = job.common() | job.shared("reward", "reward_weights", "principles")
    config = PSLEConfig(**shared | options | setting | sizes)
    trainer = train_psle(config, callbacks=job.callbacks())
    job.spend(trainer.ledger)
    return {KINDS[config.train]: str(job.run_folder)}


def closing(config: PSLEConfig, trainer: PSLETrainer) -> list[str]:
    """The policy's folder, and the commands that report on it and evaluate it."""
    if config.process_index != 0:
        return []
    kind = KINDS[config.train]
    return [
        f"The {kind} is in {config.output_dir}, {pluralize(config.rounds, 'round')} in {trainer.ledger.wall_clock_seconds:,.0f} s.",
        f"Next: frugalign report {config.output_dir}, and frugalign evaluate --model_name_or_path {config.model_name_or_path} --{kind} "
        f"{config.output_dir} --dataset_name PROMPTS --reward REWARD --output_dir {config.output_dir}/evaluation",
    ]


ENTRIES = (
    Method(
        "psle",
        "ranking and weighted demonstrations by a moving threshold (PSLE)",
        psle,
        needs=("reward", "principles"),
        config=_CONFIG,
        is_control=is_control,
        report=("rounds",),
        verb=Verb(
            "psle",
            "align a model by its own answers under written principles",
            "Train in rounds of answers with and without principles. Couples with a clear gain are ranked. All other answers are imitated, weighted by reward.",
            options="frugalign.methods.psle.options:PSLEOptions",
            config=_CONFIG,
            train="frugalign.methods.psle.run:train_psle",
            closing=closing,
            reads=("prompt-only",),
        ),
    ),
    Method(
        "raft",
        "fine-tuning on the best of k responses (RAFT)",
        raft,
        needs=("reward",),
        config=_CONFIG,
        is_control=is_control,
    ),
    Method(
        "context_distillation",
        "fine-tuning on responses under the principles",
        context_distillation,
        needs=("principles",),
        config=_CONFIG,
        is_control=is_control,
    ),
)
