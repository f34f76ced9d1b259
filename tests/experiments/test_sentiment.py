"""The sentiment task: beginnings of reviews, a reward by words, and a judge by sentences."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from experiments import sentiment
from experiments.classifiers import Linear


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Good. Very good! Is it? Yes", ["Good.", "Very good!", "Is it?", "Yes"]),
        ("it cost 2.5 million and it shows", ["it cost 2.5 million and it shows"]),
        ("... !", ["... !"]),
        ("", [""]),
        ("a. " * 20, ["a."] * 8),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert sentiment.sentences(text) == found


def test_the_judge_reads_sentence_by_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of log-odds: one sentence of praise for two of blame."""
    monkeypatch.setattr(
        sentiment, "embeddings", lambda texts: np.array([[1.0 if "good" in text else -1.0] for text in texts])
    )
    monkeypatch.setattr(sentiment, "_judge_model", lambda: Linear(np.array([3.0]), 0.0))
    assert sentiment.by_embeddings(["It is good. It is bad. So bad.", "All good."]) == [-1.0, 3.0]
    texts = {"prompts": ["It is good. It", "It was all"], "completions": [" is bad. So bad.", "good."]}
    assert sentiment.positive(**texts) == [0.0, 1.0]
    assert sentiment.judge(**texts) == pytest.approx([1 / (1 + np.exp(1)), 1 / (1 + np.exp(-3))])


def test_the_reward_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def scored(texts: list[str]) -> list[float]:
        seen.extend(texts)
        return [0.0, 1e6, -1e6]

    monkeypatch.setattr(sentiment, "by_words", scored)
    found = sentiment.reward(prompts=["a b", "c", "d"], completions=[" e", "f", ""])
    assert found[0] == 0.5 and 1 - found[1] < 1e-6 and found[2] < 1e-6 and seen == ["a b e", "c f", "d "]


@pytest.mark.slow
@pytest.mark.skipif("FRUGALIGN_TRIALS" not in os.environ, reason="FRUGALIGN_TRIALS names no trials folder")
def test_prompts_are_beginnings_that_no_split_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no classifier was fitted or measured on the reviews that they begin."""
    monkeypatch.setattr(sentiment, "WORK", tmp_path)
    folder = Path(sentiment.prompts())
    rows = {
        path.stem: [json.loads(line)["prompt"] for line in path.read_text().splitlines()] for path in folder.iterdir()
    }
    assert {split: len(texts) for split, texts in rows.items()} == sentiment.SIZES
    every = [text for texts in rows.values() for text in texts]
    assert len({text.lower() for text in every}) == len(every)
    assert all(len(text.split()) == 8 and "<br" not in text for text in every)
    known = {sentiment.beginning(text) for text, _ in sentiment._reviews("prompt")}
    assert {*every} <= known
    parts = [{text for text, _ in sentiment._reviews(part)} for part in ("fit", "measure", "prompt")]
    assert not parts[0] & parts[2] and not parts[1] & parts[2] and not parts[0] & parts[1]
