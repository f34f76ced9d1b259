"""Parts in progress: who counts what, and nothing at all without a display."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from frugalign.base import progress
from frugalign.base.progress import (
    FED,
    SAMPLED,
    STEPS,
    Part,
    advance,
    close_part,
    open_part,
    set_display,
    set_done,
    work,
)


class Recorder:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[tuple[str, float]]]] = []

    def opened(self, parts: list[Part]) -> None:
        self._keep("opened", parts)

    def moved(self, parts: list[Part]) -> None:
        self._keep("moved", parts)

    def closed(self, parts: list[Part], part: Part) -> None:
        self._keep(f"closed {part.title}", parts)

    def _keep(self, what: str, parts: list[Part]) -> None:
        self.told.append((what, [(part.title, part.done) for part in parts]))


@pytest.fixture
def told() -> Iterator[Recorder]:
    recorder = Recorder()
    before = set_display(recorder)
    yield recorder
    set_display(before)


def test_an_advance_counts_for_the_innermost_part_of_its_unit(told: Recorder) -> None:
    with work("rollout", 10, SAMPLED):
        with work("states", 5, FED):
            advance(SAMPLED, 4)
            advance(FED, 5)
            advance("something else", 7)
        advance(SAMPLED, 6)
    assert told.told == [
        ("opened", [("rollout", 0)]),
        ("opened", [("rollout", 0), ("states", 0)]),
        ("moved", [("rollout", 4), ("states", 0)]),
        ("moved", [("rollout", 4), ("states", 5)]),
        ("moved", [("rollout", 4), ("states", 5)]),
        ("closed states", [("rollout", 4)]),
        ("moved", [("rollout", 10)]),
        ("closed rollout", []),
    ]


def test_an_advance_outside_every_part_is_not_told(told: Recorder) -> None:
    """A display draws the parts, and there is none."""
    advance(SAMPLED, 4)
    set_done(Part("closed already", 3, STEPS), 1)
    assert told.told == []


def test_an_error_closes_the_part_and_those_inside(told: Recorder) -> None:
    with pytest.raises(KeyError), work("outer", 1, STEPS):
        open_part(Part("left open", 1, STEPS))
        raise KeyError
    assert told.told[-1] == ("closed outer", [])


def test_without_a_display_nothing_is_kept() -> None:
    assert not progress.is_shown()
    part = Part("training", 10, STEPS)
    open_part(part)
    with work("rollout", 10, SAMPLED):
        advance(SAMPLED, 4)
    set_done(part, 3, "reward 1")
    close_part(part)
    assert (part.done, part.note) == (3, "reward 1") and not progress._parts


def test_share_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed at 20 of 100. Ten steps in 5 s: the other 70 take 35 s."""
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    part = Part("training", 100, STEPS, before=20)
    assert part.share == 0.2 and part.seconds_left is None
    now = 1005.0
    set_done(part, 30)
    assert (part.share, part.seconds, part.seconds_left) == (0.3, 5.0, 35.0)
    assert Part("empty", 0, STEPS).share == 1.0
