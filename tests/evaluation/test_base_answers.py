"""The base answers once for all evaluations that ask it the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tests.two_layers import two_layers

from frugalign.engines.loading import LoadedModel, load_model
from frugalign.evaluation import EvaluationSettings, evaluate
from frugalign.policies import Policy, PolicySpec, load

PROMPTS = ["i want a balm for my knee", "sell me a curse", "a tea for my cough please"]
TOLD: dict[str, Any] = {"principles": "frugalign.sandbox:PRINCIPLES"}


def shortness(completions: list[str], **_: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


def measured(base: LoadedModel, folder: Path | None, given: dict[str, Any] = TOLD, **settings: Any) -> dict[str, Any]:
    rows = Dataset.from_dict({"prompt": PROMPTS})
    asked = EvaluationSettings(**{"max_new_tokens": 8, "num_samples": 2} | settings)
    output = None if folder is None else folder / "out"
    policy = load(PolicySpec.from_dict(given), base=base)
    return evaluate(policy, rows, shortness, asked, output_dir=output, base_answers=folder)


def times_off(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "decoding"}


def costs(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "out" / "costs.json").read_text())
    return {name: found[name] for name in ("generated_tokens", "lm_forward_tokens", "reward_calls")}


def test_stored_answers_are_those_that_the_base_gives(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measures and token counts are those of an evaluation that samples the base itself."""
    plain = measured(base, None)
    first = measured(base, tmp_path)
    counted = costs(tmp_path)
    (stored,) = tmp_path.glob("answers-*.json")
    monkeypatch.setattr(Policy, "sample_base", lambda *_, **__: pytest.fail("the base has answered already"))
    again = measured(base, tmp_path)
    assert times_off(plain) == times_off(first) == times_off(again) and costs(tmp_path) == counted
    assert list(tmp_path.glob("answers-*.json")) == [stored]


def test_another_question_is_answered_anew(base: LoadedModel, tmp_path: Path) -> None:
    """Another seed, length, temperature or number of samples. Another policy asks the same."""
    for settings in (
        {},
        {"seed": 5},
        {"max_new_tokens": 9},
        {"temperature": 0.5},
        {"num_samples": 1},
        {"do_sample": False},
    ):
        measured(base, tmp_path, **settings)
    assert len(list(tmp_path.glob("answers-*.json"))) == 6
    best = {"best_of_n": 2, "selection_reward": f"{__name__}:shortness"}
    measured(base, tmp_path, best)
    adapted = get_peft_model(
        load_model(two_layers()).model, LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    measured(load_model(two_layers()), tmp_path, {"adapter": str(tmp_path / "adapter")})
    assert len(list(tmp_path.glob("answers-*.json"))) == 6


def test_the_base_itself_is_sampled_as_ever(base: LoadedModel, tmp_path: Path) -> None:
    measured(base, tmp_path, {})
    assert not list(tmp_path.glob("answers-*.json"))
