"""Methods of the studies here that the library does not have: `method: "experiments.own_methods:NAME"` in a line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from frugalign.methods.method import Method, PolicyValues
from frugalign.methods.registry import METHODS


def _pairs_then_reward(job: Any) -> PolicyValues:
    """Train a proxy on the preference pairs, then further by the reward. The line's options are those of the second part."""
    from_pairs, by_reward = METHODS["proxy_from_pairs"].run, METHODS["proxy"].run
    assert from_pairs is not None and by_reward is not None
    first = replace(job, request=job.request | {"setting": {}}, folder=job.folder / "from-pairs")
    first.folder.mkdir(parents=True, exist_ok=True)
    start = from_pairs(first)["proxy"]
    return by_reward(replace(job, request=job.request | {"setting": job.setting | {"initial_proxy": start}}))


PAIRS_THEN_REWARD = Method(
    "pairs then reward",
    "a proxy from preference pairs, trained further by the reward",
    _pairs_then_reward,
    needs=("reward", "preferences"),
    config="frugalign.methods.proxy_rlhf.config:ProxyConfig",
)
