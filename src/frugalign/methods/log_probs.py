"""Log-probabilities of answers under a model in training, with their gradient.

The LM head runs on the answers' positions only. A pre-hook drops the others from its input, so the model's own forward
applies its scaling or soft-cap. Logits stay in the model's dtype; float32 copies exist for one chunk of tokens at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frugalign.base.errors import FrugalignError
from frugalign.engines.sentences import SentenceEnds
from frugalign.engines.transformers import causal_lm, output_embeddings

_CHUNK = 1024
"""Tokens whose float32 logits exist at one time."""


@dataclass(frozen=True)
class Reading:
    """The states that probes read: `layers`, as indices into `hidden_states`, at the last of the sentence `ends`."""

    layers: list[int]
    ends: SentenceEnds


@dataclass(frozen=True)
class Statistics:
    """Of the distribution at each answer token, without a gradient; zero elsewhere. All `[M, T−1]`."""

    entropy: Tensor
    mean_logit: Tensor
    is_top1: Tensor


@dataclass
class Scored:
    """The result of one forward pass over padded answers.

    `log_probs [M, T−1]`: of each answer token, with a gradient; zero elsewhere. `mask [M, T−1]`: the answers' positions.
    `states [M, layers, D]`: hidden states at each answer's last sentence end, float32 and detached; None if not requested.
    `statistics`: of the distribution at the answers' tokens; None where it is not at hand.
    `log_ratio`, `kl` `[M]`: to the model before training, and `Σ_t KL` to it; None where they would take another pass.
    """

    log_probs: Tensor
    mask: Tensor
    states: Tensor | None = None
    statistics: Statistics | None = None
    log_ratio: Tensor | None = None
    kl: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        """Log-probability of each whole answer, `[M]`."""
        return self.log_probs.sum(1)


def score_answers(model: nn.Module, policy: Any, batch: dict[str, Tensor], reading: Reading | None = None) -> Scored:
    """Run `model` on the batch's `input_ids`, `attention_mask` and `completion_mask`, each `[M, T]`, padded on the right.

    Args:
        model: the module to call; it may wrap the policy for several processes.
        policy: the causal LM itself, or its PEFT wrapper.
        reading: the states to return.

    Raises:
        FrugalignError: a model that computes logits without calling its LM head.
    """
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:].bool()
    width = ids.shape[1]

    def keep_answers(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # PEFT's prompt tuning puts learned tokens before the batch's own.
        hidden = inputs[0][:, -width:][:, :-1]
        return (hidden[mask.to(hidden.device)][None], *inputs[1:])

    handle = output_embeddings(policy).register_forward_pre_hook(keep_answers)
    try:
        output = model(
            input_ids=ids,
            attention_mask=batch["attention_mask"],
            use_cache=False,
            output_hidden_states=reading is not None,
        )
    finally:
        handle.remove()
    logits = output.logits
    if logits.shape[:2] != (1, int(mask.sum())):
        raise FrugalignError(
            f"{type(causal_lm(policy)).__name__} computes logits without calling its LM head (a fused head?), "
            "so it cannot be trained here."
        )
    each = _TokenLogProbs.apply(logits[0], ids[:, 1:][mask].to(logits.device))
    log_probs, entropy, mean_logit, is_top1 = (
        values.new_zeros(mask.shape).masked_scatter(mask, values) for values in (found.to(ids.device) for found in each)
    )
    states = None if reading is None else _states(output.hidden_states, reading, ids, batch["completion_mask"].bool())
    return Scored(log_probs, mask, states, Statistics(entropy, mean_logit, is_top1))


def _states(hidden: tuple[Tensor, ...], reading: Reading, ids: Tensor, is_answer: Tensor) -> Tensor:
    """The layers' states at each answer's last sentence end, `[M, layers, D]`, for `ids` and `is_answer` `[M, T]`."""
    # Turns of others within an answer are no part of the loss, but `read_ids` reads across them.
    within = (is_answer.cumsum(1) > 0) & (is_answer.flip(1).cumsum(1).flip(1) > 0)
    end = reading.ends.to(ids.device).last(ids, within)
    rows = torch.arange(len(end), device=end.device)
    # A model may be spread over devices. Prompt tuning puts learned tokens before the batch's own.
    chosen = [hidden[layer][:, -ids.shape[1] :] for layer in reading.layers]
    found = [states[rows.to(states.device), end.to(states.device)].detach().float().to(end.device) for states in chosen]
    return torch.stack(found, 1)


class _TokenLogProbs(torch.autograd.Function):
    """`log softmax(logits)[target]` of each row, with statistics to log. The backward pass recomputes the softmax."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`logits [N, V]`, `targets [N]` → log-probability, entropy, mean logit, whether the target is the most likely, `[N]` each."""
        rows = [_statistics(part, target) for part, target in _chunks(logits, targets)]
        log_z, log_probs, entropy, mean_logit, is_top1 = (
            torch.cat(columns) if columns else logits.new_zeros(0).float()
            for columns in (list(zip(*rows, strict=True)) or [()] * 5)
        )
        ctx.save_for_backward(logits, targets, log_z)
        ctx.mark_non_differentiable(entropy, mean_logit, is_top1)
        return log_probs, entropy, mean_logit, is_top1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        logits, targets, log_z = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for start in range(0, len(targets), _CHUNK):
            rows = slice(start, start + _CHUNK)
            share = -torch.exp(logits[rows].float() - log_z[rows, None])
            share.scatter_add_(1, targets[rows, None], torch.ones_like(share[:, :1]))
            grad[rows] = (grads[0][rows, None].float() * share).to(grad.dtype)
        return grad, None


def _chunks(logits: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [
        (logits[start : start + _CHUNK], targets[start : start + _CHUNK]) for start in range(0, len(targets), _CHUNK)
    ]


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-normaliser, log-probability of the target, entropy, mean logit, and whether the target is the argmax, `[n]` each."""
    z = logits.float()
    top = z.amax(-1)
    shares = torch.exp(z - top[:, None])
    total = shares.sum(-1)
    log_z = top + torch.log(total)
    target = z.gather(-1, targets[:, None]).squeeze(-1)
    entropy = log_z - (shares * z).sum(-1) / total
    return log_z, target - log_z, entropy, z.mean(-1), (z.argmax(-1) == targets).float()


def disable_dropout(model: nn.Module) -> None:
    """Permanently set every dropout probability to 0, so that likelihoods are comparable."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
