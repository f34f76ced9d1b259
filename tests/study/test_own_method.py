"""A method that the library has never heard of runs through a whole study: plan, cells, table and page."""

import json
from pathlib import Path

import pytest

from frugalign.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_cells")]

METHOD = '''
from frugalign.methods.method import Method


def run(job):
    """Spends two rewards, trains nothing, and decodes greedily more often than not."""
    assert job.request["reward"] == ["frugalign.sandbox:gold"] and job.budget.steps == 3 and job.n_prompts() == 4
    job.ledger.count(reward_calls=2, optimizer_steps=job.budget.steps)
    return {"best_of_n": job.setting["tries"], "selection_reward": job.request["reward"]}


def problem(setting):
    return None if setting["tries"] > 1 else "needs tries of at least 2"


NOTHING = Method("nothing", "a method of a test", run, needs=("reward",), options=("tries",), problem=problem, note="It is a test.")
'''
STUDY = """
model_name_or_path: frugalign.sandbox:model
dataset_name: prompts
reward: frugalign.sandbox:gold
judges: frugalign.sandbox:gold
budget: {optimizer_steps: 3}
seeds: [1]
max_new_tokens: 8
use_cpu: true
output_dir: out
methods:
  base:
  mine: {method: "my_method:NOTHING", tries: TRIES}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_method.py").write_text(METHOD)
    Path("prompts").mkdir()
    for split, orders in (("train", ["One.", "Two.", "Three.", "Four."]), ("test", ["A balm.", "A salve."])):
        Path(f"prompts/{split}.jsonl").write_text("".join(json.dumps({"prompt": order}) + "\n" for order in orders))


def test_a_method_of_ones_own_is_a_line_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.yaml").write_text(STUDY.replace("TRIES", "3"))
    assert main(["study", "study.yaml"]) == 0
    base, mine = json.loads(Path("out/study.json").read_text())["lines"]
    assert (base["label"], mine["label"], mine["method"]) == ("base", "mine", "my_method:NOTHING")
    assert mine["costs"]["reward_calls"] == 2 and mine["costs"]["optimizer_steps"] == 3
    assert mine["measures"]["gold"]["difference"] is not None
    page = Path("out/report.html").read_text()
    assert "a method of a test" in page and "It is a test." in page
    # Another text of the same method is another question.
    before = set(Path("out/cells").iterdir())
    Path("my_method.py").write_text(METHOD + "\n# edited\n")
    assert main(["study", "study.yaml"]) == 0
    assert len(set(Path("out/cells").iterdir()) - before) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (STUDY.replace("TRIES", "1"), "The study's line 'mine' needs tries of at least 2."),
        (STUDY.replace("TRIES", "3, trys: 2"), "'trys', which it does not have; did you mean tries?"),
        (
            STUDY.replace("TRIES", "3").replace("reward:", "principles:", 1),
            "'mine' needs reward, and the study names none",
        ),
        (STUDY.replace("my_method:NOTHING", "representation_reward"), "which does not give a policy"),
    ],
)
def test_its_mistakes_are_one_sentence(study: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.yaml").write_text(study)
    assert main(["study", "study.yaml"]) == 2
    assert words in capsys.readouterr().err
