"""The saving from feeding written principles once: responses with and without a shared prefill.

    FRUGALIGN_TRIALS=folder python -m experiments.psle_prefix [--smoke]

Prompts, noise and responses are the same. Seconds are medians of three alternating runs of each kind.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from experiments.chat import model, rows_of
from experiments.summary import script_options, write_summary
from experiments.trials import trials

from frugalign.base.ledger import Ledger
from frugalign.data import load_prompts
from frugalign.decoding import SamplingParams
from frugalign.decoding.sample_groups import GroupOptions, sample_groups
from frugalign.engines import load_model
from frugalign.engines.transformers import TransformersEngine
from frugalign.policies.principles import load_principles, under_principles


def measure(base: str, told: str, prompts: list[Any], new_tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens fed and seconds, with and without a shared prefix."""
    loaded = load_model(base)
    guided = under_principles(load_principles(told), prompts, loaded.tokenizer)
    found: dict[str, Any] = {"prompts": len(prompts), "new_tokens": new_tokens}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    texts = {}
    for _ in range(repeats):
        for share in (True, False):
            ledger, started = Ledger(), time.perf_counter()
            params = SamplingParams(new_tokens)
            groups = sample_groups(
                TransformersEngine(loaded.model, loaded.tokenizer),
                loaded.tokenizer,
                guided,
                1,
                params,
                GroupOptions(share_prefix=share),
                ledger=ledger,
            )
            seconds[share].append(time.perf_counter() - started)
            texts[share] = groups.completions
            fed = ledger.lm_forward_tokens
            # Every token of a response but the first costs a step of one token. The rest is prefill.
            found["prefill_shared" if share else "prefill"] = fed - (ledger.generated_tokens - len(prompts))
            found["forward_shared" if share else "forward"] = fed
    found["same_responses"] = texts[True] == texts[False]
    found["seconds_shared"], found["seconds"] = (statistics.median(seconds[share]) for share in (True, False))
    return found


def main() -> None:
    """Measure both models, write and print."""
    is_smoke = script_options(__doc__).smoke
    n, repeats, lengths = (2, 1, (4, 4)) if is_smoke else (128, 3, (64, 96))
    torch.set_num_threads(1)
    orders = [row["prompt"] for row in load_prompts("frugalign.sandbox:prompts", split="train")][:n]
    questions = [row["instruction"] for row in rows_of(trials() / "data" / "refusal-harmless-2k.jsonl.gz")][:n]
    found = {
        "sandbox, three sentences": measure(
            "frugalign.sandbox:model", "frugalign.sandbox:PRINCIPLES", orders, lengths[0], repeats
        ),
        "chat-3m, harmless": measure(model(), "harmless", questions, lengths[1], repeats),
    }
    rows = {
        name: {
            "prefill tokens": each["prefill"],
            "shared": each["prefill_shared"],
            "times fewer": each["prefill"] / each["prefill_shared"],
            "seconds": each["seconds"],
            "seconds, shared": each["seconds_shared"],
        }
        for name, each in found.items()
    }
    same = all(each["same_responses"] for each in found.values())
    if not is_smoke:
        command = "FRUGALIGN_TRIALS=folder python -m experiments.psle_prefix"
        sizes = "the sandbox's model, 1.1 million parameters; chat-3m, 3.0 million"
        write_summary("psle-prefix", command, sizes, rows, {"same_responses": same})
    print(rows)


if __name__ == "__main__":
    main()
