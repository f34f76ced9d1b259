"""The learned reward: a small model trained on noisy comparisons, as a folder and as a callable.

It stands for a reward model in practice: trained on an annotator's comparisons and right most of the time. It likes
flattery, because the annotator did. Under strong optimisation it is exploited: replies flatter until they are cut,
which `gold` calls malformed. Train on `learned`, report `gold`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from frugalign.sandbox.judging import reply_text

FOLDER = Path(__file__).parent / "reward_model"


@lru_cache(maxsize=1)
def load_reward_model(folder: str = str(FOLDER)) -> tuple[LlamaForSequenceClassification, PreTrainedTokenizerFast]:
    """The shipped reward model in float32 on the CPU, and its tokenizer."""
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def conversation(prompt: Any, completion: Any) -> list[dict[str, str]]:
    """Prompt and reply as one conversation, the form that the reward model reads. System messages are left out."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    kept = [turn for turn in turns if turn.get("role") != "system"]
    return [*kept, {"role": "assistant", "content": reply_text(completion)}]


@torch.no_grad()
def score_conversations(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[dict[str, str]]],
    batch_size: int = 256,
) -> list[float]:
    """One score per conversation, independent of the batch up to rounding."""
    scores: list[float] = []
    for start in range(0, len(conversations), batch_size):
        batch = [list(turns) for turns in conversations[start : start + batch_size]]
        texts = [str(tokenizer.apply_chat_template(turns, tokenize=False)) for turns in batch]
        inputs = tokenizer(
            texts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="right", truncation=True
        )
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        scores += outputs.logits[:, 0].float().tolist()
    return scores


def learned(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    trainer_state: Any = None,
    log_extra: Any = None,
    log_metric: Any = None,
    **columns: Any,
) -> list[float]:
    """Learned reward of each completion, in TRL's calling convention."""
    model, tokenizer = load_reward_model()
    pairs = zip(prompts, completions, strict=True)
    return score_conversations(model, tokenizer, [conversation(prompt, completion) for prompt, completion in pairs])
