"""A run of rounds that was killed anywhere, or edited by hand, and started again."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.forked import Forked
from tests.methods.psle.conftest import Finished
from tests.methods.psle.runs import Killed, command, make_prompt_files, manifest, same_end, stopping, write

import frugalign.methods.psle.sampling as sampling
import frugalign.methods.psle.trainer as module
import frugalign.runs.shared_sampling as together
from frugalign.cli.main import main
from frugalign.methods.psle.responses import read_round
from frugalign.methods.psle.round_trainer import RoundTrainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]


KILLED = {"save_steps": 2, "sampling_batch_size": 4}


@pytest.fixture(scope="module")
def after_a_round(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `KILLED` that was killed as it began to sample its second round."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_prompt_files()
        patch.setattr(together, "sample_groups", stopping(together.sample_groups, 2))
        with pytest.raises(Killed):
            main(command(**KILLED))
    return folder / "run"


@pytest.mark.parametrize(
    ("phase", "there", "not_there"),
    [
        ("sampling", "", "responses.jsonl"),
        ("scoring", "", "responses.jsonl"),
        ("training", "checkpoint-2", "checkpoint-4"),
        ("saving", "checkpoint-6", "adapter_model.safetensors"),
        ("evaluating", "adapter_model.safetensors", "evaluation.json"),
        ("finishing", "evaluation.json", "manifest.json"),
    ],
)
def test_killed_in_a_phase_of_the_second_round_it_ends_the_same(
    phase: str,
    there: str,
    not_there: str,
    after_a_round: Path,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed as the round begins, and again in the phase."""
    shutil.copytree(after_a_round, "run")
    at = {
        "sampling": (together, "sample_groups"),
        "scoring": (sampling, "score"),
        "training": (RoundTrainer, "training_step"),
        "saving": (module.PSLETrainer, "_save"),
        "evaluating": (module.PSLETrainer, "_evaluate"),
        "finishing": (module, "write_json_atomic"),
    }
    # How many calls of the round go well before the one that is killed.
    well = {"sampling": 1, "scoring": 0, "training": 3, "saving": 0, "evaluating": 1, "finishing": 1}
    owner, name = at[phase]
    again = command(**KILLED, resume_from_checkpoint="true")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping(getattr(owner, name), well[phase]))
        with pytest.raises(Killed):
            main(again)
    assert Path("run/round-001", there).exists() and not Path("run/round-001", not_there).exists()
    assert main(again) == 0
    same_end("run", str(finished(**KILLED)))


def test_sigkill_anywhere_and_the_same_command_again(tmp_path: Path, finished: Finished) -> None:
    """At moments that the clock chooses, until a run gets through."""
    # Scoring is too short to be hit by a clock; the test above kills it.
    for mark in ("round-000/.plain-0.partial", "round-001/checkpoint-2"):
        resume = "true" if any(Path("run").glob("round-*")) else None
        words = command(**KILLED | {"resume_from_checkpoint": resume})
        process = Forked(partial(main, words), tmp_path / "log.txt")
        process.wait_for(Path("run", mark).exists)
        process.kill()
        assert process.poll() == -9, process.log.read_text()
    assert not Path("run/adapter_model.safetensors").exists(), "killed each time"
    assert main(command(**KILLED | {"resume_from_checkpoint": "true"})) == 0
    same_end("run", str(finished(**KILLED)))


def test_more_rounds_go_on_and_a_round_can_be_trained_again(copied: Finished, finished: Finished) -> None:
    whole = str(finished(rounds=3))
    copied(rounds=1)
    assert main(command(rounds=3, resume_from_checkpoint="true")) == 0
    same_end("run", whole, rounds=3)
    again = {"rounds": 3, "resume_from_checkpoint": "true", "from_round": 1}
    assert main(command(**again)) == 0
    same_end("run", whole, rounds=3)
    # A person takes one couple out of round 1.
    path = Path("run/round-001/responses.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["branches"], rows[0]["weights"] = ["dropped", "dropped"], [0.0] * 4
    write(str(path), rows)
    assert main(command(**again)) == 0
    assert manifest(1)["branches"]["dropped"] == 2 and manifest(0) == manifest(0, whole)
    assert manifest(1)["end"] != manifest(1, whole)["end"] and manifest(2)["round"] == 2


def test_the_cost_of_a_killed_run_counts_nothing_twice_that_was_done_once(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the training of round 0, before its manifest: what is done again is counted again, and nothing else."""
    with monkeypatch.context() as patch:
        patch.setattr(module.PSLETrainer, "_save", stopping(module.PSLETrainer._save, 0))
        with pytest.raises(Killed):
            main(command(rounds=1, save_steps=1))
    assert main(command(rounds=1, save_steps=1, resume_from_checkpoint="true")) == 0
    ours, theirs = (json.loads(Path(run, "costs.json").read_text()) for run in ("run", finished(rounds=1)))
    for name in ("generated_tokens", "lm_forward_tokens", "reward_calls", "optimizer_steps"):
        assert ours[name] == theirs[name], name


def test_training_a_round_again_deletes_nothing_of_its_users_and_nothing_before_it_may(
    copied: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    copied()
    shutil.copytree("run/round-000", "run/round-000-before-my-edit")
    Path("run/round-notes").mkdir()
    path = Path("run/round-000/responses.jsonl")
    whole = path.read_text()
    path.write_text(whole.replace('"ranked"', '"rnaked"', 1))
    before = {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()}
    again = {"resume_from_checkpoint": "true", "from_round": 0}
    assert main(command(**again)) == 2
    assert "is not a prompt with its responses" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()} == before
    path.write_text(whole)
    scale = manifest(0)["reward_scale"]
    rows = [json.loads(line) for line in whole.splitlines()][:-3]
    write(str(path), rows)
    assert main(command(**again)) == 0
    assert manifest(0)["reward_scale"] == scale, "σ_0 is that of the whole round 0"
    assert Path("run/round-000-before-my-edit/manifest.json").is_file() and Path("run/round-notes").is_dir()


def test_a_round_whose_couples_are_all_taken_out_trains_nothing_and_says_so(copied: Finished) -> None:
    copied(rounds=1)
    path = Path("run/round-000/responses.jsonl")
    rows = [json.loads(line) | {"branches": ["dropped", "dropped"]} for line in path.read_text().splitlines()]
    write(str(path), rows)
    assert main(command(rounds=1, resume_from_checkpoint="true", from_round=0)) == 0
    about = manifest(0)
    assert about["optimizer_steps"] == 0 and about["use"] == {"tokens": 0.0, "responses": 0.0}
    assert about["start"]["weights"] == about["end"]["weights"]


def test_mixed_precision_ends_the_same_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate leaves its autocast on the model that it trained; a new process samples without it, and so must this one."""
    few = {"bf16": "true", "prompts_per_round": 4, "max_new_tokens": 8}
    assert main(command(**few, output_dir="whole")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(together, "sample_groups", stopping(together.sample_groups, 2))
        with pytest.raises(Killed):
            main(command(**few))
    assert main(command(**few, resume_from_checkpoint="true")) == 0
    same_end("run")


def test_rewards_of_an_interrupted_scoring_go_to_their_own_rows(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's share of the rows, or another reward, does not go on with the file."""
    monkeypatch.setattr(sampling, "_CHUNK", 4)
    done = read_round(finished(rounds=1) / "round-000/responses.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "local_rows", lambda size: list(range(1, size, 2)))
        patch.setattr(sampling, "score", stopping(sampling.score, 3))
        with pytest.raises(Killed):
            main(command(rounds=1, eval_prompts=0))
    assert main(command(rounds=1, eval_prompts=0, resume_from_checkpoint="true")) == 0
    assert read_round(Path("run/round-000/responses.jsonl")).scored.rewards.tolist() == done.scored.rewards.tolist()


def test_full_training_keeps_the_start_for_its_kl() -> None:
    assert main(command(train="full", rounds=2, learning_rate=0.0003, kl_weight=0.1)) == 0
    seen = json.loads(Path("run/round-001/evaluation.json").read_text())
    assert seen["kl_per_sequence"]["mean"] > 0 and Path("run/round-001/model.safetensors").is_file()
    shutil.rmtree("run/round-001")
    whole = load_file("run/model.safetensors")
    assert (
        main(command(train="full", rounds=2, learning_rate=0.0003, kl_weight=0.1, resume_from_checkpoint="true")) == 0
    )
    again = load_file("run/model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
