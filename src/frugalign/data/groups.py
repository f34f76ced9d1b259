"""Groups: several responses per prompt, ranked by a reward and paired (`docs/methods/rerank.md#sampled-groups`).

In a file a group is one line of JSON, `{"prompt", "completions", "completion_ids", "rewards"}`. Such a file is also a
data set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic
from frugalign.base.json_files import read_lines
from frugalign.data.splits import column
from frugalign.data.standard import Misfit, standard_row

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Groups:
    """Prompts with their responses as text, one row per prompt.

    `completion_ids`: the responses' token ids, with the end token if it was emitted; None to encode the text.
    `rewards`: set once the responses are ranked.
    """

    prompts: list[Any]
    completions: list[list[str]]
    completion_ids: list[list[list[int]]] | None = None
    rewards: list[list[float]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def flat(self) -> tuple[list[Any], list[str], list[list[int]] | None]:
        """Prompts, responses and token ids, one entry per response."""
        prompts = [prompt for prompt, group in zip(self.prompts, self.completions, strict=True) for _ in group]
        ids = None if self.completion_ids is None else [each for group in self.completion_ids for each in group]
        return prompts, [text for group in self.completions for text in group], ids

    def ranked(self, rewards: Sequence[float]) -> Groups:
        """The same responses with these rewards, in the order of `flat`."""
        found, start = [], 0
        for group in self.completions:
            found.append([float(reward) for reward in rewards[start : start + len(group)]])
            start += len(group)
        return replace(self, rewards=found)


@dataclass(frozen=True)
class Dropped:
    """What pairing left out: pairs of equal texts, pairs of equal rewards, and the middle response of odd-sized
    groups."""

    equal_texts: int = 0
    ties: int = 0
    middles: int = 0


def pair_groups(groups: Groups) -> tuple[Dataset, Dropped]:
    """Pair the best response of each group with its worst, the second best with the second worst, and so on.

    Returns:
        Rows of prompt, chosen, rejected, both rewards and, if known, both answers' token ids. Then what was left out.

    Raises:
        FrugalignError: the groups are not ranked yet, or give no pair.
    """
    if groups.rewards is None:
        raise FrugalignError("The responses have no rewards yet, so they cannot be paired.")
    rows: list[dict[str, Any]] = []
    equal = ties = middles = 0
    for row, (prompt, texts, rewards) in enumerate(
        zip(groups.prompts, groups.completions, groups.rewards, strict=True)
    ):
        order = sorted(range(len(texts)), key=lambda place: -rewards[place])
        middles += len(order) % 2
        for better, worse in zip(order[: len(order) // 2], reversed(order), strict=False):
            if texts[better] == texts[worse]:
                equal += 1
                continue
            if rewards[better] == rewards[worse]:
                ties += 1
                continue
            pair = {"prompt": prompt, "chosen": texts[better], "rejected": texts[worse]}
            pair |= {"chosen_reward": rewards[better], "rejected_reward": rewards[worse]}
            if groups.completion_ids is not None:
                ids = groups.completion_ids[row]
                pair |= {"chosen_completion_ids": ids[better], "rejected_completion_ids": ids[worse]}
            rows.append(pair)
    if not rows:
        raise FrugalignError(
            "No group has two different responses with different rewards, so there are no pairs to train on."
        )
    from datasets import Dataset

    return Dataset.from_list(rows), Dropped(equal, ties, middles)


def _line(groups: Groups, row: int) -> str:
    """One group as a line of JSON."""
    line: dict[str, Any] = {"prompt": groups.prompts[row], "completions": groups.completions[row]}
    if groups.completion_ids is not None:
        line["completion_ids"] = groups.completion_ids[row]
    if groups.rewards is not None:
        line["rewards"] = groups.rewards[row]
    return json.dumps(line, ensure_ascii=False) + "\n"


def save_groups(groups: Groups, path: Path) -> None:
    """Write the groups as JSONL, completely or not at all."""
    write_atomic(path, "".join(_line(groups, row) for row in range(len(groups))))


def groups_from_dataset(rows: Dataset, name: str) -> Groups:
    """Groups of a data set with a column `completions`. Token ids are used if every row has them, rewards if
    every response has one.

    Raises:
        FrugalignError: a row has fewer than two texts, or not one id list or reward per text.
    """
    names = [each for each in ("prompt", "completions", "completion_ids", "rewards") if each in rows.column_names]
    columns = {each: column(rows, each) for each in names}
    for number in range(len(rows)):
        try:
            standard_row({each: values[number] for each, values in columns.items()}, "groups")
        except Misfit as misfit:
            raise FrugalignError(f"{name}, row {number + 1}: {misfit}.") from misfit
    optional = {each: values for each, values in columns.items() if each in names[2:] and all(values)}
    if any(None in each for each in optional.get("rewards", [])):
        del optional["rewards"]  # not every response has one
    return Groups(columns["prompt"], columns["completions"], **optional)


def read_groups(path: Path) -> Groups:
    """Read a file that `save_groups` wrote.

    Raises:
        FrugalignError: it is missing, empty or damaged.
    """
    from datasets import Dataset

    lines = read_lines(path, whole=True)
    if not lines:
        raise FrugalignError(f"{path} holds no responses.")
    columns = {
        name: [line.get(name) for line in lines] for name in ("prompt", "completions", "completion_ids", "rewards")
    }
    return groups_from_dataset(
        Dataset.from_dict({name: values for name, values in columns.items() if all(values)}), str(path)
    )
