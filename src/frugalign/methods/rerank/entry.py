"""Re-ranking and DPO variants as methods: the command, and their size within a study's budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frugalign.methods.budget import GROUP_SIZE, PAIRS_PER_STEP, batch_of
from frugalign.methods.job import Job
from frugalign.methods.method import Method, PolicyValues, Verb
from frugalign.methods.proxy_network import is_control
from frugalign.options.groups import KINDS

if TYPE_CHECKING:
    from frugalign.methods.rerank.config import RerankConfig
    from frugalign.methods.rerank.trainer import RerankTrainer

_CONFIG = "frugalign.methods.rerank.config:RerankConfig"


def rerank(job: Job) -> PolicyValues:
    """DPO with each label's confidence from the policy's own states."""
    setting = job.setting
    group = int(setting.pop("sample", GROUP_SIZE))
    reward = {"reward": job.representation_reward(group)}
    return _train(job, reward | _pairs(job, group, rerank_groups=True) | setting)


def dpo(job: Job) -> PolicyValues:
    """DPO with full confidence in every label."""
    return _constant(job, 1.0)


def conservative_dpo(job: Job) -> PolicyValues:
    """DPO with one confidence for all labels."""
    return _constant(job, 0.8)


def online_dpo(job: Job) -> PolicyValues:
    """DPO on responses that are sampled in every epoch and ranked by the representation reward.

    The number of epochs ends the run, not the number of steps, since a further epoch would sample again.
    """
    setting = job.setting
    group, epochs = int(setting.pop("sample", GROUP_SIZE)), int(setting.pop("num_train_epochs", GROUP_SIZE))
    reward = {"reward": job.representation_reward(group)}
    prompts, every = job.budget.prompts(group, epochs), job.n_prompts()
    steps = None if job.budget.steps is None else max(1, job.budget.steps // epochs)
    options = reward | {
        "dataset_name": str(job.some_prompts(prompts)),
        "sample": group,
        "resample": True,
        "confidence": "constant",
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_of(min(prompts or every, every) * (group // 2), steps) or PAIRS_PER_STEP,
    }
    return _train(job, options | setting, ends_by_steps=False)


def _constant(job: Job, confidence: float) -> PolicyValues:
    setting = job.setting
    group = int(setting.pop("sample", GROUP_SIZE))
    options = _pairs(job, group, rerank_groups=False) | {"confidence": "constant", "constant_confidence": confidence}
    return _train(job, options | setting)


def _pairs(job: Job, group: int, *, rerank_groups: bool) -> dict[str, Any]:
    """The stored preferences, or else ranked groups of the base's responses. The batch size lets the budget's steps use all groups."""
    if job.preferences is not None:
        return {"dataset_name": job.preferences}
    found = {"dataset_name": str(job.sampled_groups(group)), "rerank_groups": rerank_groups}
    batch = batch_of(len(job.sampled_pairs(group)), job.budget.steps)
    return found | ({} if batch is None else {"per_device_train_batch_size": batch})


def _train(job: Job, options: dict[str, Any], *, ends_by_steps: bool = True) -> PolicyValues:
    from frugalign.methods.rerank.config import RerankConfig
    from frugalign.methods.rerank.run import train_reranked

    plain = {"save_strategy": "no", "num_train_epochs": 1, "per_device_train_batch_size": PAIRS_PER_STEP}
    sizes = {"max_steps": job.budget.steps} if ends_by_steps and job.budget.steps is not None else {}
    config = RerankConfig(**job.common() | plain | options | sizes)
    trainer = train_reranked(config, callbacks=job.callbacks())
    job.spend(trainer.ledger)
    return {KINDS[config.train]: str(job.run_folder)}


def closing(config: RerankConfig, trainer: RerankTrainer) -> list[str]:
    """The policy's folder, and the command that evaluates it."""
    if not trainer.is_world_process_zero():
        return []
    kind = KINDS[config.train]
    return [
        f"The {kind} is in {config.output_dir}, trained in {trainer.ledger.wall_clock_seconds:,.0f} s.",
        f"Next: frugalign evaluate --model_name_or_path {config.model_name_or_path} --{kind} {config.output_dir} "
        f"--dataset_name PROMPTS --reward REWARD --output_dir {config.output_dir}/evaluation",
    ]


_PAIRS = ("preferences", "reward")
ENTRIES = (
    Method(
        "rerank",
        "DPO with moving confidence from the model's own states",
        rerank,
        needs=(_PAIRS,),
        reads=("representation_reward",),
        config=_CONFIG,
        is_control=is_control,
        observers=("shift_reward",),
        reward_options=("shift_reward",),
        report=("probes", "shift"),
        verb=Verb(
            "rerank",
            "align a model on preferences, weighted by its own hidden states",
            "DPO on preference pairs whose labels are weighted by a representation reward on the current policy's own hidden states.",
            options="frugalign.methods.rerank.options:RerankOptions",
            config=_CONFIG,
            train="frugalign.methods.rerank.run:train_reranked",
            closing=closing,
            reads=("preference", "groups"),
        ),
    ),
    Method("dpo", "direct preference optimisation", dpo, needs=(_PAIRS,), config=_CONFIG, is_control=is_control),
    Method(
        "conservative_dpo",
        "DPO with a constant confidence below 1",
        conservative_dpo,
        needs=(_PAIRS,),
        config=_CONFIG,
        is_control=is_control,
    ),
    Method(
        "online_dpo",
        "DPO on responses that are sampled again in every epoch",
        online_dpo,
        # Fitting probes on its own samples would use up its token budget.
        needs=(_PAIRS, ("preferences", "representation_reward")),
        config=_CONFIG,
        is_control=is_control,
        observers=("shift_reward",),
        reward_options=("shift_reward",),
        report=("probes", "shift"),
    ),
)
