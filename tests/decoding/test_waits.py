"""How often the host waits for an accelerator while it decodes, counted on a pretended one, and that nothing else differs there."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.decoding.far_device import DEVICE, FarDevice, moved
from tests.decoding.small_loop import base, guide, prompts
from torch import Tensor

from frugalign.decoding import SamplingParams, generate, row_keys
from frugalign.decoding.loop import Generation, LoopOptions
from frugalign.decoding.waits import places_of, places_to_do
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.methods.proxy_rlhf.rollout import Rollout, RolloutOptions, roll_out
from frugalign.proxy.guide import ProxyGuide

ROWS, LONG = 10, 14


@pytest.fixture
def far() -> Iterator[FarDevice]:
    with FarDevice() as device:
        yield device


def far_base() -> TransformersEngine:
    model, tokenizer = base()
    engine = TransformersEngine(moved(copy.deepcopy(model)), tokenizer)
    assert engine.device == DEVICE
    return engine


def rolled(engine: TransformersEngine, proxy: Any, tokens: int, rows: list[list[int]], **options: Any) -> Rollout:
    keys = row_keys(0, 0, range(len(rows)), [0] * len(rows))
    found = roll_out(engine, proxy, rows, keys, RolloutOptions(tokens, batch_size=len(rows), **options))
    assert found is not None
    return found


def far_guide(engine: TransformersEngine, near: ProxyGuide) -> ProxyGuide:
    return ProxyGuide.build([moved(copy.deepcopy(near.proxies[0]))], embedding_rows(engine.model))


@pytest.mark.parametrize(("padded", "most"), [(True, 2), (False, 1)])
def test_a_rollout_waits_twice_a_token_at_most(padded: bool, most: int, far: FarDevice) -> None:
    """Once for the tokens, and once where transformers looks at its mask for padding. The rest is counted once a rollout."""
    engine = far_base()
    proxy = far_guide(engine, guide())
    rows = prompts(4) if padded else [prompts(1)[0]] * 4
    waits, lengths = [], []
    for tokens in (2, 5):
        far.waits.clear()
        found = rolled(engine, proxy, tokens, rows)
        waits.append(sum(far.waits.values()))
        lengths.append(max(map(len, found.generation.completion_ids)))
    assert lengths == [2, 5]
    assert waits[1] - waits[0] == most * 3, far.waits
    assert waits[0] - most * 2 <= 12, far.waits


@pytest.mark.parametrize("objective", ["marginal", "sequential", "sequential_integrated"])
def test_a_rollout_there_is_the_one_on_a_cpu(objective: str, far: FarDevice) -> None:
    """Rows end and leave, some tokens come from the tail, states are kept, and whatever is recorded is the same."""
    (model, tokenizer), near, engine = base(), guide(objective), far_base()
    proxy = far_guide(engine, near)
    wanted = rolled(TransformersEngine(model, tokenizer), near, LONG, prompts(ROWS), state_layers=(1,))
    far.waits.clear()
    found = rolled(engine, proxy, LONG, prompts(ROWS), state_layers=(1,))
    assert far.waits.total() <= 2 * max(map(len, wanted.generation.completion_ids)) + 16, far.waits
    _assert_equal(found.generation, wanted.generation)
    assert len({len(ids) for ids in wanted.generation.completion_ids}) > 3, "rows must end at different times"
    for name in ("sequence", "position", "choice", "ids", "mask"):
        assert torch.equal(_near(getattr(found.positions, name)), getattr(wanted.positions, name)), name
    for name in ("hidden", "log_p"):
        torch.testing.assert_close(_near(getattr(found.positions, name)), getattr(wanted.positions, name))
    torch.testing.assert_close(_near(found.kl), wanted.kl, atol=1e-5, rtol=1e-4)
    assert torch.equal(_near(found.valid), wanted.valid)
    assert found.statistics == pytest.approx(wanted.statistics, abs=1e-5)


@pytest.mark.parametrize(("guided", "do_sample"), [(False, True), (True, False)])
def test_decoding_there_waits_as_little_and_gives_the_same(do_sample: bool, guided: bool, far: FarDevice) -> None:
    model, tokenizer = base()
    params = SamplingParams(max_new_tokens=LONG, do_sample=do_sample)
    engine, near = far_base(), guide() if guided else None
    proxy = None if near is None else far_guide(engine, near)
    options = LoopOptions(batch_size=ROWS)
    wanted = generate(TransformersEngine(model, tokenizer), prompts(ROWS), params, guide=near, options=options)
    far.waits.clear()
    found = generate(engine, prompts(ROWS), params, guide=proxy, options=options)
    _assert_equal(found, wanted)
    longest = max(map(len, found.completion_ids))
    # The mask is looked at once more where the prompts are fed.
    assert far.waits == +Counter({"__bool__": longest + 1, "tolist": longest, "copy to the host": 3 * do_sample})


def test_the_pretended_device_sees_what_waits(far: FarDevice) -> None:
    values = torch.arange(4, device=DEVICE)
    mask = values > 1
    assert values.device == mask.device == DEVICE and torch.zeros(1).device.type == "cpu"
    assert not far.waits
    for wait in (
        lambda: int(values[1]),
        lambda: float(values.sum()),
        lambda: bool(mask.any()),
        lambda: values.tolist(),
        lambda: values.cpu(),
        lambda: values.to("cpu"),
        lambda: values[mask],
        lambda: mask.nonzero(),
        lambda: values.__setitem__(mask, 0),
        lambda: torch.bincount(values),
        lambda: torch.equal(values, values),
    ):
        far.waits.clear()
        wait()
        assert far.waits.total() == 1, far.waits
    with pytest.raises(RuntimeError, match="two devices"):
        values + torch.arange(4)


def test_places_of_a_mask() -> None:
    mask = torch.tensor([False, True, True, False, True])
    assert places_of(mask, 3).tolist() == places_to_do(mask).tolist() == [1, 2, 4]
    assert places_of(mask & False, 0).tolist() == []
    with FarDevice() as device:
        there = torch.tensor(mask.tolist(), device=DEVICE)
        found, everywhere = places_of(there, 3), places_to_do(there)
        assert not device.waits
        assert found.tolist() == [1, 2, 4] and everywhere.tolist() == [0, 1, 2, 3, 4]


def _near(values: Tensor) -> Tensor:
    return values.cpu()


def _assert_equal(found: Generation, wanted: Generation) -> None:
    assert found.completion_ids == wanted.completion_ids and found.ended == wanted.ended
    for name in ("kl_temperature", "kl_restriction", "kl_choice", "states"):
        mine, theirs = getattr(found, name), getattr(wanted, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(_near(mine), theirs, atol=1e-5, rtol=1e-4)
