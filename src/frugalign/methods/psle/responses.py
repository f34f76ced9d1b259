"""The responses of a round with their rewards, branches and weights, in memory and as `responses.jsonl`.

The file has one line per prompt, in the format of groups, so `frugalign rerank` accepts it as a data set. `completions` are the
`k` plain responses, then the `k` under the principles. The j-th of each form a couple. `completion_ids`, `rewards` and
`weights` are aligned with them. `branches` has one of ranked, imitated, dropped and unscored per couple. `logged` has what the
rewards logged: a value per response from TRL's `log_extra`, and the mean over the call from `log_metric`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic
from frugalign.base.parsing import parse_json
from frugalign.data.groups import Groups
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.rules import (
    DROPPED,
    IMITATED,
    RANKED,
    Use,
    is_gain,
    pair_weights,
    round_weights,
    use_of,
)

UNSCORED = "unscored"


@dataclass(frozen=True)
class ScoredResponses:
    """The responses to `P` prompts with their rewards.

    `rows[p]`: prompt p's row in the data set. `rewards [P, 2k]`: plain responses first, NaN if a reward failed or does not
    apply. `by_name`: each single reward, None likewise. `logged`: per prompt, what the rewards logged; empty if nothing.
    """

    rows: list[int]
    prompts: list[Any]
    completions: list[list[str]]
    completion_ids: list[list[list[int]]]
    rewards: Tensor
    by_name: dict[str, list[list[float | None]]]
    logged: list[dict[str, Any]] = field(default_factory=list)

    @property
    def plain(self) -> Tensor:
        """Rewards of the plain responses `[P, k]`."""
        return self.rewards[:, : self.rewards.shape[1] // 2]

    @property
    def guided(self) -> Tensor:
        """Rewards of the responses under the principles `[P, k]`."""
        return self.rewards[:, self.rewards.shape[1] // 2 :]

    @property
    def is_scored(self) -> Tensor:
        """Whether both responses of a couple have a reward, bool `[P, k]`."""
        return ~(self.plain.isnan() | self.guided.isnan())

    def metrics(self) -> dict[str, float]:
        """Means over prompts of the values that rewards logged by `log_metric`."""
        found: dict[str, list[float]] = defaultdict(list)
        for logged in self.logged:
            for name, value in logged.items():
                if isinstance(value, float):
                    found[name].append(value)
        return {name: sum(values) / len(values) for name, values in sorted(found.items())}


@dataclass(frozen=True)
class Round:
    """A round's responses and their role in training: `branches [P][k]`, and `weights [P, 2k]`, which are 1 for ranked couples."""

    scored: ScoredResponses
    branches: list[list[str]]
    weights: Tensor

    def counts(self) -> dict[str, int]:
        """The number of couples in each branch."""
        every = [branch for branches in self.branches for branch in branches]
        return {name: every.count(name) for name in (RANKED, IMITATED, DROPPED, UNSCORED)}

    def use(self) -> Use:
        """How much of the generated data is learned from."""
        lengths = [[len(ids) for ids in group] for group in self.scored.completion_ids]
        learned = torch.tensor(
            [[branch in (RANKED, IMITATED) for branch in 2 * branches] for branches in self.branches]
        )
        return use_of((self.weights * learned).flatten(), torch.tensor(lengths, dtype=torch.float64).flatten())


def assign_branches(scored: ScoredResponses, args: PSLEConfig, tau: float, scale: float) -> Round:
    """Assign every couple to a branch, by `args.method` and its ablations, with the round's τ and σ_0."""
    plain, guided, known = scored.plain, scored.guided, scored.is_scored
    k = plain.shape[1]
    ranked, imitated = torch.zeros_like(known), torch.zeros_like(known)
    weights = torch.zeros_like(scored.rewards)
    gain = is_gain(plain, guided, tau, scale) & known
    if args.method in ("dpo", "rejection"):
        ranked = gain
    elif args.method == "raft":
        # The prompt's best response, in any couple.
        best = torch.cat([known, known], 1)
        order = scored.rewards.where(best, -torch.inf).argmax(1)
        weights[torch.arange(len(weights)), order] = 1.0
        weights *= best
        imitated = (weights[:, :k] + weights[:, k:]) > 0
    elif args.method == "context_distillation":
        imitated, weights[:, k:] = known, known.to(weights)
    elif args.method == "sft":
        imitated, weights = known, torch.cat([known, known], 1).to(weights)
    else:
        ranked = gain & args.use_ranking
        imitated = known & ~ranked & (args.sft_weight > 0)
        weights = _weights(scored, imitated, args, scale)
    weights = torch.where(torch.cat([ranked, ranked], 1), torch.ones_like(weights), weights)
    names = [
        [
            UNSCORED if not known[row, place] else RANKED if ranked[row, place] else IMITATED if imitated[row, place] else DROPPED
            for place in range(k)
        ]
        for row in range(len(known))
    ]  # fmt: skip
    return Round(scored, names, weights)


def _weights(scored: ScoredResponses, imitated: Tensor, args: PSLEConfig, scale: float) -> Tensor:
    both = torch.cat([imitated, imitated], 1)
    weights = torch.zeros_like(scored.rewards)
    if args.weighting == "none":
        weights[both] = 1.0
    elif args.weighting == "pair":
        plain, guided = pair_weights(scored.plain, scored.guided, scale, args.weight_temperature)
        weights[both] = torch.cat([plain, guided], 1)[both]
    else:
        known = torch.cat([scored.is_scored] * 2, 1)
        weights[known] = round_weights(scored.rewards[known], scale, args.weight_temperature, args.weight_cap)
    return weights * both


# -- the file -----------------------------------------------------------------------------------------------------------


def save_round(done: Round, path: Path) -> None:
    """Write `responses.jsonl` atomically."""
    scored = done.scored
    lines = []
    for place, prompt in enumerate(scored.prompts):
        rewards = [None if reward != reward else reward for reward in scored.rewards[place].tolist()]
        line = {
            "row": scored.rows[place],
            "prompt": prompt,
            "completions": scored.completions[place],
            "rewards": rewards,
            "branches": done.branches[place],
            "weights": done.weights[place].tolist(),
            "by_reward": {name: values[place] for name, values in scored.by_name.items()},
            "completion_ids": scored.completion_ids[place],
        }
        if scored.logged and scored.logged[place]:
            line["logged"] = scored.logged[place]
        lines.append(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    write_atomic(path, "".join(lines))


def read_round(path: Path) -> Round:
    """Read what `save_round` wrote, possibly edited by hand.

    Raises:
        FrugalignError: an inconsistent line, with its number.
    """
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            lines.append(_checked(parse_json(text)))
            if lines[-1]["by_reward"].keys() != lines[0]["by_reward"].keys():
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FrugalignError(
                f"{path}, line {number} is not a prompt with its responses, rewards, weights and branches."
            ) from error
    if not lines or len({len(line["completions"]) for line in lines}) > 1:
        raise FrugalignError(f"{path} holds no responses, or not as many for every prompt.")
    scored = ScoredResponses(
        [line["row"] for line in lines],
        [line["prompt"] for line in lines],
        [line["completions"] for line in lines],
        [line["completion_ids"] for line in lines],
        torch.tensor([line["rewards"] for line in lines], dtype=torch.float64),
        {name: [line["by_reward"][name] for line in lines] for name in lines[0]["by_reward"]},
        [line["logged"] for line in lines] if any(line["logged"] for line in lines) else [],
    )
    if not scored.is_scored.any():
        raise FrugalignError(f"{path} holds no couple whose two responses have rewards.")
    weights = torch.tensor([line["weights"] for line in lines], dtype=torch.float64)
    return Round(scored, [line["branches"] for line in lines], weights)


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """The line with every value converted. Raises one of the errors that `read_round` catches if it is inconsistent."""
    size, branches = len(line["completions"]), line["branches"]
    found = {
        "row": int(line["row"]),
        "prompt": line["prompt"],
        "completions": line["completions"],
        "completion_ids": [[int(token) for token in ids] for ids in line["completion_ids"]],
        "rewards": [float("nan") if reward is None else float(reward) for reward in line["rewards"]],
        "weights": [float(weight) for weight in line["weights"]],
        "branches": branches,
        "by_reward": line.get("by_reward", {}),
        "logged": dict(line.get("logged", {})),
    }
    lengths = {len(found[name]) for name in ("completion_ids", "rewards", "weights")} | {2 * len(branches)}
    if (
        not size
        or lengths != {size}
        or not all(found["completion_ids"])
        or not all(0 <= weight < float("inf") for weight in found["weights"])
        or set(branches) - {RANKED, IMITATED, DROPPED, UNSCORED}
        or any(branch == RANKED and not weight for branch, weight in zip(2 * branches, found["weights"], strict=True))
    ):
        raise ValueError
    return found


def join_halves(plain: Groups, guided: Groups) -> Groups:
    """Each prompt's plain responses, followed by its guided ones."""
    ids = zip(plain.completion_ids or [], guided.completion_ids or [], strict=True)
    texts = zip(plain.completions, guided.completions, strict=True)
    return Groups(plain.prompts, [a + b for a, b in texts], [a + b for a, b in ids])
