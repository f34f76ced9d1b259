"""What a run of rounds leaves in its folders, and whom it asks what."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.psle.conftest import Finished
from tests.methods.psle.runs import ODD, N, command, manifest, write
from tests.two_layers import two_layers

import frugalign.runs.shared_sampling as together
from frugalign.cli.main import main
from frugalign.data.groups import read_groups
from frugalign.methods.psle.responses import read_round
from frugalign.sandbox.world import make_prompts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]


def test_every_round_is_a_folder_and_nothing_generated_is_lost(copied: Finished) -> None:
    copied()
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


def test_the_adapter_that_is_left_is_the_last_rounds_and_evaluate_takes_it(copied: Finished) -> None:
    copied(rounds=1)
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
    assert main(["evaluate", "--model_name_or_path", two_layers(), "--adapter", "run", *words]) == 0


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


def test_a_rows_weight_reaches_the_loss() -> None:
    """With weight 0 for all prompts but one, training is that of the one. A missing weight is 1."""
    rows = [
        {"prompt": row["prompt"]} | ({"weight": 0.0} if number else {})
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
        model = ["--model_name_or_path", two_layers(), "--output_dir", "seen", "--max_new_tokens", "8"]
        assert main(["evaluate", *model, *asked]) == 0
        assert json.loads(Path("seen/metrics.json").read_text())["reward"]["n"] == 2
