"""Prompts with the columns that rewards read, and the call that scores the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from frugalign.base.ledger import Ledger
from frugalign.base.progress import SCORED, work
from frugalign.data.encode import as_completions
from frugalign.rewards import CompletionBatch, NamedReward, Scores, TrainerHooks, score

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Scoring:
    """How answers are scored.

    Args:
        rewards: the total is their sum, weighted by `weights` (default 1 each).
        on_error: `raise`, or `skip` the rows on which a reward fails.
        batch_size: answers per reward call. None: all of them.
        trainer_state: passed to the rewards during training, as in TRL.
        state_layers: hidden layers whose endpoint states the generation keeps for state rewards.
    """

    rewards: Sequence[NamedReward]
    weights: Sequence[float] | None = None
    on_error: str = "raise"
    batch_size: int | None = None
    trainer_state: Any = None
    state_layers: Sequence[int] = ()


@dataclass(frozen=True)
class EndpointStates:
    """`states [B, layers, D]` at the answers' last tokens, kept during generation. State rewards then need no extra pass."""

    states: Tensor
    layers: Sequence[int]


@dataclass(frozen=True)
class PromptRows:
    """Rows of a data set: `prompts[i]`, and `columns[name][i]` for its other columns."""

    prompts: Sequence[Any]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Dataset) -> PromptRows:
        """All rows of a data set with a column `prompt`."""
        columns: dict[str, list[Any]] = {name: list(data[name]) for name in data.column_names}
        return cls(columns.pop("prompt"), columns)

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, index: Sequence[int]) -> PromptRows:
        """The rows `index`, in this order. A row may occur several times."""
        columns = {name: [values[row] for row in index] for name, values in self.columns.items()}
        return PromptRows([self.prompts[row] for row in index], columns)

    def score(
        self,
        scoring: Scoring,
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        ledger: Ledger,
        endpoint: EndpointStates | None = None,
    ) -> Scores:
        """Score `texts[i]`, the answer to row i. The ledger counts calls and seconds.

        Raises:
            FrugalignError: a reward that fails, unless it is skipped.
        """
        size = scoring.batch_size or max(1, len(texts))
        total: list[float | None] = []
        by_name: dict[str, list[float | None]] = {named.name: [] for named in scoring.rewards}
        n_skipped = 0
        with ledger.phase("reward"), work("reward", len(texts), SCORED):
            for number, start in enumerate(range(0, len(texts), size)):
                part = slice(start, start + size)
                scores = score(
                    scoring.rewards,
                    CompletionBatch(
                        self.prompts[part],
                        as_completions(self.prompts[part], texts[part]),
                        completion_ids[part],
                        columns={name: values[part] for name, values in self.columns.items()},
                        states=None if endpoint is None else endpoint.states[part],
                        state_layers=() if endpoint is None else endpoint.layers,
                        number=number,
                    ),
                    weights=scoring.weights,
                    on_error=scoring.on_error,
                    hooks=TrainerHooks(state=scoring.trainer_state),
                    ledger=ledger,
                )
                total += scores.total
                n_skipped += scores.n_skipped
                for name, values in scores.by_name.items():
                    by_name[name] += values
        return Scores(total, by_name, n_skipped)


@dataclass(frozen=True)
class PromptBatch:
    """Encoded rows.

    `ids[i]`: row i as the policy reads it. `base_ids[i]`: the same as its base reads it. `keys [B]`: the rows' noise.
    `prompt_numbers[i]`: the prompt of row i, which several samples share.
    """

    rows: PromptRows
    ids: Sequence[Sequence[int]]
    base_ids: Sequence[Sequence[int]]
    keys: Tensor
    prompt_numbers: Sequence[int]
