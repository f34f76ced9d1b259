"""The options of a proxy's network, shared by the methods that train one. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from frugalign.options import groups
from frugalign.options.declare import Group, like, option
from frugalign.options.kinds import BELOW_ONE, COUNT, FINITE, SIZE, Kind

RATE = Kind("at least 0, or -1", lambda x: x >= 0 or x == -1, largest=100)
LEARNING_RATE = 1e-2
TOKEN_BIAS_RATE = 0.1


@dataclass(eq=False, repr=False)
class Network(Group, section="proxy"):
    """What a proxy judges, how large it is, and which tokens are candidates."""

    objective: Literal["marginal", "sequential", "sequential_integrated"] = option(
        "marginal",
        "What the coin flips mean: proposals with replacement (marginal), without (sequential), and integrated out.",
    )
    candidate_features: Literal["embedding", "lookahead", "token_bias"] = option(
        "embedding",
        "What the proxy knows of a candidate: its embedding, the state after it, or (control) only its identity.",
    )
    p_t: float | None = option(
        None,
        "Candidates have at least this probability under the base; the likeliest token always is one. Default: 0.1/√V, at most 0.01, for "
        "a vocabulary of V.",
        BELOW_ONE,
    )
    max_candidates: int | None = option(None, "Most candidates of a position. Default: 256, lookahead 8.", COUNT)
    tail: Literal["keep", "drop"] = option(
        "keep",
        "Tokens that are not candidates: judged together as one more candidate, or never emitted.",
    )
    hidden: int | None = option(
        None, "Hidden width of q. Default: the largest that keeps the proxy under 1 % of the base.", SIZE
    )
    dim: int | None = option(None, "Width d of q and k. Default: as `hidden`.", SIZE)
    initial_bias: float | None = option(
        None, "b of an untrained proxy. Default: 0, and 2 for sequential_integrated.", FINITE
    )
    initial_proxy: str | None = option(
        None,
        "Start from this trained proxy, a folder or hub id. Its settings of the network and the proposals must be the same.",
    )


@dataclass(eq=False, repr=False)
class ProxyNetwork(Network, section="proxy"):
    """The network, how its base proposes, and the step of its optimiser."""

    max_new_tokens: int = like(groups.Sampling, "max_new_tokens", 128)
    temperature: float | None = like(
        groups.Sampling,
        "temperature",
        None,
        "The base proposes tokens at it. Default: what its generation config samples at, else 1.",
    )
    learning_rate: float = like(
        groups.Steps,
        "learning_rate",
        -1,
        "-1: by the size of the proxy, 0.01 for a small one; on stored answers 0.002.",
        RATE,
    )


def network_settings(args: Any) -> dict[str, Any]:
    """What a proxy's config stores of these options, and of how prompts are rendered and tokens proposed.

    `args`: a config with `ProxyNetwork` and `groups.PromptFormat`, and a `temperature`. None stands for a default that depends on the base.
    """
    # Sampled decisions need rejections to learn from. Integrated ones do not, and a larger b keeps rare tokens rare.
    bias = 2.0 if args.objective == "sequential_integrated" else 0.0
    cap = 8 if args.candidate_features == "lookahead" else 256
    return {
        "hidden": args.hidden,
        "dim": args.dim or args.hidden,
        "objective": args.objective,
        "candidate_features": args.candidate_features,
        "temperature": args.temperature,
        "p_t": args.p_t,
        "max_candidates": args.max_candidates or cap,
        "tail": args.tail,
        "initial_bias": bias if args.initial_bias is None else args.initial_bias,
        "prompt_format": args.prompt_format,
        "chat_template_kwargs": args.chat_template_kwargs,
    }


def trained_in_words(config: Any, trainer: Any, rest: str = "") -> str:
    """The closing sentence on a trained proxy: its size, its folder and the time. `rest` stands before the full stop."""
    share = trainer.ledger.shares["of_base"] or 0.0
    return (
        f"A proxy of {trainer.ledger.trainable_parameters:,} parameters, {100 * share:.2f} % of its base, is in {config.output_dir}, trained in "
        f"{trainer.ledger.wall_clock_seconds:,.0f} s{rest}."
    )


def is_control(setting: Mapping[str, Any]) -> bool:
    """Whether a proxy with this setting ignores the state."""
    return bool(setting.get("candidate_features") == "token_bias")


def default_learning_rate(network: Any) -> float:
    """The learning rate of a proxy with this `ProxyModelConfig`: `1.28 / (hidden·√width)`, which is 0.01 at 16 and 64.

    A step of Adam changes every weight alike, so it moves the policy the further the more weights a score adds up. Too small a rate
    costs passes over a rollout, which are cheap; too large a one is shortened by the trust region, which wastes what was sampled.
    """
    if network.candidate_features == "token_bias":
        return TOKEN_BIAS_RATE
    return float(min(LEARNING_RATE, 1.28 / (network.hidden * math.sqrt(network.width))))
