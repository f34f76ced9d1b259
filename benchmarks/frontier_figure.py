"""The picture of the frontier benchmark: every checkpoint, each method's envelope, and what the test prompts said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from benchmarks.frontier_points import admitted, best_at

LOOKS = {
    "proxy": ("#0072b2", "o", "frugalign proxy"),
    "rloo": ("#d55e00", "s", "TRL RLOO, full fine-tuning"),
    "rloo-lora": ("#009e73", "^", "TRL RLOO, LoRA"),
    "token-bias": ("#999999", "v", "control: state-free bias per token"),
    "untrained": ("#000000", "x", "control: untrained proxy (restriction only)"),
}
WIDEST = 40.0


def draw(result: dict[str, Any], file: Path) -> None:
    """Reward against KL: small points are checkpoints on validation prompts, lines their envelopes, stars the test."""
    figure, axes = plt.subplots(figsize=(8.5, 5.5), constrained_layout=True)
    for method, (colour, marker, label) in LOOKS.items():
        runs = [run for run in result["runs"] if run["method"] == method]
        if not runs:
            continue
        points = [point for run in runs for point in run["trajectory"]]
        alone = method == "untrained"
        axes.scatter(
            [point["kl"] for point in points],
            [point["reward"] for point in points],
            color=colour,
            marker=marker,
            label=label if alone else None,
            s=45 if alone else 14,
            alpha=1.0 if alone else 0.4,
            linewidths=1.5 if alone else 0,
        )
        if not alone:
            axes.plot(*_envelope(runs), color=colour, linewidth=2, label=label)
        tested = (
            [] if alone else [row["test"] for row in result["frontier"] if row["method"] == method and "test" in row]
        )
        for test in tested:
            reward = test["reward"]
            error = [[reward["mean"] - reward["ci_low"]], [reward["ci_high"] - reward["mean"]]]
            axes.errorbar(
                test["kl"]["mean"], reward["mean"], yerr=error, color=colour, marker="*", markersize=13, capsize=3
            )
    for level in sorted({row["kl_level"] for row in result["frontier"]}):
        axes.axvline(level, color="#cccccc", linewidth=0.8, zorder=0)
    axes.plot(
        [], [], color="#555555", marker="*", markersize=11, linestyle="none", label="chosen, on test prompts (95 %)"
    )
    axes.set_xlim(-1, WIDEST)
    axes.set_xlabel("KL to the base, nats per sequence (exact)")
    axes.set_ylabel("reward (minus sentiment)")
    budget = result["budget"]
    axes.set_title(f"Six settings a method, {budget['most_sampled_tokens_per_run'] / 1e6:.2f} M sampled tokens a run")
    # Where no method has been: right of what the restriction costs, left of the coarsest one.
    axes.legend(loc="lower left", bbox_to_anchor=(0.27, 0.0), fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _envelope(runs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """The best reward at or below each KL, as far as the trajectories reach."""
    reach = min(WIDEST, max(point["kl"] for run in runs for point in run["trajectory"]))
    levels = [reach * step / 400 for step in range(401)]
    found = [(level, best_at([run for run in runs if admitted(run, level)], level)) for level in levels]
    kept = [(level, reward) for level, reward in found if reward is not None]
    return [level for level, _ in kept], [reward for _, reward in kept]
