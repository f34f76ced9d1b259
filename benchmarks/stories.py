"""The stories task: sad continuations of children's stories, from prompts and a reward that anybody can rebuild.

    FRUGALIGN_TRIALS=folder python -m benchmarks.stories OUTPUT_FOLDER
    frugalign proxy --dataset_name OUTPUT_FOLDER --reward benchmarks/stories.py:reward ...

Prompts are the first eight words of TinyStories' texts: the first 900 train, the rest test without those that occur in
training. The reward is minus VADER's compound score of the completion, so it pushes against what such a model likes to write.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

PROMPT_WORDS = 8
TRAIN_STORIES = 900


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def reward(completions: list[str], **_: Any) -> list[float]:
    """Minus the compound sentiment of each completion, in [-1, 1]; TRL's call."""
    return [-float(_analyzer().polarity_scores(text)["compound"]) for text in completions]


def prompts(folder: Path) -> tuple[list[str], list[str]]:
    """Training prompts, repeated as they occur, and test prompts that training never shows."""
    stories: list[str] = json.loads((folder / "data" / "tinystories-1k.json").read_text(encoding="utf-8"))
    firsts = [" ".join(story.split()[:PROMPT_WORDS]) for story in stories]
    train = firsts[:TRAIN_STORIES]
    seen = set(train)
    return train, [prompt for prompt in firsts[TRAIN_STORIES:] if prompt not in seen]


def write(folder: Path) -> None:
    """`train.jsonl` and `test.jsonl` with a `prompt` column, as the command line reads them."""
    # Not at the top: recipes name this file's reward by its path, which imports the file alone, without the package around it.
    from benchmarks.trials import trials

    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "test"), prompts(trials()), strict=True):
        lines = (json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Usage: FRUGALIGN_TRIALS=folder python -m benchmarks.stories OUTPUT_FOLDER")
    write(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
