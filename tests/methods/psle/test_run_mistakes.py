"""What a run of rounds refuses, in one sentence and before it has changed anything."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.methods.psle.conftest import Finished
from tests.methods.psle.runs import ODD, Killed, N, command, manifest, stopping, write

import frugalign.runs.shared_sampling as together
from frugalign.cli.main import main
from frugalign.sandbox.world import make_prompts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"principles": None}, "--principles is missing"),
        ({"principles": "nothing.yaml"}, "There are no principles nothing.yaml"),
        ({"reward": None}, "--reward is missing"),
        ({"reward": "odd.py:none"}, "No response of this round has a reward"),
        ({"reward": "odd.py:fails"}, "raised KeyError"),
        ({"dataset_name": "weights", "eval_prompts": 0}, "Row 2 has the weight -1"),
        ({"dataset_name": "tests_only"}, "test split only"),
        ({"max_new_tokens": 500}, "exceeds the model's context"),
        ({"reward": "odd.py:fails_on_held_out"}, "raised KeyError"),
        ({"reward_weights": "1 2"}, "1 rewards, but 2 reward_weights"),
        ({"eval_strategy": "steps"}, "eval_strategy is not carried over"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is not carried over"),
        ({"save_only_model": "true"}, "save_only_model is not carried over"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not carried over"),
    ],
)
def test_a_mistake_is_one_sentence(flags: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.py").write_text(ODD)
    rows = make_prompts("train", 3, 0)
    write(
        "weights/train.jsonl",
        [{"prompt": row["prompt"], "weight": weight} for row, weight in zip(rows, (1, -1, 1), strict=True)],
    )
    for folder in ("weights", "tests_only"):
        write(f"{folder}/test.jsonl", [{"prompt": row["prompt"]} for row in rows])
    assert main(command(**flags)) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_a_run_is_not_resumed_under_other_settings_and_not_written_over(
    copied: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(rounds=1)
    before = Path("run/round-000/manifest.json").read_bytes()
    write("rules.txt", [])
    Path("rules.txt").write_text("Be polite.")
    write("fewer/train.jsonl", [{"prompt": row["prompt"]} for row in make_prompts("train", N - 1, 0)])
    for flags, words in (
        ({}, "holds an earlier run"),
        ({"resume_from_checkpoint": "true", "tau": 0.3}, "tau 0.2, not 0.3"),
        ({"resume_from_checkpoint": "true", "principles": "rules.txt"}, "principles"),
        ({"resume_from_checkpoint": "true", "dataset_name": "fewer"}, "prompts"),
        ({"resume_from_checkpoint": "true", "reward": "frugalign.sandbox:rude"}, "rewards"),
        ({"resume_from_checkpoint": "true", "max_steps": 3}, "max_steps -1, not 3"),
        ({"resume_from_checkpoint": "true", "weight_decay": 0.1}, "weight_decay"),
        ({"resume_from_checkpoint": "true", "eval_prompts": 3}, "eval_prompts"),
        ({"resume_from_checkpoint": "true", "tau": 0.3, "from_round": 0}, "tau 0.2, not 0.3"),
        ({"resume_from_checkpoint": "true", "output_dir": "nowhere"}, "no run in nowhere"),
        ({"resume_from_checkpoint": "true", "from_round": 4}, "no round 4"),
        ({"resume_from_checkpoint": "true", "from_round": 1}, "no round 1"),
        ({"from_round": 0}, "goes with resume_from_checkpoint"),
    ):
        assert main(command(**({"rounds": 1} | flags))) == 2
        assert words in capsys.readouterr().err
        assert Path("run/round-000/manifest.json").read_bytes() == before
    assert main(command(rounds=1, seed=1, overwrite_output_dir="true")) == 0
    assert Path("run/round-000/manifest.json").read_bytes() != before


def test_rows_in_another_order_are_another_run(copied: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds keep row numbers."""
    copied(rounds=1)
    lines = Path("prompts/train.jsonl").read_text().splitlines()
    Path("prompts/train.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    assert main(command(resume_from_checkpoint="true")) == 2
    assert "prompts" in capsys.readouterr().err


def test_settings_are_held_from_before_the_first_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(together, "sample_groups", stopping(together.sample_groups, 1))
        with pytest.raises(Killed):
            main(command())
    assert main(command(resume_from_checkpoint="true", num_generations=3)) == 2
    assert "num_generations 2, not 3" in capsys.readouterr().err


def test_prompts_over_the_context_are_an_error_or_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": row["prompt"]} for row in make_prompts("train", 4, 0)]
    rows[2]["prompt"] = " ".join([str(rows[2]["prompt"])] * 12)
    write("prompts/train.jsonl", rows)
    assert main(command()) == 2
    said = capsys.readouterr().err
    assert "Prompt 3 has" in said and "skip_long_prompts" in said and not list(Path("run").glob("round-*"))
    assert main(command(skip_long_prompts="true", rounds=1)) == 0
    assert manifest(0)["prompts"]["too_long"] == 1 and manifest(0)["responses"]["prompts"] == 3
    assert [json.loads(line)["row"] for line in Path("run/round-000/responses.jsonl").read_text().splitlines()] == [
        0,
        1,
        3,
    ]
