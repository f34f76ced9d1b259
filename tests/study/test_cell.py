"""Cells with real trainings on the sandbox, a few steps each: every kind of method runs within its budget and leaves what the page needs."""

import itertools
import json
import logging
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.base.json_files import read_lines
from frugalign.cli.main import main
from frugalign.methods.budget import Budget
from frugalign.reports.study.curve_figures import on_test
from frugalign.reports.study.method_figures import run_figures_of
from frugalign.reports.study.page import write_study
from frugalign.sandbox.cached import sample_pairs
from frugalign.sandbox.world import make_prompts
from frugalign.study.base_samples import sampled_groups
from frugalign.study.cell import run_cell, shown_rows
from frugalign.study.layout import TRACE_FILE
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Line, cell_of
from frugalign.study.runner import Outcome, outcome_of, read_study
from frugalign.study.table import rows_of
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
TOKENS, STEPS = 1500, 4
N_TEST = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    parts = {
        "prompts/train": make_prompts("train", 80, 0),
        "prompts/test": make_prompts("test", N_TEST, 1),
        "pairs/train": sample_pairs("train", 60),
    }
    for name, rows in parts.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(data: Path, study: Path, **given: Any) -> StudyOptions:
    common: dict[str, Any] = {
        "model_name_or_path": two_layers(),
        "dataset_name": str(data / "prompts"),
        "reward": ["frugalign.sandbox:gold"],
        "judges": ["frugalign.sandbox:gold", "frugalign.sandbox:over_refusal"],
        "principles": "frugalign.sandbox:PRINCIPLES",
        "preferences": str(data / "pairs"),
        "budget": {"generated_tokens": TOKENS, "optimizer_steps": STEPS},
        "max_new_tokens": 24,
        "seeds": [1],
        "use_cpu": True,
        "output_dir": str(study),
    }
    return StudyOptions(**common | given)


def planned_cell(data: Path, study: Path, method: str, setting: dict[str, Any], **given: Any) -> Outcome:
    """A cell whose folder has its request."""
    given_options = options(data, study, methods={method: setting}, **given)
    found = outcome_of(cell_of(Line(method, method, setting), 1, "test", given_options), given_options)
    found.folder.mkdir(parents=True)
    (found.folder / "request.json").write_text(json.dumps(found.cell.request))
    return found


def run(data: Path, study: Path, method: str, setting: dict[str, Any], **given: Any) -> tuple[dict[str, Any], Outcome]:
    found = planned_cell(data, study, method, setting, **given)
    return run_cell(found.folder, study / "start", study / "trainings"), found


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
    counted = ("generated_tokens", "reward_calls")
    assert [other["costs"][name] for name in counted] == [result["costs"][name] for name in counted]
    sampling = json.loads(next(tmp_path.glob("trainings/samples-*/costs.json")).read_text())
    for spent in (result["costs"], other["costs"]):
        assert spent["seconds"]["rollout"] == pytest.approx(sampling["seconds"]["rollout"], abs=0.01)
        assert spent["wall_clock_seconds"] > sampling["wall_clock_seconds"]


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


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.slow
def test_a_cell_ends_with_its_runner(tmp_path: Path) -> None:
    """A runner that is killed outright cannot stop its cells; one that went on would hold the lock, unseen."""
    runner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; from pathlib import Path\n"
            "code = 'import os, time; from frugalign.study import cell; '\\\n"
            "    'cell.run_cell = lambda *_, **__: [print(os.getpid(), flush=True), time.sleep(60)]; '\\\n"
            "    'cell.main(*\\'abc\\', \\'1\\', \\'1\\')'\n"
            "subprocess.run([sys.executable, '-c', code])",
        ],
        stdout=subprocess.PIPE,
    )
    assert runner.stdout is not None
    cell = int(runner.stdout.readline())
    assert is_alive(cell)
    runner.kill()
    runner.wait()
    waited = time.monotonic() + 20
    while is_alive(cell) and time.monotonic() < waited:
        time.sleep(0.1)
    assert not is_alive(cell)


def is_alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_file_that_has_changed_since_the_study_began_is_not_taken_for_the_old_one(data: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def judge(**_): return [0.0]\n")
    cell = planned_cell(data, tmp_path / "study", "base", {}, judges=[f"{tmp_path}/judge.py:judge"])
    (tmp_path / "judge.py").write_text("def judge(**_): return [100.0]\n")
    with pytest.raises(FrugalignError, match=r"judge.py:judge has changed since the study began"):
        run_cell(cell.folder, tmp_path / "start", tmp_path / "trainings")


@pytest.mark.slow
def test_a_training_that_is_done_is_not_done_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the evaluation, or used by another study in another place: the training is tested, at its cost."""
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    setting = {"num_generations": 4, "num_iterations": 1}
    common = Task.common

    def warned(task: Task) -> Any:
        logging.getLogger("frugalign.methods").warning("the training warned")
        return common(task)

    with monkeypatch.context() as patched:
        patched.setattr(Task, "common", warned)
        first, cell = run(data, Path("study"), "proxy", setting)
    assert "the training warned" in first["warnings"]
    (cell.folder / "cell.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("frugalign.study.task.Task.common", lambda task: pytest.fail("trained again"))
        again = run_cell(cell.folder, Path("study/start"), Path("study/trainings"))
        assert again["costs"] == first["costs"] and again["training_machine"] == first["training_machine"]
        assert again["warnings"] == first["warnings"], "what it warned of is not lost either"
        # Another judge and fewer prompts.
        (tmp_path / "two").mkdir()
        monkeypatch.chdir(tmp_path / "two")
        there = "../one/study/trainings"
        other = {"judges": ["frugalign.sandbox:rude"], "eval_prompts": 2, "trainings_dir": there}
        second = planned_cell(data, Path("study"), "proxy", setting, **other)
        assert second.training.name == cell.training.name and second.folder.name != cell.folder.name
        result = run_cell(second.folder, Path("study/start"), Path(there))
        assert result["costs"] == first["costs"] and list(result["metrics"]["rewards"]) == ["rude", "gold"]
    # A training whose run is gone is none.
    shutil.rmtree(Path(there) / cell.training.name / "run")
    (second.folder / "cell.json").unlink()
    assert (
        run_cell(second.folder, Path("study/start"), Path(there))["metrics"]["rewards"] == result["metrics"]["rewards"]
    )


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


@pytest.mark.slow
def test_two_processes_do_not_work_on_one_cell(data: Path, tmp_path: Path) -> None:
    cell = cell_of(Line("base", "base", {}), 1, "test", options(data, tmp_path, methods={"base": None}))
    folder = cell.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps(cell.request))
    # A lock of another process: this one's own could be taken again.
    held = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import filelock, time; lock = filelock.FileLock({str(folder / '.lock')!r}); lock.acquire(); print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert held.stdout is not None and held.stdout.readline() == b"held\n"
        with pytest.raises(FrugalignError, match=f"Another command is using {re.escape(str(folder))}"):
            run_cell(folder, tmp_path / "start", tmp_path / "trainings")
    finally:
        held.kill()
        held.wait()


@pytest.mark.slow
def test_the_command_runs_cells_in_processes_and_says_what_failed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("def reward(**_):\n    raise ZeroDivisionError('by zero')\n")
    # Four test prompts are scored together, but guiding scores two candidates for each.
    Path("few.py").write_text(
        "def few(completions, **_):\n    return [1 / (len(completions) < 5)] * len(completions)\n"
    )
    Path("study.yaml").write_text(
        f"model_name_or_path: frugalign.sandbox:model\ndataset_name: {data / 'prompts'}\nreward: few.py:few\n"
        "judges: frugalign.sandbox:gold\nseeds: [1]\nmax_new_tokens: 16\neval_prompts: 4\nuse_cpu: true\njobs: 2\noutput_dir: out\n"
        "methods:\n  base:\n  guided: {method: reward_guided, top_k: 2}\n"
    )
    assert main(["study", "study.yaml"]) == 2
    said = capsys.readouterr()
    assert "base, seed 1:" in said.out and "Missing: guided, seed 1, " in said.out and "division by zero" in said.out
    assert "The page is out/report.html." in said.out and "by zero" in Path("out/report.html").read_text()
    assert main(["study", "study.yaml", "--only", "base:1"]) == 0, "the selected cell is finished"
    assert main(["study", "study.yaml", "--only", "base:1", "--judges", "broken.py:reward", "--jobs", "1"]) == 2
    assert "base, seed 1" in (said := capsys.readouterr().out) and "by zero" in said
    page = Path("out/report.html").read_text()
    assert "frugalign study study.yaml --judges broken.py:reward --jobs 1 --only &#34;base:1&#34;" in page


@pytest.mark.slow
def test_the_page_has_what_is_done_and_names_what_is_not(data: Path, tmp_path: Path) -> None:
    methods = {
        "base": None,
        "best-of-3": {"method": "best_of_n", "n": 3},
        "guided": {"method": "reward_guided", "top_k": 3},
        "dpo": {},
    }
    given_options = options(data, tmp_path, methods=methods)
    for label, method, setting in (
        ("base", "base", {}),
        ("best-of-3", "best_of_n", {"n": 3}),
        ("guided", "reward_guided", {"top_k": 3}),
    ):
        cell = cell_of(Line(label, method, setting), 1, "test", given_options)
        cell.folder(tmp_path).mkdir(parents=True)
        (cell.folder(tmp_path) / "request.json").write_text(json.dumps(cell.request))
        run_cell(cell.folder(tmp_path), tmp_path / "start", tmp_path / "trainings")
    found = read_study(given_options)
    rows = {row.line.label: row for row in rows_of(found)}
    assert list(rows) == ["base", "best-of-3", "guided"]
    assert rows["base"].main.difference is None and rows["base"].win_rate is None
    best = rows["best-of-3"].main
    assert best.difference is not None and best.difference.mean == pytest.approx(
        best.value.mean - rows["base"].main.value.mean
    )
    assert best.p_holm is not None and best.p_value is not None and best.p_holm >= best.p_value
    page = write_study(found, "recipes/studies/this.yaml").read_text()
    assert "dpo, seed 1: not run yet" in page and "http://" not in page.replace("http://www.w3.org", "")
    for words in (
        "best-of-3",
        "Quality against distance",
        "frugalign study recipes/studies/this.yaml --only &#34;guided:1&#34;",
    ):
        assert words in page
    summary = json.loads((tmp_path / "study.json").read_text())
    assert [line["label"] for line in summary["lines"]] == ["base", "best-of-3", "guided"]
    assert summary["missing"] == [{"cell": "dpo, seed 1", "why": "not run yet"}]
    assert "| best-of-3 |" in (tmp_path / "study.md").read_text()
