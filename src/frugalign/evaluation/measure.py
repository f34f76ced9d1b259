"""`evaluate`: a policy against its base on the same prompts and the same noise; quality with intervals, and the cost.

Left out on purpose: judges that are models (a reward can be one), and any choice of which number matters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.data import encode_prompts, load_prompts
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.decoding.loop import Generation, SamplingParams
from frugalign.decoding.noise import row_keys
from frugalign.engines.loading import LoadedModel, context_length
from frugalign.engines.transformers import device_of
from frugalign.evaluation.metrics_table import Sampled, metrics_of
from frugalign.policies.policy import Policy, divergence, load_base, load_policy, sample_base, sample_policy
from frugalign.policies.prompt_rows import Asked
from frugalign.rewards import NamedReward, RewardSpec, load_rewards
from frugalign.runs.layout import METRICS_FILE, SAMPLES_FILE, evaluation_costs_file
from frugalign.runs.save_policy import trained_on_of


def evaluate(
    model_name_or_path: str | LoadedModel,
    *,
    dataset_name: str | Dataset,
    reward: RewardSpec | Sequence[RewardSpec],
    output_dir: str | Path | None = None,
    proxy: str | None = None,
    adapter: str | None = None,
    policy: str | None = None,
    best_of_n: int | None = None,
    selection_reward: RewardSpec | Sequence[RewardSpec] = (),
    guiding_reward: RewardSpec | Sequence[RewardSpec] = (),
    guiding_weight: float = 1.0,
    guiding_top_k: int = 10,
    decoding_reward_weights: Sequence[float] | None = None,
    split: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    do_sample: bool | None = None,
    num_samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    strength: float = 1.0,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    load_in_4bit: bool = False,
    prompt_format: str | None = None,
    max_prompt_length: int | None = None,
) -> dict[str, Any]:
    """Measure a policy (`proxy`, `adapter`, `policy`, `best_of_n` or `guiding_reward`; none: the base itself) against its base.

    Args:
        model_name_or_path: the base: hub id, folder, `package.module:attribute`, or a model that is loaded already.
        dataset_name: prompts, as for `load_prompts`, or a data set with a `prompt` column; other columns go to the
            rewards, and a `label` column of safe/unsafe gives the over-refusal rate.
        reward: rewards as strings or functions; the first is the main one.
        best_of_n: draw so many completions for every one that is measured and keep the best by `selection_reward` (the sum of several).
            Its KL, per sequence and per token, is an upper bound, and `settings` says so: `kl_is_bound`. See `BestOfN`.
        guiding_reward: at every position add `guiding_weight` times the reward (the sum of several) of the text so far to the logits of the
            `guiding_top_k` likeliest tokens, and choose among them. See `RewardGuide`.
        decoding_reward_weights: weights of several rewards that choose or guide. Default: 1 each.
        output_dir: where metrics.json, costs.json and samples.jsonl go; None writes nothing.
        max_new_tokens: default the artefact's, else 128.
        temperature: default the artefact's, else 1.0.
        prompt_format: default the artefact's, else "auto".
        max_prompt_length: cut longer prompts on the left; default the artefact's, else such a prompt is an error where it exceeds
            the context.
        do_sample: default True; greedy decoding has no KL (null).
        num_samples: completions per prompt; intervals resample prompts, never single completions.

    Returns:
        What metrics.json holds. Estimates are `{mean, ci_low, ci_high, n}`, or None where one does not apply; `decoding` is what one
        response of the policy cost.

    Raises:
        FrugalignError: whatever the user can mend.
    """
    if num_samples < 1 or batch_size < 1:
        raise FrugalignError("num_samples and batch_size must be at least 1.")
    ledger = Ledger()
    with ledger.phase("load"):
        base = model_name_or_path
        if not isinstance(base, LoadedModel):
            base = load_base(
                base, proxy=proxy, revision=revision, dtype=dtype, device_map=device_map, load_in_4bit=load_in_4bit
            )
        base_parameters = base.model.num_parameters()
        rewards = load_rewards(reward, device=str(device_of(base.model)))
        what = load_policy(
            base,
            proxy=proxy,
            adapter=adapter,
            policy=policy,
            strength=strength,
            dtype=dtype,
            best_of_n=best_of_n,
            selection_reward=_loaded_once(selection_reward, rewards),
            guiding_reward=_loaded_once(guiding_reward, rewards),
            guiding_weight=guiding_weight,
            guiding_top_k=guiding_top_k,
            decoding_reward_weights=decoding_reward_weights,
        )
        ledger.set_parameters(trainable=what.trainable_parameters, base=base_parameters)
        if max_prompt_length is None and what.artefact is not None:
            max_prompt_length = what.artefact.max_prompt_length
        params, prompt_format = _settings(what, max_new_tokens, temperature, do_sample, prompt_format)
        trained_on = what.artefact.trained_on if what.artefact is not None else trained_on_of(adapter or policy)
        rows = dataset_name
        if isinstance(rows, str):
            rows = load_prompts(rows, split=split, trained_on=trained_on)
        if len(rows) == 0:
            raise FrugalignError("There are no prompts to evaluate on.")
    encoded = encode_prompts(
        rows["prompt"],
        base.tokenizer,
        max_prompt_length=max_prompt_length,
        max_context=context_length(base.model),
        max_new_tokens=params.max_new_tokens,
        prompt_format=prompt_format,
    )
    index = [row for row in range(len(rows)) for _ in range(num_samples)]
    prompt_ids = [encoded.ids[row] for row in index]
    keys = row_keys(seed, 0, index, [sample for _ in range(len(rows)) for sample in range(num_samples)])
    asked = Asked.of(rows, index)
    spent = Ledger()
    with ledger.phase("rollout"):
        ours = sample_policy(what, base, asked, prompt_ids, params, keys, batch_size, spent)
        decoding = _per_response(spent, len(index))
        ledger.add(spent)
        theirs = ours
        if what.kind != "base":
            theirs = sample_base(what, base, prompt_ids, params, keys, batch_size, ledger)
    run = _Rows(asked, base, rewards, batch_size // num_samples * num_samples or num_samples, ledger)
    after = run.sampled(ours)
    before = after if theirs is ours else run.sampled(theirs)
    with ledger.phase("evaluate"):
        kl = divergence(what, prompt_ids, ours, params, ledger)
        with what.base_context():
            log_probs = sequence_log_probs(what.base_model, prompt_ids, ours.completion_ids, ledger=ledger)
        metrics = metrics_of(
            after,
            before,
            index,
            kl=kl.kl,
            kl_restriction=kl.restriction,
            base_log_probs=[float(values.sum()) for values in log_probs],
            labels=[str(label) for label in rows["label"]] if "label" in rows.column_names else None,
        )
    metrics |= {
        "trainable_parameters": what.trainable_parameters,
        "trainable_share": what.trainable_parameters / base_parameters,
        "decoding": decoding,
        "settings": {
            "model_name_or_path": base.name,
            "policy": what.kind,
            "policy_path": proxy or adapter or policy,
            "dataset_name": dataset_name if isinstance(dataset_name, str) else "a data set in memory",
            "split": split,
            "prompts": len(rows),
            "num_samples": num_samples,
            "rewards": [named.spec or named.name for named in rewards],
            "max_new_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "do_sample": params.do_sample,
            "prompt_format": prompt_format,
            "max_prompt_length": max_prompt_length,
            **what.decoding_settings,
            "strength": strength if what.kind == "proxy" else None,
            "p_t": what.artefact.p_t if what.artefact is not None else None,
            "objective": what.artefact.objective if what.artefact is not None else None,
            "seed": seed,
        },
    }
    if output_dir is not None:
        _write(Path(output_dir), metrics, run.samples(before, after), ledger)
    return metrics


def _per_response(spent: Ledger, responses: int) -> dict[str, float]:
    """What one response of the policy costs."""
    counts = ("generated_tokens", "lm_forward_tokens", "reward_calls")
    found = {name: getattr(spent, name) / responses for name in counts}
    return found | {"seconds": spent.wall_clock_seconds / responses}


def _settings(
    policy: Policy,
    max_new_tokens: int | None,
    temperature: float | None,
    do_sample: bool | None,
    prompt_format: str | None,
) -> tuple[SamplingParams, str]:
    """The artefact's settings where none are given; a proxy's temperature is part of what it learned."""
    artefact = policy.artefact
    if artefact is not None and temperature is not None and temperature != artefact.temperature:
        raise FrugalignError(
            f"The proxy was trained at temperature {artefact.temperature:g} and cannot be evaluated at {temperature:g}."
        )
    if temperature is None:
        temperature = artefact.temperature if artefact is not None else 1.0
    if max_new_tokens is None:
        max_new_tokens = artefact.max_new_tokens if artefact is not None else 128
    if temperature <= 0 or max_new_tokens < 1:
        raise FrugalignError(
            "temperature must be above 0 and max_new_tokens at least 1; use --no_do_sample for greedy."
        )
    if prompt_format is None:
        prompt_format = artefact.prompt_format if artefact is not None else "auto"
    return SamplingParams(max_new_tokens, temperature, do_sample is not False), prompt_format


def _loaded_once(given: RewardSpec | Sequence[RewardSpec], loaded: Sequence[NamedReward]) -> list[RewardSpec]:
    """The rewards of a rule of decoding; one that is measured by, too, is in memory once."""
    known = {named.spec: named for named in loaded if named.spec}
    specs: Sequence[Any] = given if isinstance(given, (list, tuple)) else [given]
    return [known.get(spec, spec) if isinstance(spec, str) else spec for spec in specs]


@dataclass(frozen=True)
class _Rows:
    """The evaluated rows, and what they are measured with."""

    asked: Asked
    base: LoadedModel
    rewards: list[NamedReward]
    reward_batch: int
    ledger: Ledger

    def sampled(self, generation: Generation) -> Sampled:
        """A generation with its text and its rewards."""
        ids = generation.completion_ids
        texts: list[str] = self.base.tokenizer.batch_decode(ids, skip_special_tokens=True)
        scores = self.asked.score(
            self.rewards, range(len(texts)), texts, ids, batch_size=self.reward_batch, ledger=self.ledger
        )
        return Sampled(texts, ids, generation.ended, scores.by_name)

    def samples(self, before: Sampled, after: Sampled) -> list[dict[str, Any]]:
        """One line per completion: the prompt, both completions, their rewards."""
        return [
            {
                "prompt": prompt,
                "base": before.texts[i],
                "policy": after.texts[i],
                "base_rewards": {name: values[i] for name, values in before.rewards.items()},
                "rewards": {name: values[i] for name, values in after.rewards.items()},
            }
            for i, prompt in enumerate(self.asked.prompts)
        ]


def _write(folder: Path, metrics: Mapping[str, Any], samples: list[dict[str, Any]], ledger: Ledger) -> None:
    """The metrics, the samples and the costs."""
    with ledger.phase("save"):
        write_json_atomic(folder / METRICS_FILE, metrics)
        lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        write_atomic(folder / SAMPLES_FILE, "".join(lines))
    ledger.save(evaluation_costs_file(folder))
