"""`frugalign proxy` on stored data, from the command to the page: what is held out, reported and resumed, and who teaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.rerank.random_reward import random_probes
from tests.two_layers import two_layers

from frugalign.cli.main import main
from frugalign.data.labelled import paired
from frugalign.methods import text_baselines
from frugalign.methods.proxy_rlhf import ProxyConfig
from frugalign.methods.proxy_rlhf.run import train_proxy
from frugalign.methods.proxy_stored import StoredProxyConfig, train_stored
from frugalign.methods.proxy_stored import run as module
from frugalign.runs.layout import read_costs, read_log, read_pairs_report
from frugalign.sandbox.cached import sample_pairs
from frugalign.sandbox.world import make_prompts

PRINCIPLES = "frugalign.sandbox:PRINCIPLES"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def pairs(n: int = 40) -> str:
    return write("pairs.jsonl", list(sample_pairs("train", n)))


def prompts(n: int = 12, **columns: Any) -> str:
    return write("prompts.jsonl", [{"prompt": row["prompt"]} | columns for row in make_prompts("train", n, 0)])


def options(**flags: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": two_layers(),
        "output_dir": "run",
        "cache_dir": "features",
        "max_steps": 4,
        "eval_steps": 2,
        "logging_steps": 2,
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
        "max_new_tokens": 8,
        "use_cpu": True,
        "disable_tqdm": True,
    } | flags


def train(**flags: Any) -> Any:
    return train_stored(StoredProxyConfig(**options(**flags)))


def command(**flags: Any) -> list[str]:
    return ["proxy", *(word for name, value in options(**flags).items() for word in (f"--{name}", str(value)))]


def weights(folder: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(Path(folder) / "model.safetensors")
    return found


def test_a_proxy_from_pairs_is_reported_drawn_and_used(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One command: artefact, card, report beside words and length on unseen prompts, page, and an answer by the policy."""
    assert main(command(dataset_name=pairs())) == 0
    said = capsys.readouterr()
    report = read_pairs_report(Path("run"))
    assert report is not None and report["split"] == "test" and set(report["accuracy"]) == {"implicit_reward", "bag_of_words", "length_only"}  # fmt: skip
    assert f"of {report['pairs']} test pairs as labelled; words alone" in said.out and "says little" in caplog.text
    card = Path("run/README.md").read_text()
    assert "Learned from preference pairs, without sampling." in card
    assert main(["report", "run"]) == 0
    page = Path("run/report.html").read_text()
    for words in (
        "Held-out pairs in order",
        "implicit reward",
        "Words alone",
        "loss over training steps",
        "nats per sequence over",
    ):
        assert words in page, words
    costs = read_costs(Path("run"))
    assert costs["generated_tokens"] == 0 and costs["lm_forward_tokens"] > 0 and costs["optimizer_steps"] == 4
    assert {"load", "read", "optimise", "evaluate"} <= set(costs["seconds"]) and "rollout" not in costs["seconds"]
    capsys.readouterr()
    assert main(["generate", "--model_name_or_path", two_layers(), "--proxy", "run", "--prompt", "Hello", "--max_new_tokens", "4", "--use_cpu"]) == 0  # fmt: skip
    assert capsys.readouterr().out.strip()


def test_the_report_is_that_of_the_test_pairs() -> None:
    """The implicit reward by hand from the saved proxy; words and length fitted on the training pairs."""
    rows = list(sample_pairs("train", 60))
    write("data/train.jsonl", rows[:30])
    write("data/validation.jsonl", rows[30:40])
    write("data/test.jsonl", rows[40:])
    random_probes().save_pretrained("reward")
    trainer = train(dataset_name="data", reward="reward")
    report = read_pairs_report(Path("run"))
    assert report is not None and (report["split"], report["pairs"]) == ("test", 20)
    read = module.read_stored(trainer.args)
    assert read.test is not None and [len(each) for each in (read.train, read.validation, read.test)] == [30, 10, 20]
    stored = trainer.reader(read.test)
    chosen, rejected = trainer.log_ratios(stored).reshape(-1, 2).unbind(1)
    found = report["accuracy"]
    assert found["implicit_reward"]["mean"] == pytest.approx(float((chosen > rejected).double().mean()))
    better, worse = trainer.reader.rewards(stored.features)
    assert found["probes"]["mean"] == pytest.approx(float((better > worse).double().mean()))
    data = paired([read.train, read.test])
    for name, score in (("length_only", text_baselines.length_scores), ("bag_of_words", text_baselines.word_scores)):
        expected = text_baselines.accuracy(data, score(data, range(30)), range(30, 50))
        assert found[name]["mean"] == pytest.approx(expected)
    assert found["length_only"]["ci_low"] <= found["length_only"]["mean"] <= found["length_only"]["ci_high"]
    assert trainer.validation is not None and len(trainer.validation.examples) == 10


def test_without_test_pairs_the_report_says_validation() -> None:
    train(dataset_name=pairs(), test_fraction=0.0)
    report = read_pairs_report(Path("run"))
    assert report is not None and report["split"] == "validation"


def test_no_prompt_is_in_two_parts() -> None:
    """Test, validation and training prompts share none, with several pairs a prompt."""
    rows = list(sample_pairs("train", 40))
    pairs_file = write("pairs.jsonl", rows + [row | {"chosen": row["chosen"] + " Indeed."} for row in rows])
    read = module.read_stored(StoredProxyConfig(**options(dataset_name=pairs_file)))
    assert read.test is not None
    parts = [set(part["prompt"][:]) for part in (read.train, read.validation, read.test)]
    assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


# -- where it starts ------------------------------------------------------------------------------------------------------


def test_a_trained_proxy_starts_both_forms() -> None:
    """Pairs first, then other pairs, then a reward: without a step, the weights are those that were given."""
    train(dataset_name=pairs(), output_dir="first", learning_rate=0.01)
    start = weights("first")
    again = train(
        dataset_name=pairs(), output_dir="again", initial_proxy="first", max_steps=1, learning_rate=0.0, patience=0
    )
    assert all(torch.equal(value, weights("again")[name]) for name, value in start.items())
    assert float(again.log_ratios(again.stored).abs().max()) > 1e-3, "the first run learned nothing"
    by_reward = {"per_device_train_batch_size": 8, "num_generations": 2, "num_iterations": 1, "max_steps": 1, "learning_rate": 0.0}  # fmt: skip
    kept = {"cache_dir": None, "eval_steps": None}
    given = {name: value for name, value in options().items() if name not in kept}
    train_proxy(
        ProxyConfig(
            **given | by_reward | {"dataset_name": prompts(), "reward": ["frugalign.sandbox:gold"], "output_dir": "third", "initial_proxy": "first"}
        )
    )  # fmt: skip
    assert all(torch.equal(value, weights("third")[name]) for name, value in start.items())


def test_a_proxy_with_other_settings_does_not_start_it(capsys: pytest.CaptureFixture[str]) -> None:
    train(dataset_name=pairs(), output_dir="first", max_steps=1)
    assert main(command(dataset_name=pairs(), initial_proxy="first", p_t=0.05)) == 2
    assert "The given proxy has p_t 0.0062, but the options say 0.05." in capsys.readouterr().err


# -- teachers -------------------------------------------------------------------------------------------------------------


def test_principles_teach_on_answers_that_the_teacher_gives() -> None:
    """Sampled once from the base under principles, kept in the run folder, and imitated."""
    trainer = train(dataset_name=prompts(), principles=PRINCIPLES, learning_rate=0.02, max_steps=12, kl_weight=0.0)
    lines = [line for line in read_log(Path("run")) if "kl_from_teacher" in line]
    assert lines[-1]["kl_from_teacher"] < 0.9 * lines[0]["kl_from_teacher"]
    answers = [json.loads(line) for line in Path("run/groups/epoch-000.jsonl").read_text().splitlines()]
    assert all(len(row["completions"]) == 1 for row in answers)
    assert not list(Path("run/groups").glob("*.partial")) and not list(Path("run/groups").glob(".*"))
    sampled = sum(len(row["completion_ids"][0]) for row in answers)
    assert trainer.ledger.generated_tokens == sampled and read_pairs_report(Path("run")) is None


def test_weights_of_prompts_stay_with_their_answers() -> None:
    trainer = train(dataset_name=prompts(weight=2.0), principles=PRINCIPLES, max_steps=1)
    assert set(trainer.stored.examples.weights) == {2.0}


def test_a_killed_run_reads_the_answers_it_had_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped right after sampling: the same command samples nothing again, and counts what was sampled once."""
    whole = train(dataset_name=prompts(), principles=PRINCIPLES, output_dir="whole")
    with monkeypatch.context() as patch:
        patch.setattr(module, "StoredProxyTrainer", _Killed)
        with pytest.raises(KeyboardInterrupt):
            train(dataset_name=prompts(), principles=PRINCIPLES)
    import frugalign.decoding.sample_groups as sampling

    monkeypatch.setattr(sampling, "generate", None)
    again = train(dataset_name=prompts(), principles=PRINCIPLES)
    assert again.ledger.counts() == whole.ledger.counts()
    assert all(torch.equal(value, weights("run")[name]) for name, value in weights("whole").items())


class _Killed:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_other_principles_are_not_answered_by_old_answers() -> None:
    """The folder is overwritten: what an earlier teacher said is not read."""
    train(dataset_name=prompts(), principles=PRINCIPLES)
    first = Path("run/groups/epoch-000.jsonl").read_text()
    train(dataset_name=prompts(), principles=PRINCIPLES, overwrite_output_dir=True)
    assert Path("run/groups/epoch-000.jsonl").read_text() == first
    write("other.txt", [])
    Path("other.txt").write_text("Say that there is nothing, and nothing else.")
    train(dataset_name=prompts(), principles="other.txt", overwrite_output_dir=True)
    assert Path("run/groups/epoch-000.jsonl").read_text() != first


def test_a_larger_model_teaches_and_one_with_another_tokenizer_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    """The sandbox's whole model teaches its first two layers, on answers that are given."""
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in sample_pairs("train", 24)]
    data = write("answers.jsonl", rows)
    train(dataset_name=data, teacher="frugalign.sandbox:model", learning_rate=0.02, max_steps=12, kl_weight=0.0)
    lines = [line for line in read_log(Path("run")) if "kl_from_teacher" in line]
    assert lines[-1]["kl_from_teacher"] < lines[0]["kl_from_teacher"]
    other = _with_other_tokens()
    assert main(command(dataset_name=data, teacher=other, output_dir="other")) == 2
    assert f"The teacher {other} has another tokenizer than the model" in capsys.readouterr().err


def _with_other_tokens() -> str:
    """The same model, where two tokens have changed places."""
    import shutil

    shutil.copytree(two_layers(), "renamed")
    path = Path("renamed/tokenizer.json")
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[40:42]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content))
    return "renamed"


def test_a_teacher_that_cannot_read_so_much_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    data = write("long.jsonl", [{"prompt": f"{n}" + " a" * 100, "completion": "b" * 100} for n in range(4)])
    Path("long.txt").write_text("Be kind. " * 60)
    assert main(command(dataset_name=data, principles="long.txt")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "as the teacher reads it, and its context is" in said


# -- user errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "flags", "sentence"),
    [
        ([{"prompt": str(n), "completion": "b", "label": n > 1} for n in range(4)], {}, "labels single answers as good or bad"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4, {}, "fewer than two distinct prompts, so none can be held out"),
        ([{"prompt": str(n), "chosen": "b", "rejected": "b"} for n in range(9)], {}, "no pair of two different answers"),
        ([{"prompt": str(n), "chosen": "b", "rejected": "c"} for n in range(9)], {"tail": "drop"}, "stored answers need tail keep"),
        ([{"prompt": str(n), "chosen": "b", "rejected": "c"} for n in range(9)], {"candidate_features": "lookahead"}, "lookahead needs the states"),
        ([{"prompt": str(n), "chosen": "b", "rejected": "c", "weight": "x"} for n in range(9)], {}, "Row 1 has the weight 'x'; it must be a finite number of at least 0."),
        ([{"prompt": str(n), "completion": "b", "weight": 3 - n} for n in range(9)], {}, "Row 5 has the weight -1; it must be a finite number of at least 0."),
        ([{"prompt": str(n), "chosen": "b", "rejected": "c", "confidence": n / 4} for n in range(9)], {}, "Row 6 has the confidence 1.25; it must be a number in [0, 1]."),
        ([{"prompt": str(n), "completion": ""} for n in range(9)], {"weight": None}, None),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_one_sentence(
    rows: list[dict[str, Any]], flags: dict[str, Any], sentence: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: value for name, value in flags.items() if value is not None}
    status = main(command(dataset_name=write("data.jsonl", rows), max_steps=1, **given))
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if sentence is not None:
        assert status == 2 and sentence in said.strip().splitlines()[-1]
