"""The feature pass by workers on Ray: the same files as those of one process, whoever computed which shard and whoever died meanwhile."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.proxy_rlhf.on_ray import TWO_WORKERS, killing
from tests.methods.proxy_stored.small_trainer import pairs, trainer, weights
from tests.two_layers import two_layers

from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.sentences import sentence_ends
from frugalign.methods import answer_features as module
from frugalign.methods import feature_worker
from frugalign.methods.answer_features import Answers, FeaturePass, Proposals, Teacher
from frugalign.methods.feature_worker import FeatureWorker
from frugalign.methods.proxy_stored import trainer as of_trainer
from frugalign.proxy.candidates import Limits
from frugalign.runs.shard_store import ShardFile
from frugalign.workers.record import pack, unpack


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


@pytest.mark.parametrize("masked", [False, True])
def test_a_worker_computes_the_shard_that_the_pass_computes(base: LoadedModel, masked: bool) -> None:
    """From bytes: with a teacher, with layers, and with turns of others left out."""
    prompts, texts = [[5, 6, 7], [12, 13], [9, 9, 9]], [[20, 21, 22], [24, 25], [26, 27, 28, 29]]
    answers = Answers(prompts, texts, [[1] * (len(ids) - 1) + [0] for ids in texts] if masked else None)
    teacher = Teacher(base.model, base.tokenizer, [[4, *ids] for ids in prompts], 0.8)
    reading = FeaturePass(
        base.model,
        answers,
        Proposals(1.2, Limits(0.01, 16)),
        teacher,
        (1, 2),
        sentence_ends(base.tokenizer),
        torch.bfloat16,
        None,
    )
    worker = FeatureWorker(base, base)
    for rows in (range(3), range(1, 3)):
        worker.share(unpack(pack(reading.settings())))
        piece = reading.piece(rows)
        found = worker.answer(unpack(pack(piece.record))).tensors
        expected = reading.shard(rows)
        assert set(found) == set(expected) and {"states", "teacher_log_p"} <= set(found)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert piece.size == int(expected["fed"])


def trained(folder: Path, **options: Any) -> tuple[dict[str, bytes], dict[str, torch.Tensor], Any]:
    """The files of the cache, the weights and the counts of a short training on pairs."""
    ShardFile.of.cache_clear()
    module._begins.cache_clear()
    found = trainer(load_model(two_layers()), folder, pairs(8), pairs(2, 8), cache_dir=str(folder / "cache"), **options)
    found.train()
    found.reader.close()
    files = {
        path.name + str(number): path.read_bytes() for number, path in enumerate(found.stored.features.shards.files)
    }
    return files, weights(found), found.ledger.counts()


@pytest.mark.slow
def test_two_workers_write_the_cache_that_this_process_writes(
    ray_here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed at two random moments of the pass as well."""
    monkeypatch.setattr(module, "_SHARD_TOKENS", 200)
    one = trained(tmp_path / "one")
    killers, kills = ExitStack(), list[list[int]]()

    def pool_with_killer(*args: Any) -> Any:
        pool = feature_worker.feature_pool(*args)
        kills.append(killers.enter_context(killing(pool, 2, seed=0)))
        return pool

    monkeypatch.setattr(of_trainer, "feature_pool", pool_with_killer)
    two = trained(tmp_path / "two", **TWO_WORKERS)
    assert len(one[0]) > 3 and two[0] == one[0]
    assert two[2] == one[2] and all(torch.equal(two[1][name], one[1][name]) for name in one[1])
    killers.close()
    assert len(kills[0]) == 2, "in the pass over the training pairs, and in that over the validation pairs"
