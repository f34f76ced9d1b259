"""Features of stored answers by a worker in vLLM, on a stand-in: the shards of the pass in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.proxy_stored.small_trainer import pairs, trainer
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import end_token_ids
from frugalign.methods import features_in_vllm as module
from frugalign.methods.answer_features import Answers, FeaturePass, Proposals
from frugalign.methods.feature_worker import feature_pool
from frugalign.methods.features_in_vllm import VllmFeatureWorker
from frugalign.proxy.candidates import Limits
from frugalign.workers.record import pack, unpack

PROMPTS = [[5, 6, 7], [5, 6, 7], [12, 13], [9], list(range(40, 59))]
ANSWERS = [[20, 21, 22], [24, 25], [26, 27, 28, 29], [30], list(range(60, 73))]
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {"max_num_batched_tokens": 1000, "max_num_seqs": 8},
    "parts": {"max_num_batched_tokens": 5},
}


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers(), device_map="cpu", dtype="float32")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("how", SETTINGS)
def test_the_shard_of_the_pass(
    vllm: None, base: LoadedModel, how: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From bytes; whole numbers are equal, and others to rounding. Some logits are worked on at once."""
    monkeypatch.setattr(module, "_LOGIT_BYTES", 7 * 4 * len(base.model.get_output_embeddings().weight))
    masks = [[place % 3 != 1 for place in range(len(ids))] for ids in ANSWERS] if masked else None
    proposals = Proposals(1.2, Limits(0.01, 16))
    reading = FeaturePass(base.model, Answers(PROMPTS, ANSWERS, masks), proposals, None, (), None, torch.float32, None)
    engine = module.VllmEngine(
        two_layers(), end_token_ids(base.model, base.tokenizer), {"dtype": "float32", **SETTINGS[how]}
    )
    worker = VllmFeatureWorker(engine, torch.float32)
    worker.share(unpack(pack(reading.settings())))
    for rows in (range(5), range(2, 4)):
        found = unpack(pack(worker.answer(unpack(pack(reading.piece(rows).record))))).tensors
        expected = reading.shard(rows)
        assert int(found.pop("fed")) == sum(len(PROMPTS[row]) + len(ANSWERS[row]) - 1 for row in rows)
        assert set(found) == set(expected) - {"fed"}
        for name, value in found.items():
            assert value.dtype == expected[name].dtype
            if value.is_floating_point():
                torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
            else:
                assert torch.equal(value, expected[name]), name
    assert (engine._llm.happened["parts"] > 0) == (how == "parts")


def test_what_vllm_reads_no_answers_for(base: LoadedModel, tmp_path: Path) -> None:
    args = trainer(base, tmp_path, pairs(2), cache_dir=str(tmp_path / "cache")).args
    args.ray, args.ray_engine = "local", "vllm"
    about: Any = None
    with pytest.raises(FrugalignError, match="read answers for no teacher and no representation reward"):
        feature_pool(args, base, about, base)
    args.reward = "somewhere"
    with pytest.raises(FrugalignError, match="read answers for no teacher and no representation reward"):
        feature_pool(args, base, about, None)
