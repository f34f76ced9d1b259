"""A study's YAML as lines and cells: sweeps, folders that follow the request, and one sentence for each mistake."""

from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.base.parsing import parse_yaml
from frugalign.study.options import StudyOptions
from frugalign.study.plan import (
    Line,
    cell_of,
    cells_of,
    choosing_cells,
    contents_of,
    hashes_of,
    is_base,
    lines_of,
    swept,
)


def study(**options: Any) -> StudyOptions:
    given: dict[str, Any] = {
        "model_name_or_path": "model",
        "dataset_name": "prompts",
        "reward": ["reward"],
        "judges": ["gold"],
        "methods": {
            "base": None,
            "four": {"method": "best_of_n", "n": 4},
            "dpo": {"beta": [0.1, 0.5], "learning_rate": [1e-4, 1e-3]},
        },
    }
    return StudyOptions(**given | options)


def test_lines_are_the_methods_in_their_order() -> None:
    lines = lines_of(study())
    assert [(line.label, line.method) for line in lines] == [("base", "base"), ("four", "best_of_n"), ("dpo", "dpo")]
    assert lines[1].setting == {"n": 4}


def test_a_sweep_is_one_line_per_combination() -> None:
    found = swept(lines_of(study())[2])
    assert [line.label for line in found] == [
        "dpo beta=0.1 learning_rate=0.0001",
        "dpo beta=0.1 learning_rate=0.001",
        "dpo beta=0.5 learning_rate=0.0001",
        "dpo beta=0.5 learning_rate=0.001",
    ]
    assert found[3].setting == {"beta": 0.5, "learning_rate": 1e-3}
    assert swept(Line("base", "base", {})) == [Line("base", "base", {})]


def test_cells_go_seed_by_seed() -> None:
    options = study(seeds=[1, 2])
    names = [cell.name for cell in cells_of(lines_of(options)[:2], options)]
    assert names == ["base, seed 1", "four, seed 1", "base, seed 2", "four, seed 2"]


def test_a_folder_follows_what_is_asked_and_nothing_else() -> None:
    line = Line("dpo", "dpo", {"beta": 0.1})

    def folder(seed: int = 1, line: Line = line, **options: Any) -> Path:
        return cell_of(line, seed, "test", study(**options)).folder(Path("s"))

    same = folder()
    for options in (
        {"jobs": 2},
        {"only": ["dpo"]},
        {"seeds": [7]},
        {"eval_batch_size": 3},
        {"methods": {"base": None}},
    ):
        assert folder(**options) == same
    others = [
        folder(seed=2),
        folder(line=Line("dpo", "dpo", {"beta": 0.2})),
        folder(reward=["other"]),
        folder(budget={"optimizer_steps": 3}),
        folder(eval_prompts=5),
        folder(preferences="pairs"),
    ]
    assert len({same, *others}) == 7
    # What a method does not read is no part of its question.
    assert folder(principles="others") == same
    rloo = Line("rloo", "rloo", {})
    assert folder(line=rloo, preferences="pairs") == folder(line=rloo)


def test_a_training_follows_what_it_depends_on_and_no_test(tmp_path: Path) -> None:
    """Cells that are called, measured or decoded otherwise share one; what trains, the prompts held out included, is another."""
    (tmp_path / "judge.py").write_text("one")
    judge = f"{tmp_path}/judge.py:score"

    def training(seed: int = 1, label: str = "dpo", **options: Any) -> Path:
        return cell_of(Line(label, "dpo", {"beta": 0.1}), seed, "test", study(**options)).training(Path("t"))

    same = training()
    assert same.parent == Path("t") and same.name.startswith("dpo-")
    assert training(label="mine") == same
    for options in (
        {"judges": ["other", judge]},
        {"eval_do_sample": False},
        {"eval_samples": 4},
        {"eval_prompts": 3},
    ):
        assert training(**options) == same
    seen = training(reward=[judge])
    (tmp_path / "judge.py").write_text("other")
    others = [seen, training(reward=[judge]), training(seed=2), training(preferences="pairs")]
    others += [training(choose={"seed": 9}), training(eval_split="other"), training(budget={"optimizer_steps": 3})]
    assert len({same, *others}) == 8


def test_a_folder_follows_the_contents_of_local_files(tmp_path: Path) -> None:
    """A reward that was edited, or other prompts under the same name, are another question; a hub id has no contents here."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "train.jsonl").write_text("a")
    (tmp_path / "reward.py").write_text("one")
    names = {"dataset_name": str(tmp_path / "prompts"), "reward": [f"mine={tmp_path}/reward.py:score"]}

    line = Line("rerank", "rerank", {})

    def folder(line: Line = line) -> Path:
        return cell_of(line, 1, "test", study(**names)).folder(Path("s"))

    assert len(contents_of(study(**names), line)) == 2 and contents_of(study(), line) == {}
    seen = [folder()]
    (tmp_path / "reward.py").write_text("other")
    seen.append(folder())
    (tmp_path / "prompts" / "train.jsonl").write_text("bb")
    seen.append(folder())
    assert len(set(seen)) == 3 and folder() == seen[-1]
    # A reward that only a line names.
    (tmp_path / "shift.py").write_text("one")
    watched = Line("rerank", "rerank", {"shift_reward": f"{tmp_path}/shift.py:score"})
    seen = [folder(watched)]
    (tmp_path / "shift.py").write_text("other")
    assert folder(watched) not in seen


def test_a_folder_follows_the_module_that_a_name_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one's own; what frugalign ships has its version."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_of_this_test.py").write_text("def judge(): ...")
    names, line = {"judges": ["good=mine_of_this_test:judge", "frugalign.sandbox:gold"]}, Line("dpo", "dpo", {})
    first = contents_of(study(**names), line)
    assert list(first) == ["good=mine_of_this_test:judge"]
    (tmp_path / "mine_of_this_test.py").write_text("def judge(): return 1")
    assert contents_of(study(**names), line) != first


def test_numbers_that_yaml_1_1_reads_as_text_are_numbers() -> None:
    content = parse_yaml("dpo: {learning_rate: 1e-4, beta: [5E-1, 0.1], optim: sgd}", "the study")
    line = lines_of(study(methods=content))[0]
    assert line.setting == {"learning_rate": 1e-4, "beta": [0.5, 0.1], "optim": "sgd"}


def test_choosing_reads_the_validation_split_with_a_seed_of_its_own() -> None:
    options = study(choose={"seed": 9, "prompts": 12})
    cells = choosing_cells(lines_of(options)[2], options)
    assert len(cells) == 4 and {cell.seed for cell in cells} == {9}
    assert {(cell.kind, cell.request["eval_prompts"], cell.request["holds_out"]) for cell in cells} == {
        ("choosing", 12, True)
    }
    tested = cell_of(lines_of(options)[0], 1, "test", options)
    assert "eval_prompts" not in tested.request and tested.request["holds_out"], (
        "what is chosen by is not trained on in the test either"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"judges": []}, "names no judges"),
        ({"methods": {}}, "names no methods"),
        ({"methods": {"x": {"method": "ppo"}}}, "names the method 'ppo'"),
        ({"methods": {"a/b": {"method": "base"}}}, "label 'a/b'"),
        ({"methods": {"base": 3}}, "must be a mapping"),
        ({"methods": {"psle": {}}}, "needs principles"),
        ({"methods": {"rloo": {}}, "reward": []}, "needs reward"),
        ({"methods": {"dpo": {}}, "reward": []}, "needs preferences or reward"),
        ({"seeds": [1, 1]}, "a seed twice"),
        ({"budget": {"tokens": 3}}, "takes generated_tokens, optimizer_steps, wall_clock_seconds, not 'tokens'"),
        ({"budget": {"optimizer_steps": 0}}, "The budget's optimizer_steps is 0; it must be above 0"),
        ({"budget": {"optimizer_steps": None}}, "optimizer_steps is None; it must be a number"),
        ({"choose": {"seed": 1}}, "one of the test seeds"),
        ({"choose": {"by": "gold", "seed": 9}}, "choose takes"),
        ({"only": ["sft"]}, "which is not a line of the study"),
        ({"jobs": 0}, "at least 1"),
        ({"eval_prompts": -5}, "at least 1"),
        ({"eval_samples": 0}, "at least 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("nan")}, "temperature is nan; it must be above 0"),
        ({"reward_weights": [float("inf")]}, "reward_weights holds inf; it must be a finite number"),
        ({"seeds": [-1]}, "seeds holds -1; it must be at least 0"),
        ({"reward_weights": [1.0, 2.0]}, "1 rewards, but 2"),
        ({"choose": {"seed": "a"}}, "whole number"),
        ({"choose": {"seed": 9, "prompts": -3}}, "at least 1"),
        ({"choose": {"seed": 9}, "eval_split": "validation"}, "cannot be tested on it"),
        ({"methods": {"dpo": {"beta": []}}}, "sweeps beta over an empty list"),
        ({"methods": {"a b": {"method": "base"}, "a-b": {"method": "base"}}}, "share the folder"),
        ({"methods": {"dpo": {"beta": [0.1, 0.1]}}}, "share the folder"),
        ({"reference": "sft"}, "which is not a line of the table"),
        ({"reference": "dpo"}, "which is not a line of the table"),
        ({"reference": "dpo beta=0.1 learning_rate=0.0001", "choose": {"seed": 9}}, "which is not a line of the table"),
        ({"methods": {"online_dpo": {}}}, "needs preferences or representation_reward"),
    ],
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(FrugalignError, match=words):
        lines_of(study(**options))


def test_a_folder_of_too_many_files_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that names `/` must not read the disk."""
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text("x")
    assert len(hashes_of([str(tmp_path)])) == 1
    monkeypatch.setattr("frugalign.study.plan._MOST_FILES", 2)
    with pytest.raises(FrugalignError, match=r"which the study names, is a folder of over 2 files\.$"):
        hashes_of([str(tmp_path)])


def test_what_precedes_prompts_in_the_test_is_no_part_of_the_training(tmp_path: Path) -> None:
    """A page of principles may change, or be one of a sweep; the training is that of the line without it."""
    page = tmp_path / "page.txt"
    page.write_text("Be kind.")
    plain, told = Line("dpo", "dpo", {"beta": 0.1}), Line("told", "dpo", {"beta": 0.1, "in_context": str(page)})
    cells = [cell_of(line, 1, "test", study()) for line in (plain, told)]
    assert cells[0].training(Path("t")) == cells[1].training(Path("t"))
    assert cells[1].request["setting"] == {"beta": 0.1} and cells[1].request["in_context"] == str(page)
    before = cells[1].folder(Path("s"))
    page.write_text("Be rather kind.")
    changed = cell_of(told, 1, "test", study())
    assert changed.folder(Path("s")) != before and changed.training(Path("t")) == cells[0].training(Path("t"))
    line = Line("told", "base", {"in_context": ["harmless", "courteous"]})
    assert [each.setting["in_context"] for each in swept(line)] == ["harmless", "courteous"]


@pytest.mark.parametrize(
    ("method", "setting", "found"),
    [("base", {}, True), ("base", {"in_context": "harmless"}, False), ("best_of_n", {}, False)],
)
def test_a_base_under_principles_is_not_the_base(method: str, setting: dict[str, Any], found: bool) -> None:
    assert is_base(method, setting) is found
