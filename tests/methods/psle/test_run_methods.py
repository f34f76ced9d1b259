"""The methods that share the rounds, and rewards that leave one branch or nothing to learn from."""

from pathlib import Path
from typing import Any

import pytest
from tests.methods.psle.conftest import Finished
from tests.methods.psle.runs import ODD, N, command, manifest

from frugalign.cli.main import main
from frugalign.methods.psle.responses import read_round

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]


@pytest.mark.parametrize("method", ["context_distillation", "raft", "dpo", "rejection", "sft"])
def test_the_methods_beside_it_share_the_frame(method: str, finished: Finished) -> None:
    """The same prompts, noise and rewards: the plain responses of round 0 are those of psle, and each method learns from its own share."""
    assert main(command(method=method, rounds=1, tau=0.0, eval_prompts=0)) == 0
    psle = finished(rounds=1, tau=0.0, eval_prompts=0)
    ours, theirs = (read_round(run / "round-000/responses.jsonl") for run in (Path("run"), psle))
    assert [group[:2] for group in ours.scored.completions] == [group[:2] for group in theirs.scored.completions]
    guided = [group[2:] for group in ours.scored.completions] == [group[2:] for group in theirs.scored.completions]
    assert guided == (method != "raft"), "RAFT samples all of its responses plainly"
    about = manifest(0)
    shares = {
        "context_distillation": about["branches"]["imitated"] == 2 * N and float(ours.weights[:, :2].sum()) == 0,
        "raft": float(ours.weights.sum()) == N,
        "dpo": about["branches"]["imitated"] == 0 and about["branches"]["dropped"] > 0,
        "rejection": about["branches"]["imitated"] == 0 and about["branches"]["dropped"] > 0,
        "sft": bool((ours.weights == 1).all()) and about["branches"]["ranked"] == 0,
    }
    assert shares[method]
    assert about["end"] != about["start"]


def test_no_principles_is_an_ablation_of_plain_couples() -> None:
    assert main(command(principles=None, use_principles="false", rounds=1)) == 0
    assert manifest(0)["principles"] is None and manifest(0)["branches"]["ranked"] > 0


@pytest.mark.parametrize(
    ("flags", "words", "branches"),
    [
        ({"reward": "odd.py:flat"}, "the same value, ", {"ranked": 0, "imitated": 2 * N}),
        ({"reward": "odd.py:down"}, "no couple to rank", {"ranked": 0, "imitated": 2 * N}),
        ({"reward": "odd.py:up"}, "", {"ranked": 2 * N, "imitated": 0}),
        ({"reward": "odd.py:down", "method": "dpo"}, "nothing to learn from", {"dropped": 2 * N}),
        ({"reward": "odd.py:some"}, "", {}),
    ],
)
def test_one_branch_alone_and_rewards_that_say_little_are_logged(
    flags: dict[str, Any], words: str, branches: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    Path("odd.py").write_text(ODD)
    assert main(command(**flags, rounds=1)) == 0
    assert words in caplog.text
    about = manifest(0)
    assert about["branches"] | branches == about["branches"]
    assert (about["end"] == about["start"] | {"base": None}) is False
    if flags["reward"] == "odd.py:some":
        assert 0 < about["branches"]["unscored"] < 2 * N
        weights = read_round(Path("run/round-000/responses.jsonl")).weights
        assert not weights.isnan().any()
