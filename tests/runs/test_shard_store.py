"""Shards are read by rows, and a shard that was damaged while it was open is read as it was computed again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frugalign.runs import shard_store
from frugalign.runs.shard_store import ShardFile, Shards, ShardStore


def stored(folder: Path, number: int = 2) -> Shards:
    """Shards whose tensor `a` counts from ten times their number."""

    def compute(missing: list[int]) -> Iterator[dict[str, Tensor]]:
        for each in missing:
            yield {"a": torch.arange(10 * each, 10 * each + 6).reshape(3, 2), "b": torch.ones(1, dtype=torch.bfloat16)}

    return ShardStore(folder).shards("key", number, compute, needed=1)


@pytest.mark.parametrize(("start", "stop", "values"), [(0, None, [10, 15]), (1, 2, [12, 13]), (2, 3, [14, 15])])
def test_rows_are_read_in_any_order(tmp_path: Path, start: int, stop: int | None, values: list[int]) -> None:
    files = stored(tmp_path).files
    for _ in range(2):
        found = ShardFile.of(files[1]).rows("a", start, stop)
        assert [int(found.min()), int(found.max())] == values
        assert int(ShardFile.of(files[0]).rows("a").max()) == 5
        assert ShardFile.of(files[1]).rows("a", 1, 1).shape == (0, 2)


def test_a_shard_that_was_damaged_while_open_is_read_anew(tmp_path: Path) -> None:
    (file,) = stored(tmp_path, 1).files
    right = ShardFile.of(file).rows("a")
    content = bytearray(file.read_bytes())
    content[-5] ^= 255
    file.write_bytes(content)
    assert stored(tmp_path, 1).files == [file]
    assert torch.equal(ShardFile.of(file).rows("a"), right)


def test_the_number_of_open_files_is_bounded(tmp_path: Path) -> None:
    most = shard_store._opened.cache_parameters()["maxsize"] or 0
    files = stored(tmp_path, most + 20).files
    assert most
    for _ in range(2):
        assert [int(ShardFile.of(file).rows("a", 0, 1).min()) for file in files] == [10 * n for n in range(len(files))]
    mine = [path for path in Path("/proc/self/fd").iterdir() if str(path.resolve()).startswith(str(tmp_path))]
    assert len(mine) <= most + 1  # and the lock of the key
