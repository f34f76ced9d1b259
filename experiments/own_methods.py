"""Methods of the studies here that the library does not have: `method: "experiments.own_methods:NAME"` in a line.

Two build on the trainings of other lines. The others are controls, whose training has nothing to learn from.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from frugalign.base.files import write_atomic
from frugalign.base.ledger import Ledger
from frugalign.data import load_splits
from frugalign.methods.budget import GROUP_SIZE
from frugalign.methods.method import Method, PolicyValues
from frugalign.methods.registry import METHODS

_BY_REWARD = "frugalign.methods.proxy_rlhf.config:ProxyConfig"
_FROM_PAIRS = "frugalign.methods.proxy_stored.config:StoredProxyConfig"
_PAIRS = ("preferences", "reward")
NOISE = "experiments.null_control:noise"


def _with(job: Any, **changes: Any) -> Any:
    return replace(job, request=job.request | changes)


def _run(name: str, job: Any) -> PolicyValues:
    run = METHODS[name].run
    assert run is not None
    return run(job)


# -- on the trainings of other lines ------------------------------------------------------------------------------------


def _pairs_then_reward(job: Any) -> PolicyValues:
    """Train a proxy on the preference pairs, then further by the reward. `start`: the line of the first training, the rest is the second's."""
    setting = job.setting
    first = {"method": "proxy_from_pairs", **setting.pop("start", {})}
    start = job.trained(first.pop("method"), first)["proxy"]
    return _run("proxy", _with(job, setting=setting | {"initial_proxy": start}))


def _composed(job: Any) -> PolicyValues:
    """The proxy of the line `proxy` and one by another reward, each at a strength of the line."""
    setting = job.setting
    strength, other = float(setting.pop("strength", 0.5)), [setting.pop("other_reward")]
    parts = [job.trained("proxy", setting), job.trained("proxy", setting, reward=other)]
    job.ledger.set_parameters(trainable=2 * job.ledger.trainable_parameters)
    return {"proxy": [{"path": part["proxy"], "strength": strength} for part in parts]}


def _own_refusals(job: Any) -> PolicyValues:
    """A proxy from `experiments.own_refusals`' demonstrations, as many as the budget allows."""
    from experiments import own_refusals

    folder, spent = job.folder / "own-refusals", Ledger()
    # A harmful prompt, a safe one and a third of one that looks harmful.
    number = int(job.budget.generated_tokens / (own_refusals.TOKENS * (2 + 1 / 3)))
    own_refusals.write_rows(folder, own_refusals.demonstrations(job.load(), job.seed, number, spent))
    job.spend(spent)
    # Trained as a distilled one is: on stored answers, with steps that feed nothing.
    return _run("proxy_from_pairs", _with(job, setting=job.setting | {"dataset_name": str(folder)}))


PAIRS_THEN_REWARD = Method(
    "pairs then reward",
    "a proxy from preference pairs, trained further by the reward",
    _pairs_then_reward,
    needs=("reward", _PAIRS),
    config=_BY_REWARD,
    options=("start",),
)
OWN_REFUSALS = Method(
    "own refusals",
    "a proxy from the base's own refusals of harmful prompts and its own answers to safe ones",
    _own_refusals,
    needs=("reward",),
    config=_FROM_PAIRS,
)
COMPOSED = Method(
    "two proxies",
    "the proxy of the study's reward and one of another reward, composed",
    _composed,
    needs=("reward",),
    config=_BY_REWARD,
    options=("strength", "other_reward"),
    reward_options=("other_reward",),
)


# -- controls -----------------------------------------------------------------------------------------------------------


def _null_reward(job: Any) -> PolicyValues:
    """A proxy by a reward that is noise."""
    return _run("proxy", _with(job, reward=[NOISE], reward_weights=None))


def _untrained(job: Any) -> PolicyValues:
    """A proxy with its initial weights: one rollout at a learning rate of 0."""
    few = replace(job, budget=replace(job.budget, generated_tokens=16 * job.budget.mean_length))
    return _run("proxy", _with(few, setting=job.setting | {"learning_rate": 0.0}))


def _shuffled_pairs(job: Any) -> PolicyValues:
    """A proxy from the pairs of the line `proxy from pairs`, half of them with their answers exchanged."""
    folder = job.folder / "pairs" / "shuffled"
    for split, rows in load_splits(job.pairs(GROUP_SIZE), kind="preference").items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in shuffled([*rows], job.seed))
        write_atomic(folder / f"{split}.jsonl", "".join(lines))
    return _run("proxy_from_pairs", _with(job, setting=job.setting | {"dataset_name": str(folder)}))


def shuffled(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Pairs whose labels say nothing: each keeps or exchanges its answers, and all columns about them, by a coin."""
    coin = random.Random(seed)
    return [{_other(name): value for name, value in row.items()} if coin.random() < 0.5 else row for row in rows]


def _other(column: str) -> str:
    for one, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if column == one or column.startswith(f"{one}_"):
            return other + column[len(one) :]
    return column


def _control(name: str, what: str, run: Callable[[Any], PolicyValues], need: Any, config: str) -> Method:
    return Method(name, f"control: {what}", run, needs=(need,), config=config, is_control=lambda setting: True)


NULL_REWARD = _control("null reward", "a proxy by a reward that is noise", _null_reward, "reward", _BY_REWARD)
UNTRAINED = _control("untrained", "a proxy with its initial weights", _untrained, "reward", _BY_REWARD)
SHUFFLED_PAIRS = _control(
    "shuffled pairs", "a proxy from pairs with shuffled labels", _shuffled_pairs, _PAIRS, _FROM_PAIRS
)
