"""The options of a proxy's network, shared by the methods that train one. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from frugalign.options.declare import Group, option
from frugalign.options.kinds import BELOW_ONE, COUNT, FINITE, SIZE


@dataclass(eq=False, repr=False)
class ProxyNetwork(Group, section="proxy"):
    """What a proxy judges, and how large it is."""

    objective: Literal["marginal", "sequential", "sequential_integrated"] = option(
        "marginal",
        "What the coin flips mean: proposals with replacement (marginal), without (sequential), and integrated out.",
    )
    candidate_features: Literal["embedding", "lookahead", "token_bias"] = option(
        "embedding",
        "What the proxy knows of a candidate: its embedding, the state after it, or (control) only its identity.",
    )
    p_t: float = option(
        0.01, "Candidates have at least this probability under the base; the likeliest token always is one.", BELOW_ONE
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
    initial_bias: float = option(0.0, "b of an untrained proxy.", FINITE)


def network_settings(args: Any) -> dict[str, Any]:
    """What a proxy's config stores of these options, and of how prompts are rendered and tokens proposed.

    `args`: a config with `ProxyNetwork` and `groups.PromptFormat`, and a `temperature`. None stands for a default that depends on the base.
    """
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
        "initial_bias": args.initial_bias,
        "prompt_format": args.prompt_format,
        "chat_template_kwargs": args.chat_template_kwargs,
    }
