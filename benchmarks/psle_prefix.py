"""What feeding the principles once saves: responses under a page of principles with and without a shared prefill.

    FRUGALIGN_TRIALS=folder python -m benchmarks.psle_prefix

The same prompts, noise and responses; tokens are counted, seconds are the medians of three runs of each kind, one after the other in turn.
"""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.chat_safety import rows_of
from benchmarks.trials import trials

from frugalign.base.files import write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.data import load_prompts
from frugalign.decoding import SamplingParams
from frugalign.decoding.sample_groups import sample_groups
from frugalign.engines import load_model
from frugalign.policies.principles import load_principles, under_principles

RESULT = Path(__file__).parent / "results" / "psle_prefix.json"
N, REPEATS = 128, 3


def measure(model: str, told: str, prompts: list[Any], new_tokens: int) -> dict[str, Any]:
    """Tokens fed and seconds with the prefix shared and not."""
    loaded = load_model(model)
    guided = under_principles(load_principles(told), prompts, loaded.tokenizer)
    found: dict[str, Any] = {"prompts": len(prompts), "new_tokens": new_tokens}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    texts = {}
    for _ in range(REPEATS):
        for share in (True, False):
            ledger, started = Ledger(), time.perf_counter()
            params = SamplingParams(new_tokens)
            groups = sample_groups(loaded.model, loaded.tokenizer, guided, 1, params, share_prefix=share, ledger=ledger)
            seconds[share].append(time.perf_counter() - started)
            texts[share] = groups.completions
            fed = ledger.lm_forward_tokens
            # All but the first token of a response cost a step of one token each; the rest was prefill.
            found["prefill_shared" if share else "prefill"] = fed - (ledger.generated_tokens - len(prompts))
            found["forward_shared" if share else "forward"] = fed
    found["same_responses"] = texts[True] == texts[False]
    found["seconds_shared"], found["seconds"] = (statistics.median(seconds[share]) for share in (True, False))
    return found


def main() -> None:
    """Both models, written and printed."""
    torch.set_num_threads(1)
    orders = [row["prompt"] for row in load_prompts("frugalign.sandbox:prompts", split="train")][:N]
    asked = [row["instruction"] for row in rows_of(trials() / "data" / "refusal-harmless-2k.jsonl.gz")][:N]
    result = {
        "command": "FRUGALIGN_TRIALS=folder python -m benchmarks.psle_prefix",
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "sandbox, three sentences": measure("frugalign.sandbox:model", "frugalign.sandbox:PRINCIPLES", orders, 64),
        "chat-3m, harmless": measure(str(trials() / "models" / "chat-3m"), "harmless", asked, 96),
    }
    write_json_atomic(RESULT, result)
    for name, row in result.items():
        print(name, row)


if __name__ == "__main__":
    main()
