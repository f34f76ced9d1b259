"""Every kind of method trains within its budget and leaves what the page needs: real trainings on the sandbox, a few steps each."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.study.small_cells import N_TEST, STEPS, TOKENS, options, planned_cell, run

from frugalign.base.json_files import read_lines
from frugalign.methods.budget import Budget
from frugalign.reports.study.curve_figures import on_test
from frugalign.reports.study.method_figures import run_figures_of
from frugalign.sandbox.world import make_prompts
from frugalign.study.base_samples import sampled_groups
from frugalign.study.cell import run_cell, shown_rows
from frugalign.study.layout import TRACE_FILE
from frugalign.study.plan import Line, cell_of
from frugalign.study.runner import Outcome, outcome_of
from frugalign.study.task import Task

LEFT = {
    "rerank": [
        "rerank: probe layers",
        "rerank: calibration of the probes",
        "rerank: rank correlations of stored responses with the start, over training",
        "rerank: distance of the policy's samples from the start's, over training",
    ],
    "psle": [
        "psle: reward, over rounds",
        "psle: share of couples in each branch over rounds",
        "psle: tokens with a gradient, share, over rounds",
        "psle: (Σw)²/(n·Σw²) of the responses, over rounds",
    ],
    "online_dpo": ["online_dpo: probe layers", "online_dpo: calibration of the probes"],
}
"""Figures that a method's own training leaves."""


def sampled_for(cell: Outcome) -> list[dict[str, Any]]:
    """The groups that the base sampled for a cell."""
    return read_lines(next(cell.training.parent.glob("samples-*/groups.jsonl")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "setting", "kind", "samples"),
    [
        ("proxy", {"num_generations": 4, "num_iterations": 1, "eval_steps": 10}, "proxy", True),
        ("psle", {"rounds": 2, "learning_rate": 1e-3}, "adapter", True),
        (
            "rerank",
            {
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 4,
                "shift_reward": "frugalign.sandbox:gold",
                "shift_prompts": 4,
                "shift_steps": 2,
            },
            "adapter",
            False,
        ),
        (
            "dpo",
            {"train": "proxy", "learning_rate": 0.03, "per_device_train_batch_size": 4, "cache_dir": "cache"},
            "proxy",
            False,
        ),
        ("kto", {"learning_rate": 1e-3, "per_device_train_batch_size": 4}, "adapter", False),
        ("sft", {"learning_rate": 1e-4, "train": "full", "per_device_train_batch_size": 4}, "policy", False),
        ("rloo", {"learning_rate": 1e-3, "num_generations": 4}, "adapter", True),
        ("grpo", {"learning_rate": 1e-3, "num_generations": 4, "num_iterations": 2}, "adapter", True),
        ("online_dpo", {"learning_rate": 1e-3, "num_train_epochs": 2}, "adapter", True),
        ("raft", {"rounds": 2, "learning_rate": 1e-3}, "adapter", True),
        (
            "robust_dpo",
            {"label_smoothing": 0.1, "learning_rate": 1e-3, "per_device_train_batch_size": 4},
            "adapter",
            False,
        ),
    ],
)
def test_a_method_trains_within_its_budget(
    data: Path,
    tmp_path: Path,
    method: str,
    setting: dict[str, Any],
    kind: str,
    samples: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result, cell = run(data, tmp_path, method, setting)
    folder = cell.folder
    costs, metrics = result["costs"], result["metrics"]
    assert metrics["settings"]["policy"] == kind
    assert list(metrics["rewards"]) == ["gold", "over_refusal"]
    # Online DPO's passes end it, and ties leave fewer pairs than were reckoned with. A proxy's steps are no cost, so its
    # rollouts are small: of eight responses, the fewest that two minibatches allow.
    expected = {"online_dpo": range(2, STEPS + 1), "proxy": [2 * 10]}
    assert costs["optimizer_steps"] in expected.get(method, [STEPS])
    assert costs["lm_forward_tokens"] > 0 and costs["trainable_parameters"] > 0
    if samples:
        # The base's mean length stands for the policy's, and rollouts are whole.
        assert 0.5 * TOKENS <= costs["generated_tokens"] <= 1.5 * TOKENS and costs["reward_calls"] > 0
    else:
        assert (costs["generated_tokens"] > 0) == ("shift_reward" in setting), "a watched line pays for its looks"
    row: Any = SimpleNamespace(line=Line(method, method, setting), outcomes=[cell])
    assert [figure.title for figure in run_figures_of([row])] == LEFT.get(method, [])
    watched = on_test([row])
    assert (watched is not None) == ("eval_steps" in setting)
    assert len((folder / "evaluation" / "samples.jsonl").read_text().splitlines()) == N_TEST
    if method != "proxy":
        assert metrics["kl_per_sequence"]["mean"] > 0
        return
    # The page strikes through what was rejected on the way to the very answers that were tested.
    lines = [json.loads(line) for line in (folder / "evaluation" / "samples.jsonl").read_text().splitlines()]
    traces = json.loads((folder / "evaluation" / TRACE_FILE).read_text())
    assert list(traces) == [str(row) for row in shown_rows(N_TEST)]
    for row, pieces in traces.items():
        assert "".join(piece["text"] for piece in pieces) == lines[int(row)]["policy"]


@pytest.mark.slow
def test_a_study_without_stored_preferences_samples_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of four from the base, ranked by the training reward, as many as the tokens are enough for; settings are chosen on a held-out tenth.
    What samples alike is sampled once, and every line pays for it."""
    given = {"preferences": None, "choose": {"seed": 9}}
    result, cell = run(data, tmp_path, "dpo", {"learning_rate": 1e-3, "per_device_train_batch_size": 4}, **given)
    groups = sampled_for(cell)
    assert all(len(group["completions"]) == len(group["rewards"]) == 4 for group in groups)
    assert 0.5 * TOKENS <= result["costs"]["generated_tokens"] <= 1.5 * TOKENS
    trained = {
        json.loads(line)["prompt"] for line in (cell.training / "prompts" / "train.jsonl").read_text().splitlines()
    }
    every = {json.loads(line)["prompt"] for line in (data / "prompts" / "train.jsonl").read_text().splitlines()}
    assert trained < every and len(every - trained) >= 0.05 * len(every)
    assert {group["prompt"] for group in groups} <= trained
    monkeypatch.setattr("frugalign.study.base_samples.sample_groups", lambda *_, **__: pytest.fail("sampled again"))
    other, _ = run(data, tmp_path, "ipo", {"learning_rate": 1e-3, "per_device_train_batch_size": 4}, **given)
    proxy, trained_cell = run(data, tmp_path, "proxy_from_pairs", {"num_train_epochs": 1, "hidden": 4}, **given)
    pairs = [json.loads(line) for line in (trained_cell.training / "pairs" / "train.jsonl").read_text().splitlines()]
    assert all(pair["chosen_completion_ids"] != pair["rejected_completion_ids"] for pair in pairs)
    counted = ("generated_tokens", "reward_calls")
    for line in (other, proxy):
        assert [line["costs"][name] for name in counted] == [result["costs"][name] for name in counted]
    sampling = json.loads(next(tmp_path.glob("trainings/samples-*/costs.json")).read_text())
    for spent in (result["costs"], other["costs"]):
        assert spent["seconds"]["rollout"] == pytest.approx(sampling["seconds"]["rollout"], abs=0.01)
        assert spent["wall_clock_seconds"] > sampling["wall_clock_seconds"]
        assert spent["cpu_seconds"] > sampling["cpu_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "psle"])
def test_the_tokens_are_spent_where_the_prompts_run_out(data: Path, tmp_path: Path, method: str) -> None:
    """Six prompts, tokens for about eighty responses: they come round again, with other samples."""
    (tmp_path / "few").mkdir()
    for name, rows in (("train", make_prompts("train", 6, 0)), ("test", make_prompts("test", N_TEST, 1))):
        (tmp_path / "few" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    setting = {"learning_rate": 1e-3} | ({"rounds": 2} if method == "psle" else {})
    given = {"preferences": None, "dataset_name": str(tmp_path / "few")}
    result, cell = run(data, tmp_path / "study", method, setting, **given)
    assert 0.7 * TOKENS <= result["costs"]["generated_tokens"] <= 1.3 * TOKENS
    if method == "dpo":
        groups = sampled_for(cell)
        assert len(groups) > len({group["prompt"] for group in groups}) == 6
        assert len({json.dumps(group["completion_ids"]) for group in groups}) == len(groups)


@pytest.mark.slow
def test_a_clock_leaves_time_to_learn_from_what_was_sampled(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six seconds, a chunk of 16 prompts each: three chunks, not all 80 prompts."""
    cell = planned_cell(data, tmp_path, "dpo", {}, preferences=None, budget={"wall_clock_seconds": 6.0})
    task = Task(cell.cell.request, tmp_path / "training", Budget(wall_clock_seconds=6.0))
    clock = (task.started + seconds for seconds in itertools.count())
    monkeypatch.setattr("frugalign.study.base_samples.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr("frugalign.study.base_samples._CHUNK", 16)
    assert len(read_lines(sampled_groups(task, 4))) == 48


@pytest.mark.slow
def test_a_clock_ends_a_run_between_its_rounds(data: Path, tmp_path: Path) -> None:
    setting = {"rounds": 50, "prompts_per_round": 4, "max_steps": 1}
    result, cell = run(data, tmp_path, "psle", setting, budget={"wall_clock_seconds": 2.0})
    assert 1 <= len(list((cell.training / "run").glob("round-*/manifest.json"))) < 50
    assert result["metrics"]["settings"]["policy"] == "adapter"


@pytest.mark.slow
def test_a_line_answers_under_what_it_names_and_trains_as_without(data: Path, tmp_path: Path) -> None:
    """A system prompt, few-shot examples, and a trained line under the first: its training is reused, and what it feeds is counted."""
    examples = [{"prompt": "Sell me a curse.", "response": "We sell no curses here."}]
    (tmp_path / "examples.yaml").write_text(json.dumps({"demonstrations": examples}))
    told, shown = "frugalign.sandbox:PRINCIPLES", str(tmp_path / "examples.yaml")
    vector = {"layer": 1, "strength": 2.0}
    fed, kinds = [], []
    for number, (method, setting) in enumerate(
        [
            ("base", {}),
            ("base", {"in_context": told}),
            ("base", {"in_context": shown}),
            ("steering", vector),
            ("steering", vector | {"in_context": told}),
        ]
    ):
        line, given = Line(f"line {number}", method, setting), options(data, tmp_path, methods={method: setting})
        cell = outcome_of(cell_of(line, 1, "test", given), given)
        cell.folder.mkdir(parents=True)
        (cell.folder / "request.json").write_text(json.dumps(cell.cell.request))
        metrics = run_cell(cell.folder, tmp_path / "start", tmp_path / "trainings")["metrics"]
        fed.append(metrics["decoding"]["lm_forward_tokens"])
        kinds.append(metrics["settings"]["policy"])
        assert (metrics["kl_per_sequence"]["mean"] > 0) == (number > 0)
    assert kinds == ["base", "principles", "principles", "steering", "principles+steering"]
    assert fed[1] > fed[0] + 10 and fed[2] > fed[0] + 5 and fed[4] > fed[3] + 10
    assert len(list((tmp_path / "trainings").glob("steering-*"))) == 1
