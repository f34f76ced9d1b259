"""A run of rounds: what each folder holds, killed in any phase and resumed to the same end, edited and gone on with, refused in one sentence."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import frugalign.methods.psle.sampling as sampling
import frugalign.methods.psle.trainer as module
import frugalign.runs.shared_sampling as together
from frugalign.cli.main import main
from frugalign.data.groups import read_groups
from frugalign.methods.psle.responses import read_round
from frugalign.methods.psle.round_trainer import RoundTrainer
from frugalign.sandbox.world import make_prompts

pytestmark = pytest.mark.slow

N = 12


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_prompt_files()


def make_prompt_files() -> None:
    write("prompts/train.jsonl", [{"prompt": row["prompt"]} for row in make_prompts("train", N, 0)])
    write(
        "prompts/validation.jsonl",
        [{"prompt": row["prompt"], "label": row["label"]} for row in make_prompts("train", 6, 1)],
    )
    write("prompts/test.jsonl", [{"prompt": row["prompt"]} for row in make_prompts("test", 2, 0)])


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(**flags: Any) -> list[str]:
    given = {
        "model_name_or_path": "frugalign.sandbox:model",
        "dataset_name": "prompts",
        "principles": "frugalign.sandbox:PRINCIPLES",
        "reward": "frugalign.sandbox:gold",
        "eval_reward": "frugalign.sandbox:rude",
        "output_dir": "run",
        "rounds": 2,
        "num_generations": 2,
        "max_new_tokens": 24,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 0.003,
        "use_cpu": "true",
    } | flags
    return [
        "psle",
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", *str(value).split(" "))),
    ]


def manifest(number: int, run: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{run}/round-00{number}/manifest.json").read_text())
    return found


def same_end(run: str, whole: str = "whole", rounds: int = 2) -> None:
    """Manifests, responses, evaluations and weights are equal, bit for bit."""
    for number in range(rounds):
        for name in ("manifest.json", "responses.jsonl", "evaluation.jsonl", "evaluation.json"):
            ours, theirs = (Path(f"{folder}/round-00{number}/{name}").read_text() for folder in (run, whole))
            assert ours == theirs, f"round {number}: {name}"
    ours, theirs = (load_file(f"{folder}/adapter_model.safetensors") for folder in (run, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_round_is_a_folder_and_nothing_generated_is_lost() -> None:
    assert main(command()) == 0
    first, second = manifest(0), manifest(1)
    for number in range(2):
        done, about = read_round(Path(f"run/round-00{number}/responses.jsonl")), manifest(number)
        assert about["branches"]["ranked"] + about["branches"]["imitated"] == 2 * N, "nothing is thrown away"
        assert about["branches"] | {"dropped": 0, "unscored": 0} == about["branches"]
        assert about["responses"]["number"] == about["reward_calls"] == 4 * N
        assert about["responses"]["tokens"] == sum(len(ids) for group in done.scored.completion_ids for ids in group)
        assert about["use"]["tokens"] == 1.0 > about["use_of_raft"]["tokens"]
        gaps = (done.scored.guided - done.scored.plain).flatten() > about["threshold"]
        assert [name == "ranked" for names in done.branches for name in names] == gaps.tolist()
        assert len(read_groups(Path(f"run/round-00{number}/responses.jsonl"))) == N, "what `frugalign rerank` takes"
        assert not list(Path(f"run/round-00{number}").glob(".*")) and not list(
            Path(f"run/round-00{number}").glob("checkpoint-*")
        )
    assert second["tau"] == pytest.approx(0.9 * first["tau"]) and second["reward_scale"] == first["reward_scale"]
    assert second["start"]["weights"] == first["end"]["weights"] != first["start"]["weights"]
    # The run's costs are those of its rounds and of the look at the start.
    costs = [
        json.loads(Path(f"run/{folder}costs.json").read_text()) for folder in ("", "round-000/", "round-001/", "start/")
    ]
    for name in ("generated_tokens", "lm_forward_tokens", "reward_calls"):
        assert costs[0][name] == sum(each[name] for each in costs[1:])
    start = sum(line["length"] for line in map(json.loads, Path("run/start/evaluation.jsonl").read_text().splitlines()))
    assert costs[3]["generated_tokens"] == start
    assert costs[0]["optimizer_steps"] == first["optimizer_steps"] + second["optimizer_steps"] == 12
    # The held-out prompts: same noise at the start and after, so their rewards can be compared one by one.
    start_seen, seen = (json.loads(Path(f"run/{name}/evaluation.json").read_text()) for name in ("start", "round-001"))
    assert (
        start_seen["win_rate"] is None
        and start_seen["kl_per_sequence"]["mean"] == 0
        and seen["kl_per_sequence"]["mean"] > 0
    )
    assert set(seen["rewards"]) == {"gold", "rude"} and seen["reward"] == seen["rewards"]["gold"]
    for name in ("adapter_model.safetensors", "README.md", "config.yaml", "tokenizer.json"):
        assert Path("run", name).is_file()


def test_the_adapter_that_is_left_is_the_last_rounds_and_evaluate_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(rounds=1)) == 0
    top, last = (load_file(f"run/{name}adapter_model.safetensors") for name in ("", "round-000/"))
    assert all(torch.equal(top[name], last[name]) for name in top)
    words = [
        "--dataset_name",
        "prompts/validation.jsonl",
        "--reward",
        "frugalign.sandbox:gold",
        "--max_new_tokens",
        "8",
    ]
    assert main(["evaluate", "--model_name_or_path", "frugalign.sandbox:model", "--adapter", "run", *words]) == 0


# -- killed and resumed ---------------------------------------------------------------------------------------------------


KILLED = {"save_steps": 2, "sampling_batch_size": 4}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `KILLED` that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_prompt_files()
        assert main(command(**KILLED)) == 0
    return folder / "run"


@pytest.mark.parametrize("phase", ["sampling", "scoring", "training", "saving", "evaluating", "finishing"])
def test_killed_in_a_phase_of_the_second_round_it_ends_the_same(
    phase: str, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = {
        "sampling": (together, "sample_groups"),
        "scoring": (sampling, "score"),
        "training": (RoundTrainer, "training_step"),
        "saving": (module.PSLETrainer, "_save"),
        "evaluating": (module.PSLETrainer, "_evaluate"),
        "finishing": (module, "write_json_atomic"),
    }
    # How many calls go well: those of round 0 and, where a phase has several, the first ones of round 1.
    well = {"sampling": 3, "scoring": 1, "training": 6 + 3, "saving": 1, "evaluating": 2, "finishing": 1}
    owner, name = at[phase]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping(getattr(owner, name), well[phase]))
        with pytest.raises(Killed):
            main(command(**KILLED))
    assert not Path("run/round-001/manifest.json").exists()
    assert main(command(**KILLED, resume_from_checkpoint="true")) == 0
    same_end("run", str(undisturbed))


class Killed(BaseException):
    """What no code of ours catches."""


def stopping(function: Callable[..., Any], after: int) -> Callable[..., Any]:
    calls: list[int] = []

    def stops(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return function(*args, **kwargs)

    return stops


def test_sigkill_anywhere_and_the_same_command_again(undisturbed: Path) -> None:
    """At moments that the clock chooses, until a run gets through."""
    # Scoring is too short to be hit by a clock; the test above kills it.
    marks = ("round-000/.plain-0.partial", "round-001/checkpoint-2")
    for mark in marks:
        resume = "true" if any(Path("run").glob("round-*")) else None
        words = command(**KILLED | {"resume_from_checkpoint": resume})
        process = subprocess.Popen(
            [sys.executable, "-m", "frugalign.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started = time.monotonic()
        while not Path("run", mark).exists() and process.poll() is None and time.monotonic() - started < 60:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not Path("run/adapter_model.safetensors").exists(), "killed each time"
    assert main(command(**KILLED | {"resume_from_checkpoint": "true"})) == 0
    same_end("run", str(undisturbed))


def test_more_rounds_go_on_and_a_round_can_be_trained_again() -> None:
    assert main(command(output_dir="whole", rounds=3)) == 0
    assert main(command(rounds=1)) == 0
    assert main(command(rounds=3, resume_from_checkpoint="true")) == 0
    same_end("run", rounds=3)
    again = {"rounds": 3, "resume_from_checkpoint": "true", "from_round": 1}
    assert main(command(**again)) == 0
    same_end("run", rounds=3)
    # A person takes one couple out of round 1.
    path = Path("run/round-001/responses.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["branches"], rows[0]["weights"] = ["dropped", "dropped"], [0.0] * 4
    write(str(path), rows)
    assert main(command(**again)) == 0
    assert manifest(1)["branches"]["dropped"] == 2 and manifest(0) == manifest(0, "whole")
    assert manifest(1)["end"] != manifest(1, "whole")["end"] and manifest(2)["round"] == 2


def test_the_cost_of_a_killed_run_counts_nothing_twice_that_was_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the training of round 0, before its manifest: what is done again is counted again, and nothing else."""
    assert main(command(rounds=1, save_steps=1, output_dir="whole")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(module.PSLETrainer, "_save", stopping(module.PSLETrainer._save, 0))
        with pytest.raises(Killed):
            main(command(rounds=1, save_steps=1))
    assert main(command(rounds=1, save_steps=1, resume_from_checkpoint="true")) == 0
    ours, theirs = (json.loads(Path(f"{run}/costs.json").read_text()) for run in ("run", "whole"))
    for name in ("generated_tokens", "lm_forward_tokens", "reward_calls", "optimizer_steps"):
        assert ours[name] == theirs[name], name


def test_settings_are_held_from_before_the_first_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(together, "sample_groups", stopping(together.sample_groups, 1))
        with pytest.raises(Killed):
            main(command())
    assert main(command(resume_from_checkpoint="true", num_generations=3)) == 2
    assert "num_generations 2, not 3" in capsys.readouterr().err


def test_training_a_round_again_deletes_nothing_of_its_users_and_nothing_before_it_may(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command()) == 0
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


def test_a_round_whose_couples_are_all_taken_out_trains_nothing_and_says_so() -> None:
    assert main(command(rounds=1)) == 0
    path = Path("run/round-000/responses.jsonl")
    rows = [json.loads(line) | {"branches": ["dropped", "dropped"]} for line in path.read_text().splitlines()]
    write(str(path), rows)
    assert main(command(rounds=1, resume_from_checkpoint="true", from_round=0)) == 0
    about = manifest(0)
    assert about["optimizer_steps"] == 0 and about["use"] == {"tokens": 0.0, "responses": 0.0}
    assert about["start"]["weights"] == about["end"]["weights"]


def test_mixed_precision_ends_the_same_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate leaves its autocast on the model that it trained; a new process samples without it, and so must this one."""
    assert main(command(bf16="true", output_dir="whole")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(together, "sample_groups", stopping(together.sample_groups, 2))
        with pytest.raises(Killed):
            main(command(bf16="true"))
    assert main(command(bf16="true", resume_from_checkpoint="true")) == 0
    same_end("run")


def test_what_a_reward_logs_is_kept_with_the_responses() -> None:
    """`log_extra` per response, `log_metric` as the mean of the call; a column of another length is left out."""
    Path("rule.py").write_text(
        "def wordy(completions, log_extra, log_metric, **_):\n"
        "    lengths = [len(text.split()) for text in completions]\n"
        "    log_extra('words', lengths)\n"
        "    log_extra('broken', lengths[1:])\n"
        "    log_metric('mean_words', sum(lengths) / len(lengths))\n"
        "    return [float(length) for length in lengths]\n"
    )
    assert main(command(rounds=1, eval_prompts=0, reward="rule.py:wordy")) == 0
    lines = [json.loads(line) for line in Path("run/round-000/responses.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["logged"]["words"] == [len(text.split()) for text in line["completions"]]
        assert line["logged"].keys() == {"words", "mean_words"}
    words = [length for line in lines for length in line["logged"]["words"]]
    assert manifest(0)["reward_metrics"] == {"mean_words": pytest.approx(sum(words) / len(words))}
    assert read_round(Path("run/round-000/responses.jsonl")).scored.logged == [line["logged"] for line in lines]


def test_rewards_of_an_interrupted_scoring_go_to_their_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's share of the rows, or another reward, does not go on with the file."""
    monkeypatch.setattr(sampling, "_CHUNK", 4)
    assert main(command(rounds=1, eval_prompts=0, output_dir="whole")) == 0
    done = read_round(Path("whole/round-000/responses.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "local_rows", lambda size: list(range(1, size, 2)))
        patch.setattr(sampling, "score", stopping(sampling.score, 3))
        with pytest.raises(Killed):
            main(command(rounds=1, eval_prompts=0))
    assert main(command(rounds=1, eval_prompts=0, resume_from_checkpoint="true")) == 0
    assert read_round(Path("run/round-000/responses.jsonl")).scored.rewards.tolist() == done.scored.rewards.tolist()


def test_a_run_is_not_resumed_under_other_settings_and_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(rounds=1)) == 0
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


# -- methods and odd inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["context_distillation", "raft", "dpo", "rejection", "sft"])
def test_the_methods_beside_it_share_the_frame(method: str) -> None:
    """The same prompts, noise and rewards: the plain responses of round 0 are those of psle, and each method learns from its own share."""
    assert main(command(method=method, rounds=1, tau=0.0, eval_prompts=0)) == 0
    assert main(command(output_dir="psle", rounds=1, tau=0.0, eval_prompts=0)) == 0
    ours, theirs = (read_round(Path(f"{run}/round-000/responses.jsonl")) for run in ("run", "psle"))
    assert [group[:2] for group in ours.scored.completions] == [group[:2] for group in theirs.scored.completions]
    guided = [group[2:] for group in ours.scored.completions] == [group[2:] for group in theirs.scored.completions]
    assert guided == (method != "raft"), "RAFT samples all of its responses plainly"
    about = manifest(0)
    shares = {
        "context_distillation": about["branches"]["imitated"] == 2 * N and float(ours.weights[:, :2].sum()) == 0,
        "raft": float(ours.weights.sum()) == N,
        "dpo": about["branches"]["imitated"] == 0 and about["branches"]["dropped"] > 0,
        "rejection": about["branches"]["imitated"] == 0 and about["branches"]["dropped"] > 0,
        "sft": bool((ours.weights == 1).all()) and about["branches"]["ranked"] == 0,
    }
    assert shares[method]
    assert about["end"] != about["start"]


def test_no_principles_is_an_ablation_of_plain_couples() -> None:
    assert main(command(principles=None, use_principles="false", rounds=1)) == 0
    assert manifest(0)["principles"] is None and manifest(0)["branches"]["ranked"] > 0


def test_full_training_keeps_the_start_for_its_kl() -> None:
    assert main(command(use_peft="false", rounds=2, learning_rate=0.0003, kl_weight=0.1)) == 0
    seen = json.loads(Path("run/round-001/evaluation.json").read_text())
    assert seen["kl_per_sequence"]["mean"] > 0 and Path("run/round-001/model.safetensors").is_file()
    shutil.rmtree("run/round-001")
    whole = load_file("run/model.safetensors")
    assert (
        main(command(use_peft="false", rounds=2, learning_rate=0.0003, kl_weight=0.1, resume_from_checkpoint="true"))
        == 0
    )
    again = load_file("run/model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


ODD = """
def flat(completions, **kwargs):
    return [1.0] * len(completions)

def some(completions, **kwargs):
    return [None if row % 3 == 0 else float(row) for row, _ in enumerate(completions)]

def none(completions, **kwargs):
    return [None] * len(completions)

def fails(completions, **kwargs):
    raise KeyError("no")

def fails_on_held_out(prompts, completions, **kwargs):
    if "label" in kwargs:
        raise KeyError("no")
    return [float(len(text)) for text in completions]

async def state(completions, trainer_state, **kwargs):
    return [float(len(text)) + trainer_state.global_step for text in completions]

def down(completions, **kwargs):
    return [-float(row % 4 > 1) for row, _ in enumerate(completions)]

def up(completions, **kwargs):
    return [float(row % 4 > 1) for row, _ in enumerate(completions)]
"""


@pytest.mark.parametrize(
    ("flags", "words", "branches"),
    [
        ({"reward": "odd.py:flat"}, "the same value, ", {"ranked": 0, "imitated": 2 * N}),
        ({"reward": "odd.py:down"}, "no couple to rank", {"ranked": 0, "imitated": 2 * N}),
        ({"reward": "odd.py:up"}, "", {"ranked": 2 * N, "imitated": 0}),
        ({"reward": "odd.py:down", "method": "dpo"}, "nothing to learn from", {"dropped": 2 * N}),
        ({"reward": "odd.py:some"}, "", {}),
    ],
)
def test_one_branch_alone_and_rewards_that_say_little_are_logged(
    flags: dict[str, Any], words: str, branches: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    Path("odd.py").write_text(ODD)
    assert main(command(**flags, rounds=1)) == 0
    assert words in caplog.text
    about = manifest(0)
    assert about["branches"] | branches == about["branches"]
    assert (about["end"] == about["start"] | {"base": None}) is False
    if flags["reward"] == "odd.py:some":
        assert 0 < about["branches"]["unscored"] < 2 * N
        weights = read_round(Path("run/round-000/responses.jsonl")).weights
        assert not weights.isnan().any()


def test_empty_generations_are_learned_from_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that ends at once is its end token: it is scored as the empty text, counted, and weighed like any other."""
    write("prompts/train.jsonl", [{"prompt": row["prompt"]} for row in make_prompts("train", 2, 0)])
    whole = together.sample_groups

    def ends_at_once(*args: Any, **kwargs: Any) -> Any:
        found = whole(*args, **kwargs)
        tokenizer = args[1]
        found.completions[0][0], found.completion_ids[0][0] = "", [tokenizer.eos_token_id]
        return found

    monkeypatch.setattr(together, "sample_groups", ends_at_once)
    assert main(command(rounds=1, eval_prompts=0)) == 0
    assert manifest(0)["responses"]["empty"] == 2 and manifest(0)["optimizer_steps"] == 1


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


def test_a_rows_weight_reaches_the_loss() -> None:
    """With weight 0 for all prompts but one, training is that of the one."""
    rows = [
        {"prompt": row["prompt"], "weight": float(number == 0)}
        for number, row in enumerate(make_prompts("train", 4, 0))
    ]
    write("prompts/train.jsonl", rows)
    flags = {
        "rounds": 1,
        "eval_prompts": 0,
        "num_generations": 1,
        "per_device_train_batch_size": 4,
        "weighting": "none",
    }
    assert main(command(**flags, max_grad_norm=0.0, optim="sgd", learning_rate=4.0)) == 0
    write("prompts/train.jsonl", rows[:1])
    assert (
        main(
            command(
                **flags,
                max_grad_norm=0.0,
                optim="sgd",
                learning_rate=1.0,
                output_dir="one",
                per_device_eval_batch_size=1,
            )
        )
        == 0
    )
    ours, theirs = (load_file(f"{run}/adapter_model.safetensors") for run in ("run", "one"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    assert any(theirs[name].abs().max() > 1e-4 for name in theirs if "lora_B" in name)


def test_held_out_prompts_follow_the_runs_rules() -> None:
    """A reward that fails on them loses their rows where the run says so, and a prompt that is too long is left out."""
    Path("odd.py").write_text(ODD)
    rows = [{"prompt": row["prompt"], "label": row["label"]} for row in make_prompts("train", 3, 1)]
    rows[1]["prompt"] = " ".join([str(rows[1]["prompt"])] * 12)
    write("prompts/validation.jsonl", rows)
    flags = {"reward": "odd.py:fails_on_held_out", "reward_on_error": "skip", "skip_long_prompts": "true", "rounds": 1}
    assert main(command(**flags)) == 0
    seen = json.loads(Path("run/round-000/evaluation.json").read_text())
    assert seen["reward"] is None and seen["rewards"]["rude"]["n"] == 2


def test_a_reward_is_handed_the_state_of_the_training() -> None:
    Path("odd.py").write_text(ODD)
    assert main(command(reward="odd.py:state", eval_reward=None, eval_prompts=0)) == 0
    first, second = (read_round(Path(f"run/round-00{n}/responses.jsonl")).scored for n in range(2))
    for scored, steps in ((first, 0), (second, manifest(0)["optimizer_steps"])):
        assert scored.rewards[0, 0] == len(scored.completions[0][0]) + steps


def test_rounds_take_the_next_prompts_and_come_round_again() -> None:
    assert main(command(rounds=3, prompts_per_round=8, eval_prompts=0)) == 0
    rows = [
        [json.loads(line)["row"] for line in Path(f"run/round-00{n}/responses.jsonl").read_text().splitlines()]
        for n in range(3)
    ]
    assert [len(part) for part in rows] == [8, 8, 8]
    counts = [sum(part.count(row) for part in rows) for row in range(N)]
    assert set(counts) == {2}, "24 places, 12 prompts"


def test_a_single_file_is_evaluated_by_what_was_held_out() -> None:
    """Of the run and of a round in it."""
    write("one.jsonl", [{"prompt": row["prompt"]} for row in make_prompts("train", 20, 0)])
    assert main(command(dataset_name="one.jsonl", rounds=1, eval_prompts=0)) == 0
    assert len(read_groups(Path("run/round-000/responses.jsonl"))) == 18
    for adapter in ("run", "run/round-000"):
        asked = ["--adapter", adapter, "--dataset_name", "one.jsonl", "--reward", "frugalign.sandbox:gold"]
        model = ["--model_name_or_path", "frugalign.sandbox:model", "--output_dir", "seen", "--max_new_tokens", "8"]
        assert main(["evaluate", *model, *asked]) == 0
        assert json.loads(Path("seen/metrics.json").read_text())["reward"]["n"] == 2


def test_rows_in_another_order_are_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds keep row numbers."""
    assert main(command(rounds=1)) == 0
    lines = Path("prompts/train.jsonl").read_text().splitlines()
    Path("prompts/train.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    assert main(command(resume_from_checkpoint="true")) == 2
    assert "prompts" in capsys.readouterr().err
