"""What each couple is for under every method, and the file that a round is inspected and edited by."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.methods.psle.scored_responses import NAN, SCALE, SMALL, TAU, WIDE, config, scored

from frugalign.data.groups import Groups
from frugalign.methods.psle.responses import (
    assign_branches,
    join_halves,
)

# -- the split, k = 1 -----------------------------------------------------------------------------------------------------


def test_psle_ranks_clear_gains_and_imitates_everything_else() -> None:
    """At the bar is no gain. No response that has a reward is thrown away."""
    done = assign_branches(SMALL, config(weighting="none"), TAU, SCALE)
    assert done.branches == [["ranked"], ["imitated"], ["imitated"], ["imitated"], ["unscored"]]
    assert done.weights.tolist() == [[1, 1], [1, 1], [1, 1], [1, 1], [0, 0]]
    assert done.counts() == {"ranked": 1, "imitated": 3, "dropped": 0, "unscored": 1}


def test_a_lower_bar_ranks_what_was_at_it() -> None:
    """τ of the next round: 0.9·½ = 0.45 < ½."""
    done = assign_branches(SMALL, config(), 0.9 * TAU, SCALE)
    assert [names[0] for names in done.branches] == ["ranked", "ranked", "imitated", "imitated", "unscored"]


def test_the_weights_of_the_round_worked_number() -> None:
    """σ_0 = 2: of the three imitated couples the rewards are 0, ½; 1, 1; 2, 0, so exp(r/2) goes as 1, e^¼, e^½, e^½, e, 1.

    Over the mean of the round, in which the ranked couple's 0 and 1 (1, e^½) take part; 1 for both of the ranked couple, 0 for the unscored one, though one of its responses has a reward.
    """
    done = assign_branches(SMALL, config(), TAU, SCALE)
    grown = [1, math.exp(0.25), math.exp(0.5), math.exp(0.5), math.e, 1]
    mean = (1 + math.exp(0.5) + sum(grown)) / 8
    expected = [value / mean for value in grown]
    assert done.weights[1:4].flatten().tolist() == pytest.approx(expected)
    assert done.weights[0].tolist() == [1, 1] and done.weights[4].tolist() == [0, 0]


def test_the_weights_of_the_pair_worked_number() -> None:
    """σ_0 = 2: the softmax of r/2 in (0, ½), (1, 1) and (2, 0) is σ(¼), ½ and σ(−1) for the guided one."""

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    done = assign_branches(SMALL, config(weighting="pair"), TAU, SCALE)
    assert done.weights[1:4, 1].tolist() == pytest.approx([sigmoid(0.25), 0.5, sigmoid(-1)])
    assert done.weights[1:4].sum(1).tolist() == pytest.approx([1, 1, 1])
    assert done.weights[0].tolist() == [1, 1] and done.weights[4].tolist() == [0, 0]


def test_temperature_and_cap_of_the_config_reach_the_weights() -> None:
    """T_w = ½ and σ_0 = 2 make z of 2 against 0 e² to 1; a cap of 1 takes all above the mean down to it."""
    couple = scored([[2.0, 0.0]])
    soft = assign_branches(couple, config(weight_temperature=0.5), TAU, SCALE).weights[0]
    assert float(soft[0] / soft[1]) == pytest.approx(math.exp(2)) and float(soft.sum()) == pytest.approx(2)
    capped = assign_branches(couple, config(weight_temperature=0.5, weight_cap=1.0), TAU, SCALE).weights[0]
    assert capped.tolist() == pytest.approx([1.0, float(soft[1])])
    pair = assign_branches(couple, config(weighting="pair", weight_temperature=0.5), TAU, SCALE).weights[0]
    assert pair.tolist() == pytest.approx((soft / 2).tolist())


@pytest.mark.parametrize(
    ("options", "branches", "weights"),
    [
        # The ablation without ranking: every couple is demonstrations.
        (
            {"use_ranking": False, "weighting": "none"},
            ["imitated", "imitated", "imitated", "imitated", "unscored"],
            [[1, 1], [1, 1], [1, 1], [1, 1], [0, 0]],
        ),
        # Rankings alone, by either loss: the rest is dropped.
        *(
            ({"method": method}, ["ranked", *["dropped"] * 3, "unscored"], [[1, 1], *[[0, 0]] * 4])
            for method in ("dpo", "rejection")
        ),
        # The response under the principles, good or bad.
        ({"method": "context_distillation"}, [*["imitated"] * 4, "unscored"], [*[[0, 1]] * 4, [0, 0]]),
        # Everything alike.
        ({"method": "sft"}, [*["imitated"] * 4, "unscored"], [*[[1, 1]] * 4, [0, 0]]),
        # The better one of each couple; of a tie one.
        ({"method": "raft"}, [*["imitated"] * 4, "unscored"], [[0, 1], [0, 1], [1, 0], [1, 0], [0, 0]]),
    ],
    ids=["no ranking", "dpo", "rejection", "context distillation", "sft", "raft"],
)
def test_what_the_other_methods_make_of_the_same_couples(
    options: dict[str, Any], branches: list[str], weights: list[list[float]]
) -> None:
    done = assign_branches(SMALL, config(**options), TAU, SCALE)
    assert [names[0] for names in done.branches] == branches
    assert done.weights.tolist() == weights


def test_the_ablation_without_ranking_weighs_all_responses_of_the_round() -> None:
    """The couple that would be ranked, (0, 1), is among those whose weights have the mean 1."""
    done = assign_branches(SMALL, config(use_ranking=False), TAU, SCALE)
    assert float(done.weights[:4].mean()) == pytest.approx(1) and float(done.weights[0, 1]) != 1
    assert float(done.weights[0, 1] / done.weights[0, 0]) == pytest.approx(math.exp(0.5))


# -- the split, k = 2 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "branches", "weights"),
    [
        (
            {"weighting": "none"},
            [["ranked", "imitated"], ["unscored", "ranked"]],
            [[1, 1, 1, 1], [0, 1, 0, 1]],
        ),
        (
            {"weighting": "none", "use_ranking": False},
            [["imitated", "imitated"], ["unscored", "imitated"]],
            [[1, 1, 1, 1], [0, 1, 0, 1]],
        ),
        ({"method": "dpo"}, [["ranked", "dropped"], ["unscored", "ranked"]], [[1, 0, 1, 0], [0, 1, 0, 1]]),
        (
            {"method": "context_distillation"},
            [["imitated", "imitated"], ["unscored", "imitated"]],
            [[0, 0, 1, 1], [0, 0, 0, 1]],
        ),
        ({"method": "sft"}, [["imitated", "imitated"], ["unscored", "imitated"]], [[1, 1, 1, 1], [0, 1, 0, 1]]),
        # The best of all four of a prompt; 3 stands twice in the first.
        ({"method": "raft"}, [["dropped", "imitated"], ["unscored", "imitated"]], [[0, 1, 0, 0], [0, 0, 0, 1]]),
    ],
    ids=["psle", "no ranking", "dpo", "context distillation", "sft", "raft"],
)
def test_the_jth_plain_response_goes_with_the_jth_guided_one(
    options: dict[str, Any], branches: list[list[str]], weights: list[list[float]]
) -> None:
    done = assign_branches(WIDE, config(**options), TAU, SCALE)
    assert done.branches == branches
    assert done.weights.tolist() == weights


def test_raft_takes_one_response_of_each_prompt_wherever_it_stands() -> None:
    """Also where all are equal, all are far below 0, and where one alone is known."""
    done = assign_branches(
        scored([[1.0] * 4, [-9.0, -7.0, -8.0, -9.0], [NAN, -2.0, 5.0, -3.0]]), config(method="raft"), 0.2, 1
    )
    assert done.weights.sum(1).tolist() == [1, 1, 1]
    assert done.weights[1:].argmax(1).tolist() == [1, 1]
    # Nothing is known of a prompt: nothing is taken.
    done = assign_branches(scored([[NAN, 1.0, 2.0, NAN], [0.0, 1.0, 2.0, 3.0]]), config(method="raft"), 0.2, 1)
    assert done.weights.tolist() == [[0] * 4, [0, 0, 0, 1]] and done.branches[0] == ["unscored", "unscored"]


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("weighting", ["round", "pair", "none"])
@pytest.mark.parametrize("tau", [0.0, 0.2, 100.0])
def test_psle_throws_nothing_away(k: int, weighting: str, tau: float) -> None:
    """Every scored couple is ranked or imitated and both of its responses weigh something; no unscored one does."""
    rewards = torch.randn(40, 2 * k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    rewards[3, 0] = rewards[7, -1] = NAN
    given = scored(rewards.tolist())
    done = assign_branches(given, config(weighting=weighting, tau=tau), tau, 1.0)
    counts = done.counts()
    assert counts["dropped"] == 0 and counts["unscored"] == 2
    assert counts["ranked"] + counts["imitated"] == 40 * k - 2
    assert (counts["ranked"] > 0) == (tau < 100) and counts["imitated"] > 0
    both = torch.cat([given.is_scored] * 2, 1)
    assert bool(torch.isfinite(done.weights).all()) and torch.equal(done.weights > 0, both)
    for names, weights in zip(done.branches, done.weights, strict=True):
        for place, name in enumerate(names):
            if name == "ranked":
                assert weights[place] == weights[k + place] == 1


def test_a_round_in_which_everything_is_ranked_has_no_demonstrations() -> None:
    done = assign_branches(scored([[0.0, 9.0], [0.0, 9.0]]), config(), TAU, SCALE)
    assert done.branches == [["ranked"], ["ranked"]] and done.weights.tolist() == [[1, 1], [1, 1]]


def test_a_round_of_which_nothing_is_known() -> None:
    for options in ({}, {"method": "raft"}, {"method": "sft"}, {"weighting": "pair"}):
        done = assign_branches(scored([[NAN, 1.0], [2.0, NAN]]), config(**options), TAU, SCALE)
        assert done.branches == [["unscored"], ["unscored"]] and not done.weights.any()


def test_the_use_of_a_round_worked_number() -> None:
    """Lengths 2, 4 | 1, 3 | 5, 1 of couples ranked, imitated and (by DPO) dropped: of 16 tokens DPO has those of the first, 6.

    Its two responses of six, equally weighted, are (1+1)²/(6·2) = 1/3. SFT uses all; RAFT one of two: 4 + 3 + 5 of 16 tokens.
    """
    given = scored([[0.0, 1.0], [0.0, 0.5], [2.0, 0.0]], [[2, 4], [1, 3], [5, 1]])
    dpo = assign_branches(given, config(method="dpo"), TAU, SCALE).use()
    assert dpo.tokens == pytest.approx(6 / 16) and dpo.responses == pytest.approx(1 / 3)
    sft = assign_branches(given, config(method="sft"), TAU, SCALE).use()
    assert sft.tokens == sft.responses == 1.0
    raft = assign_branches(given, config(method="raft"), TAU, SCALE).use()
    assert raft.tokens == pytest.approx(12 / 16) and raft.responses == pytest.approx(1 / 2)
    assert assign_branches(given, config(), TAU, SCALE).use().tokens == 1.0


def test_the_two_kinds_are_joined_side_by_side() -> None:
    plain = Groups(["p", "q"], [["a", "b"], ["c", "d"]], [[[1], [2]], [[3], [4]]])
    guided = Groups(["under p", "under q"], [["A", "B"], ["C", "D"]], [[[5], [6]], [[7], [8]]])
    assert join_halves(plain, guided) == Groups(
        ["p", "q"], [["a", "b", "A", "B"], ["c", "d", "C", "D"]], [[[1], [2], [5], [6]], [[3], [4], [7], [8]]]
    )
