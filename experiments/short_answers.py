"""The short-answers task: finish an answer in a few words. Its reward can be checked, so it suits any model that answers instructions.

    FRUGALIGN_TRIALS=folder python -m experiments.short_answers OUTPUT_FOLDER
    frugalign proxy --dataset_name OUTPUT_FOLDER --reward experiments/short_answers.py:reward ...

A prompt is one of Alpaca's instructions without an input. The reward is 1 for a finished answer of at most eight words, and falls to 0 at forty.
Studies name `model` and `prompts` as `experiments.short_answers:model` and so on.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

WORK = Path("runs/tasks/short-answers")
FEWEST, ENOUGH, MOST = 3, 8, 40
N_TEST, N_TRAIN = 64, 1_024
LONGEST_PROMPT = 200
"""Characters of a prompt."""


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Between 0 and 1; TRL's call, with texts or messages."""
    return [_score(each if isinstance(each, str) else each[-1]["content"]) for each in completions]


def _score(text: str) -> float:
    words = len(text.split())
    if words < FEWEST or text.rstrip()[-1] not in ".!?":
        return 0.0
    return max(0.0, 1.0 - max(0, words - ENOUGH) / (MOST - ENOUGH))


def model() -> str:
    """Folder of SmolLM2-135M-Instruct."""
    from experiments.trials import instruct_model

    return instruct_model()


def prompts() -> str:
    """Folder of the prompts."""
    if not (WORK / "train.jsonl").is_file():
        write(WORK)
    return str(WORK)


def write(folder: Path) -> None:
    """`train.jsonl` and `test.jsonl` with a `prompt` column."""
    from experiments.trials import trials

    from frugalign.base.files import write_atomic

    with gzip.open(trials() / "data" / "alpaca-5k.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["instruction"] for row in rows if not row.get("input") and len(row["instruction"]) < LONGEST_PROMPT]
    texts = list(dict.fromkeys(texts))
    parts = {"test": texts[:N_TEST], "train": texts[N_TEST : N_TEST + N_TRAIN]}
    for name, prompts in parts.items():
        text = "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
        write_atomic(folder / f"{name}.jsonl", text)


if __name__ == "__main__":
    from experiments.trials import write_by_command

    write_by_command(__doc__, write)
