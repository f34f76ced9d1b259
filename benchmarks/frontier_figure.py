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


def _shares(result: dict[str, Any], levels: list[float]) -> str:
    """The proxy's gain over the base on the test prompts as a share of full RLOO's, level by level."""
    base = result["base_on_test"]["reward"]["mean"]

    def gain(method: str, level: float) -> float:
        row = next(each for each in result["frontier"] if each["method"] == method and each["kl_level"] == level)
        return float(row["test"]["reward"]["mean"] - base)

    return ", ".join(f"{gain('proxy', level) / gain('rloo', level):.0%} at {level:g} nats" for level in levels)


def section(result: dict[str, Any]) -> str:
    """The frontier's part of docs/results.md."""
    levels = sorted({row["kl_level"] for row in result["frontier"]})
    heading = "| | " + " | ".join(f"KL ≤ {level:g}" for level in levels) + " |\n|---|" + "---|" * len(levels)
    rows = []
    for method, (_, _, label) in LOOKS.items():
        cells = []
        for level in levels:
            row = next(r for r in result["frontier"] if r["method"] == method and r["kl_level"] == level)
            test = row.get("test")
            if test is None:
                cells.append("—")
                continue
            reward = test["reward"]
            cells.append(
                f"{reward['mean']:+.2f} [{reward['ci_low']:+.2f}, {reward['ci_high']:+.2f}] at {test['kl']['mean']:.1f}"
            )
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    costs = []
    for method in ("proxy", "rloo", "rloo-lora"):
        runs = [run for run in result["runs"] if run["method"] == method]
        seconds = sorted(run["cpu_seconds"] for run in runs)[len(runs) // 2]
        memory = sorted(run["peak_memory_mb"] for run in runs)[len(runs) // 2]
        costs.append(f"{LOOKS[method][2]} {seconds:.0f} s and {memory:,.0f} MB")
    budget = result["budget"]
    proxy, rloo = (next(run for run in result["runs"] if run["method"] == method) for method in ("proxy", "rloo"))
    share = proxy["trainable_parameters"] / rloo["trainable_parameters"]
    return "\n".join(
        [
            "## Reward against KL, beside TRL's RLOO\n",
            "```console\nFRUGALIGN_TRIALS=folder python -m benchmarks.frontier\n```\n",
            f"The stories task. Six settings of each method (the bias control: two), one seed, {budget['most_sampled_tokens_per_run']:,} sampled tokens a run. Settings and "
            "checkpoints were chosen on training prompts that no run trains on; the chosen ones were then read on the test prompts, "
            f"{budget['test_samples']} samples each. At 5 nats the proxy may use `p_t` of at most 1e-3. The RLOO's learning rates were bracketed by pilots. A cell: test reward "
            "and its interval, at the KL on the test prompts.\n",
            heading,
            *rows,
            "\n![Reward against KL](img/frontier.png)\n",
            f"Of full RLOO's gain over the base the proxy has {_shares(result, levels)}, with {share:.1%} of the trained numbers.\n",
            f"Median CPU seconds of a run without its validation, and peak memory of its process: {'; '.join(costs)}. One thread.\n",
            "At equal samples the proxy, 2,481 parameters, is level with RLOO up to 10 nats within the intervals, and below it at 20; the goal, at or above at every "
            "level, is missed there. On validation prompts it leads between 7 and 12 nats; on the test prompts every method loses some, the proxy more. "
            "What was tried on held-out training prompts: two and four passes over each rollout (two became the default and made most of the "
            "difference; the first series, with one pass, was below RLOO at every level, and the proxies' chosen checkpoints were read on the test prompts again after "
            "it), twice the learning rate, groups of four instead of eight, a four times wider proxy, and a least-squares state value as a baseline, which explains at "
            "most 8 % of the reward's variance.\n",
        ]
    )
