"""A run's folder at a URL: what is uploaded when, and what another machine finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic
from frugalign.base.json_files import append_lines
from frugalign.runs import elsewhere
from frugalign.runs.elsewhere import MANIFEST, working_copy
from frugalign.runs.folder import publish
from frugalign.runs.lock import in_use


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    machine(tmp_path, monkeypatch, "first")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if request.param == "file":
        yield f"file://{tmp_path}/bucket/run"
        return
    yield "memory://bucket/run"
    if fsspec.filesystem("memory").exists("/bucket"):
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / name))


def stored(url: str) -> dict[str, bytes]:
    """What a later command would find: the files that the manifest names."""
    system, path = fsspec.core.url_to_fs(url)
    if not system.exists(f"{path}/{MANIFEST}"):
        return {}
    return {name: system.cat_file(f"{path}/{name}") for name in json.loads(system.cat_file(f"{path}/{MANIFEST}"))}


def contents(folder: Path) -> dict[str, bytes]:
    every = (path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, ".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in every}


def save(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")


def test_what_is_finished_is_uploaded_and_found_on_another_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_copy(url) as folder:
        write_atomic(folder / "config.yaml", "a: 1")
        append_lines(folder / "metrics.jsonl", ["{}"])
        assert stored(url) == {}
        publish(folder, save)  # an artefact is uploaded at once
        assert set(stored(url)) == {"config.yaml", "metrics.jsonl", "model.safetensors"}
        write_atomic(folder / "checkpoint-2" / "state.json", "{}")
        (folder / "config.yaml").unlink()
        assert "config.yaml" in stored(url)
    assert stored(url) == contents(folder) and set(stored(url)) == {
        *("metrics.jsonl", "model.safetensors", "checkpoint-2/state.json")
    }
    machine(tmp_path, monkeypatch, "second")
    with working_copy(url) as second:
        assert second != folder and contents(second) == contents(folder)
        append_lines(second / "metrics.jsonl", ["{}"])
    machine(tmp_path, monkeypatch, "first")
    with working_copy(url) as third:
        assert third == folder and (third / "metrics.jsonl").read_bytes() == b"{}\n{}\n"


def test_a_file_is_uploaded_once_a_minute(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_copy(url) as folder:
        append_lines(folder / "metrics.jsonl", ["1"])
        assert stored(url) == {}
        monkeypatch.setattr(elsewhere, "_EVERY", 0.0)
        append_lines(folder / "metrics.jsonl", ["2"])
        assert stored(url) == {"metrics.jsonl": b"1\n2\n"}


def test_a_copy_that_was_killed_after_its_upload_goes_on_from_its_own_state(url: str) -> None:
    class Killed(BaseException):
        """Stands for a kill."""

    with pytest.raises(Killed), working_copy(url) as folder:
        publish(folder, save)
        append_lines(folder / "metrics.jsonl", ["1"])
        raise Killed
    # The block's own end has uploaded; the manifest of before is what a kill leaves.
    system, path = fsspec.core.url_to_fs(url)
    early = {
        name: digest for name, digest in json.loads(system.cat_file(f"{path}/{MANIFEST}")).items() if "model" in name
    }
    (folder / MANIFEST).write_text(json.dumps(early))
    system.pipe_file(f"{path}/{MANIFEST}", json.dumps(early).encode())
    with working_copy(url) as again:
        assert contents(again) == {"model.safetensors": b"weights", "metrics.jsonl": b"1\n"}


def test_a_folder_elsewhere_that_is_gone_or_other_begins_anew(url: str) -> None:
    with working_copy(url) as folder:
        publish(folder, save)
    system, path = fsspec.core.url_to_fs(url)
    system.rm(path, recursive=True)
    with working_copy(url) as again:
        assert again == folder and contents(again) == {}


@pytest.mark.parametrize("content", ["nonsense", "[]", '{"../x": "1"}', '{"/etc/x": "1"}', '{"a": 1}', '{"": "1"}'])
def test_a_damaged_manifest_is_refused(url: str, content: str) -> None:
    with working_copy(url) as folder:
        write_atomic(folder / "a", "a")
    system, path = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{path}/{MANIFEST}", content.encode())
    with pytest.raises(FrugalignError, match=r"manifest\.json is damaged"), working_copy(url):
        pass
    assert contents(folder) == {"a": b"a"}


def test_a_damaged_file_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_copy(url) as folder:
        write_atomic(folder / "a", "a")
    system, path = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{path}/a", b"b")
    machine(tmp_path, monkeypatch, "second")
    with pytest.raises(FrugalignError, match=r"/a is damaged: it is not what was uploaded"), working_copy(url):
        pass


def test_a_failing_upload_is_tried_again_and_said_at_the_end(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: object, name: str) -> None:
        self._ask("write", lambda: (_ for _ in ()).throw(PermissionError("access denied")))  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(elsewhere.Mirror, "_upload", refuse)
        with (
            pytest.raises(FrugalignError, match=f"^Cannot write {url}: access denied; its copy is "),
            working_copy(url) as folder,
        ):
            publish(folder, save)
            assert "It is tried again later." in caplog.text
    with working_copy(url):
        pass
    assert stored(url) == {"model.safetensors": b"weights"}


def test_what_is_not_possible_is_one_sentence(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FrugalignError, match=r"is a URL\. A command mirrors its output_dir there"), in_use(url):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FrugalignError, match="Several processes cannot run in"), working_copy(url):
        pass
