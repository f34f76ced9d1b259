"""Rewards by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.rewards import load_reward

SOURCE = """
COUNT = 0
NUMBER = 3

def length(completions, **kwargs):
    return [len(c) for c in completions]

class Judge:
    def __call__(self, completions, **kwargs):
        return [1.0] * len(completions)

judge = Judge()
"""


@pytest.fixture
def rewards_file(tmp_path: Path) -> Path:
    path = tmp_path / "my rewards.py"
    path.write_text(SOURCE)
    return path


def test_a_function_in_a_file(rewards_file: Path) -> None:
    reward = load_reward(f"{rewards_file}:length")
    assert reward.name == "length" and reward.spec == f"{rewards_file}:length"
    assert reward.function(completions=["abc"]) == [3]
    assert load_reward(f"{rewards_file}:judge").function(completions=["a"]) == [1.0]


def test_rewards_of_one_file_share_its_module(rewards_file: Path) -> None:
    first, second = load_reward(f"{rewards_file}:length"), load_reward(f"{rewards_file}:length")
    assert first.function is second.function


def test_a_name_before_the_equals_sign(rewards_file: Path) -> None:
    assert load_reward(f"brevity={rewards_file}:length").name == "brevity"
    assert load_reward("gold2=frugalign.sandbox:gold").name == "gold2"


def test_a_function_in_a_package() -> None:
    reward = load_reward("frugalign.sandbox:gold")
    assert reward.name == "gold"
    assert len(reward.function(prompts=["x"], completions=["y"])) == 1


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("missing.py:reward", "no reward file missing.py"),
        ("./missing/reward_model", "no reward at ./missing/reward_model"),
        ("/missing", "no reward at /missing"),
        ("no.such.module:reward", "Cannot import 'no.such.module'"),
        ("frugalign.sandbox:nonsense", "has no 'nonsense'"),
        ("name=", "no reward at name="),
        ("math:pi", "is a float, which cannot be called"),
        ("decimal:Decimal", "is a class; name a function, or an instance"),
    ],
)
def test_what_cannot_be_found_or_called(spec: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FrugalignError, match=sentence):
        load_reward(spec)


def test_files_that_do_not_hold_it(rewards_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="has no 'nonsense'"):
        load_reward(f"{rewards_file}:nonsense")
    with pytest.raises(FrugalignError, match="is a int, which cannot be called"):
        load_reward(f"{rewards_file}:NUMBER")
    with pytest.raises(FrugalignError, match="needs the name of a function"):
        load_reward(str(rewards_file))
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(FrugalignError, match="cannot be imported: ZeroDivisionError: division by zero"):
        load_reward(f"{broken}:reward")
    with pytest.raises(FrugalignError, match=r"no config\.json"):
        load_reward(str(tmp_path))


def test_several_rewards_need_names_of_their_own() -> None:
    """They are reported by name, so two of one name would hide each other."""
    from frugalign.rewards import load_rewards

    def reward(completions: list[str], **_: object) -> list[float]:
        return [0.0 for _ in completions]

    assert [named.name for named in load_rewards(["a=frugalign.sandbox:gold", reward])] == ["a", "reward"]
    with pytest.raises(FrugalignError, match="Two rewards are called 'reward'"):
        load_rewards([reward, reward])
    with pytest.raises(FrugalignError, match="callable or a string, not int"):
        load_rewards([3])  # type: ignore[list-item]


def test_an_experiments_reward_that_recipes_name_by_its_path_stands_alone(tmp_path: Path) -> None:
    """From anywhere, without the repository's root on the path: recipes name `experiments/stories.py:reward`."""
    spec = str(Path(__file__).resolve().parents[2] / "experiments" / "stories.py:reward")
    code = f"from frugalign.rewards import load_reward; print(load_reward({spec!r}).function(completions=['sad and awful'])[0] > 0)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
