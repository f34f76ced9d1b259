"""What a proxy reads at the positions of stored answers, and the shards that hold it (`answer_features`). Where the states and logits come from
does not matter here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frugalign.methods.imitation import imitate
from frugalign.proxy.candidates import Limits, candidates

BY_ANSWER = ("begins", "states", "fed")
BY_COLUMN = ("ids", "log_p", "teacher_log_p")
"""Tensors with an entry for every candidate. The others have one for every position."""


def features_at(
    hidden: Tensor,
    logits: Tensor,
    tokens: Tensor,
    temperature: float,
    limits: Limits,
    dtype: torch.dtype,
    teacher: Tensor | None = None,
) -> dict[str, Tensor]:
    """The tensors of `N` positions by name, on the device of `logits`.

    Args:
        hidden: the head's input `[N, D]`. logits: `[N, V]`, float32.
        tokens: the answers' own tokens `[N]`.
        temperature, limits: of the proposals.
        dtype: of the stored states.
        teacher: its logits over its temperature `[N, V]`.
    """
    chosen = candidates(logits, temperature, limits, "keep")
    is_own = (chosen.ids == tokens[:, None]) & chosen.listed
    scaled = logits / temperature
    found = {
        "hidden": hidden.to(dtype),
        "count": chosen.mask.sum(-1).int(),
        # A token that is no candidate is in the tail.
        "choice": torch.where(is_own.any(-1), is_own.int().argmax(-1), chosen.tail.int().argmax(-1)).int(),
        "base_log_prob": torch.log_softmax(scaled, -1).gather(-1, tokens[:, None]).squeeze(-1),
        "ids": chosen.ids[chosen.mask].int(),
        "log_p": chosen.log_p[chosen.mask],
    }
    if teacher is not None:
        imitated = imitate(teacher, scaled, chosen)
        found["teacher_rest"] = imitated.rest
        found["teacher_log_p"] = imitated.log_p[chosen.mask]
    return found


def by_answer(found: dict[str, Tensor], lengths: Sequence[int]) -> list[dict[str, Tensor]]:
    """The tensors of every answer, on the CPU. `lengths`: positions of each, one answer after the other."""
    found = {name: value.cpu() for name, value in found.items()}
    widths = [int(part.sum()) for part in found["count"].split(list(lengths))]
    parts = {name: value.split(widths if name in BY_COLUMN else list(lengths)) for name, value in found.items()}
    return [{name: value[number] for name, value in parts.items()} for number in range(len(lengths))]


def shard_of(answers: Sequence[dict[str, Tensor]], fed: int) -> dict[str, Tensor]:
    """The tensors of a shard: those of every answer one after the other, and where each begins. `fed`: tokens that it took."""
    begins = [[0, 0]]
    for part in answers:
        begins.append([begins[-1][0] + len(part["choice"]), begins[-1][1] + len(part["ids"])])
    joined = {name: torch.cat([part[name] for part in answers]) for name in answers[0]}
    return joined | {"begins": torch.tensor(begins), "fed": torch.tensor([fed])}
