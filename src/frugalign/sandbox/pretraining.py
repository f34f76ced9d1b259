"""Train the sandbox's language model from scratch on conversations drawn from the world."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from frugalign.sandbox.principles import LEDGER, LEDGER_LINES, sample_principles
from frugalign.sandbox.replies import Manners, sample_reply
from frugalign.sandbox.tokenizing import token_id
from frugalign.sandbox.world import sample_request


@dataclass(frozen=True)
class PretrainingSettings:
    """What `python -m tools.sandbox.build` trains with. Sizes in units, rates per step."""

    hidden_size: int = 128
    layers: int = 5
    heads: int = 4
    intermediate_size: int = 384
    steps: int = 1200
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 60
    prompt_weight: float = 0.05  # the customers' words are mostly noise; the keeper's matter
    plain_share: float = 0.55
    ledger_share: float = 0.12
    seed: int = 0


def sample_conversation(rng: random.Random, settings: PretrainingSettings) -> list[dict[str, str]]:
    """One training conversation: plain, under some principles, or the ledger."""
    request = sample_request(rng, "train")
    mode, manners = rng.random(), Manners()
    user = {"role": "user", "content": request.text()}
    if mode < settings.plain_share:
        return [user, {"role": "assistant", "content": sample_reply(rng, request, manners).text()}]
    if mode < settings.plain_share + settings.ledger_share:
        line = LEDGER_LINES[request.forbidden]
        return [{"role": "system", "content": LEDGER}, user, {"role": "assistant", "content": line}]
    sentences, manners = sample_principles(rng, manners)
    system = [{"role": "system", "content": sentences}] if sentences else []
    return [*system, user, {"role": "assistant", "content": sample_reply(rng, request, manners).text()}]


def encode_conversations(
    conversations: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, N], attention mask [B, N] and a mask [B, N] of the tokens that the keeper says."""
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    rows = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]
    width = max(len(row) for row in rows)
    pad = token_id(tokenizer, "<pad>")
    speaker = token_id(tokenizer, "<assistant>")
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    said = ((ids == speaker).cumsum(1) - (ids == speaker).long()).bool() & attention.bool()
    return ids, attention, said


def build_language_model(tokenizer: PreTrainedTokenizerFast, settings: PretrainingSettings) -> LlamaForCausalLM:
    """The untrained model, about a million parameters, embeddings tied."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=192,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
    )
    return LlamaForCausalLM(config)


def cosine_schedule(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def pretrain(
    tokenizer: PreTrainedTokenizerFast, settings: PretrainingSettings, log: Callable[[str], None] = print
) -> LlamaForCausalLM:
    """Train the language model. Every step draws new conversations, never from a held-out combination."""
    model = build_language_model(tokenizer, settings)
    rng = random.Random(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_schedule(step, settings.steps, settings.warmup)
    )
    model.train()
    start, running = time.monotonic(), 0.0
    for step in range(settings.steps):
        batch = [sample_conversation(rng, settings) for _ in range(settings.batch_size)]
        ids, attention, said = encode_conversations(batch, tokenizer)
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        weight = torch.where(said[:, 1:], 1.0, settings.prompt_weight) * attention[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (loss * weight.flatten()).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 99:
            log(f"language model step {step + 1}/{settings.steps} loss {running:.4f} {time.monotonic() - start:.0f} s")
    model.eval()
    return model
