"""The front door: verbs, help without torch, and errors in one sentence."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from frugalign import __version__
from frugalign.base.errors import FrugalignError
from frugalign.cli.main import VERBS, main
from frugalign.evaluation.settings import EvaluationSettings
from frugalign.policies.spec import PolicySpec


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        assert all(f"  {verb}" in capsys.readouterr().out for verb in ("demo",))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"frugalign {__version__}\n"


@pytest.mark.parametrize(
    "words", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=lambda words: "-".join(words)
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from frugalign.cli.main import main\n"
        f"status = main({words!r})\n"
        "heavy = {'torch', 'transformers', 'datasets', 'trl', 'peft', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
        "print(sorted(heavy), status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "[] 0\n"
    assert done.stdout.startswith("usage: frugalign")


def test_the_list_of_commands_needs_no_flags_and_no_files() -> None:
    """`frugalign --help` reads the methods' names and summaries alone: in under a tenth of a second."""
    code = (
        "import sys, frugalign.cli.main as main\n"
        "main.help_text()\n"
        "print([name for name in ('argparse', 'hashlib', 'tempfile', 'frugalign.cli.parser', 'frugalign.base.files') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prxy"]) == 2
    assert capsys.readouterr().err == "frugalign: There is no command 'prxy'; did you mean proxy?\n"


def verb_that_raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> int:
        raise error

    module = types.ModuleType("frugalign.cli.env")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frugalign.cli.env", module)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FrugalignError("It is wrong."), "It is wrong."),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "No space left on the disk (runs/x)"),
        (OSError(errno.EDQUOT, "Quota"), "No space left on the disk"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "The system does not allow it: Permission denied (/x).",
        ),
        (OutOfMemoryError("CUDA"), "The accelerator is out of memory"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that_raises(error, monkeypatch)
    assert main(["env"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"frugalign: {sentence}") and printed.count("\n") == 1
    monkeypatch.setenv("FRUGALIGN_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["env"])


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    verb_that_raises(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["env"])


def test_control_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    verb_that_raises(KeyboardInterrupt(), monkeypatch)
    assert main(["env"]) == 130
    assert "Stopped." in capsys.readouterr().err


def test_a_full_disk_is_one_sentence() -> None:
    """Linux's device that is always full, through a real write."""
    if not Path("/dev/full").exists():
        pytest.xfail("no /dev/full on this system")
    code = (
        "import frugalign.cli.env as env, sys\n"
        "from frugalign.cli.main import main\n"
        "def run(argv):\n"
        "    with open('/dev/full', 'w') as file: file.write('x' * 100000)\n"
        "env.run = run\n"
        "sys.exit(main(['env']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("frugalign: No space left on the disk") and "Traceback" not in done.stderr


def test_validate_prints_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "fine"}\n{"prompt": ""}\n{"prompt\n')
    assert main(["validate", str(path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}, row 2: `prompt` is empty"
    assert lines[1].startswith(f"{path}, row 3: the row is not valid JSON")
    assert lines[2] == "3 rows, prompt-only (1 file): 2 problems."
    assert main(["validate", str(path), "--max_problems", "1"]) == 2
    assert "… and 1 more" in capsys.readouterr().out
    assert main(["validate", "frugalign.sandbox:prompts"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("prompt-only (2 files): no problem.")
    assert said[1:] == ["Read by: frugalign evaluate, frugalign proxy, frugalign psle."]


def test_env_names_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    facts = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert {"frugalign", "python", "torch", "transformers", "trl", "peft", "cores", "memory", "accelerator"} <= set(
        facts
    )


METRIC = {"mean": 0.25, "ci_low": 0.125, "ci_high": 0.5, "n": 40}


@pytest.mark.slow
def test_evaluate_passes_its_flags_on_and_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def evaluate(policy: Any, prompts: str, reward: list[str], settings: Any, **arguments: Any) -> dict[str, Any]:
        seen.update(arguments, policy=policy, prompts=prompts, reward=reward, settings=settings)
        return {
            "reward": METRIC,
            "rewards": {"gold": METRIC},
            "kl_per_token": None,
            "trainable_parameters": 2560,
            "split": "test",
        }

    monkeypatch.setattr("frugalign.evaluation.evaluate", evaluate)
    words = (
        f"--model_name_or_path M --dataset_name D --reward g=a:b --reward c:d --output_dir {tmp_path} --no_do_sample"
    )
    assert main(["evaluate", *words.split()]) == 0
    assert seen["policy"] == PolicySpec("M") and seen["prompts"] == "D" and seen["reward"] == ["g=a:b", "c:d"]
    assert seen["settings"] == EvaluationSettings(do_sample=False) and seen["output_dir"] == str(tmp_path)
    printed = capsys.readouterr().out
    for expected in ("rewards.gold", "0.125 … 0.5", "kl_per_token", "—", "2,560", "metrics.json"):
        assert expected in printed
    assert main(["evaluate", "--model_name_or_path", "M", "--dataset_name", "D"]) == 2
    assert "--reward is missing" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    """`frugalign … | head` must not end in a traceback. `true` is gone long before the first line is printed."""
    command = f"{sys.executable} -m frugalign.cli validate frugalign.sandbox:prompts | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() == "0", done.stderr


def test_a_reward_beside_the_user_is_found(tmp_path: Path) -> None:
    """The console script's path lacks the current folder; `my_rewards:score` means a module there."""
    (tmp_path / "my_data.py").write_text("rows = 'd.jsonl'\n")
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "from frugalign.cli.main import main; sys.exit(main(['validate', 'my_data:rows']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
