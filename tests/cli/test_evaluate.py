"""`frugalign evaluate` with the rules of decoding: from the flags to the table and the files."""

import json
from pathlib import Path

import pytest

from frugalign.cli.evaluate import print_table, rows
from frugalign.cli.main import main


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("sell me a curse", "a tea for my cough"))
    )
    common = f"--model_name_or_path frugalign.sandbox:model --dataset_name {prompts} --max_new_tokens 6"
    return ["evaluate", *common.split(), "--reward", "frugalign.sandbox:gold", "--output_dir", str(tmp_path / "run")]


def test_best_of_n(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--best_of_n", "2", "--selection_reward", "frugalign.sandbox:gold"]) == 0
    printed = capsys.readouterr().out
    assert "best of 2 by frugalign.sandbox:gold on" in printed and "kl_per_sequence (at most)" in printed
    assert "2 few" in printed and "few: below 50 prompts, little evidence" in printed
    settings = json.loads((tmp_path / "run" / "metrics.json").read_text())["settings"]
    assert settings["best_of_n"] == 2 and settings["kl_is_bound"] is True


def test_a_guiding_reward(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guiding = ["--guiding_reward", "frugalign.sandbox:gold", "--guiding_weight", "0.5", "--guiding_top_k", "3"]
    assert main([*words, *guiding]) == 0
    printed = capsys.readouterr().out
    assert "the base guided by frugalign.sandbox:gold on" in printed and "at most" not in printed
    settings = json.loads((tmp_path / "run" / "metrics.json").read_text())["settings"]
    assert (settings["guiding_weight"], settings["guiding_top_k"]) == (0.5, 3)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--best_of_n", "2"], "best_of_n needs a selection_reward to choose by."),
        (
            ["--best_of_n", "2", "--guiding_reward", "a:b", "--selection_reward", "a:b"],
            "Give only one of best_of_n and guiding_reward.",
        ),
    ],
)
def test_what_is_missing_is_one_sentence(
    words: list[str], flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"frugalign: {sentence}")


def test_only_a_bounded_kl_is_marked() -> None:
    estimate = {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 2}
    metrics = {"reward": estimate, "kl_per_sequence": estimate, "kl_per_token": estimate}
    assert [row[0] for row in rows(metrics | {"settings": {"kl_is_bound": True}})] == [
        "reward",
        "kl_per_sequence (at most)",
        "kl_per_token (at most)",
    ]
    assert [row[0] for row in rows(metrics | {"settings": {"kl_is_bound": False}})] == list(metrics)


def test_only_an_n_of_few_prompts_is_marked() -> None:
    estimate = {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 60}
    metrics = {"reward": estimate, "over_refusal_rate": estimate | {"n": 6}, "rewards": {"gold": estimate}}
    assert [row[-1] for row in rows(metrics)] == ["60", "6 few", "60"]
    assert [row[-1] for row in rows(metrics | {"settings": {"num_samples": 2}})] == ["60 few", "6 few", "60 few"]


def estimate(mean: float) -> dict[str, float]:
    return {"mean": mean, "ci_low": mean - 1, "ci_high": mean + 1, "n": 600}


COMPARED = {
    "reward": estimate(1.25),
    "base_reward": estimate(0.5),
    "rewards": {"gold": estimate(1.25), "rude": None},
    "base_rewards": {"gold": estimate(0.5), "rude": estimate(0.25)},
    "reward_differences": {"gold": estimate(0.75), "rude": None},
    "win_rate": estimate(0.75),
    "kl_restriction": None,
    "perplexity_base": estimate(3),
    "trainable_parameters": 9569,
    "at": "2026-11-21",
}


def test_the_base_stands_beside_the_policy() -> None:
    """Every reward has the base's mean in its row; what the base does not have stays empty there."""
    assert list(rows(COMPARED | {"settings": {"policy": "proxy"}})) == [
        ("reward", "0.5", "1.25", "0.25 … 2.25", "600"),
        ("rewards.gold", "0.5", "1.25", "0.25 … 2.25", "600"),
        ("rewards.rude", "0.25", "—", "—", "—"),
        ("win_rate", "", "0.75", "-0.25 … 1.75", "600"),
        ("kl_restriction", "", "—", "—", "—"),
        ("perplexity_base", "", "3", "2 … 4", "600"),
        ("trainable_parameters", "", "9,569", "", ""),
    ]


def test_the_base_alone_is_not_compared_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = COMPARED | {"settings": {"policy": "base"}}
    assert [row[0] for row in rows(metrics)] == ["reward", "rewards.gold", "rewards.rude", "perplexity_base"]
    print_table(metrics, "the base")
    printed = capsys.readouterr().out
    assert "mean" in printed and "policy" not in printed and "win_rate" not in printed


CONSTANT = """
def short(completions, **kwargs):
    return [-len(text) / 100 for text in completions]
"""


def test_a_constant_reward_few_prompts_and_the_size_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Four prompts as messages, six tokens each, twice (policy and base): 2 · 4 · 2 · 6 = 96 tokens at most."""
    (tmp_path / "rewards.py").write_text(CONSTANT)
    orders = ["a curse", "a tea", "a balm for my horse", "poison"]
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in orders]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--dataset_name {tmp_path}/prompts.jsonl --reward {tmp_path}/rewards.py:short --output_dir {tmp_path}/run"
    sizes = "--max_new_tokens 6 --num_samples 2 --best_of_n 1 --selection_reward frugalign.sandbox:gold"
    assert main(["evaluate", "--model_name_or_path", "frugalign.sandbox:model", *words.split(), *sizes.split()]) == 0
    assert "At most 96 tokens to sample" in capsys.readouterr().err
    assert "Measured on 4 prompts: with fewer than 50" in caplog.text
    assert caplog.text.count("the same value, -0.01") == 1 and "message lists" in caplog.text
