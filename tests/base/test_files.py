"""Files are written whole or not at all; a broken safetensors file is one sentence."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from frugalign.base.errors import FrugalignError
from frugalign.base.files import check_safetensors, write_atomic, write_json_atomic, writing


def test_write_atomic_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "one")
    write_atomic(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [found.name for found in path.parent.iterdir()] == ["b.txt"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_atomic(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "costs.json"
    write_json_atomic(path, {"a": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(FrugalignError, match=r"^Cannot write .*costs\.json: no space is left on the disk\.$"):
        write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["costs.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_writing_wraps_a_real_full_device() -> None:
    with (
        pytest.raises(FrugalignError, match="no space is left"),
        writing("/dev/full"),
        Path("/dev/full").open("w") as file,
    ):
        file.write("x" * 100_000)


def test_a_path_through_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FrugalignError, match="Cannot write"):
        write_atomic(tmp_path / "file" / "costs.json", "x")


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json_atomic(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(
        {"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float16), "scalar": np.array(1.0)},
        path,
        {"format": "pt"},
    )
    return path


def _with_header(path: Path, change: dict[str, object]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a"] |= change
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])


def test_a_sound_file_passes(weights: Path) -> None:
    check_safetensors(weights)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1, -30])
def test_truncated(weights: Path, keep: int) -> None:
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(FrugalignError, match=r"truncated|damaged"):
        check_safetensors(weights)


@pytest.mark.parametrize(
    "change", [{"shape": [3, 5]}, {"dtype": "F16"}, {"dtype": "F31"}, {"data_offsets": [0, 4]}, {"shape": [-3, -4]}]
)
def test_tampered_header(weights: Path, change: dict[str, object]) -> None:
    _with_header(weights, change)
    with pytest.raises(FrugalignError, match="tampered"):
        check_safetensors(weights)


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff" * 9])
def test_a_header_that_cannot_be_read(header: bytes, tmp_path: Path) -> None:
    """Nested too deeply, or no text."""
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FrugalignError, match="its header cannot be read"):
        check_safetensors(tmp_path / "model.safetensors")


def test_bytes_after_the_last_tensor(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes() + b"extra")
    with pytest.raises(FrugalignError, match="5 bytes follow"):
        check_safetensors(weights)


def test_not_a_safetensors_file_and_missing(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04\x95pickle, or anything else")
    with pytest.raises(FrugalignError, match="not a safetensors file"):
        check_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(FrugalignError, match="does not exist"):
        check_safetensors(tmp_path / "missing.safetensors")
