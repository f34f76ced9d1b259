"""Every method of ours, evaluation and generation without TRL installed; what needs it names the extra that brings it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = "import sys; sys.modules['trl'] = None\n"
BASE = "['--model_name_or_path', 'frugalign.sandbox:model']"
PROMPTS = "['--dataset_name', 'prompts.jsonl', '--reward', 'mine.py:letters', '--max_new_tokens', '4']"
SMALL = "['--use_cpu', '--max_steps', '1', '--per_device_train_batch_size', '4', '--save_strategy', 'no']"


def blocked(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python that cannot import trl."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code], cwd=folder, capture_output=True, text=True, env=dict(os.environ), check=False
    )  # fmt: skip


@pytest.mark.slow
def test_every_verb_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def letters(completions, **_):\n    return [float(len(text)) for text in completions]\n"
    )
    code = f"""
import json
from pathlib import Path
from frugalign.cli.main import main
from frugalign.sandbox.cached import sample_pairs
rows = sample_pairs("train", 60)
Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
Path("prompts.jsonl").write_text("".join(json.dumps({{"prompt": row["prompt"]}}) + "\\n" for row in rows[:8]))
pairs = ["--dataset_name", "pairs.jsonl"]
lines = {{
    "proxy": [*{PROMPTS}, *{SMALL}, "--num_generations", "2", "--output_dir", "proxy"],
    "reward": [*pairs, "--n_shuffles", "1", "--output_dir", "reward"],
    "rerank": [*pairs, *{SMALL}, "--reward", "reward", "--output_dir", "rerank"],
    "psle": [*{PROMPTS}, "--principles", "frugalign.sandbox:PRINCIPLES", "--rounds", "1", "--prompts_per_round", "4",
             "--output_dir", "psle"],
    "evaluate": [*{PROMPTS}, "--adapter", "rerank", "--output_dir", "seen"],
    "generate": ["--prompt", "A balm.", "--max_new_tokens", "4"],
}}
for verb, words in lines.items():
    assert main([verb, *{BASE}, *words]) == 0, verb
assert sys.modules["trl"] is None
"""
    done = blocked(code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_what_needs_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    code = "from frugalign.base.errors import FrugalignError\ntry:\n    import frugalign.methods.peers.trl\nexcept FrugalignError as error:\n    print(error)\n"
    assert blocked(code, tmp_path).stdout.strip().endswith("need TRL: pip install 'frugalign[peers]'.")
