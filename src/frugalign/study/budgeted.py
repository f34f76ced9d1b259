"""One function per kind of method: train within the budget, and say what `evaluate` is to measure.

Our own methods run through the functions behind `frugalign proxy`, `rerank` and `psle`; TRL's through `peers.py`; what decodes differently is not trained.
A line's setting overrides everything here but the budget, and with it the sizes that follow from it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.rewards import load_rewards
from frugalign.runs.layout import read_costs
from frugalign.study.base_samples import prompts_folder, sampled_groups, sampled_pairs, sampled_pairs_folder
from frugalign.study.budget import batch_of
from frugalign.study.layout import STATES_FOLDER, fitted_reward
from frugalign.study.plan import Line
from frugalign.study.task import Task

_GROUP = 4
"""Responses per prompt where a method samples groups and its line does not say how many."""
_PAIRS = 16
"""Pairs of a step where neither the line nor the budget says how many."""
_DECODING: dict[str, dict[str, str]] = {
    "base": {},
    "best_of_n": {"n": "best_of_n"},
    "reward_guided": {"top_k": "guiding_top_k", "weight": "guiding_weight"},
}
"""Methods that train nothing: their options, and what `evaluate` calls them."""
UNTRAINED = tuple(_DECODING)
_IN_PSLES_FRAME = ("psle", "raft", "context_distillation")
_ON_RERANK = ("dpo", "conservative_dpo", "rerank", "online_dpo")
_THE_STUDYS = {
    *(
        "model_name_or_path",
        "dataset_name",
        "reward",
        "reward_weights",
        "principles",
        "output_dir",
        "overwrite_output_dir",
    ),
    *(
        "resume_from_checkpoint",
        "seed",
        "use_cpu",
        "max_new_tokens",
        "max_completion_length",
        "prompt_format",
        "method",
    ),
    *("loss_type", "report_to", "eval_reward", "eval_prompts", "reward_dataset_name"),
}
"""Options that are the study's, the same for every line."""
WATCHES = {"eval_steps": ("proxy",), "shift_reward": ("rerank", "online_dpo")}
"""Options that look at a training as it goes, and the methods that a study lets have them."""
_THE_BUDGETS = {"max_steps", "prompts_per_round"}


def check_options(lines: Sequence[Line], budget: dict[str, Any] | None = None) -> None:
    """Every line's options are its method's, and neither the study's nor the budget's.

    Raises:
        FrugalignError: one that is not, with what was probably meant.
    """
    for line in lines:
        known = _options_of(line.method)
        for name in line.setting:
            said = f"The study's line {line.label!r} gives {line.method} the option {name!r}, which"
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise FrugalignError(f"{said} it does not have{f'; did you mean {near[0]}?' if near else '.'}")
            if name in _THE_STUDYS:
                raise FrugalignError(f"{said} is the study's, the same for every line.")
            if line.method not in WATCHES.get(name, (line.method,)):
                raise FrugalignError(f"{said} a study has for {' and '.join(WATCHES[name])} only.")
            if budget and name in _THE_BUDGETS:
                raise FrugalignError(f"{said} follows from the budget.")
        smoothing = line.setting.get("label_smoothing", 0.0)
        if line.method == "robust_dpo" and not all(0 < each < 0.5 for each in _several(smoothing)):
            raise FrugalignError(
                f"The study's line {line.label!r} needs label_smoothing, the share of wrong labels, in (0, 0.5)."
            )


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _options_of(method: str) -> set[str]:
    if method in _DECODING:
        return set(_DECODING[method])
    if method == "proxy":
        from frugalign.methods.proxy_rlhf.config import ProxyConfig as config
    elif method in _IN_PSLES_FRAME:
        from frugalign.methods.psle.config import PSLEConfig as config  # type: ignore[assignment]
    elif method in _ON_RERANK:
        from frugalign.methods.rerank.config import RerankConfig as config  # type: ignore[assignment]
    else:
        from frugalign.methods.peers.trl import CONFIGS

        return {each.name for each in fields(CONFIGS[method])} | {"lora_r", "lora_alpha", "use_peft", "sample"}
    return {each.name for each in fields(config)}


PolicyArguments = dict[str, Any]
"""Keyword arguments of `evaluate` that name the policy."""


def train(task: Task) -> PolicyArguments:
    """Run the cell's method.

    Returns:
        What `evaluate` measures. Costs are in `task.ledger`.

    Raises:
        FrugalignError: whatever the user can mend.
    """
    method, weights = task.asks["method"], task.asks.get("reward_weights")
    if method == "base":
        return {}
    if method in _DECODING:
        given = {_DECODING[method][name]: value for name, value in task.setting.items()}
        reward = "selection_reward" if method == "best_of_n" else "guiding_reward"
        return (
            ({"best_of_n": _GROUP} if method == "best_of_n" else {})
            | given
            | {
                reward: task.asks["reward"],
                "decoding_reward_weights": weights,
            }
        )
    if method == "proxy":
        return _proxy(task)
    if method in _IN_PSLES_FRAME:
        return _psle(task)
    if method in _ON_RERANK:
        return _rerank(task)
    if method in ("rloo", "grpo"):
        return _on_rewards(task)
    return _on_pairs(task)


def _spent(task: Task, ledger: Ledger) -> None:
    """Add a training's ledger to the cell's."""
    task.ledger.add(ledger)
    task.ledger.set_parameters(trainable=ledger.trainable_parameters, base=ledger.base_parameters)


# -- ours ---------------------------------------------------------------------------------------------------------------


def _proxy(task: Task) -> PolicyArguments:
    from frugalign.methods.proxy_rlhf.config import ProxyConfig
    from frugalign.methods.proxy_rlhf.run import train_proxy

    setting = task.setting
    mini_batches = int(setting.get("num_mini_batches", 2))
    sizes = task.budget.on_policy(
        int(setting.get("per_device_train_batch_size", 128)),
        # Prompts divide into the minibatches.
        group=int(setting.get("num_generations", 8)) * mini_batches,
        steps_per_rollout=int(setting.get("num_iterations", 2)) * mini_batches,
    )
    completions = sizes.pop("completions")
    options = task.common() | task.shared("reward", "reward_weights")
    options |= {"dataset_name": task.watched if "eval_steps" in setting else task.dataset}
    options |= {"save_strategy": "no"} | setting | sizes | {"per_device_train_batch_size": completions}
    trainer = train_proxy(ProxyConfig(**options), callbacks=task.callbacks())
    _spent(task, trainer.ledger)
    return {"proxy": str(task.run)}


def _psle(task: Task) -> PolicyArguments:
    """Every round samples `2k` responses to as many prompts as the budget is enough for; where there are fewer prompts than that, `k` grows."""
    from frugalign.methods.psle.config import PSLEConfig
    from frugalign.methods.psle.run import train_psle

    method, setting = task.asks["method"], task.setting
    rounds, size = int(setting.get("rounds", 3)), task.n_prompts()
    # RAFT chooses among the 2k of a prompt: of four, as groups are elsewhere.
    k = int(setting.get("num_generations", _GROUP // 2 if method == "raft" else 1))
    prompts = task.budget.prompts(2 * k, rounds)
    if prompts is not None and prompts > size and "num_generations" not in setting:
        k = -(-k * prompts // size)
        prompts = task.budget.prompts(2 * k, rounds)
    sizes: dict[str, Any] = {"rounds": rounds, "num_generations": k}
    if prompts is not None:
        sizes["prompts_per_round"] = prompts
    steps = None if task.budget.steps is None else max(1, task.budget.steps // rounds)
    batch = batch_of(min(prompts or size, size) * (1 if method == "raft" else k), steps)
    options: dict[str, Any] = {"method": method, "eval_prompts": 0}
    if steps is not None:
        options |= {"per_device_train_batch_size": batch}
        sizes["max_steps"] = steps
    options = task.common() | task.shared("reward", "reward_weights", "principles") | options
    config = PSLEConfig(**options | {"dataset_name": task.dataset} | setting | sizes)
    trainer = train_psle(config, callbacks=task.callbacks())
    _spent(task, trainer.ledger)
    return {"adapter" if config.use_peft else "policy": str(task.run)}


def _rerank(task: Task) -> PolicyArguments:
    from frugalign.methods.rerank.config import RerankConfig
    from frugalign.methods.rerank.run import train_reranked

    method, setting = task.asks["method"], task.setting
    group = int(setting.pop("sample", _GROUP))
    options: dict[str, Any] = {"save_strategy": "no", "num_train_epochs": 1, "per_device_train_batch_size": _PAIRS}
    sizes: dict[str, Any] = {} if task.budget.steps is None else {"max_steps": task.budget.steps}
    moving = method in ("rerank", "online_dpo")
    if moving:
        options["reward"] = _probes(task, group)
    if method == "online_dpo":
        epochs = int(setting.pop("num_train_epochs", _GROUP))
        prompts = task.budget.prompts(group, epochs)
        options |= {"dataset_name": str(prompts_folder(task, prompts)), "sample": group, "resample": True}
        options |= {"confidence": "constant", "num_train_epochs": epochs}
        # Its passes end it, not a number of steps: another pass would sample again.
        steps = None if task.budget.steps is None else max(1, task.budget.steps // epochs)
        sizes = {}
        options["per_device_train_batch_size"] = (
            batch_of(min(prompts or task.n_prompts(), task.n_prompts()) * (group // 2), steps) or _PAIRS
        )
    elif task.preferences is not None:
        options |= {"dataset_name": task.preferences}
    else:
        options |= {"dataset_name": str(sampled_groups(task, group)), "rerank_groups": moving}
        batch = batch_of(len(sampled_pairs(task, group)), task.budget.steps)
        options |= {} if batch is None else {"per_device_train_batch_size": batch}
    if not moving:
        confidence = float(setting.pop("constant_confidence", 0.8 if method == "conservative_dpo" else 1.0))
        options |= {"confidence": "constant", "constant_confidence": confidence}
    config = RerankConfig(**task.common() | options | setting | sizes)
    trainer = train_reranked(config, callbacks=task.callbacks())
    _spent(task, trainer.ledger)
    return {"adapter" if config.use_peft else "policy": str(task.run)}


def _probes(task: Task, group: int) -> str:
    """The study's representation reward, or one fitted on the preferences, whose cost is the cell's."""
    if "representation_reward" in task.asks:
        return str(task.asks["representation_reward"])
    from frugalign.methods.representation_reward.options import RewardOptions
    from frugalign.methods.representation_reward.run import train_reward

    folder = fitted_reward(task.folder)
    train_reward(
        RewardOptions(
            model_name_or_path=task.asks["model_name_or_path"],
            dataset_name=task.preferences or str(sampled_pairs_folder(task, group)),
            output_dir=str(folder),
            overwrite_output_dir=True,
            use_cpu=task.use_cpu,
            n_shuffles=1,
            cache_dir=str(task.folder / STATES_FOLDER),
            seed=task.seed,
            **task.shared("prompt_format"),
        )
    )
    fitted = Ledger()
    fitted.load_dict(read_costs(folder))
    task.ledger.add(fitted)
    return str(folder)


# -- TRL's --------------------------------------------------------------------------------------------------------------


def _on_pairs(task: Task) -> PolicyArguments:
    from frugalign.data.pairs import preference_pairs
    from frugalign.methods.peers.trl import train_on_pairs

    method, setting = task.asks["method"], task.setting
    group = int(setting.pop("sample", _GROUP))
    # KTO's rows are single answers, two of them a pair.
    rows = 2 if method == "kto" else 1
    options: dict[str, Any] = {
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": rows * _PAIRS,
    }
    if task.preferences is not None:
        pairs, _, _ = preference_pairs(task.preferences)
    else:
        pairs = sampled_pairs(task, group)
        batch = batch_of(rows * len(pairs), task.budget.steps)
        options |= {} if batch is None else {"per_device_train_batch_size": batch}
    options = _trl(task) | options | setting
    if task.budget.steps is not None:
        options["max_steps"] = task.budget.steps
    base = task.load(trained=not options.get("use_peft", True))
    kind = train_on_pairs(method, base, pairs, task.run, task.ledger, options, callbacks=task.callbacks())
    return {kind: str(task.run)}


def _on_rewards(task: Task) -> PolicyArguments:
    from frugalign.methods.peers.trl import train_on_rewards

    setting = task.setting
    group, per_rollout = int(setting.get("num_generations", 8)), int(setting.get("steps_per_generation", 2))
    passes = int(setting.get("num_iterations", 1))
    accumulated = int(setting.get("gradient_accumulation_steps", 1))
    if per_rollout * passes % accumulated:
        raise FrugalignError(
            "steps_per_generation times num_iterations must be a multiple of gradient_accumulation_steps."
        )
    sizes = task.budget.on_policy(
        int(setting.get("per_device_train_batch_size", 64)) * per_rollout,
        group=group * per_rollout,
        steps_per_rollout=per_rollout * passes // accumulated,
    )
    completions = sizes.pop("completions")
    options = {
        "learning_rate": 1e-4,
        "num_generations": group,
        "steps_per_generation": per_rollout,
        "max_completion_length": task.asks["max_new_tokens"],
        "temperature": task.asks["temperature"],
        **task.shared("reward_weights"),
    }
    options = _trl(task) | options | setting | sizes | {"per_device_train_batch_size": completions // per_rollout}
    rewards = load_rewards(task.asks["reward"])
    base = task.load(trained=not options.get("use_peft", True))
    kind = train_on_rewards(
        task.asks["method"], base, task.prompts(), rewards, task.run, task.ledger, options, callbacks=task.callbacks()
    )
    return {kind: str(task.run)}


def _trl(task: Task) -> dict[str, Any]:
    return {"seed": task.seed, "use_cpu": task.use_cpu} | task.shared("prompt_format")
