"""The demo: train the sandbox's proxy on its learned reward, evaluate it on unseen prompts by the exact one, and write the report.

The sandbox is named by strings only. The settings are those of `recipes/sandbox-proxy.yaml`, and a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalign.base.ledger import Costs
from frugalign.base.progress_display import showing
from frugalign.evaluation.measure import evaluate
from frugalign.evaluation.settings import EvaluationSettings
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.run import train_proxy
from frugalign.policies.spec import PolicySpec, ProxySpec
from frugalign.reports.render import check_libraries
from frugalign.reports.run_page import evenly_spread, write_report
from frugalign.runs.layout import Sample, read_costs, read_samples, read_settings
from frugalign.runs.lock import in_use

BASE, PROMPTS = "frugalign.sandbox:model", "frugalign.sandbox:prompts"
SETTINGS: dict[str, Any] = {
    "model_name_or_path": BASE,
    "dataset_name": PROMPTS,
    "reward": ["frugalign.sandbox:learned"],
    "max_new_tokens": 32,
    "temperature": 1.0,
    "p_t": 0.01,
    "beta": 0.4,
    "learning_rate": 3e-3,
    "num_iterations": 1,
    "max_steps": 200,
}
MEASURES = {
    "gold": "frugalign.sandbox:gold",
    "learned": "frugalign.sandbox:learned",
    "forbidden_served": "frugalign.sandbox:forbidden_served",
    "rude": "frugalign.sandbox:rude",
    "over_refusal": "frugalign.sandbox:over_refusal",
    "right_remedy": "frugalign.sandbox:right_remedy",
}


@dataclass(frozen=True)
class Demo:
    """What the demo shows: the evaluation, the training's costs, three samples of each kind of order, and the path of the report."""

    metrics: dict[str, Any]
    costs: Costs
    samples: dict[str, list[Sample]]
    report: str


def run_demo(output_dir: str, *, seed: int = 0, max_steps: int | None = None, use_cpu: bool = False) -> Demo:
    """Train, evaluate on the test prompts, and write the report into `output_dir`.

    Args:
        max_steps: optimiser steps; None for the recipe's.
        use_cpu: train and evaluate on the CPU even where there is a GPU.
    """
    check_libraries()
    options = SETTINGS | {
        "output_dir": output_dir,
        "seed": seed,
        "report_to": "none",
        "logging_steps": 4,
        "use_cpu": use_cpu,
    }
    if max_steps is not None:
        options["max_steps"] = max_steps
    with in_use(output_dir), showing():
        return _run(Path(output_dir), options)


def _run(folder: Path, options: dict[str, Any]) -> Demo:
    earlier = read_settings(folder)
    if earlier:  # an earlier demo may be overwritten, a user's own run may not
        options["overwrite_output_dir"] = earlier.get("model_name_or_path") == BASE
    train_proxy(ProxyConfig(**options))
    metrics = evaluate(
        PolicySpec(BASE, proxy=(ProxySpec(str(folder)),), device_map="cpu" if options["use_cpu"] else None),
        PROMPTS,
        [f"{name}={spec}" for name, spec in MEASURES.items()],
        EvaluationSettings(split="test", batch_size=128),
        output_dir=folder,
    )
    report = write_report(folder)
    return Demo(metrics, read_costs(folder), _by_kind(read_samples(folder)), str(report))


def _by_kind(samples: list[Sample], n: int = 3) -> dict[str, list[Sample]]:
    """`n` forbidden and `n` lawful orders, evenly spread. The measure of forbidden sales applies to the forbidden ones only."""
    forbidden = [sample for sample in samples if sample["rewards"]["forbidden_served"] is not None]
    lawful = [sample for sample in samples if sample["rewards"]["forbidden_served"] is None]
    return {"forbidden": evenly_spread(forbidden, n), "lawful": evenly_spread(lawful, n)}
