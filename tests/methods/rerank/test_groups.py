"""Sampled groups: ranked, paired, ranked anew each epoch or sampled anew; killed anywhere and resumed with the same result."""

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.forked import Forked
from tests.methods.rerank.random_reward import random_probes
from tests.two_layers import two_layers

from frugalign.cli.main import main
from frugalign.data.groups import Groups, pair_groups, read_groups
from frugalign.engines import load_model
from frugalign.rewards.representation.network import RepresentationReward
from frugalign.sandbox.cached import sample_pairs

N_PROMPTS = 12


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, labelled pairs, and a reward of random probes: what is tested here is the run, not what it learns."""
    monkeypatch.chdir(tmp_path)
    rows = sample_pairs("train", 40)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows]
    Path("prompts.jsonl").write_text("".join(prompts[:N_PROMPTS] + prompts[:1]))
    random_probes().save_pretrained("reward")


def command(**flags: Any) -> list[str]:
    given = {
        "model_name_or_path": two_layers(),
        "dataset_name": "prompts.jsonl",
        "reward": "reward",
        "output_dir": "run",
        "sample": 4,
        "max_new_tokens": 12,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 0.003,
        "use_cpu": "true",
    } | flags
    return [
        "rerank",
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))),
    ]


def lines(folder: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def assert_saved_reward(groups: Groups) -> None:
    """Its rewards are those of the saved reward on its own base."""
    prompts, texts, ids = groups.flat()
    scores = RepresentationReward.from_pretrained("reward")(prompts, texts, completion_ids=ids)
    torch.testing.assert_close(
        torch.tensor(scores),
        torch.tensor([each for group in groups.rewards or [] for each in group]),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.slow
def test_responses_are_sampled_once_and_ranked_by_the_moving_policy() -> None:
    assert main(command()) == 0
    rankings = [read_groups(Path(f"run/groups/epoch-00{epoch}.jsonl")) for epoch in range(3)]
    assert not list(Path("run/groups").glob(".*"))
    assert [len(ranking) for ranking in rankings] == [N_PROMPTS] * 3, "equal prompts are asked once"
    assert rankings[0].completions == rankings[1].completions == rankings[2].completions
    assert rankings[0].rewards != rankings[1].rewards != rankings[2].rewards
    # The first ranking is the saved reward's own, on the model itself.
    assert_saved_reward(rankings[0])
    pairs, dropped = pair_groups(rankings[0])
    first = next(line for line in lines() if "ranking/pairs" in line)
    assert (first["ranking/pairs"], first["ranking/equal_texts"]) == (len(pairs), dropped.equal_texts)
    assert sum("ranking/best_changed_share" in line for line in lines()) == 2
    costs = json.loads(Path("run/costs.json").read_text())
    assert costs["reward_calls"] == 3 * 4 * N_PROMPTS and costs["generated_tokens"] > 0


@pytest.mark.parametrize(("flags", "expected"), [({}, 0.6), ({"temperature": 0.8}, 0.8)])
def test_the_first_responses_are_sampled_at_the_models_own_temperature_unless_told(
    flags: dict[str, Any], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = load_model(two_layers())
    own.model.generation_config.update(do_sample=True, temperature=0.6)  # type: ignore[union-attr]
    own.model.save_pretrained("own")
    own.tokenizer.save_pretrained("own")

    class Sampled(Exception):
        pass

    def sample_for(*given: Any) -> None:
        raise Sampled(given[3].temperature)

    monkeypatch.setattr("frugalign.methods.rerank.run.sample_for", sample_for)
    with pytest.raises(Sampled, match=str(expected)):
        main(command(model_name_or_path="own", **flags))


@pytest.mark.slow
def test_cut_responses_can_be_ranked_last(caplog: pytest.LogCaptureFixture) -> None:
    """Of a reward that knows whole answers alone the value of a cut one says nothing: with the penalty whatever ended is above, in every epoch's ranking."""
    assert main(command(output_dir="plain", resample="true", max_new_tokens=20, num_train_epochs=1)) == 0
    assert "are cut at max_new_tokens (20)" in caplog.text
    caplog.clear()
    flags = {"output_dir": "less", "resample": "true", "max_new_tokens": 20, "missing_eos_penalty": -100}
    assert main(command(**flags, num_train_epochs=2)) == 0
    assert "are cut" not in caplog.text
    plain, *less = (
        read_groups(Path(name))
        for name in ("plain/groups/epoch-000.jsonl", "less/groups/epoch-000.jsonl", "less/groups/epoch-001.jsonl")
    )
    assert plain.completion_ids == less[0].completion_ids
    end = load_model(two_layers()).tokenizer.eos_token_id
    cut = [each[-1] != end for each in plain.flat()[2] or []]
    assert 0 < sum(cut) < len(cut), "some are cut and some end"
    flat = [[each for group in groups.rewards or [] for each in group] for groups in (plain, less[0])]
    assert flat[1] == pytest.approx([reward - 100 * is_cut for reward, is_cut in zip(flat[0], cut, strict=True)])
    for number, groups in enumerate(less):
        every = zip(groups.flat()[2] or [], [each for group in groups.rewards or [] for each in group], strict=True)
        assert all((reward < -50) == (ids[-1] != end) for ids, reward in every), f"epoch {number}"
    assert next(line for line in lines("less") if "ranking/cut_share" in line)["ranking/cut_share"] == sum(cut) / len(
        cut
    )


@pytest.mark.slow
def test_a_ranking_is_a_data_set_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Used again it is ranked by the reward and gives the same run; without a reward its own rewards count."""
    assert main(command(num_train_epochs=2)) == 0
    whole = load_file("run/adapter_model.safetensors")
    Path("kept.jsonl").write_text(Path("run/groups/epoch-000.jsonl").read_text())
    assert main(command(num_train_epochs=2, dataset_name="kept.jsonl", sample=0, output_dir="again")) == 0
    again = load_file("again/adapter_model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    flags = {"dataset_name": "kept.jsonl", "sample": 0, "reward": None, "confidence": "constant", "output_dir": "plain"}
    assert main(command(**flags)) == 2
    assert "needs a representation reward" in capsys.readouterr().err
    assert main(command(**flags, rerank_groups="false")) == 0
    assert read_groups(Path("plain/groups/epoch-000.jsonl")) == read_groups(Path("kept.jsonl"))


@pytest.mark.slow
def test_online_dpo_samples_anew_and_judges_by_the_starting_model() -> None:
    assert main(command(resample="true", confidence="constant")) == 0
    rankings = [read_groups(Path(f"run/groups/epoch-00{epoch}.jsonl")) for epoch in range(3)]
    assert rankings[0].completions != rankings[1].completions != rankings[2].completions
    assert_saved_reward(rankings[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ({}, "within"),
        ({}, "end"),
        ({"resample": "true"}, "within"),
        ({"reward_refresh_steps": 2, "reward_dataset_name": "pairs.jsonl"}, "within"),
        ({"sample": 0, "dataset_name": "pairs.jsonl", "reward_refresh_steps": 2, "num_train_epochs": 1}, "within"),
    ],
    ids=["groups", "groups-boundary", "online", "following", "following-stored"],
)
def test_resumed_part_way_it_ends_as_the_whole_run(flags: dict[str, Any], kept: str) -> None:
    """All but one checkpoint, inside the second epoch or at its end, are gone, as after a kill: bit for bit the same end."""
    assert main(command(save_steps=4, save_total_limit=99, **flags)) == 0
    whole, log = load_file("run/adapter_model.safetensors"), lines()
    # Steps of an epoch, from the log of the last.
    per_epoch = round(log[-1]["step"] / log[-1]["epoch"])
    if kept == "end":
        shutil.rmtree("run")
        assert main(command(save_steps=per_epoch, save_total_limit=99, **flags)) == 0
        log = lines()
    for checkpoint in Path("run").glob("checkpoint-*"):
        if checkpoint.name != ("checkpoint-8" if kept == "within" else f"checkpoint-{2 * per_epoch}"):
            shutil.rmtree(checkpoint)
    Path("run/adapter_model.safetensors").unlink()
    assert main(command(save_steps=4, save_total_limit=99, resume_from_checkpoint="true", **flags)) == 0
    again = load_file("run/adapter_model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")
    bare = [[{k: v for k, v in line.items() if k not in timed} for line in found] for found in (log, lines())]
    assert bare[0] == bare[1]


@pytest.mark.slow
def test_a_step_limit_that_is_lifted_goes_on(tmp_path: Path) -> None:
    """Stopped after two steps by max_steps, then resumed by epochs: to the end of the epoch, not the end of the two steps."""
    flags = {"sample": 0, "dataset_name": "pairs.jsonl", "num_train_epochs": 1, "save_steps": 2}
    assert main(command(**flags, max_steps=2)) == 0
    assert main(command(**flags, resume_from_checkpoint="true")) == 0
    assert lines()[-1]["step"] == 10
    # Done already: nothing is trained, the artefact is as it was.
    before = Path("run/adapter_model.safetensors").read_bytes()
    assert main(command(**flags, resume_from_checkpoint="true")) == 0
    assert Path("run/adapter_model.safetensors").read_bytes() == before and lines()[-1]["step"] == 10


@pytest.mark.slow
def test_a_checkpoint_is_not_resumed_on_other_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"sample": 0, "num_train_epochs": 1, "save_steps": 2}
    assert main(command(**flags, dataset_name="pairs.jsonl", max_steps=2)) == 0
    turned = Path("pairs.jsonl").read_text().splitlines()[::-1]
    Path("turned.jsonl").write_text("\n".join(turned) + "\n")
    Path("moved.jsonl").write_text(Path("pairs.jsonl").read_text())
    capsys.readouterr()
    assert main(command(**flags, dataset_name="turned.jsonl", resume_from_checkpoint="true")) == 2
    assert "was made with other pairs: resume with the same settings" in capsys.readouterr().err
    assert main(command(**flags, dataset_name="moved.jsonl", resume_from_checkpoint="true")) == 0


@pytest.mark.slow
def test_an_adapter_does_not_outlive_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"sample": 0, "dataset_name": "pairs.jsonl", "max_steps": 2, "save_strategy": "no"}
    assert main(command(**flags)) == 0
    assert main(command(**flags)) == 2
    assert "holds an earlier run (adapter_model.safetensors)" in capsys.readouterr().err
    assert main(command(**flags, train="full", learning_rate=1e-4, overwrite_output_dir="true")) == 0
    assert not list(Path("run").glob("adapter*")) and Path("run/model.safetensors").is_file()


@pytest.mark.slow
def test_pairs_with_the_prompt_within_both_answers_will_do(tmp_path: Path) -> None:
    rows = [
        {side: f"Human: {row['prompt']}\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
        for row in sample_pairs("train", 12)
    ]
    Path("implicit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my.py").write_text("def letters(completions, **_):\n    return [float(len(text)) for text in completions]\n")
    flags = {"shift_reward": "my.py:letters", "shift_prompts": 2, "shift_steps": 2}
    assert main(command(sample=0, dataset_name="implicit.jsonl", max_steps=2, **flags)) == 0
    assert any("shift/wasserstein" in line for line in lines())


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """SIGKILL while it samples, while it ranks and while it trains, at moments that the clock chooses."""
    flags = {"max_new_tokens": 20, "sampling_batch_size": 4, "save_steps": 2}
    assert main(command(**flags, output_dir="whole")) == 0
    whole = load_file("whole/adapter_model.safetensors")
    seen: set[str] = set()

    def progress() -> set[str]:
        return {path.name for path in (*Path("run").glob("groups/.*"), *Path("run").glob("checkpoint-*"))}

    for wait in (0.0, 0.8):
        resume = {"resume_from_checkpoint": "true"} if any(Path("run").glob("checkpoint-*")) else {}
        process = Forked(partial(main, command(**flags, **resume)), tmp_path / "log.txt")
        mark = progress()
        # Not before it has done something new.
        process.wait_for(lambda mark=mark: progress() != mark)
        time.sleep(wait)
        process.kill()
        assert process.poll() in (-9, 0), process.log.read_text()
        seen.add("trained" if any(Path("run").glob("checkpoint-*")) else "sampled")
        if Path("run/adapter_model.safetensors").is_file():
            break
    assert "sampled" in seen
    if not Path("run/adapter_model.safetensors").is_file():
        resume = {"resume_from_checkpoint": "true"} if any(Path("run").glob("checkpoint-*")) else {}
        assert main(command(**flags, **resume)) == 0
    again = load_file("run/adapter_model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert Path("run/groups/epoch-002.jsonl").read_text() == Path("whole/groups/epoch-002.jsonl").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"sample": 1}, "at least 2"),
        ({"sample": 0, "resample": "true", "dataset_name": "pairs.jsonl"}, "resample needs sample"),
        ({"reward_refresh_steps": 2}, "reward_dataset_name"),
        ({"eval_steps": 2}, "reward_dataset_name"),
        ({"temperature": 0}, "temperature is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"label_noise": 0.6}, "label_noise is 0.6"),
        ({"precompute_ref_log_probs": "true"}, "precompute_ref_log_probs"),
        ({"dataloader_persistent_workers": "true", "dataloader_num_workers": 1}, "dataloader_persistent_workers"),
        ({"label_noise": 0.1, "confidence": "batch"}, "needs confidence pair"),
        ({"label_smoothing": 0.1}, "constant_confidence"),
        ({"sync_ref_model": "true"}, "moving reference"),
        ({"reward_dataset_name": "pairs.jsonl"}, "neither is set"),
        ({"shift_reward": "nothing.py:f"}, "nothing.py"),
        ({"prompt_format": "raw"}, "fitted with prompt_format auto, not raw"),
        ({"chat_template_kwargs": '{"documents": []}'}, "fitted with chat_template_kwargs None, not {'documents': []}"),
        ({"dataset_name": "odd.jsonl", "sample": 0}, "row 1: `rewards` must be a list"),
        ({"dataset_name": "long.jsonl"}, "Prompt 1 has"),
    ],
)
def test_a_mistake_is_one_sentence(flags: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.jsonl").write_text(json.dumps({"prompt": "p", "completions": ["a", "b"], "rewards": 1.0}) + "\n")
    Path("long.jsonl").write_text(json.dumps({"prompt": "a balm " * 200}) + "\n")
    assert main(command(**flags)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("frugalign: ")]
    assert len(said) == 1 and words in said[0]
