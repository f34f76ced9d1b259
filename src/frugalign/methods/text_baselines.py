"""Baselines that whatever learned from preferences should beat: the answer's length alone, and its words alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from frugalign.data.encode import answer_text
from frugalign.data.labelled import PreferenceData

Scores = NDArray[np.float64]


def length_scores(preferences: PreferenceData, train: Sequence[int]) -> Scores:
    """A score per answer: its length in characters, with the sign that orders the training examples better."""
    lengths = np.array([float(len(answer_text(answer))) for answer in preferences.answers])
    return lengths if accuracy(preferences, lengths, train) >= 0.5 else -lengths


def word_scores(preferences: PreferenceData, train: Sequence[int], seed: int = 0) -> Scores:
    """A score per answer from a linear model of its words and word pairs (TF-IDF), fitted on the training examples.

    Pairs become differences of their two answers' features, each in both directions.
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True)
    rows = sorted({row for example in train for row in rows_of(preferences, example)})
    texts = [answer_text(answer) for answer in preferences.answers]
    try:
        vectorizer.fit([texts[row] for row in rows])
    except ValueError:  # no word occurs twice
        return np.zeros(len(texts))
    features = vectorizer.transform(texts)
    model = LogisticRegression(C=1.0, max_iter=1000, fit_intercept=not preferences.is_paired, random_state=seed)
    if preferences.is_paired:
        better, worse = (np.array([preferences.pairs[example][side] for example in train]) for side in (0, 1))
        difference = features[better] - features[worse]
        sign = np.where(np.arange(len(train)) % 2 == 0, 1, -1)
        model.fit(difference.multiply(sign[:, None]).tocsr(), sign)
    else:
        labelled = [preferences.labels[example] for example in train]
        model.fit(features[[row for row, _ in labelled]], [label for _, label in labelled])
    scores: Scores = model.decision_function(features)
    return scores


def rows_of(preferences: PreferenceData, example: int) -> tuple[int, ...]:
    """The answers of an example."""
    return preferences.pairs[example] if preferences.is_paired else (preferences.labels[example][0],)


def outcomes(
    preferences: PreferenceData, scores: Scores, examples: Sequence[int], threshold: float = 0.0
) -> list[float]:
    """1 per example if the scores order the pair correctly, 0 if not, ½ for a tie. Single labels are compared with `threshold`."""
    found = []
    for example in examples:
        if preferences.is_paired:
            better, worse = preferences.pairs[example]
            gap = scores[better] - scores[worse]
        else:
            row, label = preferences.labels[example]
            gap = (scores[row] - threshold) * (1 if label else -1)
        found.append(0.5 if gap == 0 else float(gap > 0))
    return found


def accuracy(preferences: PreferenceData, scores: Scores, examples: Sequence[int], threshold: float = 0.0) -> float:
    """Mean of `outcomes`. For single labels, the default threshold is the median score."""
    if not preferences.is_paired and threshold == 0.0:
        threshold = float(np.median(scores[[preferences.labels[example][0] for example in examples]]))
    return float(np.mean(outcomes(preferences, scores, examples, threshold)))
