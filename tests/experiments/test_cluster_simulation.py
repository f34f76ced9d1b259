"""The simulated cluster: the two measured points, bounds that hold whatever happens, and the same result for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments.cluster_simulation import Cluster, Costs, Simulation, measured_bases
from experiments.summary import RESULTS

MEASURED = {
    "tokens": "128 responses of 128 tokens, pieces of 16",
    "rows": {
        "toy, this process": {"rollout, s": 15.2, "the rest, s": 1.1},
        "toy, 1 worker": {
            "rollout, s": 16.0,
            "the rest, s": 1.2,
            "kB broadcast a round": 40.0,
            "kB sent a round": 16.0,
            "kB returned a round": 9000.0,
        },
        "toy, 2 workers": {"rollout, s": 9.4, "the rest, s": 1.2},
        "7 B, counted": {"bytes returned a token": 8324.0},
    },
}
COSTS = Costs(pieces=8, piece=2.0, crowding=1.0, rest=1.0, broadcast=0.0, sent=0.0, returned=0.0, restart=5.0)


@pytest.mark.parametrize("where", ["by hand", "measured"])
def test_the_measured_points_come_out(where: str, tmp_path: Path) -> None:
    """One worker and two on one machine: the seconds of a rollout and of a round, to a thousandth."""
    file = RESULTS / "scaling.json" if where == "measured" else tmp_path / "scaling.json"
    if where == "by hand":
        file.write_text(json.dumps(MEASURED))
    elif not file.is_file():
        pytest.skip("experiments.scaling was not measured here")
    rows, bases = json.loads(file.read_text())["rows"], measured_bases(file)
    assert bases
    for name, costs in bases.items():
        for label, workers in (("1 worker", 1), ("2 workers", 2)):
            row, found = rows[f"{name}, {label}"], Simulation(costs, Cluster(workers, crowded=True)).run(3)
            assert found.rollout == pytest.approx(row["rollout, s"], rel=1e-3)
            rest = rows[f"{name}, 1 worker"]["the rest, s"]
            assert found.round == pytest.approx(row["rollout, s"] + rest, rel=1e-3)


def test_undisturbed_it_is_amdahls_law() -> None:
    """8 pieces of 2 s and 1 s of the trainer: 17, 9, 5 and 3 s."""
    found = [Simulation(COSTS, Cluster(n)).run(4).round for n in (1, 2, 4, 8)]
    assert found == pytest.approx([17.0, 9.0, 5.0, 3.0])


def test_what_travels_waits_for_the_one_link() -> None:
    """8 workers, 1 s a broadcast and 0.5 s an answer: the last one begins after 8 s, and arrives 2.5 s later."""
    costs = Costs(pieces=8, piece=2.0, crowding=1.0, rest=0.0, broadcast=10.0, sent=0.0, returned=5.0, restart=5.0)
    assert Simulation(costs, Cluster(8, link=10.0)).run(1).rollout == pytest.approx(8 + 2 + 0.5)


def test_disturbances_cost_time_and_count_nothing_twice() -> None:
    costs, cluster = COSTS.of(64), Cluster(8, spread=0.1)
    calm = Simulation(costs, cluster, seed=3).run(10)
    assert calm.answered == calm.tried == 640 and calm.died == 0
    slow = Simulation(costs, Cluster(8, spread=0.1, slow=0.25), seed=3).run(10)
    dying = Simulation(costs, Cluster(8, spread=0.1, deaths=0.1), seed=3).run(10)
    assert dying.answered == 640 and dying.tried == 640 + dying.died and 30 < dying.died < 110
    assert slow.round > 1.03 * calm.round and dying.round > 1.03 * calm.round
    assert calm.rollout >= 64 * 2.0 / 8 * 0.9, "no rollout is faster than all workers without a pause"


def test_the_seed_decides() -> None:
    cluster = Cluster(8, spread=0.1, slow=0.1, deaths=0.05)
    first, again, other = (Simulation(COSTS.of(64), cluster, seed).run(5) for seed in (1, 1, 2))
    assert first == again and first != other
