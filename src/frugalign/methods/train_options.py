"""What a method trains, `--train lora|full|proxy`: its options, what they mean together, and a proxy's settings. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.methods.proxy_network import TOKEN_BIAS_RATE, Network, network_settings
from frugalign.options import groups

LM_LEARNING_RATE = 1e-4
_STORED_RATE = 2e-3
_FLOAT32 = "the proxy trains in float32; dtype is the frozen LM's"
NO_LM_IN_TRAINING: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), (False, _FLOAT32)),
    "gradient_checkpointing": (False, "the frozen LM has no gradients, and the proxy is small"),
    "neftune_noise_alpha": (0.0, "the frozen LM has no noise, and the proxy has no embeddings of its own"),
}
"""Options of TrainingArguments that must keep these values where a proxy is trained, and why."""


@dataclass(eq=False, repr=False)
class Trained(groups.Cache, Network, groups.Lora):
    """What is trained: an adapter, every weight, or a proxy with its network and the cache of what it reads."""


class TrainedConfig:
    """A mixin for a config with `Trained`, or one that always trains a proxy, on `TrainingArguments`."""

    def settle_rate(self) -> None:
        """Fill in a learning rate that was not given.

        A proxy that learns from stored answers takes the same at any size, and several times that of one that samples: no step can spoil
        what is sampled next, and the best evaluation is kept.
        """
        args: Any = self
        if args.learning_rate != -1:
            return
        if getattr(args, "train", "proxy") != "proxy":
            args.learning_rate = LM_LEARNING_RATE
        else:
            args.learning_rate = TOKEN_BIAS_RATE if args.candidate_features == "token_bias" else _STORED_RATE

    def network(self) -> dict[str, Any]:
        """The options that the proxy's config stores. None stands for a default that depends on the base."""
        args: Any = self
        return network_settings(args) | {
            "max_new_tokens": args.max_new_tokens,
            "max_prompt_length": None,
            "value_head": False,
        }


def check_train(args: Any) -> None:
    """Check the options of `Trained` with each other.

    Raises:
        FrugalignError: an option of a proxy where none is trained, or one that a proxy on stored answers cannot have.
    """
    if args.train != "proxy":
        for each in (*fields(Network), *fields(groups.Cache)):
            if getattr(args, each.name) != each.default:
                raise FrugalignError(f"{each.name} is an option of a proxy: it goes with train proxy.")
        for each in fields(groups.Spread):
            if getattr(args, each.name) != 1:
                raise FrugalignError(
                    f"{each.name} spreads a frozen model: it goes with train proxy. Trained weights are sharded by fsdp, as in transformers."
                )
        return
    for name, (neutral, reason) in NO_LM_IN_TRAINING.items():
        if getattr(args, name, neutral) not in (neutral, None):
            raise FrugalignError(f"{name} is not carried over to a proxy: {reason}.")
    check_reads_stored(args)


def check_reads_stored(args: Any) -> None:
    """Check that a proxy with these options can be trained on stored answers.

    Raises:
        FrugalignError: it cannot.
    """
    if args.candidate_features == "lookahead":
        raise FrugalignError(
            "candidate_features lookahead needs the states after every candidate, which stored answers do not have."
        )
    if args.tail == "drop":
        raise FrugalignError(
            "tail drop gives every answer with a token outside the candidates no probability: stored answers need tail keep."
        )
