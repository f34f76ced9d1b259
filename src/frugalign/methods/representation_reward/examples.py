"""Preference data, split by prompt into training, validation and test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from frugalign.base.errors import FrugalignError
from frugalign.data.encode import EncodedCompletions
from frugalign.data.labelled import PreferenceData, load_preference_data
from frugalign.data.splits import content_key, count_shared, split_for, training_name
from frugalign.data.templating import Rendering
from frugalign.engines.encode import encode_for_model
from frugalign.engines.loading import LoadedModel
from frugalign.methods.representation_reward.options import RewardOptions
from frugalign.rewards.representation.fit import Examples


@dataclass(frozen=True)
class Split:
    """The numbers of the examples in each split."""

    train: list[int]
    validation: list[int]
    test: list[int]


def read_examples(name: str, options: RewardOptions) -> tuple[PreferenceData, Split]:
    """Read the preference data and split it: by its own test split if there is one, else by a share of the prompts."""
    splits = load_preference_data(name)
    trained = training_name(splits, name)
    used = {"train": trained, **{role: split_for(splits, role, trained) for role in ("validation", "test")}}
    parts = {role: splits[split] for role, split in used.items() if split is not None}
    preferences = joined(parts)
    numbers: dict[str, list[int]] = {}
    start = 0
    for role, part in parts.items():
        numbers[role] = list(range(start, start + len(part)))
        start += len(part)
    rest, validation, test = (numbers.get(role, []) for role in ("train", "validation", "test"))
    if not test:
        rest, test = split_by_prompt(preferences, rest, options.test_fraction, options.seed)
    if not validation:
        rest, validation = split_by_prompt(preferences, rest, options.validation_fraction, options.seed + 1)
    return preferences, Split(rest, validation, test)


def shared_prompts(preferences: PreferenceData, split: Split, other: PreferenceData | None = None) -> dict[str, int]:
    """How many test prompts are also trained on or validated with, and how many there are. `other`: the test data, where
    it is not this split's."""
    trained = map(preferences.prompt_of, [*split.train, *split.validation])
    if other is None:
        tested = map(preferences.prompt_of, split.test)
    else:
        tested = map(other.prompt_of, range(len(other)))
    shared, total = count_shared(tested, trained)
    return {"trained_on": shared, "test": total}


def split_by_prompt(
    preferences: PreferenceData, examples: Sequence[int], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Hold out a share of the distinct prompts, by content, with all their examples: (kept, held out).

    Raises:
        FrugalignError: fewer than two prompts, or a share that leaves one side empty.
    """
    contents = [content_key(preferences.prompt_of(example)) for example in examples]
    distinct = sorted(set(contents))
    if len(distinct) < 2 or not 0 < fraction < 1:
        raise FrugalignError(
            f"There are {len(distinct)} distinct prompts to divide by {fraction}: a held-out part needs at least two, and a share in (0, 1)."
        )
    order = np.random.default_rng(seed).permutation(len(distinct))
    chosen = {distinct[place] for place in order[: min(len(distinct) - 1, max(1, round(fraction * len(distinct))))]}
    sides: tuple[list[int], list[int]] = ([], [])
    for example, content in zip(examples, contents, strict=True):
        sides[content in chosen].append(example)
    return sides


def examples_of(preferences: PreferenceData, numbers: Sequence[int]) -> Examples:
    """The examples with these numbers, as `fit` takes them."""
    if preferences.is_paired:
        better, worse = zip(*(preferences.pairs[number] for number in numbers), strict=True) if numbers else ((), ())
        return Examples(torch.tensor(better, dtype=torch.long), torch.tensor(worse, dtype=torch.long))
    rows, labels = zip(*(preferences.labels[number] for number in numbers), strict=True) if numbers else ((), ())
    return Examples(torch.tensor(rows, dtype=torch.long), labels=torch.tensor(labels))


def encode_answers(preferences: PreferenceData, base: LoadedModel, options: RewardOptions) -> EncodedCompletions:
    """Token ids of every prompt and its answer, for the probes and for the full-model baseline."""
    return encode_for_model(
        base.model,
        base.tokenizer,
        preferences.prompts,
        preferences.answers,
        max_length=options.max_length,
        rendering=Rendering.of(options),
    )


def joined(splits: dict[str, PreferenceData]) -> PreferenceData:
    """Concatenate all splits."""
    joined = PreferenceData([], [], [], [], 0)
    for found in splits.values():
        start = len(joined.answers)
        joined.prompts.extend(found.prompts)
        joined.answers.extend(found.answers)
        joined.pairs.extend((a + start, b + start) for a, b in found.pairs)
        joined.labels.extend((row + start, label) for row, label in found.labels)
        joined.groups.extend(found.groups)
    return replace(joined, n_dropped=sum(found.n_dropped for found in splits.values()))
