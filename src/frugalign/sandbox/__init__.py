"""The embedded default: a tiny real language model, its prompts, its exact reward and a learned one.

Strings that commands understand: `frugalign.sandbox:model`, `frugalign.sandbox:prompts`, `frugalign.sandbox:pairs`, `frugalign.sandbox:study_prompts`,
`frugalign.sandbox:gold`, `frugalign.sandbox:learned`, `frugalign.sandbox:reward_model`. Importing this package imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from frugalign.base.specs import lazy_exports

_HERE = Path(__file__).parent

model: str = str(_HERE / "model")
"""Folder of the language model: a `LlamaForCausalLM` with its tokenizer and chat template."""
reward_model: str = str(_HERE / "reward_model")
"""Folder of the learned reward model: a `LlamaForSequenceClassification` with one label."""
prompts: str = str(_HERE / "prompts")
"""Folder with `train.jsonl` and `test.jsonl`."""

if TYPE_CHECKING:
    from frugalign.sandbox.cached import pairs, study_prompts
    from frugalign.sandbox.judging import Verdict, gold, judge, sandbox_metrics
    from frugalign.sandbox.measures import forbidden_served, over_refusal, right_remedy, rude
    from frugalign.sandbox.preference import learned
    from frugalign.sandbox.principles import LEDGER, PRINCIPLES

_HOME = {
    "gold": "judging",
    "judge": "judging",
    "Verdict": "judging",
    "sandbox_metrics": "judging",
    "forbidden_served": "measures",
    "over_refusal": "measures",
    "right_remedy": "measures",
    "rude": "measures",
    "learned": "preference",
    "pairs": "cached",
    "study_prompts": "cached",
    "PRINCIPLES": "principles",
    "LEDGER": "principles",
}

__all__ = [
    "LEDGER",
    "PRINCIPLES",
    "Verdict",
    "forbidden_served",
    "gold",
    "judge",
    "learned",
    "model",
    "over_refusal",
    "pairs",
    "prompts",
    "reward_model",
    "right_remedy",
    "rude",
    "sandbox_metrics",
    "study_prompts",
]


__getattr__ = lazy_exports(__name__, _HOME)
