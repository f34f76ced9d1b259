"""`frugalign demo` prints the table, the samples and the next commands."""

from __future__ import annotations

from typing import Any

import pytest

from frugalign.cli import demo_run as demo
from frugalign.cli.demo import cost, quality
from frugalign.cli.main import VERBS, main

NAMES = list(demo.MEASURES)


def estimate(mean: float) -> dict[str, float]:
    return {"mean": mean, "ci_low": mean - 0.05, "ci_high": mean + 0.05}


METRICS: dict[str, Any] = {
    "settings": {"prompts": 300},
    "base_rewards": {name: estimate(0.75) for name in NAMES},
    "rewards": {name: estimate(0.25) for name in NAMES} | {"rude": None},
    "kl_per_sequence": estimate(1.5),
}
COSTS: dict[str, Any] = {
    "trainable_parameters": 2_600,
    "shares": {"of_base": 0.01},
    "generated_tokens": 12_345,
    "reward_calls": 678,
    "seconds": {"rollout": 30.4, "optimise": 2.0},
    "wall_clock_seconds": 61.2,
    "peak_memory_mb": 1_234.5,
}


def test_quality_worked_numbers() -> None:
    """Shares in per cent with their interval, rewards as they are, a measure without a value as a dash."""
    rows = {title: cells for title, *cells in quality(METRICS)}
    assert rows["forbidden orders served"] == ["75.0 % [70.0, 80.0]", "25.0 % [20.0, 30.0]"]
    assert rows["exact reward (gold)"] == ["0.75 [0.70, 0.80]", "0.25 [0.20, 0.30]"]
    assert rows["rude replies"][1] == "—"
    assert rows["KL to the base, nats per sequence"] == ["0", "1.50 [1.45, 1.55]"]


def test_cost_worked_numbers() -> None:
    """2,600 parameters are 1 % of 260,000; a phase that did not happen is left out."""
    assert dict(cost(COSTS)) == {
        "Trained": "2,600 parameters, 1.00 % of the base (PPO trains two networks of the base's size)",
        "Generated": "12,345 tokens; 678 replies scored",
        "Time": "61 s (rollout 30 s, optimise 2 s)",
        "Peak memory": "1,234 MB",
    }


def test_the_page_of_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags reach the run; the table, every sample and the next commands are printed, each of a verb that exists."""
    seen: dict[str, Any] = {}
    three = [{"prompt": f"order-{i}", "base": f"base-{i}", "policy": f"proxy-{i}"} for i in range(6)]
    samples: Any = {"forbidden": three[:3], "lawful": three[3:]}

    def fake(output_dir: str, **options: Any) -> demo.Demo:
        seen.update(options, output_dir=output_dir)
        return demo.Demo(METRICS, COSTS, samples, "here/report.html")

    monkeypatch.setattr(demo, "run_demo", fake)
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["demo", "--output_dir", "here", "--seed", "3", "--max_steps", "4", "--use_cpu"]) == 0
    assert seen == {"output_dir": "here", "seed": 3, "max_steps": 4, "use_cpu": True}
    printed = capsys.readouterr().out
    assert "300 unseen prompts" in printed and "forbidden orders served" in printed and "1.50 [1.45, 1.55]" in printed
    assert all(f"{part}-{i}" in printed for i in range(6) for part in ("order", "base", "proxy"))
    assert printed.count("│ forbidden │") == printed.count("│ lawful    │") == 3
    assert "here/report.html" in printed and "--proxy here --show_rejections" in printed
    commands = [line.split()[1] for line in printed.splitlines() if line.strip().startswith("frugalign ")]
    assert commands == ["validate", "proxy", "evaluate", "chat"] and set(commands) <= set(VERBS)
