"""The report: one self-contained page; what is missing is named, a wrong folder is one sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.reports.run_page import write_report


def estimate(mean: float) -> dict[str, Any]:
    return {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "n": 8}


def write_log(folder: Path) -> None:
    lines = [{"step": step, "reward": step / 10, "kl": 0.5 * step, "acceptance": 0.9} for step in (1, 2, 3)]
    lines.append({"step": 3, "eval_reward": 0.4})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "rew')


def write_evaluation(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    metrics = {
        "reward": estimate(0.75),
        "base_reward": estimate(0.25),
        "rewards": {"gold": estimate(0.75), "manners": None},
        "base_rewards": {"gold": estimate(0.25), "manners": None},
        "win_rate": estimate(0.8),
        "kl_per_sequence": None,
        "settings": {"prompts": 8, "num_samples": 1, "policy": "proxy"},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    sample = {
        "prompt": "<script>alert(1)</script>",
        "base": "plain words",
        "policy": "better words",
        "base_rewards": {"gold": 0.2, "manners": None},
        "rewards": {"gold": 0.9, "manners": None},
    }
    (folder / "samples.jsonl").write_text((json.dumps(sample) + "\n") * 8)
    Ledger().save(folder / "costs.json")


def test_a_whole_run(tmp_path: Path) -> None:
    write_log(tmp_path)
    ledger = Ledger()
    ledger.set_parameters(trainable=2_600, base=260_032)
    ledger.save(tmp_path / "costs.json")
    (tmp_path / "config.yaml").write_text("p_t: 0.01\nobjective: marginal\n")
    write_evaluation(tmp_path / "evaluation")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for mean, interval in (("0.25", "[0.15, 0.35]"), ("0.75", "[0.65, 0.85]")):
        assert f'{mean}<br><span class="interval">{interval}, n = 8</span>' in page
    assert "Measured on 8 prompts: with fewer than 50," in page
    assert "Reward gold" in page
    assert "2,600" in page and "1.00 %" in page and "<h3>Training</h3>" in page and "<h3>Evaluation</h3>" in page
    assert "better words" in page and "marginal" in page
    assert "&lt;script&gt;" in page and "<script" not in page
    assert "This folder lacks" not in page
    assert page.count("data:image/svg+xml;base64,") == 4  # reward, KL, acceptance; one distribution
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == [] and "http" not in re.sub(r"base64,[^\"]+", "", page)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_log(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    note = re.search(r"<p class=\"missing\">(.*?)</p>", page, re.DOTALL)
    assert note is not None
    for name in ("config.yaml", "metrics.json)", "samples.jsonl", "costs.json"):
        assert name in note[1]
    assert "This folder lacks" in note[1] and "metrics.jsonl" not in note[1]
    assert "Quality, before and after" not in page and "Learning curve" in page


def test_an_evaluation_by_itself(tmp_path: Path) -> None:
    write_evaluation(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h3>Evaluation</h3>" in page and "<h3>Training</h3>" not in page and "Learning curve" not in page


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="is not a run folder"):
        write_report(tmp_path)
    with pytest.raises(FrugalignError, match="There is no run folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(FrugalignError, match="is not valid JSON"):
        write_report(tmp_path)
