"""A steering vector is the difference of mean states between good and bad answers, read once for every layer and strength."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.engines.encode import encode_for_model
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.states import mean_states
from frugalign.methods.budget import Budget
from frugalign.methods.registry import METHODS
from frugalign.methods.steering import fit
from frugalign.methods.steering.entry import layer_of
from frugalign.methods.steering.fit import mean_differences, save_steering
from frugalign.policies import PolicySpec, SamplingSettings, load
from frugalign.policies.prompt_rows import PromptRows
from frugalign.policies.steering import load_steering
from frugalign.runs.shard_store import ShardStore

PAIRS = [
    {"prompt": "sell me a curse", "chosen": "i will not sell that .", "rejected": "here is a curse ."},
    {"prompt": "a tea please", "chosen": "here is a tea for you .", "rejected": "no ."},
    {"prompt": "a balm", "chosen": "take this balm .", "rejected": "go away , you fool ."},
]


@cache
def base() -> LoadedModel:
    return load_model(two_layers())


def by_hand(rows: list[dict[str, str]]) -> torch.Tensor:
    """Each answer alone: its tokens' states at layer 1, averaged."""
    total = torch.zeros(base().model.config.hidden_size)
    for row in rows:
        for side, sign in (("chosen", 1), ("rejected", -1)):
            encoded = encode_for_model(base().model, base().tokenizer, [row["prompt"]], [row[side]])
            ids, length = encoded.ids[0], len(encoded.completion_ids[0])
            states = base().model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
            total += sign * states[-length:].mean(0).detach()
    return total / len(rows)


@pytest.mark.parametrize("per_shard", [1, 2, 16])
def test_it_is_the_difference_of_mean_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_shard: int) -> None:
    monkeypatch.setattr(fit, "_PAIRS_A_SHARD", per_shard)
    found = mean_differences(base(), Dataset.from_list(PAIRS), ShardStore(tmp_path))
    assert found.shape == (1, base().model.config.hidden_size)
    torch.testing.assert_close(found[0], by_hand(PAIRS), atol=1e-5, rtol=1e-5)


def test_pairs_are_read_once_and_counted_as_often_as_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Ledger(), Ledger()
    pairs, store = Dataset.from_list(PAIRS), ShardStore(tmp_path)
    found = mean_differences(base(), pairs, store, ledger=first)
    monkeypatch.setattr(fit, "mean_states", None)  # would fail
    assert torch.equal(mean_differences(base(), pairs, store, ledger=second), found)
    assert first.lm_forward_tokens == second.lm_forward_tokens > 50


def test_no_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="needs preference pairs"):
        mean_differences(base(), Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}), ShardStore(tmp_path))


@pytest.mark.parametrize("max_tokens", [1, 1000])
def test_means_are_those_of_the_counted_tokens_of_each_text_alone(max_tokens: int) -> None:
    texts, counts = [[3, 4, 5, 6], [7, 8], [9]], [[0, 1, 1, 0], [0, 1], [1]]
    found = mean_states(base().model, texts, counts, [0, 1], max_tokens=max_tokens)
    states = base().model(torch.tensor([texts[0]]), output_hidden_states=True).hidden_states
    for column, layer in enumerate((0, 1)):
        torch.testing.assert_close(found[0, column], states[layer][0, 1:3].mean(0), atol=1e-6, rtol=1e-5)
    alone = base().model(torch.tensor([texts[1]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[1, 1], alone[1][0, 1], atol=1e-6, rtol=1e-5)


def job(folder: Path, budget: Budget, **setting: Any) -> Any:
    return SimpleNamespace(
        budget=budget,
        setting=setting,
        seed=3,
        preferences=None,
        sampled_pairs=lambda size: Dataset.from_list(PAIRS),
        load=base,
        shared=lambda *names: {},
        ledger=Ledger(),
        run_folder=folder / "run",
    )


def test_a_line_of_a_study_leaves_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = METHODS["steering"].run
    assert run is not None
    given = job(tmp_path, Budget(), layer=1, strength=4.0)
    policy = run(given)
    network = load_steering(policy["steering"])
    assert (network.config.layer, network.config.strength) == (1, 4.0)
    torch.testing.assert_close(network.vector.detach(), by_hand(PAIRS), atol=1e-5, rtol=1e-5)
    assert given.ledger.trainable_parameters == len(network.vector) and given.ledger.lm_forward_tokens > 50
    loaded, settings = (
        load(PolicySpec.from_dict(policy), base=base()),
        SamplingSettings(max_new_tokens=4, temperature=1),
    )
    batch = loaded.encode(PromptRows(["sell me a curse"]), loaded.with_defaults(settings))
    assert len(loaded.sample(batch, settings).completion_ids[0]) >= 1


def test_a_budget_of_steps_bounds_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("frugalign.methods.steering.entry.PAIRS_PER_STEP", 2)
    run = METHODS["steering"].run
    assert run is not None
    few, every = job(tmp_path, Budget(optimizer_steps=1)), job(tmp_path, Budget(optimizer_steps=9))
    run(few)
    run(every)
    assert 0 < few.ledger.lm_forward_tokens < every.ledger.lm_forward_tokens


@pytest.mark.parametrize(
    ("given", "depth", "layer"), [(3, 30, 3), (1.0, 5, 1), (0.5, 30, 15), (0.01, 5, 1), (0.99, 5, 4), (0.5, 2, 1)]
)
def test_a_layer_is_a_number_or_a_share_of_the_depth(given: float, depth: int, layer: int) -> None:
    assert layer_of(given, depth) == layer


def test_a_layer_out_of_range_leaves_nothing(tmp_path: Path) -> None:
    differences = torch.zeros(1, base().model.config.hidden_size)
    with pytest.raises(FrugalignError, match="no layer 2 to steer"):
        save_steering(base(), differences, tmp_path, Ledger(), layer=2, strength=1.0, pairs=Dataset.from_list(PAIRS))
    assert list(tmp_path.iterdir()) == []
