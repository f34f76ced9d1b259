"""Rankings and samples over training: correlations by hand, the floor of chance, and a watched run that was stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import wasserstein_distance
from tests.methods.rerank.test_groups import command, home, lines

from frugalign.cli.main import main
from frugalign.methods.rerank.shift_monitor import noise_floor, within_prompt_spearman

__all__ = ["home"]  # pairs, prompts and a reward of random probes

MINE = "def letters(completions, **_):\n    return [float(len(text)) for text in completions]\n"


def test_rank_correlation_is_within_a_prompt_by_hand() -> None:
    """1234 against 1243: ρ = 1 − 6·2/(4·15) = 0.8. Levels between prompts do not count, groups without order are left out."""
    before = [[1.0, 2.0, 3.0, 4.0], [100.0, 200.0], [5.0, 5.0]]
    now = [[1.0, 2.0, 9.0, 4.0], [-1.0, -2.0], [1.0, 2.0]]
    assert within_prompt_spearman(before, now) == pytest.approx([0.8, -1.0])


@pytest.mark.parametrize("between", [0.0, 3.0])
def test_the_floor_is_what_two_sets_of_one_model_are_apart(between: float) -> None:
    """Of many pairs of sample sets about one in forty is beyond the upper limit, also where prompts differ more than the answers to
    one; a shift of one is far beyond."""
    rng = np.random.default_rng(0)
    levels = between * rng.normal(size=(40, 1))

    def samples() -> np.ndarray:
        return levels + rng.normal(size=(40, 5))

    first, second = samples(), samples()
    floor = noise_floor(first.tolist(), second.tolist())
    distances = [wasserstein_distance(samples().ravel(), samples().ravel()) for _ in range(400)]
    assert floor.mean == pytest.approx(np.mean(distances), rel=0.15)
    assert 0.002 <= np.mean(np.array(distances) > floor.high) <= 0.08
    assert wasserstein_distance(first.ravel(), second.ravel() + 1) > 2 * floor.high


@pytest.mark.slow
def test_a_watched_run_logs_its_shift_and_is_resumed_with_the_same_numbers() -> None:
    Path("my.py").write_text(MINE)
    flags: dict[str, Any] = {"sample": 0, "dataset_name": "pairs.jsonl", "num_train_epochs": 1, "save_steps": 4}
    flags |= {"shift_reward": "my.py:letters", "shift_steps": 3, "shift_prompts": 4, "save_total_limit": 99}
    assert main(command(**flags)) == 0
    looks = [line for line in lines() if "shift/wasserstein" in line]
    assert [line["step"] for line in looks] == [0, 3, 6, 9, 10]
    assert looks[0]["shift/log_likelihood_spearman"] == pytest.approx(1) and looks[0]["shift/wasserstein"] == 0
    assert looks[-1]["shift/log_likelihood_spearman"] < 1 and looks[-1]["shift/wasserstein"] > 0
    about = json.loads(Path("run/shift.json").read_text())
    assert (about["reward"], about["prompts"], about["responses"]) == ("letters", 4, 8)
    for checkpoint in Path("run").glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-4":
            shutil.rmtree(checkpoint)
    assert main(command(**flags, resume_from_checkpoint="true")) == 0
    assert [line for line in lines() if "shift/wasserstein" in line] == looks
    assert json.loads(Path("run/shift.json").read_text()) == about
    assert main(["report", "run"]) == 0
    page = Path("run/report.html").read_text()
    assert "Rankings and samples" in page and "rank correlations with the start" in page


def test_watching_needs_probes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.py").write_text(MINE)
    flags = {"sample": 0, "dataset_name": "pairs.jsonl", "shift_reward": "my.py:letters", "reward": None}
    assert main(command(**flags, confidence="constant")) == 2
    assert "shift_reward needs reward" in capsys.readouterr().err
