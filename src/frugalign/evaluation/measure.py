"""`evaluate`: compare a policy with its base on the same prompts and noise, with intervals and costs.

Left out on purpose: model judges (a reward can be one), and any choice of which metric matters.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic, write_json_atomic, writing
from frugalign.base.ledger import Ledger
from frugalign.base.wording import pluralize
from frugalign.data import load_prompts
from frugalign.data.encode import as_completions
from frugalign.engines.sharding import replica
from frugalign.engines.transformers import device_of
from frugalign.evaluation.base_answers import BaseAnswers
from frugalign.evaluation.responses import measure_responses
from frugalign.evaluation.schema import MEASURES, Response, against, by_name, estimates, few_prompts, perplexity
from frugalign.evaluation.settings import EvaluationSettings
from frugalign.policies.loading import load, load_base
from frugalign.policies.policy import Policy
from frugalign.policies.prompt_rows import PromptBatch, PromptRows, Scoring
from frugalign.policies.spec import PolicySpec
from frugalign.rewards import NamedReward, RewardSpec, load_rewards
from frugalign.rewards.check_scores import reads_states, warn_of_cut_responses, warn_of_useless_rewards
from frugalign.runs.layout import METRICS_FILE, SAMPLES_FILE, evaluation_costs_file
from frugalign.runs.lock import in_use
from frugalign.runs.processes import add_all_counts, gather_rows, is_main_process, local_rows, share_counts
from frugalign.runs.progress import say_size
from frugalign.runs.save_policy import trained_on_of

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)


def evaluate(
    policy: PolicySpec | Policy,
    prompts: str | Dataset,
    reward: RewardSpec | Sequence[RewardSpec],
    settings: EvaluationSettings | None = None,
    *,
    output_dir: str | Path | None = None,
    base_answers: str | Path | None = None,
) -> dict[str, Any]:
    """Compare a policy with its base.

    Args:
        policy: a specification, or a loaded policy.
        prompts: as for `load_prompts`, or a data set with a `prompt` column. Other columns are passed to the rewards. A `label`
            column of safe/unsafe gives the refusal rates of each.
        reward: rewards as strings or functions. The first is the main reward.
        output_dir: receives metrics.json, costs.json and samples.jsonl, and is locked meanwhile. None writes nothing.
        base_answers: a folder of the base's answers. Evaluations that name it sample the base once.

    Returns:
        The content of metrics.json. The estimates of `evaluation.schema.MEASURES` are each `{mean, ci_low, ci_high, n}`, or None
        if they do not apply. `decoding` is the cost of one response of the policy. `settings.kl_is_bound` says whether the KL
        is an upper bound, as for best-of-n.

    Raises:
        FrugalignError: any user error, in one sentence.
    """
    settings = settings or EvaluationSettings()
    # All processes share the prompts, and one writes.
    with in_use(output_dir, main_process=is_main_process()) if output_dir is not None else nullcontext():
        known = BaseAnswers(None if base_answers is None else Path(base_answers))
        return _evaluate(policy, prompts, reward, settings, output_dir, known)


def _evaluate(
    policy: PolicySpec | Policy,
    prompts: str | Dataset,
    reward: RewardSpec | Sequence[RewardSpec],
    settings: EvaluationSettings,
    output_dir: str | Path | None,
    known: BaseAnswers,
) -> dict[str, Any]:
    ledger = Ledger()
    with ledger.phase("load"):
        policy, rewards = _load(policy, reward)
        ledger.set_parameters(trainable=policy.trainable_parameters, base=policy.base_parameters)
        rows = prompts
        if isinstance(rows, str):
            rows = load_prompts(rows, split=settings.split, trained_on=_trained_on(policy))
        if len(rows) == 0:
            raise FrugalignError("There are no prompts to evaluate on.")
        if few := few_prompts(len(rows)):
            _log.warning(few)
    settled = policy.with_defaults(settings)
    assert isinstance(settled, EvaluationSettings)
    after, before, decoding, metrics = _sample_and_measure(policy, PromptRows.of(rows), rewards, settled, ledger, known)
    metrics |= {
        "trainable_parameters": policy.trainable_parameters,
        "trainable_share": policy.trainable_parameters / policy.base_parameters,
        "decoding": decoding,
        "settings": {
            "dataset_name": prompts if isinstance(prompts, str) else "a data set in memory",
            "prompts": len(rows),
            "rewards": _reward_names(rewards),
            **asdict(settled),
            **_policy_settings(policy),
        },
    }
    if output_dir is not None and is_main_process():
        _write(Path(output_dir), metrics, before, after, ledger)
    return metrics


def _load(policy: PolicySpec | Policy, reward: RewardSpec | Sequence[RewardSpec]) -> tuple[Policy, list[NamedReward]]:
    """The policy and the rewards. A reward that both use is loaded once."""
    if isinstance(policy, Policy):
        return policy, load_rewards(reward, device=str(device_of(policy.base.model)))
    base = load_base(policy)
    rewards = load_rewards(reward, device=str(device_of(base.model)))
    return load(policy, base=base, rewards=rewards), rewards


def _trained_on(policy: Policy) -> dict[str, Any] | None:
    """The record in the first proxy, else that of the run which a round's proxy, an adapter or a model belongs to."""
    stored: dict[str, Any] | None = None if policy.artefact is None else policy.artefact.trained_on
    spec = policy.spec
    return stored or trained_on_of(spec.proxy[0].path if spec.proxy else spec.adapter or spec.policy)


def _sample_and_measure(
    policy: Policy,
    rows: PromptRows,
    rewards: list[NamedReward],
    settings: EvaluationSettings,
    ledger: Ledger,
    known: BaseAnswers,
) -> tuple[list[Response], list[Response], dict[str, float], dict[str, Any]]:
    """The policy's responses, the base's responses, the cost of one response of the policy, and the estimates."""
    num_samples, size = settings.num_samples, settings.batch_size
    numbers = local_rows(len(rows))
    batch = policy.encode(rows.take(numbers), settings, numbers=numbers, num_samples=num_samples)
    _say_size(policy, batch, settings)
    # A prompt's samples stay in one reward call.
    scoring = Scoring(rewards, batch_size=size // num_samples * num_samples or num_samples)
    spent = Ledger()
    with ledger.phase("rollout"):
        if policy.kind == "base":
            ours = known.sample(policy, batch, settings, size, spent)
        else:
            draw = known.draw(policy, batch, settings, size, spent) if policy.kind == "best_of_n" else None
            ours = policy.sample(batch, settings, batch_size=size, ledger=spent, draw=draw)
        decoding = _cost_per_response(spent, len(rows) * num_samples)
        ledger.add(spent)
        theirs = ours if policy.kind == "base" else known.sample(policy, batch, settings, size, ledger)
    after = _with_main_reward(measure_responses(policy, batch, ours, scoring, ledger))
    before = after if theirs is ours else _with_main_reward(measure_responses(policy, batch, theirs, scoring, ledger))
    with ledger.phase("evaluate"):
        moved = policy.divergence(batch, ours, settings, ledger)
        log_probs = moved.base_log_probs or policy.base_log_probs(batch, ours, ledger)
    after = [replace(each, **moved.of(row)) for row, each in enumerate(after)]
    share_counts(ledger)
    places = [(numbers[prompt], row) for row, prompt in enumerate(batch.prompt_numbers)]
    every = gather_rows(list(zip(places, after, before, log_probs, strict=True)))
    after, before, log_probs = ([row[column] for row in every] for column in (1, 2, 3))
    clusters = [prompt for (prompt, _), *_ in every]
    _warn_of_scores(policy, rewards, after, before, settings)
    own, others = estimates(after, clusters), estimates(before, clusters)
    own |= against(after, before, clusters) | {"perplexity_base": perplexity(after, log_probs, clusters)}
    metrics: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        metrics[name] = own[name]
        if measure.of_base:
            metrics[f"base_{name}"] = others[name]
    return after, before, decoding, metrics


def _say_size(policy: Policy, batch: PromptBatch, settings: EvaluationSettings) -> None:
    """Say how many tokens the evaluation samples and feeds."""
    size, longest = len(batch.ids), settings.params().max_new_tokens
    own = sum(map(len, batch.ids)) + size * longest
    base = sum(map(len, batch.base_ids)) + size * longest
    sampled, fed = size * policy.draws * longest, own * policy.draws + base
    how = f"{pluralize(size, 'response')}" + (" by this process" if replica().number > 1 else "")
    if policy.draws > 1:
        how += f", each the best of {policy.draws}"
    if policy.kind != "base":
        sampled, fed = sampled + size * longest, fed + base
        how += " and as many of the base"
    if policy.needs_kl_pass:
        fed += own + base
    say_size(sampled, fed, f"{how}, at most {longest} tokens each")


def _warn_of_scores(
    policy: Policy,
    rewards: Sequence[NamedReward],
    after: Sequence[Response],
    before: Sequence[Response],
    settings: EvaluationSettings,
) -> None:
    """Warn of rewards that tell no response from another, and of probes that read cut responses."""
    both = [*after, *(before if before is not after else ())]
    kind = [each.prompt for each in both], [each.completion for each in both]
    warn_of_useless_rewards(rewards, by_name(both), as_completions(*kind))
    if reads_states([*rewards, *(policy.best_of_n.rewards if policy.best_of_n is not None else ())]):
        warn_of_cut_responses(sum(not each.ended for each in after) / len(after), settings.params().max_new_tokens)


def _with_main_reward(responses: list[Response]) -> list[Response]:
    """The responses with the first reward as the main reward, instead of the total."""
    return [replace(each, reward=next(iter(each.rewards.values()))) for each in responses]


def _cost_per_response(spent: Ledger, responses: int) -> dict[str, float]:
    """The cost of one response of the policy. `responses`: of all processes."""
    total = Ledger()
    add_all_counts(total, spent)
    counts = ("generated_tokens", "lm_forward_tokens", "reward_calls")
    found = {name: getattr(total, name) / responses for name in counts}
    return found | {"seconds": spent.wall_clock_seconds / responses}


def _policy_settings(policy: Policy) -> dict[str, Any]:
    """The policy's entries in metrics.json; None for parts that it does not have."""
    spec, chosen, guided, artefact = policy.spec, policy.best_of_n, policy.guidance, policy.artefact
    return {
        "model_name_or_path": policy.base.name,
        "policy": policy.kind,
        "principles": spec.principles,
        "proxy": [each.written() for each in spec.proxy] or None,
        "adapter": spec.adapter,
        "steering": spec.steering.written() if spec.steering is not None else None,
        "whole_model": spec.policy,
        "best_of_n": spec.best_of_n,
        "selection_reward": _reward_names(chosen.rewards) if chosen is not None else None,
        "guiding_reward": _reward_names(guided.rewards) if guided is not None else None,
        "guiding_weight": guided.weight if guided is not None else None,
        "guiding_top_k": guided.top_k if guided is not None else None,
        "kl_is_bound": policy.kind == "best_of_n",
        "strength": spec.proxy[0].strength if len(spec.proxy) == 1 else None,
        "p_t": artefact.p_t if artefact is not None else None,
        "objective": artefact.objective if artefact is not None else None,
    }


def _reward_names(rewards: Sequence[NamedReward]) -> list[str]:
    return [named.spec or named.name for named in rewards]


def _sample_lines(before: Sequence[Response], after: Sequence[Response]) -> list[dict[str, Any]]:
    """One line per prompt and sample: the prompt, both completions, and their rewards."""
    return [
        {
            "prompt": ours.prompt,
            "base": theirs.completion,
            "policy": ours.completion,
            "base_rewards": theirs.rewards,
            "rewards": ours.rewards,
        }
        for theirs, ours in zip(before, after, strict=True)
    ]


def _write(
    folder: Path, metrics: Mapping[str, Any], before: Sequence[Response], after: Sequence[Response], ledger: Ledger
) -> None:
    """Write the samples, the costs and the metrics. The metrics come last: a folder without them holds no evaluation."""
    with writing(folder / METRICS_FILE):
        (folder / METRICS_FILE).unlink(missing_ok=True)  # of an earlier evaluation
    with ledger.phase("save"):
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _sample_lines(before, after))
        write_atomic(folder / SAMPLES_FILE, "".join(lines))
    ledger.save(evaluation_costs_file(folder))
    write_json_atomic(folder / METRICS_FILE, metrics)
