"""Probes at the width of a 7B model: probes against logistic regression, on hidden states of Llama-2-7B.

    FRUGALIGN_TRIALS=folder python -m experiments.llama2_probes [--smoke]

There are 385 states at four layers, grouped by id: an id in both classes is very probably one prompt. Cross-validation has five folds and
five repeats. The penalty, and the regression's layer and C, are chosen by five inner folds. The ranking accuracy is over ids with a safe and
an unsafe state in the same test fold. The control has shuffled labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from experiments.summary import script_options, write_summary
from experiments.trials import trials
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from frugalign.rewards.representation.fit import Examples, FitOptions, fit, label_loss

LAYERS = [8, 16, 24, 32]
PENALTIES = (2e-5, 6e-5, 2e-4)
CS = (1e-4, 1e-3, 1e-2, 1e-1)
FOLDS = REPEATS = 5


def data() -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """States `[385, 4, 4096]`, 1 where safe, ids."""
    saved = np.load(trials() / "data" / "llama2-7b-hidden-states.npz")
    states = torch.tensor(np.concatenate([saved["safe"], saved["unsafe"]]).astype(np.float32))
    labels = np.r_[np.ones(len(saved["safe"])), np.zeros(len(saved["unsafe"]))]
    return states, labels, np.r_[saved["safe_ids"], saved["unsafe_ids"]]


def probes(
    states: torch.Tensor,
    y: np.ndarray,
    groups: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    penalties: tuple[float, ...] = PENALTIES,
) -> np.ndarray:
    """Rewards of the test rows. The penalty is chosen on the training rows, and every fit runs until it converges."""
    labels = torch.tensor(y)

    def settled(rows: np.ndarray, penalty: float) -> Any:
        index = torch.tensor(rows)
        whole = Examples(index, labels=labels[index])
        # The training rows are also the validation rows, so nothing stops the fit early.
        options = FitOptions(weight_decay=penalty, patience=80, max_iterations=80)
        return fit(states.__getitem__, whole, whole, LAYERS, states.shape[2], options).model

    def loss(model: Any, rows: np.ndarray) -> float:
        index = torch.tensor(rows)
        with torch.no_grad():
            return float(label_loss(model(states[index]), labels[index]))

    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(train, y[train], groups[train]))
    best = min(
        penalties,
        key=lambda penalty: (
            0.0 if len(penalties) == 1 else sum(loss(settled(train[a], penalty), train[b]) for a, b in folds)
        ),
    )
    with torch.no_grad():
        found: np.ndarray = settled(train, best)(states[torch.tensor(test)]).double().numpy()
    return found


def regression(
    states: torch.Tensor,
    y: np.ndarray,
    groups: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    cs: tuple[float, ...] = CS,
) -> np.ndarray:
    """Log-odds of the test rows by logistic regression on one layer. Layer and C are chosen on the training rows."""

    def fitted(layer: int, c: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x = states[:, layer].numpy()
        mean, scale = x[a].mean(0), x[a].std(0) + 1e-6
        model = LogisticRegression(C=c, max_iter=300).fit((x[a] - mean) / scale, y[a])
        found: np.ndarray = model.decision_function((x[b] - mean) / scale)
        return found

    scores: dict[tuple[int, float], list[float]] = {}
    for a, b in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(train, y[train], groups[train]):
        for layer in range(len(LAYERS)):
            for c in cs:
                log_odds = fitted(layer, c, train[a], train[b])
                sign = np.where(y[train[b]] == 1, 1, -1)
                scores.setdefault((layer, c), []).append(float(np.logaddexp(0, -sign * log_odds).mean()))
    layer, c = min(scores, key=lambda key: np.mean(scores[key]))
    return fitted(layer, c, train, test)


def within_ids(score: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[int, int]:
    """(ids ranked correctly, ids with both classes)."""
    right = total = 0
    for group in np.unique(groups):
        safe, unsafe = score[(groups == group) & (y == 1)], score[(groups == group) & (y == 0)]
        if len(safe) and len(unsafe):
            total += 1
            right += int(safe.mean() > unsafe.mean())
    return right, total


def main() -> None:
    """Run, write and print."""
    is_smoke = script_options(__doc__).smoke
    penalties, cs = (PENALTIES[:1], CS[:1]) if is_smoke else (PENALTIES, CS)
    states, y, groups = data()
    folds: list[dict[str, float]] = []
    ranked = np.zeros(2, dtype=int)
    for repeat in range(1 if is_smoke else REPEATS):
        shuffled = np.random.default_rng(repeat).permutation(y)
        for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=repeat).split(states, y, groups):
            ours = probes(states, y, groups, train, test, penalties)
            theirs = regression(states, y, groups, train, test, cs)
            control = probes(states, shuffled, groups, train, test, penalties=PENALTIES[1:2])
            ranked += within_ids(ours, y[test], groups[test])
            folds.append(
                {
                    "probes": float(((ours > 0) == (y[test] == 1)).mean()),
                    "regression": float(((theirs > 0) == (y[test] == 1)).mean()),
                    "shuffled": float(((control > 0) == (shuffled[test] == 1)).mean()),
                }
            )
            print(repeat, {name: round(value, 3) for name, value in folds[-1].items()}, flush=True)
            if is_smoke and len(folds) == 2:
                break
    difference = np.array([fold["probes"] - fold["regression"] for fold in folds])
    accuracy = {name: 100 * float(np.mean([fold[name] for fold in folds])) for name in folds[0]}
    error = float(difference.std(ddof=1) / len(difference) ** 0.5)
    rows = {
        "probes": {
            "accuracy, %": accuracy["probes"],
            "ids ranked rightly, %": 100 * float(ranked[0] / ranked[1]),
        },
        "logistic regression, best layer": {"accuracy, %": accuracy["regression"]},
        "shuffled labels": {"accuracy, %": accuracy["shuffled"]},
        "probes − regression": {"points": 100 * float(difference.mean()), "standard error, points": 100 * error},
    }
    if not is_smoke:
        command = "FRUGALIGN_TRIALS=folder python -m experiments.llama2_probes"
        write_summary("llama2-probes", command, f"Llama-2-7B, {len(y)} stored hidden states at four layers", rows)
    print(rows)


if __name__ == "__main__":
    main()
