"""Sample a round's responses, plainly and under the principles, and score them. Finished chunks survive a kill."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.partial_files import PartialWork
from frugalign.base.progress import SCORED, work
from frugalign.data.encode import as_completions
from frugalign.data.groups import Groups
from frugalign.data.on_disk import ROWS
from frugalign.data.splits import rows_fingerprint
from frugalign.data.templating import PromptEncoder, Rendering, encode_prompts
from frugalign.engines.transformers import context_length
from frugalign.methods.carriers import Carrier, weights_digest
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.responses import ScoredResponses, join_halves
from frugalign.policies.principles import Principles, under_principles
from frugalign.rewards.loading import NamedReward
from frugalign.rewards.scoring import CompletionBatch, TrainerHooks, score
from frugalign.runs.folder import saving
from frugalign.runs.processes import add_all_counts, gather_rows, local_rows
from frugalign.runs.shared_sampling import GroupRequest, local_partial, sample_on_all_processes

_MEASURED = 256
"""Prompts whose length stands for that of all."""
_CHUNK = 256
"""Responses scored between two writes to disk."""


@dataclass(frozen=True)
class Sampler:
    """Samples and scores responses to the prompts of `dataset` (column `prompt`), with and without the principles.

    `reward_contents`: what identifies the rewards, so that stored scores are those of the same rewards.
    """

    dataset: Dataset
    tokenizer: PreTrainedTokenizerBase
    principles: Principles | None
    args: PSLEConfig
    reward_contents: Mapping[str, str] = field(default_factory=dict)

    def plain(self, rows: Sequence[int]) -> list[Any]:
        """The prompts of these rows."""
        found: list[Any] = self.dataset[list(rows)]["prompt"]
        return found

    def guided(self, rows: Sequence[int]) -> list[Any]:
        """The prompts of these rows under the principles."""
        assert self.principles is not None
        return under_principles(self.principles, self.plain(rows), self.tokenizer, Rendering.of(self.args))

    def fitting(self, model: PreTrainedModel) -> list[int]:
        """The rows whose prompt fits the context, together with the principles and the longest response.

        Raises:
            FrugalignError: a prompt that does not fit, unless `skip_long_prompts`; or no prompt fits.
        """
        limit = context_length(model)
        rows, too_long = range(len(self.dataset)), set[int]()
        forms = [("", self.plain)] + ([(" under the principles", self.guided)] if self.principles is not None else [])
        for what, prompts in forms:
            for start in range(0, len(rows), ROWS):
                part = rows[start : start + ROWS]
                found = PromptEncoder(self.tokenizer, Rendering.of(self.args))(prompts(part), start)[0]
                for row, ids in zip(part, found, strict=True):
                    if limit is None or len(ids) + self.args.max_new_tokens <= limit:
                        continue
                    if not self.args.skip_long_prompts:
                        raise FrugalignError(
                            f"Prompt {row + 1} has {len(ids)} tokens{what}, and with max_new_tokens = {self.args.max_new_tokens} that exceeds the "
                            f"model's context of {limit}; shorten the principles, lower max_new_tokens, or leave such prompts out by skip_long_prompts."
                        )
                    too_long.add(row)
        if len(too_long) == len(rows):
            raise FrugalignError("No prompt fits into the model's context beside the principles and max_new_tokens.")
        return [row for row in rows if row not in too_long]

    def mean_prompt_lengths(self, rows: Sequence[int]) -> tuple[float, float]:
        """Mean tokens of a plain prompt, and of what a response is sampled from, over some of the rows."""
        some = list(rows[:_MEASURED])
        forms = [list(self.dataset[some]["prompt"])]
        if self.principles is not None:
            forms.append(self.guided(some))
        lengths = []
        for prompts in forms:
            ids = encode_prompts(prompts, self.tokenizer, max_new_tokens=0, rendering=Rendering.of(self.args)).ids
            lengths.append(sum(map(len, ids)) / len(ids))
        # A shared prefix is fed once.
        return lengths[0], lengths[0] if self.args.share_prefix else sum(lengths) / len(lengths)

    def sample(self, carrier: Carrier, rows: Sequence[int], number: int, folder: Path, ledger: Ledger) -> Groups:
        """Sample `2k` responses per row for round `number`: `k` plain and `k` under the principles, or all plain without any.

        A proxy guides both kinds.
        """
        guide = carrier.guide()
        k, plain = self.args.num_generations, self.plain(rows)

        def sampled(prompts: Sequence[Any], size: int, epoch: int, stem: str, share_prefix: bool = False) -> Groups:
            request = GroupRequest(
                *(prompts, size, epoch, folder / stem),
                numbers=rows,
                share_prefix=share_prefix,
                guide=guide,
                guide_id="" if guide is None else weights_digest(carrier.policy),
            )
            return sample_on_all_processes(carrier.lm, self.tokenizer, request, self.args, ledger)

        if self.principles is None:
            return sampled(plain, 2 * k, 2 * number, ".plain")
        return join_halves(
            sampled(plain, k, 2 * number, ".plain"),
            sampled(self.guided(rows), k, 2 * number + 1, ".guided", self.args.share_prefix),
        )

    def score(
        self,
        rewards: Sequence[NamedReward],
        groups: Groups,
        rows: Sequence[int],
        folder: Path,
        ledger: Ledger,
        state: TrainerState | None = None,
    ) -> ScoredResponses:
        """Score every response. Rewards see the prompts without the principles.

        Args:
            state: the trainer's state, which TRL passes to rewards.

        Raises:
            FrugalignError: a reward that fails (unless `reward_on_error` is skip), or no response with a reward.
        """
        mine = local_rows(len(rows))
        partial = local_partial(folder / ".rewards")
        counted = Ledger()
        n_responses = sum(len(groups.completions[place]) for place in mine)
        with ledger.phase("reward"), saving(partial), work("reward", n_responses, SCORED):
            found = self._score(rewards, groups, rows, partial, counted, state)
        add_all_counts(ledger, counted)
        every = gather_rows(list(zip(mine, found, strict=True)))
        total = [[float("nan") if value is None else value for value in each["total"]] for _, each in every]
        by_name = {named.name: [each["by_name"][named.name] for _, each in every] for named in rewards}
        prompts = self.dataset[list(rows)]["prompt"]
        scored = ScoredResponses(
            list(rows),
            list(prompts),
            groups.completions,
            groups.completion_ids or [],
            torch.tensor(total, dtype=torch.float64).reshape(len(rows), len(groups.completions[0])),
            by_name,
            [each["logged"] for _, each in every] if any(each["logged"] for _, each in every) else [],
        )
        if not scored.is_scored.any():
            raise FrugalignError("No response of this round has a reward, so there is nothing to learn from.")
        return scored

    def _score(
        self,
        rewards: Sequence[NamedReward],
        groups: Groups,
        rows: Sequence[int],
        partial: Path,
        ledger: Ledger,
        state: TrainerState | None,
    ) -> list[dict[str, Any]]:
        """The rewards of this process's prompts, one entry per prompt, kept in `partial` chunk by chunk."""
        mine, size = local_rows(len(rows)), len(groups.completions[0])
        settings = dict(self.reward_contents), self.args.reward_weights, self.args.reward_on_error
        data = rows_fingerprint(self.dataset)
        finished = PartialWork(partial, settings, data, [rows[place] for place in mine], groups.completions)
        ledger.add(finished.spent)
        per_chunk = max(1, _CHUNK // size)
        for number, start in enumerate(range(len(finished.rows), len(mine), per_chunk)):
            places = mine[start : start + per_chunk]
            columns = self.dataset[[rows[place] for place in places]]
            spread = {name: [value for value in values for _ in range(size)] for name, values in columns.items()}
            prompts = spread.pop("prompt")
            extra: dict[str, list[Any]] = {}
            metrics: dict[str, list[float]] = defaultdict(list)
            spent = Ledger()
            scores = score(
                rewards,
                CompletionBatch(
                    prompts,
                    as_completions(prompts, [text for place in places for text in groups.completions[place]]),
                    [ids for place in places for ids in (groups.completion_ids or [])[place]],
                    columns=spread,
                    number=number,
                ),
                weights=self.args.reward_weights,
                on_error=self.args.reward_on_error,
                hooks=TrainerHooks(
                    state,
                    log_extra=lambda name, values, extra=extra: extra.update({name: list(values)}),
                    log_metric=lambda name, value, metrics=metrics: metrics[name].append(float(value)),
                ),
                ledger=spent,
            )
            ledger.add(spent)
            shown = {name: values for name, values in extra.items() if len(values) == len(scores.total)}
            means = {name: sum(values) / len(values) for name, values in metrics.items()}
            parts = [slice(each * size, (each + 1) * size) for each in range(len(places))]
            found: list[dict[str, Any]] = [
                {
                    "total": scores.total[part],
                    "by_name": {name: values[part] for name, values in scores.by_name.items()},
                    "logged": {**{name: values[part] for name, values in shown.items()}, **means},
                }
                for part in parts
            ]
            finished.add(found, spent)
        return finished.rows
