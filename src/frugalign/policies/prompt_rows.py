"""What rewards read beside the completions of an evaluation, and the call that scores completions with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from frugalign.base.ledger import Ledger
from frugalign.data.encode import completions_of
from frugalign.rewards import NamedReward, Scores, score


@dataclass(frozen=True)
class Asked:
    """The rows that are completed: `prompts[i]`, and `columns[name][i]`, the data set's other columns."""

    prompts: Sequence[Any]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Dataset, index: Sequence[int]) -> Asked:
        """`index[i]`: the data set's row of completion `i`."""
        columns: dict[str, list[Any]] = {name: list(data[name]) for name in data.column_names}
        spread = {name: [values[row] for row in index] for name, values in columns.items()}
        return cls(spread.pop("prompt"), spread)

    def score(
        self,
        rewards: Sequence[NamedReward],
        rows: Sequence[int],
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        *,
        batch_size: int,
        ledger: Ledger,
        weights: Sequence[float] | None = None,
    ) -> Scores:
        """Score `texts[i]`, an answer to row `rows[i]`, in calls of `batch_size`; calls and seconds go into the ledger.

        Raises:
            FrugalignError: a reward that fails.
        """
        total: list[float | None] = []
        by_name: dict[str, list[float | None]] = {named.name: [] for named in rewards}
        with ledger.phase("reward"):
            for number, start in enumerate(range(0, len(texts), batch_size)):
                part = slice(start, start + batch_size)
                prompts = [self.prompts[row] for row in rows[part]]
                scores = score(
                    rewards,
                    prompts=prompts,
                    completions=completions_of(prompts, texts[part]),
                    completion_ids=completion_ids[part],
                    columns={name: [values[row] for row in rows[part]] for name, values in self.columns.items()},
                    weights=weights,
                    ledger=ledger,
                    batch_index=number,
                )
                total += scores.total
                for name, values in scores.by_name.items():
                    by_name[name] += values
        return Scores(total, by_name, 0)
