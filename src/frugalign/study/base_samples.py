"""Samples of the base for methods that learn from stored responses, where the study names no preferences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from filelock import FileLock

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.base.ledger import Costs, Ledger
from frugalign.data.encode import as_completions
from frugalign.data.groups import Groups, pair_groups, read_groups, save_groups
from frugalign.data.pairs import ANSWER_IDS, ANSWERS
from frugalign.data.splits import column, distinct
from frugalign.data.templating import Rendering
from frugalign.decoding.loop import SamplingParams
from frugalign.decoding.sample_groups import GroupOptions, sample_groups
from frugalign.engines.transformers import TransformersEngine
from frugalign.policies.prompt_rows import PromptRows, Scoring
from frugalign.rewards import load_rewards
from frugalign.rewards.check_scores import warn_of_equal_groups, warn_of_useless_rewards
from frugalign.runs.layout import COSTS_FILE, LOCK_FILE, read_costs
from frugalign.runs.lock import delete_leftovers
from frugalign.study.layout import GROUPS_FILE, ONLINE_FOLDER, PAIRS_FOLDER, SAMPLES_FOLDER
from frugalign.study.plan import samples_folder

if TYPE_CHECKING:
    from frugalign.study.task import Task

_CHUNK = 64
"""Prompts sampled between two checks of the clock."""


def sampled_groups(task: Task, size: int) -> Path:
    """A file of groups: `size` responses of the base to a prompt, with the training reward.

    The seed shuffles the prompts. They repeat, with new samples, until the token budget is spent. Without a token budget each prompt is
    sampled once. Under a time budget, sampling takes at most half of the time left. Methods that need the same samples share them, and each
    is charged their full cost.

    Raises:
        FrugalignError: no group is scored.
    """
    # Under a time budget every method samples for itself: the samples depend on its clock.
    by_clock = task.budget.wall_clock_seconds is not None
    folder = task.folder / SAMPLES_FOLDER if by_clock else samples_folder(task.request, size, task.folder.parent)
    if folder in task.paid:
        return folder / GROUPS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    clock = task.clock()
    with FileLock(folder / LOCK_FILE):  # another cell may be sampling the same
        delete_leftovers(folder)
        spent, began = Ledger(), task.clock()
        if not (folder / COSTS_FILE).is_file():
            save_groups(_sample(task, size, spent), folder / GROUPS_FILE)
            costs: Costs = {**spent.to_dict(), "cpu_seconds": round(task.clock()[1] - began[1], 3)}
            write_json_atomic(folder / COSTS_FILE, costs)  # last: a folder without it is not finished
    costs = read_costs(folder)
    spent.load_dict(costs)
    task.ledger.add(spent)
    task.charge(costs, clock)
    task.paid.add(folder)
    return folder / GROUPS_FILE


def _sample(task: Task, size: int, ledger: Ledger) -> Groups:
    base, rows = task.load(), task.prompts().shuffle(seed=task.seed)
    wanted = task.budget.prompts(size) or len(rows)
    params = SamplingParams(int(task.request["max_new_tokens"]), float(task.request["temperature"]))
    found: list[Groups] = []
    began = time.perf_counter()
    until = began + (task.deadline - began) / 2  # the other half is for training
    for start in range(0, wanted, _CHUNK):
        places = [place % len(rows) for place in range(start, min(start + _CHUNK, wanted))]
        with ledger.phase("rollout"):
            groups = sample_groups(
                TransformersEngine(base.model, base.tokenizer),
                base.tokenizer,
                rows[places]["prompt"],
                size,
                params,
                GroupOptions(
                    # A repeated prompt counts as another row, so its noise differs.
                    numbers=list(range(start, start + len(places))),
                    seed=task.seed,
                    rendering=Rendering(task.request["prompt_format"], task.request.get("chat_template_kwargs") or {}),
                ),
                ledger=ledger,
            )
        found.append(_ranked(task, groups, rows.select(places), ledger, check=start == 0))
        if time.perf_counter() >= until:
            break
    every = _joined(found)
    if not len(every):
        raise FrugalignError("No response has a reward, so there is nothing to learn from.")
    return every


def _ranked(task: Task, groups: Groups, rows: Dataset, ledger: Ledger, *, check: bool) -> Groups:
    """The groups with their training reward. A group with an unscored response is left out.

    `check`: warn of a reward that tells no response from another.
    """
    _, texts, ids = groups.flat()
    size = len(texts) // len(groups)
    repeated = PromptRows.of(rows).take([row for row in range(len(rows)) for _ in range(size)])
    scoring = Scoring(load_rewards(task.request["reward"]), task.request.get("reward_weights"))
    scores = repeated.score(scoring, texts, ids or [], ledger)
    if check:
        warn_of_useless_rewards(scoring.rewards, scores.by_name, as_completions(repeated.prompts, texts))
        warn_of_equal_groups(scores.total, size)
    ranked = groups.ranked([float("nan") if value is None else value for value in scores.total])
    rewards = ranked.rewards or []
    known = [place for place, values in enumerate(rewards) if all(value == value for value in values)]
    return Groups(
        [ranked.prompts[place] for place in known],
        [ranked.completions[place] for place in known],
        [(ranked.completion_ids or [])[place] for place in known],
        [rewards[place] for place in known],
    )


def _joined(parts: Sequence[Groups]) -> Groups:
    return Groups(
        [prompt for part in parts for prompt in part.prompts],
        [texts for part in parts for texts in part.completions],
        [ids for part in parts for ids in part.completion_ids or []],
        [values for part in parts for values in part.rewards or []],
    )


def sampled_pairs(task: Task, size: int) -> Dataset:
    """The groups as pairs: best with worst, second with second-worst."""
    pairs, _ = pair_groups(read_groups(sampled_groups(task, size)))
    return pairs


def sampled_pairs_folder(task: Task, size: int) -> Path:
    """The pairs as a data set on disk, with the token ids of the answers: a text does not say whether its answer ended."""
    folder = task.folder / PAIRS_FOLDER
    if not (folder / "train.jsonl").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pairs = sampled_pairs(task, size)
        names = ("prompt", *ANSWERS, *ANSWER_IDS)
        pairs.select_columns([name for name in names if name in pairs.column_names]).to_json(
            str(folder / "train.jsonl")
        )
    return folder


def prompts_folder(task: Task, number: int | None) -> Path:
    """`number` distinct training prompts (None: all), shuffled by the seed, as a data set on disk."""
    folder = task.folder / ONLINE_FOLDER
    every: list[Any] = distinct(column(task.prompts(), "prompt"))
    rows = Dataset.from_dict({"prompt": every}).shuffle(seed=task.seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows.select(range(min(number or len(rows), len(rows)))).to_json(str(folder / "train.jsonl"))
    return folder
