"""Not a test: trains a proxy on sixteen pairs, on one process or as one of two, and returns what a test compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.methods.proxy_stored.small_trainer import Gradients, pairs, trainer, weights
from tests.two_layers import two_layers

from frugalign.engines.loading import load_model
from frugalign.methods import answer_features as module


def train(folder: Path, pairs_per_process: int, **sizes: Any) -> dict[str, Any]:
    """Three epochs, with one validation pair: of two processes, one has none. The cache starts empty."""
    computed: list[int] = []
    shard = module.FeaturePass.shard

    def counted(self: Any, rows: Any) -> Any:
        computed.append(len(rows))
        return shard(self, rows)

    module.FeaturePass.shard = counted  # type: ignore[method-assign]
    module._SHARD_TOKENS = 200
    spy = Gradients()
    try:
        found = trainer(
            load_model(two_layers(), **sizes),
            folder,
            pairs(16),
            pairs(1, 16),
            max_steps=-1,
            num_train_epochs=3,
            per_device_train_batch_size=pairs_per_process,
            cache_dir=str(folder / "features"),
            target_kl=0.5,
            patience=0,
            learning_rate=0.01,
            callbacks=[spy],
        )
        found.train()
    finally:
        module.FeaturePass.shard = shard  # type: ignore[method-assign]
    return {
        "world_size": found.accelerator.num_processes,
        "rank": found.accelerator.process_index,
        "computed": computed,
        "shards": len(found.stored.features.shards.files) + 1,
        "gradients": {name: value.flatten().tolist() for name, value in spy.steps[0].items()},
        "weights": {name: value.flatten().tolist() for name, value in weights(found).items()},
        "kl": found.brake.last,
        "tokens": found.ledger.lm_forward_tokens,
    }


def rank(folder: Path, **sizes: Any) -> None:
    """One of two processes: half of the pairs, and what it saw in `rank-0.json` or `rank-1.json`. `sizes` spread the base."""
    seen = train(folder, 4, **sizes)
    assert seen["world_size"] == 2, f"{seen['world_size']} processes, not 2"
    (folder / f"rank-{seen['rank']}.json").write_text(json.dumps(seen))
