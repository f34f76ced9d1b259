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
    plain, alone = measured(base, None), measured(base, None, {})
    first = measured(base, tmp_path)
    counted = costs(tmp_path)
    (stored,) = tmp_path.glob("answers-*.json")
    monkeypatch.setattr(Policy, "sample_base", lambda *_, **__: pytest.fail("the base has answered already"))
    again = measured(base, tmp_path)
    assert times_off(plain) == times_off(first) == times_off(again) and costs(tmp_path) == counted
    assert times_off(measured(base, tmp_path, {})) == times_off(alone)
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
    adapted = get_peft_model(
        load_model(two_layers()).model, LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    measured(load_model(two_layers()), tmp_path, {"adapter": str(tmp_path / "adapter")})
    measured(base, tmp_path, {})
    assert len(list(tmp_path.glob("answers-*.json"))) == 6


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_best_of_n_draws_is_kept(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """The base's answers are the first draws, and best-of-3's are among best-of-5's. Each is charged what all of its draws cost."""
    asked: list[int] = []
    sample_base = Policy.sample_base

    def counted(self: Policy, batch: Any, *given: Any, **more: Any) -> Any:
        asked.append(len(batch.keys))
        return sample_base(self, batch, *given, **more)

    monkeypatch.setattr(Policy, "sample_base", counted)
    for number, new in ((1, 6), (3, 12), (5, 12), (3, 0), (1, 0)):
        asked.clear()
        given = {"best_of_n": number, "selection_reward": f"{__name__}:shortness"} if number > 1 else {}
        found = measured(base, tmp_path, given, temperature=temperature)
        assert sum(asked) == new, number
        plain = measured(base, None, given, temperature=temperature)
        assert times_off(found) == times_off(plain)
        for cost in ("generated_tokens", "reward_calls"):
            assert found["decoding"][cost] == pytest.approx(plain["decoding"][cost])
    assert found["decoding"]["seconds"] > 0
    stored = measured(
        base, tmp_path, {"best_of_n": 5, "selection_reward": f"{__name__}:shortness"}, temperature=temperature
    )
    assert stored["decoding"]["seconds"] > 2 * found["decoding"]["seconds"]
