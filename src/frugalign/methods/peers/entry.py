"""TRL's trainers as methods, with their size within a study's budget."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.methods.budget import GROUP_SIZE, PAIRS_PER_STEP, batch_of
from frugalign.methods.job import Job
from frugalign.methods.method import Method, PolicyValues

_TRL = "frugalign.methods.peers.configs"
_LORA = ("train", "lora_r", "lora_alpha")
_PPO_NOTE = "RLOO and GRPO replace the PPO of the papers, which TRL no longer has."


def on_pairs(job: Job, method: str, rows_of_a_pair: int = 1) -> PolicyValues:
    """Train on the stored preferences, or else on ranked pairs of the base's responses. The batch size lets the budget's steps use all pairs."""
    from frugalign.data.pairs import preference_pairs
    from frugalign.methods.peers.trl import PeerRun, train_on_pairs

    setting = job.setting
    group = int(setting.pop("sample", GROUP_SIZE))
    options: dict[str, Any] = {
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": rows_of_a_pair * PAIRS_PER_STEP,
    }
    if job.preferences is not None:
        pairs, _, _ = preference_pairs(job.preferences)
    else:
        pairs = job.sampled_pairs(group)
        batch = batch_of(rows_of_a_pair * len(pairs), job.budget.steps)
        options |= {} if batch is None else {"per_device_train_batch_size": batch}
    options = _common(job) | options | setting
    if job.budget.steps is not None:
        options["max_steps"] = job.budget.steps
    base = job.load(trained=options.get("train") == "full")
    kind = train_on_pairs(method, base, pairs, PeerRun(job.run_folder, job.ledger, options, job.callbacks()))
    return {kind: str(job.run_folder)}


def on_rewards(job: Job, method: str) -> PolicyValues:
    """Train on the study's reward. A token budget sets the rollouts' size and number, a step budget their number."""
    from frugalign.methods.peers.trl import PeerRun, train_on_rewards
    from frugalign.rewards import load_rewards

    setting = job.setting
    group, per_rollout = int(setting.get("num_generations", 8)), int(setting.get("steps_per_generation", 2))
    passes = int(setting.get("num_iterations", 1))
    accumulated = int(setting.get("gradient_accumulation_steps", 1))
    if per_rollout * passes % accumulated:
        raise FrugalignError(
            "steps_per_generation times num_iterations must be a multiple of gradient_accumulation_steps."
        )
    sizes = job.budget.on_policy(
        int(setting.get("per_device_train_batch_size", 64)) * per_rollout,
        group=group * per_rollout,
        steps_per_rollout=per_rollout * passes // accumulated,
    )
    completions = sizes.pop("completions")
    options = {
        "learning_rate": 1e-4,
        "num_generations": group,
        "steps_per_generation": per_rollout,
        "max_completion_length": job.request["max_new_tokens"],
        "temperature": job.request["temperature"],
        **job.shared("reward_weights"),
    }
    options = _common(job) | options | setting | sizes | {"per_device_train_batch_size": completions // per_rollout}
    rewards = load_rewards(job.request["reward"])
    base = job.load(trained=options.get("train") == "full")
    run = PeerRun(job.run_folder, job.ledger, options, job.callbacks())
    kind = train_on_rewards(method, base, job.prompts(), rewards, run)
    return {kind: str(job.run_folder)}


def _common(job: Job) -> dict[str, Any]:
    return {"seed": job.seed, "use_cpu": job.use_cpu} | job.shared("prompt_format", "chat_template_kwargs")


def lacks_label_noise(setting: Mapping[str, Any]) -> str | None:
    """Robust DPO needs the share of wrong labels."""
    known = 0 < setting.get("label_smoothing", 0.0) < 0.5
    return None if known else "needs label_smoothing, the share of wrong labels, in (0, 0.5)"


def _by_pairs(name: str, summary: str, config: str, rows_of_a_pair: int = 1, **more: Any) -> Method:
    return Method(
        name,
        summary,
        partial(on_pairs, method=name, rows_of_a_pair=rows_of_a_pair),
        needs=(("preferences", "reward"),),
        config=f"{_TRL}:{config}",
        options=(*_LORA, "sample"),
        **more,
    )


def _by_rewards(name: str, summary: str, config: str) -> Method:
    run = partial(on_rewards, method=name)
    config = f"{_TRL}:{config}"
    return Method(name, summary, run, needs=("reward",), config=config, options=_LORA, note=_PPO_NOTE)


ENTRIES = (
    _by_pairs("sft", "supervised fine-tuning on the preferred responses", "SFTConfig", role="imitation"),
    _by_pairs("robust_dpo", "DPO unbiased under known label noise", "DPOConfig", problem=lacks_label_noise),
    _by_pairs("ipo", "identity preference optimisation", "DPOConfig"),
    # KTO's rows are single answers, two of them a pair.
    _by_pairs("kto", "Kahneman-Tversky optimisation on single responses", "KTOConfig", rows_of_a_pair=2),
    _by_rewards("rloo", "REINFORCE with a leave-one-out baseline", "RLOOConfig"),
    _by_rewards("grpo", "group-relative policy optimisation", "GRPOConfig"),
)
