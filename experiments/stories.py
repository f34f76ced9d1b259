"""The stories task: make a small story model write sadder stories. Its prompts and reward need no private data.

    FRUGALIGN_TRIALS=folder python -m experiments.stories OUTPUT_FOLDER
    frugalign proxy --dataset_name OUTPUT_FOLDER --reward experiments/stories.py:reward ...

A prompt is the first eight words of a TinyStories text. The first 900 stories are for training. The others are for the test, without prompts
that occur in training. The reward is minus VADER's compound score of the completion, against the model's habit of happy stories. Studies name
`model`, `prompts` and `principles` as `experiments.stories:model` and so on.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

PROMPT_WORDS = 8
TRAIN_STORIES = 900
N_VALIDATION = 128
WORK = Path("runs/tasks/stories")
SAD = frozenset(
    [
        "sad",
        "cry",
        "cried",
        "lost",
        "hurt",
        "tears",
        "alone",
        "scared",
        "afraid",
        "broke",
        "broken",
        "sorry",
        "died",
        "angry",
    ]
)


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def reward(completions: list[str], **_: Any) -> list[float]:
    """Minus the compound sentiment of each completion, in [-1, 1]; TRL's call."""
    return [-float(_analyzer().polarity_scores(text)["compound"]) for text in completions]


def _words(text: str) -> list[str]:
    return [word.strip(".,!?\"'").lower() for word in text.split()]


def sad_words(completions: list[str], **_: Any) -> list[float]:
    """Sad words per hundred words, by a list that the training reward does not use."""
    found = [_words(text) for text in completions]
    return [100 * sum(word in SAD for word in words) / max(1, len(words)) for words in found]


def story_words(completions: list[str], **_: Any) -> list[float]:
    """Distinct words as a share of all. A degenerate story repeats itself."""
    found = [_words(text) for text in completions]
    return [len(set(words)) / max(1, len(words)) for words in found]


def first_words(folder: Path) -> tuple[list[str], list[str]]:
    """Training prompts, repeated as they occur, and test prompts that training never shows."""
    stories: list[str] = json.loads((folder / "data" / "tinystories-1k.json").read_text(encoding="utf-8"))
    firsts = [" ".join(story.split()[:PROMPT_WORDS]) for story in stories]
    train = firsts[:TRAIN_STORIES]
    seen = set(train)
    return train, [prompt for prompt in firsts[TRAIN_STORIES:] if prompt not in seen]


def _write(folder: Path, splits: dict[str, list[str]]) -> None:
    # Imported here: a reward named by its file is loaded without the repository's root on the path.
    from frugalign.base.files import write_atomic

    for name, prompts in splits.items():
        lines = (json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
        write_atomic(folder / f"{name}.jsonl", "".join(lines))


def write(folder: Path) -> None:
    """`train.jsonl` and `test.jsonl` with a `prompt` column, as the command line reads them."""
    from experiments.trials import trials

    train, test = first_words(trials())
    _write(folder, {"train": train, "test": test})


def model() -> str:
    """Folder of the story model, which has 260,000 parameters."""
    from experiments.trials import model_folder

    return model_folder("stories260k")


def prompts() -> str:
    """Folder of the prompts without repetitions, 128 of them held out for validation."""
    from experiments.trials import trials

    folder = WORK / "prompts"
    if not (folder / "test.jsonl").is_file():
        train, test = (list(dict.fromkeys(part)) for part in first_words(trials()))
        # The test split comes last: a folder without it is incomplete.
        _write(folder, {"train": train[N_VALIDATION:], "validation": train[:N_VALIDATION], "test": test})
    return str(folder)


PRINCIPLES = "This is a sad story. It does not end well, and everybody cries."
"""A model of this size follows no instructions, so PSLE's gain here does not come from the principles."""


def principles() -> str:
    """File with `PRINCIPLES`."""
    from frugalign.base.files import write_atomic

    write_atomic(WORK / "principles.txt", PRINCIPLES + "\n")
    return str(WORK / "principles.txt")


if __name__ == "__main__":
    from experiments.trials import write_by_command

    write_by_command(__doc__, write)
