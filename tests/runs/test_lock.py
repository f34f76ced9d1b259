"""One command at a time in a run folder: two processes, one process twice, and a process that was killed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic
from frugalign.cli.main import main
from frugalign.runs import lock
from frugalign.runs.folder import publish
from frugalign.runs.layout import is_finished
from frugalign.runs.lock import Reading, in_use, is_held, is_read

HOLD = """
import sys
from frugalign.runs.lock import in_use

with in_use(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Another process that has the folder, until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    first = holder(folder)
    with pytest.raises(FrugalignError, match=r"Another command is using .*mine\.$"), in_use(folder):
        raise AssertionError
    with in_use(tmp_path / "other"):
        pass
    first.communicate()
    with in_use(folder):
        pass


@pytest.mark.parametrize("inside", ["evaluation", "a/b/c", "round-000"])
def test_a_folder_around_or_inside_one_in_use_is_refused(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both directions and at any depth; nothing is written then. Beside it is free."""
    monkeypatch.setattr(lock, "_ENDING", 0.1)
    outer, inner = tmp_path / "mine", tmp_path / "mine" / inside
    first = holder(outer)
    with pytest.raises(FrugalignError, match=r"Another command is using .*mine, and .* is inside it\.$"), in_use(inner):
        raise AssertionError
    assert [path.name for path in outer.iterdir()] == [".lock"]
    first.communicate()
    first = holder(inner)
    with (
        pytest.raises(FrugalignError, match=rf"Another command is using .*mine/{inside}, which is inside"),
        in_use(outer),
    ):
        raise AssertionError
    with in_use(outer / "beside"), in_use(tmp_path / "other"):
        pass
    with in_use(outer, shared=inner):
        pass
    first.communicate()
    with in_use(outer), in_use(inner):
        pass


def test_a_process_that_a_command_starts_may_use_what_is_inside(tmp_path: Path) -> None:
    """As the cells of a study do; not the folder itself, and not once the command has left it."""
    with in_use(tmp_path):
        assert holder(tmp_path / "cells" / "a").communicate() == ("", None)
        process = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path)], input="", capture_output=True, text=True, check=False
        )
        assert process.returncode != 0 and "Another command is using" in process.stderr
    assert "FRUGALIGN_FOLDERS_IN_USE" not in os.environ


def test_folders_may_be_left_in_the_order_in_which_they_were_taken(tmp_path: Path) -> None:
    """As by two threads. What this process starts knows which of them are still held."""
    held = [in_use(tmp_path / name) for name in ("first", "second")]
    for each in held:
        each.__enter__()
    held[0].__exit__(None, None, None)
    assert lock._inherited() == [str((tmp_path / "second").resolve())]
    held[1].__exit__(None, None, None)
    assert lock._inherited() == [] and lock._INHERITED not in os.environ


def test_another_program_s_lock_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("pid 7")
    (tmp_path / "mine" / "theirs").mkdir(parents=True)
    (tmp_path / "mine" / "theirs" / ".lock").write_text("pid 8")
    with in_use(tmp_path / "mine"):
        pass
    assert [(tmp_path / name).read_text() for name in (".lock", "mine/theirs/.lock")] == ["pid 7", "pid 8"]


def test_a_folder_that_is_read_is_known(tmp_path: Path) -> None:
    """By several readers, until the last of them is gone."""
    assert not is_read(tmp_path)
    readers = [Reading(tmp_path), Reading(tmp_path)]
    assert is_read(tmp_path)
    readers.pop()
    assert is_read(tmp_path)
    readers.clear()
    assert not is_read(tmp_path) and not is_held(tmp_path / ".reading")


def test_a_killed_process_frees_its_folder(tmp_path: Path) -> None:
    first = holder(tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with in_use(tmp_path):
        pass


def test_one_process_may_enter_again_and_holds_until_it_leaves_the_first_time(tmp_path: Path) -> None:
    def is_free() -> bool:
        done = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], input="", capture_output=True, text=True)
        return done.returncode == 0

    with in_use(tmp_path):
        with in_use(str(tmp_path)), in_use(tmp_path / "evaluation"):
            assert not is_free()
        assert not is_free()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # what lies inside needs none
    assert is_free()


def test_an_error_inside_frees_the_folder_and_is_not_changed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), in_use(tmp_path):
        raise OSError("mine")
    with in_use(tmp_path):
        pass


def test_a_forked_process_does_not_hold_what_its_parent_holds(tmp_path: Path) -> None:
    with in_use(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with in_use(tmp_path):
                    os._exit(1)
            except FrugalignError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_other_processes_of_one_run_enter_freely(tmp_path: Path) -> None:
    first = holder(tmp_path)
    with in_use(tmp_path, main_process=False):
        pass
    first.communicate()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FrugalignError, match="Cannot write"), in_use(tmp_path / "file"):
        raise AssertionError


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path: Path) -> None:
    """Here and below; not in a folder with a lock of its own, and nothing of the user's."""
    (tmp_path / "start").mkdir()
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / ".lock").touch()
    (tmp_path / ".frugalign-saving" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / ".saving").mkdir()
    half = [".costs.json.ab12_xyz.frugalign-tmp", "start/.evaluation.json.abcdefgh.frugalign-tmp"]
    kept = [
        "cell/.cell.json.abcdefgh.frugalign-tmp",
        ".mine.abcdefgh.tmp",
        ".frugalign-tmp",
        ".plain-0.partial",
        ".saving/mine",
    ]
    for name in half + kept:
        (tmp_path / name).touch()
    with in_use(tmp_path):
        pass
    assert all(not (tmp_path / name).exists() for name in [*half, ".frugalign-saving"])
    assert all((tmp_path / name).exists() for name in kept)


def test_a_folder_deleted_meanwhile_is_one_sentence(tmp_path: Path) -> None:
    """Whether a write fails then, or a later one makes the folder again."""
    words = "run was deleted while this command was using it, so its result is incomplete."
    folder = tmp_path / "run"
    with pytest.raises(FrugalignError, match=words), in_use(folder):
        shutil.rmtree(folder)
        (folder / "a").write_text("")
    with pytest.raises(FrugalignError, match=words), in_use(folder):
        shutil.rmtree(folder)
        write_atomic(folder / "costs.json", "{}")


COMMON = ["--model_name_or_path", "frugalign.sandbox:model", "--dataset_name", "frugalign.sandbox:prompts"]
PAIRS = [*COMMON[:3], "frugalign.sandbox:pairs"]
LEARNED = ["--reward", "frugalign.sandbox:learned"]


@pytest.mark.parametrize(
    "words",
    [
        ["proxy", *COMMON, *LEARNED, "--use_cpu"],
        ["psle", *COMMON, *LEARNED, "--use_cpu", "--principles", "frugalign.sandbox:PRINCIPLES"],
        ["reward", *PAIRS, "--use_cpu"],
        ["rerank", *PAIRS, "--confidence", "constant", "--use_cpu"],
        ["evaluate", *COMMON, *LEARNED],
    ],
    ids=lambda words: str(words[0]),
)
def test_every_verb_leaves_a_folder_in_use_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    first = holder(tmp_path)
    assert main([*words, "--output_dir", str(tmp_path)]) == 2
    assert f"frugalign: Another command is using {tmp_path}." in capsys.readouterr().err
    first.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"


def test_a_study_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    (tmp_path / "study.yaml").write_text(
        "model_name_or_path: frugalign.sandbox:model\ndataset_name: frugalign.sandbox:study_prompts\n"
        f"judges: [frugalign.sandbox:gold]\nmethods: {{base: null}}\noutput_dir: {study}\n"
    )
    first = holder(study)
    assert main(["study", str(tmp_path / "study.yaml")]) == 2
    assert f"Another command is using {study}." in capsys.readouterr().err
    first.communicate()
    assert [path.name for path in study.iterdir()] == [".lock"]


def test_no_artefact_is_left_in_a_folder_that_was_deleted_meanwhile(tmp_path: Path) -> None:
    """It would look like that of a finished run, and the same command again would refuse to train."""
    folder = tmp_path / "run"

    def save(staged: Path) -> None:
        shutil.rmtree(folder)
        write_atomic(staged / "model.safetensors", b"weights")

    with pytest.raises(FrugalignError, match="was deleted while this command was using it"), in_use(folder):
        publish(folder, save)
    assert not is_finished(folder)
