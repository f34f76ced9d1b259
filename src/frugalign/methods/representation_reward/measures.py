"""The measures of a representation reward, with controls and baselines (`docs/methods/representation-reward.md#read-the-report`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from frugalign.data.labelled import PreferenceData
from frugalign.methods import text_baselines as baselines
from frugalign.methods.representation_reward.examples import Split, examples_of
from frugalign.methods.representation_reward.feature_store import Features, LayerColumns, States
from frugalign.methods.representation_reward.options import RewardOptions
from frugalign.metrics import mean_interval
from frugalign.metrics.calibration import reliability
from frugalign.rewards.representation.fit import Examples, FitOptions, FitResult, fit, raw_rewards
from frugalign.rewards.representation.network import RepresentationModel

CURVE = (0.125, 0.25, 0.5, 1.0)
"""Shares of the training examples in the learning curve. The last one is the fit itself."""


@dataclass(frozen=True)
class Chosen:
    """The fit with the lowest validation loss: its states, layers and penalty."""

    fitted: FitResult
    read: LayerColumns
    layers: list[int]
    penalty: float


def measure(
    chosen: Chosen,
    preferences: PreferenceData,
    split: Split,
    every: Features,
    layers: Sequence[int],
    options: RewardOptions,
) -> dict[str, Any]:
    """The report's measures on the test prompts, with controls and baselines. `every`: the states of all `layers`."""
    probes, features, test, width = chosen.fitted.model, chosen.read, split.test, every.shape[2]
    settings = replace(fit_options(options), weight_decay=chosen.penalty)
    validation = examples_of(preferences, split.validation)

    def refit(numbers: Sequence[int], flips: Tensor | None = None) -> RepresentationModel:
        train, held_out = examples_of(preferences, numbers), validation
        if flips is not None:
            train, held_out = _shuffled(train, flips[: len(train)]), _shuffled(held_out, flips[len(train) :])
        return fit(features.__getitem__, train, held_out, chosen.layers, width, settings).model

    rng = np.random.default_rng(options.seed)
    shuffled = []
    for _ in range(options.n_shuffles):
        flips = torch.tensor(rng.random(len(split.train) + len(validation)) < 0.5)
        shuffled.append(_accuracy(refit(split.train, flips), preferences, features, test))
    curve = []
    order = [split.train[place] for place in rng.permutation(len(split.train))]
    for share in CURVE:
        part = order[: max(2, round(share * len(order)))]
        learned = probes if len(part) == len(order) else refit(part)
        curve.append({"examples": len(part), "accuracy": _accuracy(learned, preferences, features, test)})
    per_layer = []
    for column, layer in enumerate(layers):
        read = LayerColumns(every, [column]).__getitem__
        found = fit(read, examples_of(preferences, split.train), validation, [layer], width, settings)
        scores = raw_rewards(found.model, read, torch.arange(len(features)))
        per_layer.append({"layer": layer, "accuracy": baselines.accuracy(preferences, scores.double().numpy(), test)})
    lengths, words = baselines.length_scores(preferences, split.train), baselines.word_scores(preferences, split.train)
    return {
        "test": measure_accuracy(probes, preferences, features, test),
        "shuffled": {"mean": float(np.mean(shuffled)) if shuffled else None, "each": shuffled},
        "length_only": baselines.accuracy(preferences, lengths, test),
        "bag_of_words": baselines.accuracy(preferences, words, test),
        "per_layer": per_layer,
        "learning_curve": curve,
        "calibration": {"mu": probes.config.mu, "scale": probes.config.scale},
    }


def measure_accuracy(
    probes: RepresentationModel, preferences: PreferenceData, features: States, examples: Sequence[int] | None = None
) -> dict[str, Any]:
    """Accuracy with its interval (over prompts), AUROC, calibration before and after, and the rewards for a histogram."""
    numbers = list(range(len(preferences))) if examples is None else list(examples)
    raw = raw_rewards(probes, features.__getitem__, torch.arange(len(features))).double().numpy()
    calibrated = (raw - probes.config.mu) / probes.config.scale
    good, bad = preferences.better_and_worse(numbers)
    threshold = 0.0 if preferences.is_paired else probes.config.mu
    right = baselines.outcomes(preferences, raw, numbers, threshold)
    estimate = mean_interval(right, [preferences.prompt_of(number) for number in numbers])
    assert estimate is not None
    found: dict[str, Any] = {
        "accuracy": estimate.to_dict(),
        "auroc": auroc(raw[good], raw[bad]),
        "groups": groups_of(preferences, raw),
        "rewards": {"chosen": calibrated[good].tolist(), "rejected": calibrated[bad].tolist()},
    }
    if preferences.is_paired:
        for name, scores in (("before", raw), ("after", calibrated)):
            gap = scores[good] - scores[bad]
            confidence = 1 / (1 + np.exp(-np.abs(gap)))
            found[f"calibration_{name}"] = asdict(reliability(confidence.tolist(), (gap > 0).tolist()))
    return found


def auroc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float | None:
    """How often a good answer scores above a bad one, ties counted half. None if either kind is missing."""
    if not (len(good) and len(bad)):
        return None
    return float(roc_auc_score([1] * len(good) + [0] * len(bad), np.concatenate([good, bad])))


def groups_of(preferences: PreferenceData, scores: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The AUROC within each group, with the number of good and bad answers, in the order of the groups' names."""
    found = []
    for group in sorted(set(preferences.groups)):
        good, bad = preferences.better_and_worse([i for i, each in enumerate(preferences.groups) if each == group])
        found.append({"group": group, "good": len(good), "bad": len(bad), "auroc": auroc(scores[good], scores[bad])})
    return found


def group_note(elsewhere: Mapping[str, Mapping[str, Any]]) -> str:
    """What the AUROC by group says, in words: the groups where bad answers score higher, or that it was not measured."""
    measured = [(name, group) for name, other in elsewhere.items() for group in other["groups"]]
    known = [(name, group) for name, group in measured if group["auroc"] is not None]
    if not known:
        return (
            "The AUROC by group was not measured, so these probes may simply prefer refusals. Give labelled answers to safe and to "
            "unsafe prompts as --eval_dataset_name, and the column that tells them apart as --eval_group_column."
        )
    wrong = [f"{group['group']} ({name})" for name, group in known if group["auroc"] < 0.5]
    if wrong:
        return f"Bad answers score above good ones, AUROC below 0.5, in: {', '.join(wrong)}. The probes misjudge these."
    return "Good answers score above bad ones in every group."


def _accuracy(
    probes: RepresentationModel, preferences: PreferenceData, features: States, examples: Sequence[int]
) -> float:
    rows = sorted({row for example in examples for row in baselines.rows_of(preferences, example)})
    scores = np.zeros(len(features))
    scores[rows] = raw_rewards(probes, features.__getitem__, torch.tensor(rows)).double().numpy()
    return baselines.accuracy(preferences, scores, examples)


def _shuffled(examples: Examples, flips: Tensor) -> Examples:
    """Swap pairs, or replace labels, by coin flips."""
    if examples.second is not None:
        first = torch.where(flips, examples.second, examples.first)
        return Examples(first, torch.where(flips, examples.first, examples.second))
    return Examples(examples.first, labels=flips.float())


def fit_options(options: RewardOptions) -> FitOptions:
    """The settings of a fit, without the penalty."""
    return FitOptions(max_iterations=options.max_iterations, patience=options.patience, margin=options.margin)
