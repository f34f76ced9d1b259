"""Show that the learned reward can be exploited: train a proxy on it with β = 0 (criterion d).

Without a KL term the proxy finds the annotator's weakness within a few dozen rollouts: the keeper flatters until the
reply is cut. The learned reward keeps rising. Gold rises with it at first, then falls to its lowest value.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer
from frugalign.sandbox.judging import gold
from frugalign.sandbox.preference import conversation, load_reward_model, score_conversations
from tools.sandbox.criteria import Bench


def exploit(bench: Bench, folder: Path, *, beta: float = 0.0, rollouts: int = 60) -> tuple[list[float], list[float]]:
    """Train a proxy on the learned reward. Returns the mean (learned, gold) rewards of each tenth of the rollouts."""
    model, tokenizer = load_reward_model(str(folder / "reward_model"))
    learned_by_rollout: list[float] = []
    gold_by_rollout: list[float] = []

    def recorded_reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        scores = score_conversations(model, tokenizer, list(map(conversation, prompts, completions)))
        learned_by_rollout.append(sum(scores) / len(scores))
        gold_by_rollout.append(sum(gold(prompts, completions)) / len(scores))
        return scores

    with tempfile.TemporaryDirectory() as scratch:
        options = partial(ProxyConfig, output_dir=scratch, save_strategy="no", use_cpu=True, disable_tqdm=True)
        config = options(beta=beta, max_new_tokens=40, learning_rate=1e-2, num_iterations=2, max_steps=2 * rollouts)
        dataset = Dataset.from_list([{"prompt": prompt} for prompt in bench.prompts])
        ProxyTrainer(bench.model, recorded_reward, config, dataset, processing_class=bench.tokenizer).train()
    tenth = max(1, len(learned_by_rollout) // 10)
    starts = range(0, len(learned_by_rollout) - tenth + 1, tenth)
    return (
        [sum(learned_by_rollout[start : start + tenth]) / tenth for start in starts],
        [sum(gold_by_rollout[start : start + tenth]) / tenth for start in starts],
    )
