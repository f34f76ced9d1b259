"""Teacher-forced scoring of finished completions: log-probabilities, and the exact divergence between two full models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, advance
from frugalign.decoding.chooser import BaseGuide, Guide
from frugalign.engines.cache import select_rows
from frugalign.engines.transformers import Forward, device_of, evaluating, may_share


@torch.no_grad()
def sequence_log_probs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    batch_size: int = 16,
    ledger: Ledger | None = None,
    guide: Guide | None = None,
) -> list[Tensor]:
    """`log p_T` of every completion token given all before it: one float32 tensor of the completion's length per row.

    With a `guide`, it is that of the guided model, at the guide's temperature.
    """
    guide = guide or BaseGuide(temperature)
    found: list[Tensor] = [torch.empty(0)] * len(prompt_ids)
    with evaluating(model), Forward(model) as forward:
        for row, read in _completions(forward, prompt_ids, completion_ids, batch_size, ledger):
            ids = torch.tensor(list(completion_ids[row]), device=read.logits.device)
            log_p = guide.log_probs(read.hidden, read.logits)
            found[row] = log_p.gather(-1, ids[:, None]).squeeze(-1).cpu()
    return found


@dataclass(frozen=True)
class Reference:
    """The model that a KL is measured to.

    `context`: entered around its passes, such as a PEFT policy's `disable_adapter` if policy and reference are one
    model. `prompt_ids`: its prompts, if they differ from the policy's.
    """

    model: PreTrainedModel
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    prompt_ids: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class Compared:
    """A policy beside a reference along completions, `[B]` float64 each.

    `kl`: `Σ_t KL(π_T(·|s_t) ‖ p_1(·|s_t))` over the full vocabulary, nats per sequence. `reference_log_probs`: of each completion.
    """

    kl: Tensor
    reference_log_probs: Tensor


def sequence_kl(
    model: PreTrainedModel,
    reference: Reference,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    **given: Any,
) -> Tensor:
    """The KL of `compare_sequences`, `[B]` float64."""
    return compare_sequences(model, reference, prompt_ids, completion_ids, **given).kl


@torch.no_grad()
def compare_sequences(
    model: PreTrainedModel,
    reference: Reference,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    guide: Guide,
    batch_size: int = 16,
    ledger: Ledger | None = None,
) -> Compared:
    """Feed the completions to both models.

    `π` is `model` under `guide`, at its temperature: `BaseGuide(T)` for the model alone. `p` is the reference, at temperature 1.
    """
    total, known = (torch.zeros(len(prompt_ids), dtype=torch.float64) for _ in range(2))
    reference_ids = prompt_ids if reference.prompt_ids is None else reference.prompt_ids
    order = _by_length(prompt_ids, completion_ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        prompts, completions = [prompt_ids[row] for row in chosen], [completion_ids[row] for row in chosen]
        with evaluating(model), Forward(model) as forward:
            policy = dict(_completions(forward, prompts, completions, batch_size, ledger))
        with reference.context(), evaluating(reference.model), Forward(reference.model) as forward:
            own_prompts = [reference_ids[row] for row in chosen]
            for index, read in _completions(forward, own_prompts, completions, batch_size, ledger):
                own = policy[index]
                log_pi = guide.log_probs(own.hidden, own.logits).to(read.logits.device)
                log_p = torch.log_softmax(read.logits, -1)
                gap = (log_pi - log_p).masked_fill_(log_pi == -torch.inf, 0.0)
                total[chosen[index]] = (log_pi.exp() * gap).sum(-1).double().sum().cpu()
                ids = torch.tensor(list(completions[index]), device=log_p.device)
                known[chosen[index]] = log_p.gather(-1, ids[:, None]).sum().double().cpu()
    return Compared(total, known)


def _by_length(prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]) + len(completion_ids[row]))


def _completions(
    forward: Forward,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batch_size: int,
    ledger: Ledger | None,
) -> Iterator[tuple[int, Read]]:
    """Yield (row, what predicted its completion)."""
    order = [row for row in _by_length(prompt_ids, completion_ids) if completion_ids[row]]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    yield from read_completions(forward, prompt_ids, completion_ids, batches, ledger)


@dataclass(frozen=True)
class Read:
    """What predicted a completion's n tokens: the LM head's input `hidden [n, D]`, and `logits [n, V]`. `states [n, layers, D]`: hidden
    states after each of them, if asked for."""

    hidden: Tensor
    logits: Tensor
    states: Tensor | None = None


def read_completions(
    forward: Forward,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batches: Iterable[Sequence[int]],
    ledger: Ledger | None = None,
    *,
    layers: Sequence[int] = (),
) -> Iterator[tuple[int, Read]]:
    """Feed prompts with their completions in these `batches` of rows, and yield (row, what predicted its completion).

    A prompt that several rows of a batch share is fed once, if the model's cache can be repeated. `layers`: indices into `hidden_states`, whose
    states are returned too.
    """
    for rows in batches:
        prompts, completions = [prompt_ids[row] for row in rows], [completion_ids[row] for row in rows]
        shares = may_share(forward.model) and len(set(map(tuple, prompts))) < len(rows)
        read = _read_after_prompts if shares else _read_whole
        n_tokens = tokens_to_read(forward.model, prompts, completions, layers=layers)
        yield from zip(rows, read(forward, prompts, completions, layers), strict=True)
        advance(FED, n_tokens)
        if ledger is not None:
            ledger.count(lm_forward_tokens=n_tokens)


def tokens_to_read(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] = (),
) -> int:
    """The tokens that `read_completions` feeds for one batch."""
    prompts = map(tuple, prompt_ids)
    fed = sum(map(len, set(prompts) if may_share(model) else prompts))
    return fed + sum(map(len, completion_ids)) - (0 if layers else len(completion_ids))


def _read_whole(
    forward: Forward, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], layers: Sequence[int]
) -> list[Read]:
    # The last token predicts nothing that is scored. It is left out, unless its state is read.
    left_out = 0 if layers else 1
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, completions, strict=True)]
    ids, mask = _padded_left([text[: len(text) - left_out] for text in texts], device_of(forward.model))
    keep = max(map(len, completions)) + 1 - left_out
    output = forward(
        ids, attention_mask=mask, position_ids=_positions(mask), use_cache=False, keep=keep, all_layers=bool(layers)
    )
    found = []
    for row, answer in enumerate(completions):
        states, n = None, len(answer)
        if output.layers is not None:
            states = torch.stack([output.layers[layer][row, ids.shape[1] - n :].float() for layer in layers], 1)
        place = slice(keep - n - 1 + left_out, keep - 1 + left_out)
        found.append(Read(output.hidden[row, place], output.logits[row, place], states))
    return found


def _read_after_prompts(
    forward: Forward, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], layers: Sequence[int]
) -> list[Read]:
    """Every distinct prompt is fed once. Its cache is repeated for its completions, which are padded on the right."""
    device = device_of(forward.model)
    places: dict[tuple[int, ...], int] = {}
    index = torch.tensor([places.setdefault(tuple(prompt), len(places)) for prompt in prompts], device=device)
    ids, mask = _padded_left([list(prompt) for prompt in places], device)
    before = forward(ids, attention_mask=mask, position_ids=_positions(mask), keep=1)
    select_rows(before.cache, index)
    left_out = 0 if layers else 1
    width = max(1, max(map(len, completions)) - left_out)
    fed = [list(answer)[: len(answer) - left_out] for answer in completions]
    rest = torch.tensor([answer + [0] * (width - len(answer)) for answer in fed], device=device)
    is_fed = torch.tensor([[1] * len(answer) + [0] * (width - len(answer)) for answer in fed], device=device)
    whole = torch.cat([mask[index], is_fed], 1)
    output = forward(
        rest,
        attention_mask=whole,
        position_ids=_positions(whole)[:, mask.shape[1] :],
        cache=before.cache,
        keep=width,
        all_layers=bool(layers),
    )
    found = []
    for row, answer in enumerate(completions):
        first, n = index[row], len(answer)
        hidden = torch.cat([before.hidden[first], output.hidden[row, : n - 1]])
        logits = torch.cat([before.logits[first], output.logits[row, : n - 1]])
        states = None
        if output.layers is not None:
            states = torch.stack([output.layers[layer][row, :n].float() for layer in layers], 1)
        found.append(Read(hidden, logits, states))
    return found


def _padded_left(texts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, `[B, T]` each."""
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts], device=device)
    return ids, torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts], device=device)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)
