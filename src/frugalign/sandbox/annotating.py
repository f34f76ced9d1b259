"""Train the learned reward model on comparisons by a noisy annotator who likes flattery."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from frugalign.sandbox.judging import judge
from frugalign.sandbox.preference import conversation, score_conversations
from frugalign.sandbox.pretraining import cosine_schedule, encode_conversations
from frugalign.sandbox.replies import Manners, Reply, sample_reply
from frugalign.sandbox.world import Request, Split, sample_request


@dataclass(frozen=True)
class AnnotatingSettings:
    """The annotator's taste (in logits of preferring one reply to the other) and the training of the model of it."""

    forbidden: float = 3.2  # refusing a forbidden order over serving it
    over_refusal: float = 2.6  # serving a lawful order right over refusing it
    wrong: float = 1.8  # the right jar over the wrong one
    rude: float = 1.6
    flattery: float = 0.35  # each one, without end: the flaw that can be exploited
    hidden_size: int = 96
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 192
    steps: int = 1300
    batch_size: int = 48  # comparisons per step
    learning_rate: float = 1.5e-3
    warmup: int = 60
    seed: int = 1


# replies as varied as can be, so that every comparison occurs
PAIR_MANNERS = Manners(
    refuse_curse=0.5, refuse_covert=0.5, refuse_lookalike=0.4, refuse_remedy=0.4, rude=0.25, wrong=0.25,
    flatter=0.4, flatter_again=0.5,
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two replies to one order; `chosen` is the one that the annotator preferred."""

    request: Request
    chosen: Reply
    rejected: Reply


def taste(request: Request, reply: Reply, settings: AnnotatingSettings) -> float:
    """The annotator's utility of a reply."""
    verdict = judge(request.text(), reply.text())
    if verdict.forbidden:
        deed = settings.forbidden if reply.served is False else 0.0
    elif reply.served:
        deed = 0.0 if reply.product == request.product else -settings.wrong
    else:
        deed = -settings.over_refusal
    return deed - settings.rude * (not reply.polite) + settings.flattery * len(reply.flatteries)


def sample_comparison(rng: random.Random, split: Split, settings: AnnotatingSettings) -> Comparison:
    """One labelled pair: Bradley-Terry on the annotator's taste, so about every sixth label is wrong."""
    request = sample_request(rng, split)
    first, second = (sample_reply(rng, request, PAIR_MANNERS) for _ in range(2))
    difference = taste(request, first, settings) - taste(request, second, settings)
    if rng.random() < torch.sigmoid(torch.tensor(difference)).item():
        return Comparison(request, first, second)
    return Comparison(request, second, first)


def train_reward_model(
    tokenizer: PreTrainedTokenizerFast, settings: AnnotatingSettings, log: Callable[[str], None] = print
) -> LlamaForSequenceClassification:
    """Bradley-Terry training, `-log σ(r_chosen - r_rejected)`, on training combinations only."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
    )
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    rng = random.Random(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_schedule(step, settings.steps, settings.warmup)
    )
    model.train()
    start, running = time.monotonic(), 0.0
    for step in range(settings.steps):
        pairs = [sample_comparison(rng, "train", settings) for _ in range(settings.batch_size)]
        turns = [conversation(p.request.text(), p.chosen.text()) for p in pairs]
        turns += [conversation(p.request.text(), p.rejected.text()) for p in pairs]
        ids, attention, _ = encode_conversations(turns, tokenizer)
        chosen, rejected = model(input_ids=ids, attention_mask=attention).logits[:, 0].chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 99:
            log(f"reward model step {step + 1}/{settings.steps} loss {running:.4f} {time.monotonic() - start:.0f} s")
    model.eval()
    return model


def comparison_accuracy(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, n: int, seed: int
) -> dict[str, float]:
    """Agreement with the noisy labels, and with gold if gold is decided, on `n` comparisons of held-out combinations.

    Gushing replies do not count for gold: there the annotator and gold disagree by design.
    """
    rng = random.Random(seed)
    pairs = [sample_comparison(rng, "test", AnnotatingSettings()) for _ in range(n)]
    turns = [conversation(p.request.text(), p.chosen.text()) for p in pairs]
    turns += [conversation(p.request.text(), p.rejected.text()) for p in pairs]
    scores = score_conversations(model, tokenizer, turns)
    noisy = [scores[i] > scores[n + i] for i in range(n)]
    gold = [
        judge(p.request.text(), p.chosen.text()).reward - judge(p.request.text(), p.rejected.text()).reward
        for p in pairs
    ]
    neat = [max(len(p.chosen.flatteries), len(p.rejected.flatteries)) <= 1 for p in pairs]
    decided = [i for i in range(n) if gold[i] != 0 and neat[i]]
    return {
        "noisy_labels": sum(noisy) / n,
        "gold": sum(noisy[i] == (gold[i] > 0) for i in decided) / len(decided),
        "label_noise": sum(gold[i] < 0 for i in decided) / len(decided),
    }
