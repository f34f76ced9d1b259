"""One function per kind of method: train within the budget, and say what `evaluate` is to measure.

Our own methods run through the functions behind `frugalign proxy`, `rerank` and `psle`; TRL's through `peers.py`; what decodes differently is not trained.
A line's setting overrides everything here but the budget.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset

from frugalign.data import held_out_split, load_splits
from frugalign.data.groups import Groups, pair_groups, read_groups, save_groups
from frugalign.data.loading import distinct
from frugalign.errors import FrugalignError
from frugalign.generation.groups import sample_groups
from frugalign.generation.loop import SamplingParams
from frugalign.ledger import Ledger, read_costs
from frugalign.models.loading import LoadedModel, load_model
from frugalign.rewards import load_rewards, score
from frugalign.study.budget import Budget, StopAfter
from frugalign.study.plan import Line
from frugalign.training.run_folder import COSTS_FILE

_GROUP = 4
"""Responses per prompt where a method samples groups and its line does not say how many."""
_HELD_OUT = 0.1
_DECODING: dict[str, dict[str, str]] = {
    "base": {},
    "best_of_n": {"n": "best_of_n"},
    "reward_guided": {"top_k": "guiding_top_k", "weight": "guiding_weight"},
}
"""Methods that train nothing: their options, and what `evaluate` calls them."""
_IN_PSLES_FRAME = ("psle", "raft", "context_distillation")
_ON_RERANK = ("dpo", "conservative_dpo", "rerank", "online_dpo")


def prompt_splits(asks: dict[str, Any]) -> dict[str, Dataset]:
    """The study's prompts as train, validation and test; where settings are chosen by prompts and there is no validation split, a tenth of the
    training prompts is that, and nothing trains on it.

    Raises:
        FrugalignError: a data set without the split to test on.
    """
    name, tested = asks["dataset_name"], asks["eval_split"] if asks["kind"] == "test" else "test"
    splits = load_splits(name)
    train = splits.get("train", next(iter(splits.values())))
    found = {"train": train, "test": splits.get(tested, splits.get("test"))}
    if found["test"] is None or found["test"] is train:
        raise FrugalignError(f"{name} needs a split to train on and one to test on; it has {', '.join(splits)}.")
    if "validation" in splits:
        found["validation"] = splits["validation"]
    elif asks.get("holds_out"):
        found["train"], found["validation"] = held_out_split(train, _HELD_OUT, 0)
    return found


@dataclass
class Task:
    """One cell at work: what it asks, where its run lies, what it may spend, and what it has spent."""

    asks: dict[str, Any]
    folder: Path
    budget: Budget
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def run(self) -> Path:
        """The training's own run folder."""
        return self.folder / "run"

    @property
    def setting(self) -> dict[str, Any]:
        return dict(self.asks["setting"])

    @property
    def seed(self) -> int:
        return int(self.asks["seed"])

    @property
    def use_cpu(self) -> bool:
        return bool(self.asks.get("use_cpu", False))

    def load(self, *, trained: bool = False) -> LoadedModel:
        """The base; in float32 where it is trained."""
        with self.ledger.phase("load"):
            return load_model(
                self.asks["model_name_or_path"],
                device_map="cpu" if self.use_cpu else None,
                dtype="float32" if trained else None,
            )

    def prompts(self) -> Dataset:
        """The training prompts."""
        return load_splits(self.dataset)["train"]

    @property
    def dataset(self) -> str:
        """A folder with the prompts to train on as `train`, and the test's beside them, so that no method holds out more."""
        folder = self.folder / "prompts"
        if not (folder / "train.jsonl").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            parts = prompt_splits(self.asks)
            for name in ("test", "train"):  # the training's last: a folder without it is not finished
                parts[name].to_json(str(folder / f"{name}.jsonl"))
        return str(folder)

    def shared(self, *names: str) -> dict[str, Any]:
        """These of the study's common options, where it has them."""
        return {name: self.asks[name] for name in names if name in self.asks}

    def common(self) -> dict[str, Any]:
        """What every training of ours is told."""
        found = {"output_dir": str(self.run), "overwrite_output_dir": True, "seed": self.seed, "use_cpu": self.use_cpu}
        found |= {"disable_tqdm": True, "model_name_or_path": self.asks["model_name_or_path"]}
        return found | self.shared("max_new_tokens", "temperature", "prompt_format")

    def callbacks(self) -> list[Any]:
        """The clock, where the budget has one."""
        seconds = self.budget.wall_clock_seconds
        return [] if seconds is None else [StopAfter(seconds)]


def check_options(lines: Sequence[Line]) -> None:
    """Every line's options are its method's.

    Raises:
        FrugalignError: an unknown one, with what was probably meant.
    """
    for line in lines:
        known = _options_of(line.method)
        for name in line.setting:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else "."
                raise FrugalignError(
                    f"The study's line {line.label!r} gives {line.method} the option {name!r}, which it does not have{hint}"
                )


def _options_of(method: str) -> set[str]:
    if method in _DECODING:
        return set(_DECODING[method])
    if method == "proxy":
        from frugalign.proxy.config import ProxyConfig as config
    elif method in _IN_PSLES_FRAME:
        from frugalign.psle.config import PSLEConfig as config  # type: ignore[assignment]
    elif method in _ON_RERANK:
        from frugalign.rerank.config import RerankConfig as config  # type: ignore[assignment]
    else:
        from frugalign.study.peers import CONFIGS

        return {each.name for each in fields(CONFIGS[method])} | {"lora_r", "lora_alpha", "use_peft", "sample"}
    return {each.name for each in fields(config)}


Measured = dict[str, Any]
"""Keyword arguments of `evaluate` that name the policy."""


def train(task: Task) -> Measured:
    """Run the cell's method.

    Returns:
        What `evaluate` measures. Costs are in `task.ledger`.

    Raises:
        FrugalignError: whatever the user can mend.
    """
    method = task.asks["method"]
    if method == "base":
        return {}
    if method == "best_of_n":
        return {"best_of_n": int(task.setting.get("n", 4)), "selection_reward": task.asks["reward"]}
    if method == "reward_guided":
        given = {_DECODING[method][name]: value for name, value in task.setting.items()}
        return {"guiding_reward": task.asks["reward"], **given}
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


def _proxy(task: Task) -> Measured:
    from frugalign.proxy.config import ProxyConfig
    from frugalign.proxy.run import train_proxy

    setting = task.setting
    group = int(setting.get("num_generations", 8))
    steps = int(setting.get("num_iterations", 2)) * int(setting.get("num_mini_batches", 2))
    sizes = task.budget.on_policy(
        {"per_device_train_batch_size": 128} | setting,
        # Prompts divide into the minibatches.
        group=group * int(setting.get("num_mini_batches", 2)),
        steps_per_rollout=steps,
    )
    completions = sizes.pop("completions")
    config = ProxyConfig(
        **task.common()
        | task.shared("reward", "reward_weights")
        | {"dataset_name": task.dataset}
        | {"save_strategy": "no"}
        | setting
        | sizes
        | {"per_device_train_batch_size": completions}
    )
    trainer = train_proxy(config, callbacks=task.callbacks())
    _spent(task, trainer.ledger)
    return {"proxy": str(task.run)}


def _psle(task: Task) -> Measured:
    from frugalign.psle.config import PSLEConfig
    from frugalign.psle.run import train_psle

    setting = task.setting
    rounds, k = int(setting.get("rounds", 3)), int(setting.get("num_generations", 1))
    sizes: dict[str, Any] = {"rounds": rounds}
    prompts = task.budget.prompts(2 * k, rounds)
    if prompts is not None:
        sizes["prompts_per_round"] = prompts
    if task.budget.steps is not None:
        sizes["max_steps"] = max(1, task.budget.steps // rounds)
    config = PSLEConfig(
        **task.common()
        | task.shared("reward", "reward_weights", "principles")
        | {"dataset_name": task.dataset}
        | {"method": task.asks["method"], "eval_prompts": 0}
        | setting
        | sizes
    )
    trainer = train_psle(config, callbacks=task.callbacks())
    _spent(task, trainer.ledger)
    return {"adapter" if config.use_peft else "policy": str(task.run)}


def _rerank(task: Task) -> Measured:
    from frugalign.rerank.config import RerankConfig
    from frugalign.rerank.run import train_reranked

    method, setting = task.asks["method"], task.setting
    group = int(setting.pop("sample", _GROUP))
    options: dict[str, Any] = {}
    moving = method in ("rerank", "online_dpo")
    if moving:
        options["reward"] = _probes(task)
    if method == "online_dpo":
        epochs = int(setting.get("num_train_epochs", 2))
        prompts = task.budget.prompts(group, epochs)
        options |= {"dataset_name": str(_write_prompts(task, prompts)), "sample": group, "resample": True}
        options |= {"num_train_epochs": epochs, "confidence": "constant"}
    elif "preferences" in task.asks:
        options |= {"dataset_name": task.asks["preferences"]}
    else:
        options |= {"dataset_name": str(_sampled(task, group)), "rerank_groups": moving}
    if not moving:
        confidence = float(setting.pop("constant_confidence", 0.8 if method == "conservative_dpo" else 1.0))
        options |= {"confidence": "constant", "constant_confidence": confidence}
    if task.budget.steps is not None:
        options["max_steps"] = task.budget.steps
    config = RerankConfig(**task.common() | {"save_strategy": "no"} | options | setting)
    trainer = train_reranked(config, callbacks=task.callbacks())
    _spent(task, trainer.ledger)
    return {"adapter" if config.use_peft else "policy": str(task.run)}


def _probes(task: Task) -> str:
    """The study's representation reward, or one fitted on the preferences, whose cost is the cell's."""
    if "representation_reward" in task.asks:
        return str(task.asks["representation_reward"])
    from frugalign.rerank.options import RewardOptions
    from frugalign.rerank.probing import train_reward

    folder = task.folder / "reward"
    name = task.asks.get("preferences") or str(_pairs_file(task))
    train_reward(
        RewardOptions(
            model_name_or_path=task.asks["model_name_or_path"],
            dataset_name=name,
            output_dir=str(folder),
            overwrite_output_dir=True,
            use_cpu=task.use_cpu,
            n_shuffles=1,
            cache_dir=str(task.folder / "states"),
            seed=task.seed,
            **task.shared("prompt_format"),
        )
    )
    fitted = Ledger()
    fitted.load_dict(read_costs(folder / COSTS_FILE))
    task.ledger.add(fitted)
    return str(folder)


# -- TRL's --------------------------------------------------------------------------------------------------------------


def _on_pairs(task: Task) -> Measured:
    from frugalign.rerank.run import preference_pairs
    from frugalign.study.peers import train_on_pairs

    setting = task.setting
    group = int(setting.pop("sample", _GROUP))
    if "preferences" in task.asks:
        pairs, _ = preference_pairs(task.asks["preferences"], watch=False)
    else:
        pairs, _ = pair_groups(read_groups(_sampled(task, group)))
    options = {"per_device_train_batch_size": 16, "learning_rate": 1e-4} | _trl(task) | setting
    if task.budget.steps is not None:
        options["max_steps"] = task.budget.steps
    base = task.load(trained=not options.get("use_peft", True))
    kind = train_on_pairs(task.asks["method"], base, pairs, task.run, task.ledger, options, callbacks=task.callbacks())
    return {kind: str(task.run)}


def _on_rewards(task: Task) -> Measured:
    from frugalign.study.peers import train_on_rewards

    setting = task.setting
    group, steps = int(setting.get("num_generations", 8)), int(setting.get("steps_per_generation", 2))
    sizes = task.budget.on_policy(
        {"per_device_train_batch_size": 128} | setting,
        # Prompts divide into the minibatches.
        group=group * int(setting.get("num_mini_batches", 2)),
        steps_per_rollout=steps,
    )
    completions = sizes.pop("completions")
    per_step = max(group, completions // steps // group * group)
    options = {
        "learning_rate": 1e-4,
        "num_generations": group,
        "steps_per_generation": steps,
        "max_completion_length": task.asks["max_new_tokens"],
        "temperature": task.asks["temperature"],
        **task.shared("reward_weights"),
    }
    options = _trl(task) | options | setting | sizes | {"per_device_train_batch_size": per_step}
    rewards = load_rewards(task.asks["reward"])
    base = task.load(trained=not options.get("use_peft", True))
    kind = train_on_rewards(
        task.asks["method"], base, task.prompts(), rewards, task.run, task.ledger, options, callbacks=task.callbacks()
    )
    return {kind: str(task.run)}


def _trl(task: Task) -> dict[str, Any]:
    return {"seed": task.seed, "use_cpu": task.use_cpu} | task.shared("prompt_format")


# -- what is sampled from the base --------------------------------------------------------------------------------------


def _sampled(task: Task, size: int) -> Path:
    """Groups of the base's responses with the training reward, `size` per prompt, as many as the budget allows; a file of groups."""
    path = task.folder / "groups.jsonl"
    if path.is_file():
        return path
    base, rows = task.load(), task.prompts()
    number = task.budget.prompts(size)
    rows = rows.shuffle(seed=task.seed)
    rows = rows.select(range(min(number or len(rows), len(rows))))
    with task.ledger.phase("rollout"):
        groups = sample_groups(
            base.model,
            base.tokenizer,
            rows["prompt"],
            size,
            SamplingParams(int(task.asks["max_new_tokens"]), float(task.asks["temperature"])),
            seed=task.seed,
            prompt_format=task.asks["prompt_format"],
            ledger=task.ledger,
        )
    prompts, texts, ids = groups.flat()
    columns = {name: [value for value in rows[name] for _ in range(size)] for name in rows.column_names}
    columns.pop("prompt")
    with task.ledger.phase("reward"):
        found = score(
            load_rewards(task.asks["reward"]),
            prompts=prompts,
            completions=texts,
            completion_ids=ids or [],
            columns=columns,
            weights=task.asks.get("reward_weights"),
            ledger=task.ledger,
        )
    ranked = groups.ranked([float("-inf") if value is None else value for value in found.total])
    assert ranked.rewards is not None
    known = [place for place, values in enumerate(ranked.rewards) if min(values) > float("-inf")]
    if not known:
        raise FrugalignError("No response has a reward, so there is nothing to learn from.")
    save_groups(_selected(ranked, known), path)
    return path


def _selected(groups: Groups, places: list[int]) -> Groups:
    return Groups(
        [groups.prompts[place] for place in places],
        [groups.completions[place] for place in places],
        [(groups.completion_ids or [])[place] for place in places],
        [(groups.rewards or [])[place] for place in places],
    )


def _pairs_file(task: Task) -> Path:
    """The sampled groups as pairs."""
    path = task.folder / "pairs" / "train.jsonl"
    if not path.is_file():
        pairs, _ = pair_groups(read_groups(_sampled(task, int(task.setting.get("sample", _GROUP)))))
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs.select_columns(["prompt", "chosen", "rejected"]).to_json(str(path))
    return path.parent


def _write_prompts(task: Task, number: int | None) -> Path:
    """So many of the training prompts, in an order that the seed gives."""
    path = task.folder / "online" / "train.jsonl"
    rows = Dataset.from_dict({"prompt": distinct(task.prompts()["prompt"])}).shuffle(seed=task.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.select(range(min(number or len(rows), len(rows)))).to_json(str(path))
    return path.parent
