"""What the studies of real models name by string: models and prompts of the trials folder (`FRUGALIGN_TRIALS`), made into files on first use.

FRUGALIGN_TRIALS=folder frugalign study recipes/studies/stories.yaml --jobs 2
"""

from __future__ import annotations

import json

from benchmarks.chat_safety import held_out, preference_pairs
from benchmarks.psle_tasks import WORK, chat, stories
from benchmarks.trials import trials

from frugalign.base.files import write_atomic


def chat_model() -> str:
    """The chat model's folder."""
    return chat().model


def chat_prompts() -> str:
    """Prompts with the column `label`, and the two reward models that train and judge."""
    task = chat()
    task.prepare()
    return task.dataset


def chat_pairs() -> str:
    """The pairs that the training reward was fitted on, for methods that learn from pairs."""
    path = WORK / "chat" / "pairs" / "train.jsonl"
    if not path.is_file():
        pairs, _ = preference_pairs(trials() / "data")
        rows = [pair for pair in pairs if held_out(pair["prompt"], 0.5)]
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path.parent)


def stories_model() -> str:
    """The story model's folder."""
    return stories().model


def stories_prompts() -> str:
    """First words of stories."""
    task = stories()
    task.prepare()
    return task.dataset


def stories_principles() -> str:
    """One sentence that asks for sad stories."""
    stories_prompts()
    return stories().principles
