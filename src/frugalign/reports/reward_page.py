"""The page of a representation reward, from the report of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic
from frugalign.evaluation.schema import few_prompts
from frugalign.reports import figures
from frugalign.reports.render import render
from frugalign.runs.layout import REPORT_FILE, REWARD_REPORT_FILE, read_reward_report


def write_reward_report(folder: str | Path) -> Path:
    """Write the page of a representation reward into its run folder.

    Raises:
        FrugalignError: a folder without its report.
    """
    report = read_reward_report(Path(folder))
    if report is None:
        raise FrugalignError(f"{folder} has no {REWARD_REPORT_FILE}, so there is nothing to report.")
    page = render(
        "reward.html",
        title=Path(folder).resolve().name,
        settings=report["settings"],
        examples=report["examples"],
        shared=report.get("shared_prompts"),
        few=few_prompts(report["examples"]["test"], "test example"),
        rows=_rows(report),
        groups=[
            (name, group["group"], f"{group['good']:,}", f"{group['bad']:,}", _number(group["auroc"]))
            for name, other in report["elsewhere"].items()
            for group in other["groups"]
        ],
        group_note=report["group_note"],
        costs=_costs(report),
        figures=_figures(report),
    )
    target = Path(folder) / REPORT_FILE
    write_atomic(target, page)
    return target


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    shuffled = report["shuffled"]
    spread = f" [{100 * min(shuffled['each']):.1f}, {100 * max(shuffled['each']):.1f}]" if shuffled["each"] else ""
    full = report.get("full_model")
    whole = (
        [] if full is None else [("a whole reward model, trained on the same pairs", _percent(full["accuracy"]), "—")]
    )
    return [
        ("the probes", _percent(report["test"]["accuracy"]), _number(report["test"]["auroc"])),
        *whole,
        *(
            (f"the probes, on {name}", _percent(other["accuracy"]), _number(other["auroc"]))
            for name, other in report["elsewhere"].items()
        ),
        (
            f"probes trained on shuffled labels, mean and range of {len(shuffled['each'])}",
            "—" if shuffled["mean"] is None else f"{100 * shuffled['mean']:.1f}{spread}",
            "—",
        ),
        ("the words of the answer alone", f"{100 * report['bag_of_words']:.1f}", "—"),
        ("the length of the answer alone", f"{100 * report['length_only']:.1f}", "—"),
    ]


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['mean']:.1f} [{100 * estimate['ci_low']:.1f}, {100 * estimate['ci_high']:.1f}]"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _costs(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    cost, full = report["cost"], report.get("full_model")
    whole = []
    if full is not None:
        whole = [
            (
                f"Seconds per 1,000 pairs, a whole reward model ({full['epochs']} epochs)",
                f"{full['seconds_training_per_1000']:.1f}",
            ),
            ("GFLOPs per 1,000 pairs, a whole reward model", f"{full['flops_training_per_1000'] / 1e9:,.0f}"),
        ]
    return [
        ("Seconds per 1,000 examples, reading states", f"{cost['seconds_extracting_per_1000']:.1f}"),
        ("Seconds per 1,000 examples, fitting", f"{cost['seconds_fitting_per_1000']:.1f}"),
        ("GFLOPs per 1,000 examples, reading states", f"{cost['flops_extracting_per_1000'] / 1e9:,.0f}"),
        *whole,
        ("Tokens through the model", f"{cost['tokens']:,}"),
    ]


Figure = tuple[str, str]
"""A caption and a data URI."""


def layers_figure(report: Mapping[str, Any]) -> Figure:
    """The held-out accuracy of each layer's probe alone, beside that of all layers."""
    return (
        "Held-out accuracy of each layer alone. The dashed line is the reward, which sums its layers' probes.",
        figures.bars(
            [(str(each["layer"]), 100 * each["accuracy"]) for each in report["per_layer"]],
            "layer",
            "accuracy, %",
            100 * report["test"]["accuracy"]["mean"],
        ),
    )


def reliability_figure(report: Mapping[str, Any]) -> Figure | None:
    """The reward's accuracy against its confidence on held-out pairs; None for a reward that is not calibrated."""
    test = report["test"]
    if "calibration_after" not in test:
        return None
    before, after = test["calibration_before"], test["calibration_after"]
    return (
        f"Reliability: how often the answer with the higher reward is the better one. The expected calibration error is {before['ece']:.3f} "
        f"before and {after['ece']:.3f} after calibration.",
        figures.reliability(
            [
                ("before", before["confidence"], before["accuracy"]),
                ("after", after["confidence"], after["accuracy"]),
            ]
        ),
    )


def _blocks_figure(report: Mapping[str, Any]) -> list[Figure]:
    """The validation loss of each block of layers, where there was a choice."""
    blocks = [(span(each["layers"]), each["validation_loss"]) for each in report["layer_candidates"]]
    if len(blocks) < 2:
        return []
    caption = "Validation loss of each block of layers. The reward reads the block with the lowest."
    return [(caption, figures.bars(blocks, "layers", "loss"))]


def span(layers: Sequence[int]) -> str:
    """A block of layers in words: its first and last."""
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"


def _figures(report: Mapping[str, Any]) -> Sequence[Figure]:
    test, history = report["test"], report["fit"]["history"]
    reliability = reliability_figure(report)
    return [
        (
            "Calibrated rewards of better and worse answers to the test prompts. Less overlap is better.",
            figures.distributions(
                test["rewards"]["rejected"],
                test["rewards"]["chosen"],
                "calibrated reward",
                ("worse", "better"),
                "answers",
            ),
        ),
        *([] if reliability is None else [reliability]),
        layers_figure(report),
        *_blocks_figure(report),
        (
            "Held-out accuracy against the number of training examples.",
            figures.curve(
                [
                    (
                        "accuracy",
                        [float(point["examples"]) for point in report["learning_curve"]],
                        [100 * point["accuracy"] for point in report["learning_curve"]],
                    )
                ],
                "accuracy, %",
                "training examples",
            ),
        ),
        (
            "Loss over the iterations of the fit; the training loss includes the penalty. The iteration with the best validation loss is kept.",
            figures.curve(
                [
                    ("training", [float(i) for i in range(len(history))], [point[0] for point in history]),
                    ("validation", [float(i) for i in range(len(history))], [point[1] for point in history]),
                ],
                "loss",
                "iteration",
            ),
        ),
    ]
