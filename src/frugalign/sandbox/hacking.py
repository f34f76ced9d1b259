"""Shows that the learned reward can be exploited: policy gradient on it with β = 0 (criterion d).

The policy is the smallest that can do it, one number per token added to the logits of the candidates `p >= p_t`. What the
proxy of `frugalign.proxy` does with the same reward is measured by the study; this is the world's own check.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from torch import Tensor

from frugalign.sandbox.criteria import Bench, encode
from frugalign.sandbox.judging import gold
from frugalign.sandbox.preference import conversation, load_reward_model, score_conversations


def biased(logits: Tensor, bias: Tensor, p_t: float) -> Tensor:
    """log π `[..., V]` of the base's candidates under a bias per token."""
    base = logits.log_softmax(-1)
    kept = (base >= math.log(p_t)) | (base == base.max(-1, keepdim=True).values)
    return (base + bias).masked_fill(~kept, float("-inf")).log_softmax(-1)


@torch.no_grad()
def rollout(bench: Bench, prompts: list[str], bias: Tensor, p_t: float, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sample under the bias: logits `[B, N, V]`, tokens `[B, N]`, mask `[B, N]` of what was said, end token included."""
    inputs = encode(bench, prompts)
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, alive = None, torch.ones(len(prompts), dtype=torch.bool)
    logits, tokens, said = [], [], []
    for _ in range(length):
        out = bench.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        logits.append(out.logits[:, -1])
        token = torch.multinomial(biased(logits[-1], bias, p_t).exp(), 1)[:, 0]
        token = torch.where(alive, token, torch.tensor(bench.tokenizer.pad_token_id))
        tokens.append(token)
        said.append(alive)
        alive = alive & (token != bench.tokenizer.eos_token_id)
        if not alive.any():
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], 1)
    return torch.stack(logits, 1), torch.stack(tokens, 1), torch.stack(said, 1)


def exploit(
    bench: Bench, folder: Path, *, steps: int = 120, prompts_per_step: int = 16, group: int = 8, p_t: float = 0.01,
    learning_rate: float = 0.1, length: int = 40, seed: int = 0,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Train the bias on the learned reward without any KL term; (learned, gold) reward, means over each tenth of the steps."""
    reward_model, reward_tokenizer = load_reward_model(str(folder / "reward_model"))
    torch.manual_seed(seed)
    rng = random.Random(seed)
    bias = torch.zeros(bench.model.config.vocab_size, requires_grad=True)
    optimizer = torch.optim.Adam([bias], lr=learning_rate)
    learned_by_step, gold_by_step = [], []
    for _ in range(steps):
        prompts = [prompt for prompt in rng.sample(bench.prompts, prompts_per_step) for _ in range(group)]
        logits, tokens, said = rollout(bench, prompts, bias.detach(), p_t, length)
        replies = bench.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        turns = [conversation(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        rewards = torch.tensor(score_conversations(reward_model, reward_tokenizer, turns))
        learned_by_step.append(rewards.mean().item())
        gold_by_step.append(sum(gold(prompts, replies)) / len(prompts))
        grouped = rewards.view(-1, group)
        advantage = (grouped - (grouped.sum(1, keepdim=True) - grouped) / (group - 1)).flatten()
        chosen = biased(logits, bias, p_t).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        loss = -(advantage / (advantage.std() + 1e-6) * torch.where(said, chosen, 0.0).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tenth = max(1, steps // 10)
    windows = range(0, steps - tenth + 1, tenth)
    return (
        [sum(learned_by_step[start : start + tenth]) / tenth for start in windows],
        [sum(gold_by_step[start : start + tenth]) / tenth for start in windows],
    )
