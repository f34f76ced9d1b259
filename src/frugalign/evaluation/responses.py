"""Measure sampled completions. `evaluate`, PSLE's rounds and the proxy's trainer all do it here."""

from __future__ import annotations

from collections.abc import Sequence

from frugalign.base.ledger import Ledger
from frugalign.decoding.loop import Generation
from frugalign.evaluation.schema import Response
from frugalign.policies.policy import Divergence, Policy
from frugalign.policies.prompt_rows import EndpointStates, PromptBatch, Scoring
from frugalign.rewards import NamedReward

_UNKNOWN = Divergence(None)


def measure_responses(
    policy: Policy,
    batch: PromptBatch,
    sampled: Generation,
    scoring: Scoring,
    ledger: Ledger,
    *,
    divergence: Divergence = _UNKNOWN,
    extra_rewards: Sequence[NamedReward] = (),
) -> list[Response]:
    """Score every completion in `sampled`. A response's `reward` is the total of `scoring`.

    Args:
        divergence: the completions' KL to the base, if known.
        extra_rewards: further rewards, which are measured but not part of the total.

    Raises:
        FrugalignError: a reward that fails, unless it is skipped.
    """
    ids, layers = sampled.completion_ids, scoring.state_layers
    texts = [str(policy.base.tokenizer.decode(each, skip_special_tokens=True)) for each in ids]
    endpoint = None if sampled.states is None else EndpointStates(sampled.states, layers)
    scores = batch.rows.score(scoring, texts, ids, ledger, endpoint)
    values = dict(scores.by_name)
    if extra_rewards:
        values |= batch.rows.score(Scoring(extra_rewards, on_error=scoring.on_error), texts, ids, ledger).by_name
    labels = batch.rows.columns.get("label")
    return [
        Response.of(
            batch.rows.prompts[row],
            text,
            ids[row],
            reward=scores.total[row],
            rewards={name: column[row] for name, column in values.items()},
            ended=sampled.ended[row],
            **divergence.of(row),
            label=None if labels is None or labels[row] is None else str(labels[row]),
        )
        for row, text in enumerate(texts)
    ]
