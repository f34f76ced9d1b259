"""Pairwise verdicts on a study: asked once a cell, asked again where answers are missing, averaged by prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.study import verdicts as judging
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Line, cell_of
from frugalign.study.runner import read_study
from frugalign.study.table import rows_of
from frugalign.study.verdicts import judge_study, judges_of

METHODS = {"base": None, "dpo": {"beta": 0.1}}
LLM = {"base_url": "http://127.0.0.1:1/v1", "model": "some-model"}


class Longer:
    """Prefers the longer answer, and has no verdict on what it is told to keep quiet about."""

    name = "longer"

    def __init__(self, quiet: str = "") -> None:
        self.quiet, self.asked = quiet, 0

    def compare(self, prompts: Any, first: Any, second: Any) -> list[float | None]:
        self.asked += len(prompts)
        return [
            None if prompt == self.quiet else float(len(a) > len(b)) if len(a) != len(b) else 0.5
            for prompt, a, b in zip(prompts, first, second, strict=True)
        ]


def study(folder: Path, **options: Any) -> StudyOptions:
    given: dict[str, Any] = {
        "model_name_or_path": "model",
        "dataset_name": "prompts",
        "reward": ["reward"],
        "judges": ["gold"],
        "seeds": [1],
        "methods": METHODS,
        "output_dir": str(folder),
        "llm_judge": LLM,
    }
    return StudyOptions(**given | options)


def finish(options: StudyOptions) -> None:
    """Cells as if they had been run: the policy's answers are longer twice, shorter once, and as long once."""
    for label in METHODS:
        line = Line(label, label, METHODS[label] or {})
        folder = cell_of(line, 1, "test", options).folder(Path(options.output_dir))
        (folder / "evaluation").mkdir(parents=True)
        answers = [("aa", "b"), ("aaa", "b"), ("a", "bb"), ("a", "b")]
        samples = [
            {
                "prompt": str(row),
                "policy": b if label == "base" else a,
                "base": b,
                "rewards": {"gold": 1.0},
                "base_rewards": {"gold": 0.0},
            }
            for row, (a, b) in enumerate(answers)
        ]
        (folder / "evaluation" / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
        result = {"request": {"eval_samples": 1}, "metrics": {"reward": None}, "costs": {}, "machine": {}}
        (folder / "cell.json").write_text(json.dumps(result))


def test_a_line_is_judged_once_against_the_base_in_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, options = Longer(), study(tmp_path)
    monkeypatch.setattr(judging, "_judge", lambda settings, options: judge)
    finish(options)
    judge_study(read_study(options))
    assert judge.asked == 2 * 4, "dpo alone, both orders"
    judge_study(read_study(options))
    assert judge.asked == 2 * 4, "verdicts are kept"
    base, dpo = rows_of(read_study(options))
    assert base.preferred == {}
    said = dpo.preferred["some-model"]
    assert said.share.mean == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert said.contradictions == 0 and said.unanswered == 0
    # Another criterion is another judge.
    judge_study(read_study(study(tmp_path, llm_judge=LLM | {"criterion": "Which is kinder?"})))
    assert judge.asked == 4 * 4


def test_what_was_not_answered_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options, judge = study(tmp_path), Longer(quiet="2")
    monkeypatch.setattr(judging, "_judge", lambda settings, options: judge)
    finish(options)
    judge_study(read_study(options))
    assert "no verdict on 1 of 4 pairs of dpo, seed 1" in caplog.text
    said = rows_of(read_study(options))[1].preferred["some-model"]
    assert said.unanswered == 1 and said.share.mean == pytest.approx(2.5 / 3)
    judge.quiet = ""
    judge_study(read_study(options))
    assert rows_of(read_study(options))[1].preferred["some-model"].share.mean == pytest.approx(2.5 / 4)


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="base_url and model at least"):
        judges_of(study(tmp_path, llm_judge={"model": "x"}))
    with pytest.raises(FrugalignError, match="max_cost needs"):
        judges_of(study(tmp_path, llm_judge=LLM | {"max_cost": 1.0}))
    with pytest.raises(FrugalignError, match="FRUGALIGN_NO_SUCH_KEY, which is not set"):
        judges_of(study(tmp_path, llm_judge=LLM | {"api_key_env": "FRUGALIGN_NO_SUCH_KEY"}))
    with pytest.raises(FrugalignError, match=r"concurrency is '8'; it must be a whole number\."):
        judges_of(study(tmp_path, llm_judge=LLM | {"concurrency": "8"}))
    with pytest.raises(FrugalignError, match="not api_key"):
        judges_of(study(tmp_path, llm_judge=LLM | {"api_key": "secret"}))
    assert judges_of(study(tmp_path, llm_judge=None)) == []
    assert [name for name, _ in judges_of(study(tmp_path, model_judge="models/some"))] == ["some-model", "some"]
