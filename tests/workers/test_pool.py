"""Pools of toy workers: in this process, and on Ray where workers die."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from typing import Any

import pytest
from tests.workers.toy import Toy

from frugalign.base import progress
from frugalign.base.errors import FrugalignError
from frugalign.workers.pool import LocalPool
from frugalign.workers.ray_cluster import Needs
from frugalign.workers.record import Piece, Record, pack

HALF = Needs(cpus=0.5)


def pieces(n: int, **values: Any) -> list[Piece]:
    return [Piece(Record({"n": number} | values), progress.STEPS, 1) for number in range(n)]


def numbers(answers: Any) -> list[int]:
    return [answer.values["n"] for answer in answers]


def test_this_process_answers_in_order() -> None:
    pool = LocalPool(Toy(Record()))
    assert numbers(pool.run(pieces(3), Record({"more": 10}))) == [10, 11, 12]
    assert pool.traffic.sent == pool.traffic.returned == 0, "nothing travels"


@pytest.mark.parametrize(
    ("needs", "has", "times"),
    [
        (Needs(), {"CPU": 4.0}, 4),
        (Needs(0.3), {"CPU": 0.9}, 3),
        (Needs(1, 0.5), {"CPU": 16.0, "GPU": 2.0}, 4),
        (Needs(1, 1), {"CPU": 16.0}, 0),
        (Needs(2, 0, 8), {"CPU": 16.0, "memory": 20.0 * 2**30}, 2),
    ],
)
def test_how_often_needs_fit(needs: Needs, has: dict[str, float], times: int) -> None:
    assert needs.fit_into(has) == times


@pytest.fixture(scope="module")
def ray_pool(ray_here: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from frugalign.workers.ray_pool import RayPool

    about = Record({"dies_once": str(tmp_path_factory.mktemp("toy") / "died")})
    pool = RayPool(ray_here, 2, HALF, "tests.workers.toy:Toy", about)
    yield pool
    pool.close()


@pytest.mark.slow
def test_two_workers_share_the_pieces_of_a_run(ray_pool: Any) -> None:
    """In order, with what each run shares, and each byte counted once."""
    given, shared = pieces(5), Record({"more": 10})
    before = ray_pool.traffic.broadcast, ray_pool.traffic.sent
    assert numbers(ray_pool.run(given, shared)) == [10, 11, 12, 13, 14]
    assert numbers(ray_pool.run(given, Record({"more": 20}))) == [20, 21, 22, 23, 24]
    assert ray_pool.traffic.broadcast - before[0] == 2 * len(pack(shared))
    assert ray_pool.traffic.sent - before[1] == 2 * sum(len(pack(piece.record)) for piece in given)
    assert 1 <= len(ray_pool.pids) <= 2 and os.getpid() not in ray_pool.pids.values()


@pytest.mark.slow
def test_a_run_that_nobody_reads_to_its_end_is_forgotten(ray_pool: Any) -> None:
    run = ray_pool.run(pieces(6), Record({"more": 100}))
    assert next(run).values["n"] == 100
    run.close()
    assert numbers(ray_pool.run(pieces(4), Record({"more": 0}))) == [0, 1, 2, 3]


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here(ray_pool: Any) -> None:
    """The user's error as one sentence, the first piece's even where another's came first; and the pool works on."""
    wrong = [*pieces(1, raises=True, pause=0.5), *pieces(2, raises=True)[1:]]
    with pytest.raises(FrugalignError, match=r"^piece 0 is wrong$"):
        list(ray_pool.run(wrong, Record({"more": 0})))
    run = ray_pool.run([*pieces(1, pause=0.5), *wrong[1:]], Record({"more": 0}))
    assert next(run).values["n"] == 0, "what comes before a wrong piece is answered"
    with pytest.raises(FrugalignError, match=r"^piece 1 is wrong$"):
        next(run)
    assert numbers(ray_pool.run(pieces(2), Record({"more": 0}))) == [0, 1]


@pytest.mark.slow
def test_a_piece_whose_worker_dies_is_run_again(ray_pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    lost = ray_pool.traffic.lost
    with caplog.at_level(logging.WARNING):
        found = list(ray_pool.run(pieces(4, dies=True), Record({"more": 1})))
    assert numbers(found) == [1, 2, 3, 4] and sum(answer.values["spent"] for answer in found) == 4
    assert ray_pool.traffic.lost == lost + 1 and "A worker died. Another one takes its place" in caplog.text


@pytest.mark.slow
def test_workers_killed_at_ten_random_moments(ray_pool: Any) -> None:
    """Idle, busy or starting: the same answers, each counted once."""
    draw, stop, killed = random.Random(0), threading.Event(), list[int]()

    def kill() -> None:
        while len(killed) < 10 and not stop.is_set():
            time.sleep(draw.uniform(0.0, 0.4))
            for pid in draw.sample(sorted(ray_pool.pids.values()), min(1, len(ray_pool.pids))):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                time.sleep(1.0)

    before, returned = ray_pool.traffic.lost, 0
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        while thread.is_alive():
            found = list(ray_pool.run(pieces(8, pause=0.05), Record({"more": 3})))
            assert numbers(found) == list(range(3, 11)) and sum(each.values["spent"] for each in found) == 8
            returned += 1
    finally:
        stop.set()
        thread.join()
    assert len(killed) == 10 and returned > 0
    assert ray_pool.traffic.lost > before


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_one_sentence(ray_here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from frugalign.workers import ray_pool as module
    from frugalign.workers.ray_pool import RayPool

    monkeypatch.setattr(module, "_TRIES", 2)
    pool = RayPool(ray_here, 1, HALF, "tests.workers.toy:Toy", Record())
    try:
        with pytest.raises(
            FrugalignError, match=r"2 workers died over the same piece of work, possibly for want of memory"
        ):
            list(pool.run(pieces(1, always_dies=True), Record({"more": 0})))
    finally:
        pool.close()


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_why(ray_here: str) -> None:
    from frugalign.workers.ray_pool import RayPool

    for make, said in (
        ("tests.workers.toy:refuses", "A worker cannot start: FileNotFoundError: no model here"),
        ("tests.workers.nowhere:Toy", "Cannot import 'tests.workers.nowhere'"),
    ):
        pool = RayPool(ray_here, 1, HALF, make, Record())
        try:
            with pytest.raises(FrugalignError, match=said):
                list(pool.run(pieces(1), Record({"more": 0})))
        finally:
            pool.close()


@pytest.mark.slow
def test_more_workers_than_this_machine_has_room_for(ray_here: str) -> None:
    from frugalign.workers.ray_pool import RayPool

    with pytest.raises(FrugalignError, match=r"This machine has room for .* not 99999: lower ray_workers"):
        RayPool(ray_here, 99_999, HALF, "tests.workers.toy:Toy", Record())
    with pytest.raises(FrugalignError, match=r"A worker needs 0.5 CPU and 1000 GPU, and no machine has that much"):
        RayPool(ray_here, 1, Needs(0.5, 1000), "tests.workers.toy:Toy", Record())
