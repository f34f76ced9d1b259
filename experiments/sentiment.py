"""The sentiment task: continue the beginning of a film review in a good mood. Studies name its pieces as `experiments.sentiment:NAME`.

    FRUGALIGN_TRIALS=folder FRUGALIGN_MODELS=folder python -m experiments.sentiment [--smoke]

writes the prompts and records how often the two classifiers are right on texts that they have not seen. A prompt is the first eight words of an
IMDB review, which the model continues as plain text. The reward reads words, and was fitted on other IMDB reviews. The judge reads a sentence
encoder's embeddings, and was fitted on SST-2. Each reads the beginning with its continuation.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

from experiments.chat import rows_of
from experiments.classifiers import Linear, accuracy, bag_of_words, embeddings, fit, fitted
from experiments.summary import script_options, write_summary
from experiments.trials import trials

from frugalign.base.files import write_atomic
from frugalign.policies.principles import Principles

WORK = Path("runs/tasks/sentiment")
PROMPT_WORDS = 8
SIZES = {"test": 200, "validation": 100, "train": 1_000}
_FITTED_ON = 10_000
_MEASURED_ON = 300
_SENTENCES = 8
"""Sentences of a text that the judge reads. SST-2 has phrases and sentences, so it is fitted on nothing longer."""

SYSTEM_PROMPT = "What follows is a warm, enthusiastic film review by somebody who loved the film."
FEW_SHOT = Principles(
    demonstrations=(
        (
            "I went to see this film with my",
            "sister, and we both loved it. The cast is wonderful, the jokes land, and the ending made us cheer.",
        ),
        (
            "When this came out, nobody expected that it",
            "would become a classic, but it deserves every prize. It is beautiful, moving and a joy from start to finish.",
        ),
    )
)


# -- data ---------------------------------------------------------------------------------------------------------------


def _part(text: str) -> str:
    """What a review is for: to fit the reward, to measure it, or to begin a prompt. It depends on the text alone."""
    draw = hashlib.sha256(text.encode()).digest()[0] / 256
    return "fit" if draw < 0.6 else "measure" if draw < 0.7 else "prompt"


@cache
def _reviews(part: str) -> list[tuple[str, int]]:
    """(text, 1 for a good review) in a shuffled order."""
    rows = rows_of(trials() / "data" / "imdb-train.jsonl.gz")
    texts = [(re.sub(r"\s*<br\s*/?>\s*", " ", row["text"]).strip(), int(row["label"])) for row in rows]
    found = [each for each in texts if _part(each[0]) == part]
    random.Random(0).shuffle(found)
    return found


@cache
def _sst(held_out: bool) -> tuple[list[str], list[int]]:
    """The texts of SST-2 and 1 for a positive one: a quarter held out by its text."""
    rows = rows_of(trials() / "data" / "sst2-1k.jsonl")
    kept = [row for row in rows if (hashlib.sha256(row["text"].encode()).digest()[0] < 64) == held_out]
    return [row["text"] for row in kept], [int(row["label"] == "positive") for row in kept]


def prompts() -> str:
    """Folder of the prompts in three splits. No beginning occurs twice."""
    folder = WORK / "prompts"
    if not (folder / "train.jsonl").is_file():
        found = {beginning(text): label for text, label in _reviews("prompt") if len(text.split()) > 2 * PROMPT_WORDS}
        # Equal but for capitals and punctuation: a single one stays.
        distinct = list({re.sub(r"\W+", " ", text.lower()): text for text in found}.values())
        start = 0
        for split, size in SIZES.items():  # training comes last: a folder without it is incomplete
            rows = [{"prompt": text, "review": found[text]} for text in distinct[start : start + size]]
            write_atomic(folder / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            start += size
    return str(folder)


def beginning(text: str) -> str:
    """The first eight words."""
    return " ".join(text.split()[:PROMPT_WORDS])


# -- reward and judge ---------------------------------------------------------------------------------------------------


@cache
def _reward_model() -> Linear:
    def train() -> Linear:
        rows = _reviews("fit")[:_FITTED_ON]
        return fit(bag_of_words([text for text, _ in rows]), [label for _, label in rows], strength=10.0)

    return fitted(WORK / "reward.safetensors", train)


@cache
def _judge_model() -> Linear:
    def train() -> Linear:
        texts, labels = _sst(False)
        return fit(embeddings(texts), labels, strength=3.0)

    return fitted(WORK / "judge.safetensors", train)


def by_words(texts: list[str]) -> list[float]:
    """The reward model's log-odds of a good review."""
    return _reward_model()(bag_of_words(texts))


def by_embeddings(texts: list[str]) -> list[float]:
    """The judge's log-odds, averaged over sentences."""
    parts = [sentences(text) for text in texts]
    scores = iter(_judge_model()(embeddings([part for each in parts for part in each])))
    return [sum(next(scores) for _ in each) / len(each) for each in parts]


def sentences(text: str) -> list[str]:
    """The first sentences of a text; the text itself where it has none."""
    found = [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if re.search(r"\w", part)]
    return found[:_SENTENCES] or [text]


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, log_odds))))


def _whole(prompts: list[str], completions: list[str]) -> list[str]:
    # A completion begins with the space that separates it, unless the tokenizer drops it.
    return [f"{prompt} {text.lstrip()}" for prompt, text in zip(prompts, completions, strict=True)]


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The reward model's probability of a good review, for training."""
    return [_share(value) for value in by_words(_whole(prompts, completions))]


def judge(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The judge's probability of a positive text."""
    return [_share(value) for value in by_embeddings(_whole(prompts, completions))]


def positive(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Whether the judge calls the text positive."""
    return [float(value > 0) for value in by_embeddings(_whole(prompts, completions))]


def brief(completions: list[str], **_: Any) -> list[float]:
    """Another reward, for a proxy beside: 1 for sentences of at most six words, falling to 0 at thirty, on average."""
    lengths = [[len(part.split()) for part in sentences(text)] for text in completions]
    return [sum(max(0.0, min(1.0, (30 - n) / 24)) for n in each) / len(each) for each in lengths]


# -- how good they are --------------------------------------------------------------------------------------------------


def measure(size: int) -> dict[str, dict[str, Any]]:
    """Both classifiers on held-out texts of both sources."""
    reviews, (texts, labels) = _reviews("measure")[:size], _sst(True)
    short = [" ".join(text.split()[:60]) for text, _ in reviews]
    sources = {
        "IMDB, whole reviews": ([text for text, _ in reviews], [label for _, label in reviews]),
        "IMDB, first 60 words": (short, [label for _, label in reviews]),
        "SST-2": (texts[:size], labels[:size]),
    }
    return {
        f"{name} on {source}": accuracy(score(list(said)), truth)
        for name, score in (("reward (words, IMDB)", by_words), ("judge (embeddings, SST-2)", by_embeddings))
        for source, (said, truth) in sources.items()
    }


def main() -> None:
    """Write the prompts, fit both classifiers, and record how good they are."""
    is_smoke = script_options(__doc__).smoke
    print(prompts())
    rows = measure(60 if is_smoke else _MEASURED_ON)
    if not is_smoke:
        command = "FRUGALIGN_TRIALS=folder FRUGALIGN_MODELS=folder python -m experiments.sentiment"
        write_summary("real-sentiment-judges", command, "no language model: two classifiers on texts by people", rows)
    for name, row in rows.items():
        print(f"{name:50}", {key: round(value, 3) for key, value in row.items()})


if __name__ == "__main__":
    main()
