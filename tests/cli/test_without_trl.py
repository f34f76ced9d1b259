"""Every method of ours, evaluation and generation without TRL installed; what needs it names the extra that brings it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.forked import Forked
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.sandbox.cached import sample_pairs

pytestmark = pytest.mark.slow


def without_trl(function: Callable[[], int | None], log: Path) -> None:
    """Run it in a child that cannot import trl and has not imported anything of ours."""

    def forgetful() -> int | None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("trl", "frugalign")]:
            del sys.modules[name]
        sys.modules["trl"] = None  # type: ignore[assignment]
        return function()

    assert Forked(forgetful, log).wait() == 0, log.read_text()[-3000:]


def test_every_verb_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "def letters(completions, **_):\n    return [float(len(text)) for text in completions]\n"
    )
    rows = sample_pairs("train", 60)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows[:8]))
    pairs = ["--dataset_name", "pairs.jsonl"]
    prompts = ["--dataset_name", "prompts.jsonl", "--reward", "mine.py:letters", "--max_new_tokens", "4"]
    small = ["--use_cpu", "--max_steps", "1", "--per_device_train_batch_size", "4", "--save_strategy", "no"]
    told = ["--principles", "frugalign.sandbox:PRINCIPLES", "--rounds", "1", "--prompts_per_round", "4"]
    lines = {
        "proxy": [*prompts, *small, "--num_generations", "2", "--output_dir", "proxy"],
        "reward": [*pairs, "--n_shuffles", "1", "--output_dir", "reward"],
        "rerank": [*pairs, *small, "--reward", "reward", "--output_dir", "rerank"],
        "psle": [*prompts, *told, "--output_dir", "psle"],
        "evaluate": [*prompts, "--adapter", "rerank", "--output_dir", "seen"],
        "generate": ["--prompt", "A balm.", "--max_new_tokens", "4"],
    }

    def every_verb() -> None:
        from frugalign.cli.main import main

        for verb, words in lines.items():
            assert main([verb, "--model_name_or_path", two_layers(), *words]) == 0, verb
        assert sys.modules["trl"] is None

    without_trl(every_verb, tmp_path / "log.txt")


def test_what_needs_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    def compare() -> None:
        try:
            import frugalign.methods.peers.trl  # noqa: F401
        except Exception as error:
            assert type(error).__name__ == FrugalignError.__name__
            print(error)

    without_trl(compare, tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text().strip().endswith("need TRL: pip install 'frugalign[peers]'.")
