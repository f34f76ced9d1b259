"""A steering vector as a method: its line in a study."""

from __future__ import annotations

import random
from pathlib import Path

from frugalign.methods.budget import GROUP_SIZE, PAIRS_PER_STEP
from frugalign.methods.job import Job
from frugalign.methods.method import Method, PolicyValues


def steering(job: Job) -> PolicyValues:
    """Add the difference of mean states between good and bad answers at one layer. It reads as many pairs as the steps of DPO would."""
    from frugalign.data.pairs import preference_pairs
    from frugalign.data.templating import Rendering
    from frugalign.engines.states import n_layers
    from frugalign.methods.steering.fit import mean_differences, save_steering
    from frugalign.runs.shard_store import ShardStore

    setting = job.setting
    group = int(setting.get("sample", GROUP_SIZE))
    pairs = job.sampled_pairs(group) if job.preferences is None else preference_pairs(job.preferences)[0]
    if job.budget.steps is not None:
        number = min(len(pairs), job.budget.steps * PAIRS_PER_STEP)
        pairs = pairs.select(sorted(random.Random(job.seed).sample(range(len(pairs)), number)))
    base = job.load()
    given = job.shared("prompt_format", "chat_template_kwargs")
    rendering = Rendering(given.get("prompt_format", "auto"), given.get("chat_template_kwargs") or {})
    store = ShardStore(Path.home() / ".cache" / "frugalign" / "steering")
    with job.ledger.phase("train"):
        differences = mean_differences(base, pairs, store, rendering=rendering, ledger=job.ledger)
    job.ledger.set_parameters(trainable=differences.shape[1], base=base.model.num_parameters())
    save_steering(
        base,
        differences,
        job.run_folder,
        job.ledger,
        layer=layer_of(setting.get("layer", 0.5), n_layers(base.model)),
        strength=float(setting.get("strength", 1.0)),
        pairs=pairs,
    )
    return {"steering": str(job.run_folder)}


def layer_of(given: float, depth: int) -> int:
    """The number of a layer that is given by it, or below 1 as a share of the depth. The last layer's states are not steered."""
    return int(given) if given >= 1 else min(depth - 1, max(1, round(given * depth)))


ENTRIES = (
    Method(
        "steering",
        "the difference of mean states between good and bad answers, added at one layer",
        steering,
        needs=(("preferences", "reward"),),
        options=("layer", "strength", "sample"),
    ),
)
