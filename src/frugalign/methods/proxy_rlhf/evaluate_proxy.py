"""Evaluate a proxy on held-out prompts during training, as `frugalign evaluate` does, with the trainer's rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from frugalign.base.ledger import Ledger
from frugalign.base.quantities import KL_PARTS
from frugalign.decoding.loop import Step
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import embedding_rows
from frugalign.evaluation.responses import measure_responses
from frugalign.evaluation.schema import Response, estimates
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.policies.policy import Policy, Record
from frugalign.policies.prompt_rows import PromptRows, Scoring
from frugalign.policies.spec import PolicySpec, SamplingSettings
from frugalign.proxy.guide import Decision, ProxyGuide
from frugalign.proxy.network import ProxyModel
from frugalign.proxy.overseer import relative_acceptance
from frugalign.runs.processes import gather_rows, local_rows

_EPOCH = -1
"""The noise epoch of all evaluations. Training never uses it."""
_LOGGED = ("reward", "kl_per_sequence", *KL_PARTS, "mean_length", "ended_rate")


@dataclass
class _Acceptance:
    """A decoding observer that averages the acceptance of the emitted tokens."""

    total: float | Tensor = 0.0
    n: int = 0

    def __call__(self, step: Step) -> None:
        details: Decision = step.emission.details
        accepted = relative_acceptance(details.log_a, details.candidates.mask).gather(-1, details.choice[:, None])
        # The sum stays on the device: a look at it would wait for every token.
        self.total, self.n = self.total + accepted.float().sum().double(), self.n + len(accepted)


def evaluate_proxy(
    base: LoadedModel, proxy: ProxyModel, rows: PromptRows, scoring: Scoring, args: ProxyConfig, ledger: Ledger
) -> dict[str, float]:
    """Mean measures over one completion per prompt, under fixed noise. Processes share the prompts.

    `reward` is the total of `scoring`, plus the penalty for completions without an end token. `acceptance` is the mean over
    the emitted tokens. Measures that do not apply are left out.
    """
    guide = ProxyGuide.build([proxy], embedding_rows(base.model))
    policy = Policy(PolicySpec(), base, base.model, base.model, guide=guide, artefact=proxy.config)
    settings = policy.with_defaults(SamplingSettings(seed=args.seed))
    numbers, acceptance = local_rows(len(rows)), _Acceptance()
    batch = policy.encode(rows.take(numbers), settings, numbers=numbers, epoch=_EPOCH)
    record = Record(observer=acceptance, state_layers=scoring.state_layers)
    sampled = policy.sample(batch, settings, batch_size=args.per_device_train_batch_size, ledger=ledger, record=record)
    divergence = policy.divergence(batch, sampled, settings)
    responses = measure_responses(policy, batch, sampled, scoring, ledger, divergence=divergence)
    penalised = [_with_penalty(each, args.missing_eos_penalty).to_line() for each in responses]
    everyone = [Response.from_line(line) for _, line in gather_rows(list(zip(numbers, penalised, strict=True)))]
    accepted = gather_rows([(0, float(acceptance.total), acceptance.n)])
    return _means(everyone) | {
        "acceptance": sum(total for _, total, _ in accepted) / max(1, sum(n for *_, n in accepted))
    }


def _with_penalty(response: Response, penalty: float) -> Response:
    if response.ended or response.reward is None:
        return response
    return replace(response, reward=response.reward + penalty)


def _means(responses: Sequence[Response]) -> dict[str, float]:
    found: dict[str, Any] = estimates(responses)
    return {name: float(found[name]["mean"]) for name in _LOGGED if found[name] is not None}
