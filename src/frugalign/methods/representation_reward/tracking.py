"""What the trackers are told of a fit: the losses of every iteration, and the figures of the report."""

from __future__ import annotations

from typing import Any

from frugalign.methods.representation_reward.options import RewardOptions


def track(options: RewardOptions, probes: Any, report: dict[str, Any]) -> None:
    """Send a finished report to the trackers that `report_to` names. It is one run of `max_iterations` steps at most."""
    if options.report_to in (None, "none", [], ["none"]):
        return
    from transformers import TrainingArguments

    from frugalign.runs.trackers import Trackers

    arguments: Any = {"report_to": options.report_to, "hub_private_repo": options.hub_private_repo}
    trackers = Trackers(TrainingArguments(str(options.output_dir), use_cpu=True, **arguments))
    trackers.begin(probes)
    history = report["fit"]["history"]
    for step, (loss, held_out) in enumerate(history, start=1):
        trackers.log({"loss": loss, "eval_loss": held_out}, step)
    trackers.log(figures(report), len(history))
    trackers.end()


def figures(report: dict[str, Any]) -> dict[str, float]:
    """The report's figures, by the names of a tracker."""
    means = {"eval_accuracy": report["test"]["accuracy"], "eval_accuracy_shuffled": report["shuffled"]}
    means |= {f"eval_accuracy/{name}": each["accuracy"] for name, each in report["elsewhere"].items()}
    return {name: float(each["mean"]) for name, each in means.items() if each["mean"] is not None}
