"""The feature store: computed once, whole shards only, another key for another model, and a bound that holds."""

import copy
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.forked import Forked

import frugalign.sandbox as sandbox
from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.states import endpoint_states
from frugalign.methods.representation_reward import feature_store as module
from frugalign.methods.representation_reward.feature_store import FeatureStore

TEXTS = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14], [15, 16], [17, 18, 19]]


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(sandbox.model)


def states(
    store: FeatureStore, base: LoadedModel, ledger: Ledger | None = None, layers: list[int] | None = None
) -> Any:
    """Two rows a shard."""
    width = base.model.config.hidden_size
    layers = layers or [1, 3]
    return store.features(
        base.model, base.tokenizer, TEXTS, layers, ledger=ledger, shard_bytes=2 * len(layers) * width * 4
    )


def test_states_are_stored_once_and_read_row_by_row(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ledger = FeatureStore(tmp_path), Ledger()
    found = states(store, base, ledger)
    direct = endpoint_states(base.model, TEXTS, [1, 3])
    torch.testing.assert_close(found[range(6)], direct, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[[4, 0, 4]], direct[[4, 0, 4]], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    from_disk = states(store, base)
    assert torch.equal(from_disk[[4, 0, 4]], found[[4, 0, 4]]) and torch.equal(from_disk[range(6)], found[range(6)])
    assert from_disk._memory is None
    assert len(found) == 6 and len(found.shards) == 3 and ledger.lm_forward_tokens == sum(map(len, TEXTS))
    again = Ledger()
    states(store, base, again)
    assert again.lm_forward_tokens == 0


def test_a_shard_holds_few_tokens(base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.5 tokens a text, and five a shard: two texts."""
    monkeypatch.setattr(module, "_SHARD_TOKENS", 5)
    found = FeatureStore(tmp_path).features(base.model, base.tokenizer, TEXTS, [1])
    assert len(found.shards) == 3 and found.rows_per_shard == 2
    direct = endpoint_states(base.model, TEXTS, [1])
    torch.testing.assert_close(found[range(6)], direct, atol=1e-5, rtol=1e-5)


def test_another_layer_text_or_weight_is_another_key(base: LoadedModel, tmp_path: Path) -> None:
    store, ledger = FeatureStore(tmp_path), Ledger()
    states(store, base)
    states(store, base, ledger, layers=[1, 2])
    assert ledger.lm_forward_tokens > 0
    changed = load_model(sandbox.model)
    with torch.no_grad():
        next(changed.model.parameters()).add_(1.0)
    other = Ledger()
    states(store, changed, other)
    assert other.lm_forward_tokens > 0 and len(list(tmp_path.iterdir())) == 3


def test_a_killed_extraction_goes_on_and_half_a_shard_is_never_read(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second of three shards; then the first is cut short on disk: one and two shards are computed again."""
    store, calls = FeatureStore(tmp_path), []

    def counted(model: Any, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(sequences))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return endpoint_states(model, sequences, *args, **kwargs)

    monkeypatch.setattr(module, "endpoint_states", counted)
    with pytest.raises(KeyboardInterrupt):
        states(store, base)
    found = states(store, base)
    assert calls == [2, 2, 2, 2]
    whole = found[range(6)]
    content = found.shards[0].read_bytes()
    found.shards[0].write_bytes(content[:-10])
    torch.testing.assert_close(states(store, base)[range(6)], whole, atol=0, rtol=0)
    assert calls == [2, 2, 2, 2, 2]


def test_sigkill_in_an_extraction_costs_a_shard_at_most(base: LoadedModel, tmp_path: Path) -> None:
    """Killed while it works on the second of three shards, then gone on with: one is read, two computed, all as in one go."""
    begun = tmp_path / "begun"
    begun.mkdir()

    def slow(model: Any, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        (begun / str(sequences)).touch()
        time.sleep(0.3)
        return endpoint_states(model, sequences, *args, **kwargs)

    def extract() -> None:
        module.endpoint_states = slow  # in the child only
        states(FeatureStore(tmp_path / "a"), base)

    process = Forked(extract, tmp_path / "log.txt")
    process.wait_for(lambda: len(list(begun.iterdir())) == 2)
    process.kill()
    assert process.poll() == -9, process.log.read_text()
    ledger = Ledger()
    found = states(FeatureStore(tmp_path / "a"), base, ledger)
    assert ledger.lm_forward_tokens == sum(map(len, TEXTS[2:]))
    whole = states(FeatureStore(tmp_path / "b"), base)
    assert torch.equal(found[range(6)], whole[range(6)])


def test_the_bound_drops_what_was_used_longest_ago(base: LoadedModel, tmp_path: Path) -> None:
    """Room for two keys: the third drops the first, unless that one was used again. More than the bound is refused."""
    one = 6 * 2 * base.model.config.hidden_size * 4
    store = FeatureStore(tmp_path, max_gib=3.5 * one / 2**30)
    for layers in ([1, 2], [1, 3], [2, 3]):
        for place in tmp_path.iterdir():  # older by a minute each time
            stamp = (place / "last_used").stat().st_mtime - 60
            os.utime(place / "last_used", (stamp, stamp))
        states(store, base, layers=layers)
    states(store, base, layers=[1, 2])
    states(store, base, layers=[1, 4])
    ledger = Ledger()
    states(store, base, ledger, layers=[1, 2])
    assert ledger.lm_forward_tokens == 0
    states(store, base, ledger, layers=[1, 3])
    assert ledger.lm_forward_tokens > 0, "the one used longest ago has left"
    with pytest.raises(FrugalignError, match="choose fewer layers"):
        states(FeatureStore(tmp_path, max_gib=0.5 * one / 2**30), base)


def _flip(shard: Path) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _other_rows(shard: Path) -> None:
    save_file({"states": torch.zeros(1, 2, 64)}, shard, {"hash": "0"})


def _other_dtype(shard: Path) -> None:
    with safe_open(shard, framework="pt") as file:
        states, about = file.get_tensor("states"), file.metadata()
    save_file({"states": states.half()}, shard, about)


def _other_name(shard: Path) -> None:
    save_file({"state": load_file(shard)["states"]}, shard, {"hash": "0"})


def _without_hash(shard: Path) -> None:
    save_file({"states": load_file(shard)["states"]}, shard)


def _next_shard(shard: Path) -> None:
    shutil.copy(shard.with_name("shard-00002.safetensors"), shard)


@pytest.mark.parametrize("damage", [_flip, _other_rows, _other_dtype, _other_name, _without_hash, _next_shard])
def test_a_shard_that_is_not_what_was_stored_is_computed_again(damage: Any, base: LoadedModel, tmp_path: Path) -> None:
    """Under a header that fits the file."""
    whole = states(FeatureStore(tmp_path), base)[range(6)]
    shard = next(tmp_path.glob("*/shard-00001.safetensors"))
    before = shard.read_bytes()
    damage(shard)
    assert shard.read_bytes() != before
    ledger = Ledger()
    assert torch.equal(states(FeatureStore(tmp_path), base, ledger)[range(6)], whole)
    assert ledger.lm_forward_tokens == sum(map(len, TEXTS[2:4])) and shard.read_bytes() == before


def test_another_config_is_another_key(base: LoadedModel, tmp_path: Path) -> None:
    """The weights are the same, and used otherwise."""
    keys = set()
    for change in ({}, {"rms_norm_eps": 1e-2}, {"hidden_act": "gelu"}, {"use_cache": False}):
        changed = copy.copy(base.model)
        changed.config = copy.deepcopy(base.model.config)
        changed.config.update(change)
        keys.add(module.key_of(changed, base.tokenizer, TEXTS, [1], 2))
    assert len(keys) == 3


def test_states_that_a_command_uses_are_not_deleted(
    base: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Room for one key: the second one deletes the first only when nobody holds its states."""
    store = FeatureStore(tmp_path, max_gib=1.5 * 6 * 2 * base.model.config.hidden_size * 4 / 2**30)
    first = states(store, base, layers=[1, 2])
    place = first.shards[0].parent
    states(store, base, layers=[1, 3])
    assert all(shard.is_file() for shard in first.shards) and "exceed their bound" in caplog.text
    with FileLock(place / ".lock"):  # as a command that computes them
        del first
        states(store, base, layers=[2, 3])
        assert place.is_dir()
    states(store, base, layers=[1, 4])
    assert not place.exists()
