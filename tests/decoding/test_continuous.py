"""Rows that join and leave get the tokens that they would get alone, on engines that join sequences and on those that cannot."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.engines.table_engine import TableEngine, TableSequences
from tests.proxy.small_models import MODELS, Tokens, build
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.decoding.chooser import draw_token
from frugalign.decoding.continuous import ContinuousBatch, Row
from frugalign.decoding.loop import SamplingParams, generate
from frugalign.decoding.noise import Noise, row_keys
from frugalign.engines.transformers import TransformersEngine

N = 14


@dataclass
class Choice:
    token: int


def base(seen: dict[int, list[Tensor]] | None = None) -> Callable[..., list[Choice]]:
    """Draws from the base, and keeps the logits that every row saw."""

    def choose(h: Tensor, logits: Tensor, rows: Sequence[Row], noise: Noise) -> list[Choice]:
        for row, own in zip(rows, logits, strict=True):
            if seen is not None:
                seen.setdefault(id(row), []).append(own)
        return [Choice(token) for token in draw_token(logits, noise).tolist()]

    return choose


def new_rows(vocabulary: int, limit: int = 12) -> list[Row]:
    drawn = random.Random(0)
    keys = row_keys(0, 0, range(N), [0] * N).tolist()
    prompts = [[drawn.randrange(3, vocabulary) for _ in range(drawn.randint(1, 11))] for _ in range(N)]
    return [Row(prompt, key, drawn.randint(1, limit)) for prompt, key in zip(prompts, keys, strict=True)]


def run(batch: ContinuousBatch, rows: Sequence[Row]) -> None:
    """Rows arrive one, two or none at a time, while others end."""
    drawn, waiting = random.Random(1), list(rows)
    while waiting or batch.rows:
        n = drawn.choice([0, 1, 2, 3]) if batch.rows else 1
        batch.add(waiting[:n])
        waiting = waiting[n:]
        batch.step()


def alone(engine: Any, row: Row) -> list[int]:
    params = SamplingParams(max_new_tokens=row.max_new_tokens)
    return generate(engine, [row.prompt_ids], params, keys=torch.tensor([row.key])).completion_ids[0]


class Apart(TableEngine):
    """An engine whose sequences cannot be joined."""

    def prefill(self, rows: Sequence[Sequence[int]], prefix: int | None = None) -> Any:
        sequences, output = super().prefill(rows, prefix)
        sequences.join = lambda other: False  # type: ignore[method-assign]
        return sequences, output


@pytest.mark.parametrize("engine", [TableEngine(), Apart(), TableEngine(can_select=False, can_expand=False)])
def test_rows_of_any_engine_are_those_of_the_loop(engine: TableEngine) -> None:
    rows = new_rows(23)
    run(ContinuousBatch(engine, base()), rows)
    assert [row.ids for row in rows] == [alone(engine, row) for row in rows]
    assert {row.finish for row in rows} == {"stop", "length"}
    assert all((row.finish == "stop") == (row.ids[-1] == 0) for row in rows)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_model_see_the_logits_of_their_own_text(name: str) -> None:
    """Padding, joining, leaving and sliding windows change nothing: against the whole text in one forward pass."""
    model, seen = build(name), {}
    engine = TransformersEngine(model, Tokens())  # type: ignore[arg-type]
    batch, rows = ContinuousBatch(engine, base(seen)), new_rows(48)
    run(batch, rows)
    for row in rows:
        text = torch.tensor([[*row.prompt_ids, *row.ids]])
        with torch.no_grad():
            logits = model(text).logits[0, len(row.prompt_ids) - 1 : -1]
        assert len(row.ids) == row.max_new_tokens
        assert torch.allclose(torch.stack(seen[id(row)]), logits, atol=2e-4), name


def test_a_long_row_that_joins_or_leaves_does_not_move_short_ones() -> None:
    engine = TransformersEngine(build("mistral-window"), Tokens())  # type: ignore[arg-type]
    batch, keys = ContinuousBatch(engine, base()), row_keys(0, 0, range(3), [0] * 3).tolist()
    short, long, late = Row([5], keys[0], 30), Row(list(range(3, 40)), keys[1], 2), Row([7, 8], keys[2], 20)
    batch.add([short])
    batch.step()
    batch.add([long])
    for _ in range(3):
        batch.step()
    batch.add([late])
    (group,) = batch._groups
    assert group.sequences._mask.shape[1] < 12, "columns that only the long row used are gone"  # type: ignore[attr-defined]
    while batch.rows:
        batch.step()
    assert [row.ids for row in (short, long, late)] == [alone(engine, row) for row in (short, long, late)]


def test_a_dropped_row_gets_no_more_tokens_and_frees_its_place() -> None:
    engine, rows = TableEngine(), [Row([5, 6], key, 50) for key in row_keys(3, 0, range(4), [0] * 4).tolist()]
    engine.end_token_ids = ()
    batch = ContinuousBatch(engine, base())
    batch.add(rows)
    batch.step()
    for row in rows[1:3]:
        batch.drop(row, "cancelled")
    assert [row for row, _ in batch.step()] == [rows[0], rows[3]] == batch.rows
    assert [len(row.ids) for row in rows] == [3, 2, 2, 3] and rows[1].finish == "cancelled"
    (group,) = batch._groups
    assert isinstance(group.sequences, TableSequences) and len(group.sequences.state) == 2
    batch.drop(rows[0], "cancelled")
    batch.drop(rows[3], "cancelled")
    assert batch.step() == [] and batch.rows == [] and batch._groups == []


def test_a_prompt_is_fed_once_for_all_its_rows() -> None:
    engine = TableEngine()
    rows = [Row([5, 6, 7], key, 3) for key in row_keys(0, 0, [0] * 3, range(3)).tolist()] + [Row([9], 1, 3)]
    ContinuousBatch(engine, base()).add(rows)
    assert engine.fed == 4


def test_an_empty_prompt_is_an_error_that_leaves_the_others() -> None:
    batch = ContinuousBatch(TableEngine(), base())
    batch.add([Row([5], 1, 9)])
    before = batch.rows
    with pytest.raises(FrugalignError, match="empty"):
        batch.add([Row([], 2, 9)])
    assert batch.rows == before
