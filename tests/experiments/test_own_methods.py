"""Methods of the studies' own: what they share with other lines, and controls that have nothing to learn from."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from experiments import own_methods
from experiments.own_methods import shuffled
from tests.study.small_cells import N_TEST
from tests.study.small_cells import run as run_line

from frugalign.base.ledger import Ledger
from frugalign.methods import registry
from frugalign.methods.budget import Budget
from frugalign.rewards import load_rewards
from frugalign.sandbox.world import make_prompts
from frugalign.study import training
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Cell, Line, cell_of
from frugalign.study.task import Task

PAIRS = {"target_kl": 6, "num_train_epochs": 10}
LINES: dict[str, dict[str, Any]] = {
    "proxy": {"target_kl": 6},
    "proxy from pairs": {"method": "proxy_from_pairs", **PAIRS},
    "pairs then reward": {
        "method": "experiments.own_methods:PAIRS_THEN_REWARD",
        "start": {"method": "proxy_from_pairs", **PAIRS},
        "target_kl": 3,
    },
    "two proxies": {
        "method": "experiments.own_methods:COMPOSED",
        "target_kl": 6,
        "strength": 0.25,
        "other_reward": "experiments.short_answers:reward",
    },
    "null reward": {"method": "experiments.own_methods:NULL_REWARD", "target_kl": 6},
    "untrained": {"method": "experiments.own_methods:UNTRAINED"},
    "own refusals": {"method": "experiments.own_methods:OWN_REFUSALS", "p_t": 0.001},
}


def cell(label: str, **given: Any) -> Cell:
    setting = dict(LINES[label])
    options = StudyOptions(
        model_name_or_path="frugalign.sandbox:model",
        dataset_name="frugalign.sandbox:study_prompts",
        reward=["frugalign.sandbox:gold"],
        judges=["frugalign.sandbox:over_refusal"],
        principles="frugalign.sandbox:PRINCIPLES",
        budget={"generated_tokens": 1000},
        output_dir="study",
        methods=LINES,
        **given,
    )
    return cell_of(Line(label, setting.pop("method", label), setting), 3, "test", options)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a line's method. Trainings of other lines are named by their folder, and its own by what it was given."""
    own: list[Any] = []

    def trained(request: dict[str, Any], trainings: Path, *_: Any, **__: Any) -> dict[str, Any]:
        spent = Ledger()
        spent.count(generated_tokens=100)
        spent.set_parameters(trainable=7)
        return {"policy": {"proxy": training.training_folder(request, trainings).name}, "costs": spent.to_dict()}

    monkeypatch.setattr(training, "trained", trained)
    monkeypatch.setattr(own_methods, "_run", lambda name, job: own.append((name, job)) or {"proxy": "own"})

    def of(label: str, **given: Any) -> tuple[dict[str, Any], Task, list[Any]]:
        asked = cell(label, **given)
        task = Task(asked.request, asked.training(tmp_path), Budget(generated_tokens=1000, mean_length=20))
        method = registry.get(asked.request["method"]).run
        assert method is not None
        return method(task), task, own

    return of


@pytest.mark.parametrize("preferences", [None, "PAIRS"])
def test_pairs_then_reward_starts_from_the_other_lines_training(run: Any, preferences: str | None) -> None:
    given = {"preferences": preferences}
    policy, task, own = run("pairs then reward", **given)
    ((name, job),) = own
    start = cell("proxy from pairs", **given).training(Path()).name
    assert (policy, name) == ({"proxy": "own"}, "proxy") and job.setting == {"target_kl": 3, "initial_proxy": start}
    assert task.ledger.generated_tokens == 100


def test_two_proxies_are_that_of_the_line_and_one_more(run: Any) -> None:
    policy, task, _ = run("two proxies")
    first, second = policy["proxy"]
    assert first == {"path": cell("proxy").training(Path()).name, "strength": 0.25}
    assert second["strength"] == 0.25 and second["path"] not in ("", first["path"])
    assert task.ledger.generated_tokens == 200 and task.ledger.trainable_parameters == 14


def test_controls_are_the_proxy_with_nothing_to_learn(run: Any) -> None:
    """By noise, or with its initial weights after a rollout of sixteen responses."""
    _, task, own = run("null reward")
    run("untrained")
    (_, null), (_, untrained) = own
    assert null.request["reward"] == [own_methods.NOISE] and null.setting == {"target_kl": 6}
    assert null.ledger is task.ledger and null.run_folder == task.run_folder
    assert [*load_rewards([own_methods.NOISE])[0].function(completions=["a", "b"])] != [0.0, 0.0]
    assert untrained.setting == {"learning_rate": 0.0} and untrained.budget.responses == 16


def test_own_refusals_are_as_many_as_the_budget_allows(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def demonstrations(base: Any, seed: int, number: int, ledger: Ledger) -> list[dict[str, Any]]:
        asked.append(number)
        ledger.count(generated_tokens=number)
        return [{"prompt": "a", "completion": "b", "weight": 1.0}]

    monkeypatch.setattr("experiments.own_refusals.demonstrations", demonstrations)
    _, task, own = run("own refusals")
    ((name, job),) = own
    setting = job.setting
    written = Path(setting.pop("dataset_name")) / "train.jsonl"
    assert (name, setting) == ("proxy_from_pairs", {"p_t": 0.001})
    assert json.loads(written.read_text()) == {"prompt": "a", "completion": "b", "weight": 1.0}
    assert asked == [1000 // (48 * 7 / 3)] and task.ledger.generated_tokens == asked[0]


def test_shuffled_labels_keep_the_answers_with_what_belongs_to_them() -> None:
    rows = [
        {
            "prompt": str(n),
            "chosen": f"a{n}",
            "rejected": f"b{n}",
            "chosen_completion_ids": [n],
            "rejected_completion_ids": [-n],
        }
        for n in range(1, 101)
    ]
    found = shuffled(rows, seed=1)
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    sides = Counter(row["chosen"][0] for row in found)
    assert 35 < sides["b"] < 65 and found == shuffled(rows, seed=1) != shuffled(rows, seed=2)
    for row in found:
        ids = {row["chosen"][0]: row["chosen_completion_ids"], row["rejected"][0]: row["rejected_completion_ids"]}
        assert ids == {"a": [int(row["prompt"])], "b": [-int(row["prompt"])]}


@pytest.mark.slow
def test_every_method_runs_as_a_cell(tmp_path: Path) -> None:
    """On real trainings of a few steps, without stored pairs. Those that build on another line's find it."""
    (tmp_path / "prompts").mkdir()
    for split, size in (("train", 40), ("test", N_TEST)):
        rows = "".join(json.dumps(row) + "\n" for row in make_prompts(split, size, 0))
        (tmp_path / "prompts" / f"{split}.jsonl").write_text(rows)
    small: dict[str, Any] = {"hidden": 4, "num_generations": 4, "num_iterations": 1}
    pairs = {"hidden": 4, "num_train_epochs": 1}
    lines: dict[str, dict[str, Any]] = {
        "proxy": small,
        "COMPOSED": small | {"strength": 0.5, "other_reward": "experiments.short_answers:reward"},
        "PAIRS_THEN_REWARD": small | {"start": pairs},
        "SHUFFLED_PAIRS": pairs,
        "NULL_REWARD": small,
        "UNTRAINED": small,
    }
    found = {}
    for name, setting in lines.items():
        method = name if name == "proxy" else f"experiments.own_methods:{name}"
        result, _ = run_line(tmp_path, tmp_path / "study", method, setting, preferences=None, principles=None)
        found[name] = result
    trainings = Counter(each.name.rsplit("-", 1)[0] for each in (tmp_path / "study" / "trainings").iterdir())
    assert trainings["proxy"] == 2 and trainings["proxy_from_pairs"] == 1 and trainings["samples"] == 1
    parameters = {name: each["costs"]["trainable_parameters"] for name, each in found.items()}
    assert parameters["COMPOSED"] == 2 * parameters["proxy"] == 2 * parameters["UNTRAINED"]
    sampled = {name: each["costs"]["generated_tokens"] for name, each in found.items()}
    assert sampled["COMPOSED"] > 1.5 * sampled["proxy"] and sampled["PAIRS_THEN_REWARD"] > 1.5 * sampled["proxy"]
    assert 0 < sampled["UNTRAINED"] < 0.7 * sampled["proxy"]
    assert all(each["metrics"]["settings"]["policy"] == "proxy" for each in found.values())
    assert found["UNTRAINED"]["metrics"]["kl_choice"]["mean"] < found["proxy"]["metrics"]["kl_choice"]["mean"]
