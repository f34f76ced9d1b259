"""Untrained baselines as methods: the base, best-of-n, and reward-guided decoding."""

from __future__ import annotations

from frugalign.methods.budget import GROUP_SIZE
from frugalign.methods.job import Job
from frugalign.methods.method import Method, PolicyValues


def base(job: Job) -> PolicyValues:
    """The base as it is."""
    return {}


def best_of_n(job: Job) -> PolicyValues:
    """The best of `n` samples by the training reward."""
    return {"best_of_n": job.setting.get("n", GROUP_SIZE), "selection_reward": job.request["reward"]} | _weights(job)


def reward_guided(job: Job) -> PolicyValues:
    """Decoding guided by the training reward over the most likely tokens."""
    given = {f"guiding_{name}": value for name, value in job.setting.items()}
    return given | {"guiding_reward": job.request["reward"]} | _weights(job)


def _weights(job: Job) -> PolicyValues:
    return {"decoding_reward_weights": job.request.get("reward_weights")}


ENTRIES = (
    Method("base", "the model as it is", base, is_trained=False, role="base"),
    Method(
        "best_of_n",
        "best of n samples by the reward",
        best_of_n,
        needs=("reward",),
        options=("n",),
        draws=lambda setting: int(setting.get("n", GROUP_SIZE)),
        is_trained=False,
    ),
    Method(
        "reward_guided",
        "decoding guided by the reward over the top-k tokens (ARGS)",
        reward_guided,
        needs=("reward",),
        options=("top_k", "weight"),
        is_trained=False,
    ),
)
