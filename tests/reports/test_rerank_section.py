"""The sentence under the figure of shift: what it says follows from the numbers."""

import pytest

from frugalign.reports.rerank_section import shift_of, verdict

MOVED, SAME = ("log-likelihood", (0.7, 0.6, 0.8)), ("log-likelihood", (0.97, 0.95, 0.99))


@pytest.mark.parametrize(
    ("ranking", "distance", "words"),
    [
        (MOVED, 0.1, "hypothesis holds"),
        (MOVED, 0.3, "does not hold for this run: rankings changed, and so did"),
        (SAME, 0.1, "This run decides nothing"),
        (SAME, 0.3, "does not hold for this run: the samples moved, and the rankings hardly did"),
    ],
)
def test_the_verdict_follows_from_the_numbers(
    ranking: tuple[str, tuple[float, float, float]], distance: float, words: str
) -> None:
    said = verdict([ranking], distance, (0.12, 0.2))
    assert words in said and f"{distance:.3f}" in said


def test_a_run_that_was_not_watched_has_no_figure() -> None:
    assert shift_of([{"step": 1, "loss": 0.1}], {"floor": {"mean": 0.1, "high": 0.2}, "reward": "x"}) is None
    line = {"step": 1, "shift/wasserstein": 0.1, "shift/reward": 1.0}
    assert shift_of([line], None) is None
    ranked = {f"shift/probe_reward_spearman{each}": value for each, value in (("", 0.9), ("_low", 0.8), ("_high", 1.0))}
    both = shift_of([line | ranked], {"floor": {"mean": 0.1, "high": 0.2}, "reward": "x"})
    assert both is not None and [text.split(",")[0] for text, _ in both.figures] == [
        "rank correlations of stored responses with the start",
        "distance of the policy's samples from the start's",
    ]
    found = shift_of([line], {"floor": {"mean": 0.1, "high": 0.2}, "reward": "x"})
    assert found is not None and [uri[:18] for _, uri in found.figures] == ["data:image/svg+xml"]
