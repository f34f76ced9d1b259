"""Continuous batching: rows join and leave between two forward passes, each with its own settings.

`loop.generate` completes prompts that are known at its start. A server's are not. Here new rows are fed their prompt
alone and then join the others; a row that ends or is dropped leaves. Noise is keyed by row and position, so a row's
tokens do not depend on the others.

An engine that cannot join sequences is stepped once for each prefill whose rows are alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.decoding.noise import Noise
from frugalign.engines.engine import Engine, Sequences, StepOutput

_COMPACT_BELOW = 0.75
"""Rows that left stay in the batch while more than this share of it is alive. Copying the cache costs about one step."""


@dataclass(eq=False)
class Row:
    """One completion in progress.

    `key`: its noise key (`row_keys`). `settings`: what the chooser reads of it. `ids`: the tokens so far. `finish`: why
    it ended: `stop` (an end token), `length`, or what `drop` was told; None while it is alive.
    """

    prompt_ids: Sequence[int]
    key: int
    max_new_tokens: int
    settings: Any = None
    ids: list[int] = field(default_factory=list)
    finish: str | None = None


RowChooser = Callable[[Tensor, Tensor, Sequence[Row], Noise], Sequence[Any]]
"""`h [B, D]`, `logits [B, V]`, the `B` rows and their noise -> a choice for each, with the token in `token`."""


class ContinuousBatch:
    """Rows in progress on one engine. It is used by one thread.

    `add` and `step` return the rows that got a token, each with its choice. Rows whose `finish` is set have left.
    """

    def __init__(self, engine: Engine, choose: RowChooser) -> None:
        self.engine, self._choose = engine, choose
        self._groups: list[_Group] = []
        self._ends = frozenset(engine.end_token_ids)

    @property
    def rows(self) -> list[Row]:
        """The rows that are alive."""
        return [row for group in self._groups for row in group.rows if row.finish is None]

    @torch.no_grad()
    def add(self, rows: Sequence[Row]) -> list[tuple[Row, Any]]:
        """Feed the prompts of new rows, and choose the first token of each. Equal prompts are fed once.

        Raises:
            FrugalignError: a prompt is empty.
        """
        if any(not row.prompt_ids for row in rows):
            raise FrugalignError("A prompt is empty after tokenisation.")
        if not rows:
            return []
        with self.engine.running():
            added = []
            for part in self._fed_together(rows):
                sequences, output = self._prefill(part)
                added.append((_Group(sequences, list(part)), output))
            chosen = self._choose_for(added)
            for group, _ in added:
                self._join(group)
        return chosen

    @torch.no_grad()
    def step(self) -> list[tuple[Row, Any]]:
        """Feed every row its last token, and choose the next one."""
        self._groups = [group for group in self._groups if group.alive]
        if not self._groups:
            return []
        with self.engine.running():
            for group in self._groups:
                if group.alive < _COMPACT_BELOW * len(group.rows) and self.engine.capabilities.can_select:
                    group.compact(self.engine)
            return self._choose_for([(group, group.step(self.engine)) for group in self._groups])

    def drop(self, row: Row, finish: str) -> None:
        """Take a row out. It gets no more tokens; its place in the cache is freed by the next steps."""
        if row.finish is None:
            row.finish = finish

    def clear(self) -> None:
        """Forget every row, such as after a failed pass."""
        self._groups = []

    def _fed_together(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Rows of one prefill. Several rows of one prompt need an engine that can copy them, else they are fed alone."""
        can = self.engine.capabilities
        distinct = {tuple(row.prompt_ids) for row in rows}
        return [list(rows)] if len(distinct) == len(rows) or can.can_expand else [[row] for row in rows]

    def _prefill(self, rows: Sequence[Row]) -> tuple[Sequences, StepOutput]:
        places: dict[tuple[int, ...], int] = {}
        index = [places.setdefault(tuple(row.prompt_ids), len(places)) for row in rows]
        sequences, output = self.engine.prefill(list(places))
        if len(places) < len(rows):
            chosen = torch.tensor(index, device=self.engine.device)
            sequences.select(chosen)
            output = StepOutput(output.hidden[chosen], output.logits[chosen])
        return sequences, output

    def _join(self, new: _Group) -> None:
        """Put a new group with the others if the engine can. Rows that left are cut out of both first."""
        if not new.alive:
            return
        for group in self._groups:
            if not group.alive:
                continue
            for each in (group, new):
                if each.alive < len(each.rows) and self.engine.capabilities.can_select:
                    each.compact(self.engine)
            if group.sequences.join(new.sequences):
                group.rows += new.rows
                return
        self._groups.append(new)

    def _choose_for(self, outputs: Sequence[tuple[_Group, StepOutput]]) -> list[tuple[Row, Any]]:
        parts = [group.living(output) for group, output in outputs]
        rows = [row for alive, _, _ in parts for row in alive]
        hidden = _stacked([part for _, part, _ in parts])
        logits = _stacked([part for _, _, part in parts])
        device = self.engine.device
        noise = Noise(
            torch.tensor([row.key for row in rows], device=device),
            torch.tensor([len(row.ids) for row in rows], device=device),
        )
        choices = self._choose(hidden, logits, rows, noise)
        for row, choice in zip(rows, choices, strict=True):
            row.ids.append(choice.token)
            if choice.token in self._ends:
                row.finish = "stop"
            elif len(row.ids) >= row.max_new_tokens:
                row.finish = "length"
        return list(zip(rows, choices, strict=True))


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _Group:
    """The rows of one `Sequences`, those included that left since it was compacted."""

    def __init__(self, sequences: Sequences, rows: list[Row]) -> None:
        self.sequences, self.rows = sequences, rows

    @property
    def alive(self) -> int:
        return sum(row.finish is None for row in self.rows)

    def step(self, engine: Engine) -> StepOutput:
        return self.sequences.step(torch.tensor([row.ids[-1] for row in self.rows], device=engine.device))

    def compact(self, engine: Engine) -> None:
        kept = [place for place, row in enumerate(self.rows) if row.finish is None]
        self.sequences.select(torch.tensor(kept, device=engine.device))
        self.rows = [self.rows[place] for place in kept]

    def living(self, output: StepOutput) -> tuple[list[Row], Tensor, Tensor]:
        """The rows that are alive, with their part of the output."""
        kept = [place for place, row in enumerate(self.rows) if row.finish is None]
        if len(kept) == len(self.rows):
            return list(self.rows), output.hidden, output.logits
        index = torch.tensor(kept, device=output.logits.device)
        return [self.rows[place] for place in kept], output.hidden[index], output.logits[index]
