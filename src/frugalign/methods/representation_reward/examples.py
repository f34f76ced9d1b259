"""Who learns from what: judged answers, split by prompt, as rows of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from frugalign.base.errors import FrugalignError
from frugalign.data.labelled import Judged, load_judged
from frugalign.engines.encode import exchanges_for
from frugalign.engines.loading import LoadedModel
from frugalign.methods.representation_reward.options import RewardOptions
from frugalign.rewards.representation.fit import Examples


@dataclass(frozen=True)
class Split:
    """Examples by number."""

    train: list[int]
    validation: list[int]
    test: list[int]


def read_examples(name: str, options: RewardOptions) -> tuple[Judged, Split]:
    """The judged answers, and who learns from which: the data's own test split where it has one, else a share of the prompts."""
    splits = load_judged(name)
    judged = joined(splits)
    sizes = {split: len(found) for split, found in splits.items()}
    numbers, start = {}, 0
    for split, size in sizes.items():
        numbers[split] = list(range(start, start + size))
        start += size
    rest = [example for split, part in numbers.items() if split not in ("test", "validation") for example in part]
    test, validation = numbers.get("test", []), numbers.get("validation", [])
    if not test:
        rest, test = split_by_prompt(judged, rest, options.test_fraction, options.seed)
    if not validation:
        rest, validation = split_by_prompt(judged, rest, options.validation_fraction, options.seed + 1)
    return judged, Split(rest, validation, test)


def split_by_prompt(judged: Judged, examples: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(kept, held out): a share of the distinct prompts with all their examples.

    Raises:
        FrugalignError: fewer than two prompts, or a share that leaves one side empty.
    """
    prompts = sorted({judged.prompt_of(example) for example in examples})
    if len(prompts) < 2 or not 0 < fraction < 1:
        raise FrugalignError(
            f"There are {len(prompts)} distinct prompts to divide by {fraction}: a held-out part needs at least two, and a share in (0, 1)."
        )
    order = np.random.default_rng(seed).permutation(len(prompts))
    chosen = {prompts[place] for place in order[: min(len(prompts) - 1, max(1, round(fraction * len(prompts))))]}
    return (
        [example for example in examples if judged.prompt_of(example) not in chosen],
        [example for example in examples if judged.prompt_of(example) in chosen],
    )


def examples_of(judged: Judged, numbers: Sequence[int]) -> Examples:
    """What `fit` learns from."""
    if judged.is_paired:
        better, worse = zip(*(judged.pairs[number] for number in numbers), strict=True) if numbers else ((), ())
        return Examples(torch.tensor(better, dtype=torch.long), torch.tensor(worse, dtype=torch.long))
    rows, labels = zip(*(judged.labels[number] for number in numbers), strict=True) if numbers else ((), ())
    return Examples(torch.tensor(rows, dtype=torch.long), labels=torch.tensor(labels))


def exchange_ids(judged: Judged, base: LoadedModel, options: RewardOptions) -> list[list[int]]:
    """Every answer after its prompt as token ids, for probes and for what they are compared with."""
    exchanges = exchanges_for(
        base.model,
        base.tokenizer,
        judged.prompts,
        judged.answers,
        max_length=options.max_length,
        prompt_format=options.prompt_format,
    )
    return exchanges.ids


def joined(splits: dict[str, Judged]) -> Judged:
    """All splits one after the other."""
    joined = Judged([], [], [], [], 0)
    for found in splits.values():
        start = len(joined.answers)
        joined.prompts.extend(found.prompts)
        joined.answers.extend(found.answers)
        joined.pairs.extend((a + start, b + start) for a, b in found.pairs)
        joined.labels.extend((row + start, label) for row, label in found.labels)
    return replace(joined, n_dropped=sum(found.n_dropped for found in splits.values()))
