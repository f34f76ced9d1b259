"""The demo: train the sandbox's proxy on its learned reward, judge it on unseen prompts by the exact one, write the page.

The sandbox is named by strings only; the settings are those of `recipes/sandbox-proxy.yaml`, which a test holds against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from frugalign.base.ledger import read_costs
from frugalign.evaluation.measure import evaluate
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.run import train_proxy
from frugalign.reports.run_page import read_samples, write_report

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
    """What the demo shows: metrics.json, the training's costs.json, six samples, and where the page is."""

    metrics: dict[str, Any]
    costs: dict[str, Any]
    samples: list[dict[str, Any]]
    report: str


def run_demo(output_dir: str, *, seed: int = 0, max_steps: int | None = None) -> Demo:
    """Train, evaluate on the test prompts, write the report into `output_dir`.

    Args:
        max_steps: optimiser steps; None for the recipe's.
    """
    options = SETTINGS | {"output_dir": output_dir, "seed": seed, "report_to": "none", "logging_steps": 4}
    if max_steps is not None:
        options["max_steps"] = max_steps
    earlier = Path(output_dir) / "config.yaml"
    if earlier.is_file():  # an earlier demo may be written over, a user's own run may not
        options["overwrite_output_dir"] = (yaml.safe_load(earlier.read_text()) or {}).get("model_name_or_path") == BASE
    train_proxy(ProxyConfig(**options))
    metrics = evaluate(
        BASE,
        proxy=output_dir,
        dataset_name=PROMPTS,
        reward=[f"{name}={spec}" for name, spec in MEASURES.items()],
        split="test",
        output_dir=output_dir,
        batch_size=128,
    )
    report = write_report(output_dir)
    return Demo(metrics, read_costs(f"{output_dir}/costs.json"), read_samples(output_dir, 6), str(report))
