"""Rollouts on up to 64 workers, simulated from measured costs of one and two: how slow workers and deaths change the efficiency.

    python -m experiments.cluster_simulation [--scaling experiments/results/scaling.json] [--seed 0] [--smoke]

A simulation of discrete events with the rules of the pool (`frugalign.workers.ray_pool`): a worker takes the next piece, the first one in a round
with the proxy; nobody works further ahead than two pieces a worker; a piece of a worker that died runs again elsewhere, and a new worker joins once
it has loaded its base; an answer counts once. All that travels goes through the trainer's one link. The unit costs are those of
`experiments.scaling`, and for 70 billion parameters those of `experiments.scale_plan`.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.gpu_bases import SHAPES
from experiments.scale_plan import Assumed, Counts, Job, Layout, sampling_seconds
from experiments.summary import RESULTS, script_options, write_summary

from frugalign.base.json_files import read_json
from frugalign.base.wording import pluralize
from frugalign.reports.figures import canvas, tidy
from frugalign.reports.study.style import COLOURS

FIGURE = Path("docs/img/scale_efficiency.png")
WORKERS = (1, 2, 4, 8, 16, 32, 64)
PER_WORKER = 8
"""Pieces of a round for each of the most workers. The same round is split over fewer."""
_AHEAD = 2


@dataclass(frozen=True)
class Costs:
    """What a round costs. Seconds and bytes.

    `pieces` of a round; `piece`: seconds of one on a worker that has its machine for itself; `crowding`: how much longer it takes where two workers
    share the machine that was measured; `rest`: seconds of scores and optimiser steps, in the trainer alone; bytes of the proxy that is `broadcast`, and
    of one piece that is `sent` and `returned`; `restart`: seconds until a new worker has its base.
    """

    pieces: int
    piece: float
    crowding: float
    rest: float
    broadcast: float
    sent: float
    returned: float
    restart: float

    @classmethod
    def measured(cls, one: Mapping[str, Any], two: Mapping[str, Any], pieces: int) -> Costs:
        """From a base's rows of `experiments.scaling` for one worker and for two. What travelled on that machine is in the seconds."""
        piece = one["rollout, s"] / pieces
        return cls(
            pieces=pieces,
            piece=piece,
            crowding=two["rollout, s"] / (piece * -(-pieces // 2)),
            rest=one["the rest, s"],
            broadcast=1000 * one["kB broadcast a round"],
            sent=1000 * one["kB sent a round"] / pieces,
            returned=1000 * one["kB returned a round"] / pieces,
            restart=10 * piece,
        )

    def of(self, pieces: int) -> Costs:
        """The same for a round of more or fewer pieces. The trainer's part grows with it."""
        return replace(self, pieces=pieces, rest=self.rest * pieces / self.pieces)


@dataclass(frozen=True)
class Cluster:
    """`link`: bytes a second into and out of the trainer; infinite where workers share its machine, `crowded`.

    `spread`: standard deviation of a piece's time, as a share. `slow`: share of workers that take `slowness` times as long in a round. `deaths`:
    probability that a worker dies during a piece.
    """

    workers: int
    link: float = float("inf")
    crowded: bool = False
    spread: float = 0.0
    slow: float = 0.0
    slowness: float = 2.0
    deaths: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Mean seconds of a round, and of its rollout; pieces that were `answered` and `tried`, and workers that died."""

    round: float
    rollout: float
    answered: int
    tried: int
    died: int


class Simulation:
    """A training on a cluster, round by round. Random only by `seed`."""

    def __init__(self, costs: Costs, cluster: Cluster, seed: int = 0) -> None:
        self.costs, self.cluster, self._random = costs, cluster, random.Random(seed)
        self.now = 0.0
        self.answered = self.tried = self.died = 0
        self._idle = deque(range(cluster.workers))
        self._events: list[tuple[float, int, str, int, int]] = []
        self._number = 0

    def run(self, rounds: int) -> Outcome:
        """Some rounds, one after the other."""
        began, rollouts = self.now, 0.0
        for _ in range(rounds):
            rollouts += self._rollout()
            self.now += self.costs.rest
        seconds = (self.now - began) / rounds
        return Outcome(seconds, rollouts / rounds, self.answered, self.tried, self.died)

    def _rollout(self) -> float:
        """The seconds of a rollout."""
        costs, began = self.costs, self.now
        left, found, wanted = deque(range(costs.pieces)), set[int](), 0
        self._out = self._in = began
        self._has_proxy: set[int] = set()
        self._slow = {worker for worker in range(self.cluster.workers) if self._random.random() < self.cluster.slow}
        while wanted < costs.pieces:
            while self._idle and left and left[0] < wanted + _AHEAD * self.cluster.workers:
                self._hand_out(self._idle.popleft(), left.popleft())
            time, _, what, worker, piece = heapq.heappop(self._events)
            self.now = max(self.now, time)
            if what == "answer":
                self._idle.append(worker)
                self._in = max(self._in, self.now) + costs.returned / self.cluster.link
                self._at(self._in, "arrival", worker, piece)
            elif what == "arrival":
                assert piece not in found, "a piece is counted once"
                found.add(piece)
                self.answered += 1
                while wanted in found:
                    wanted += 1
            elif what == "death":
                self.died += 1
                left.appendleft(piece)
                left = deque(sorted(left))
                self._has_proxy.discard(worker)
                self._at(self.now + costs.restart, "start", worker, -1)
            else:
                self._idle.append(worker)
        return self.now - began

    def _hand_out(self, worker: int, piece: int) -> None:
        costs, cluster, draw = self.costs, self.cluster, self._random
        moved = costs.sent + (0.0 if worker in self._has_proxy else costs.broadcast)
        self._has_proxy.add(worker)
        self._out = max(self._out, self.now) + moved / cluster.link
        seconds = costs.piece * max(0.1, draw.gauss(1.0, cluster.spread))
        if cluster.crowded and cluster.workers > 1:
            seconds *= costs.crowding
        if worker in self._slow:
            seconds *= cluster.slowness
        self.tried += 1
        if draw.random() < cluster.deaths:
            self._at(self._out + seconds * draw.random(), "death", worker, piece)
        else:
            self._at(self._out + seconds, "answer", worker, piece)

    def _at(self, time: float, what: str, worker: int, piece: int) -> None:
        self._number += 1  # events of one time happen in the order in which they were planned
        heapq.heappush(self._events, (time, self._number, what, worker, piece))


DISTURBED = {
    "undisturbed": {},
    "slow workers": {"slow": 1 / 16},
    "deaths": {"deaths": 0.01},
    "both": {"slow": 1 / 16, "deaths": 0.01},
}
"""One worker in sixteen takes twice as long in a round; one piece in a hundred kills its worker."""


def efficiencies(costs: Costs, link: float, rounds: int, seed: int) -> dict[int, dict[str, float]]:
    """For each number of workers and each disturbance: the speed-up over one undisturbed worker, divided by the number of workers."""
    costs = costs.of(PER_WORKER * WORKERS[-1])
    alone = Simulation(costs, Cluster(1, link, spread=0.1), seed).run(rounds).round
    return {
        n: {
            name: alone / n / Simulation(costs, Cluster(n, link, spread=0.1, **settings), seed).run(rounds).round
            for name, settings in DISTURBED.items()
        }
        for n in WORKERS
    }


def planned(trainers: int, piece: int = 64) -> Costs:
    """A base of 70 billion parameters, counted. A worker is four H100s, a piece has so many responses, and `trainers` GPUs optimise."""
    counts, assumed, layout = Counts(SHAPES["70B"]), Assumed(), Layout("H100", 4, 4, piece)
    job = replace(Job(), responses=piece)
    return Costs(
        pieces=1,
        piece=sampling_seconds(layout, counts, job, assumed) / assumed.guided,
        crowding=1.0,
        rest=counts.optimise(job) / (trainers * layout.gpu.float32 * assumed.training),
        broadcast=4 * counts.proxy,
        sent=4 * piece * job.prompt_tokens,
        returned=counts.record() * job.positions,
        restart=120.0,
    )


def measured_bases(scaling: Path) -> dict[str, Costs]:
    """The costs of every base that `experiments.scaling` measured, by name."""
    summary = read_json(scaling)
    responses, _, piece = map(int, re.findall(r"\d+", summary["tokens"]))
    rows, found = summary["rows"], dict[str, Costs]()
    for label in rows:
        name, _, workers = label.rpartition(", ")
        if workers == "1 worker" and f"{name}, 2 workers" in rows:
            found[name] = Costs.measured(rows[label], rows[f"{name}, 2 workers"], responses // piece)
    return found


def draw(tables: Mapping[str, Mapping[int, Mapping[str, float]]], file: Path) -> None:
    """Efficiency against the number of workers: undisturbed as a line, with both disturbances dashed."""
    figure = canvas(6.4, 3.6)
    axes = figure.subplots()
    for place, (name, table) in enumerate(tables.items()):
        colour = COLOURS[place % len(COLOURS)]
        for what, line in (("undisturbed", "-"), ("both", "--")):
            label = name if what == "undisturbed" else None
            axes.plot(
                WORKERS, [table[n][what] for n in WORKERS], line, color=colour, marker="o", markersize=3, label=label
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(WORKERS, [str(n) for n in WORKERS])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("workers")
    axes.set_ylabel("efficiency")
    axes.legend(frameon=False, fontsize=8, loc="lower left", title="dashed: slow workers and deaths", title_fontsize=8)
    tidy(axes)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    """Simulate, print, draw and write."""
    given = script_options(
        __doc__,
        scaling={"type": Path, "default": RESULTS / "scaling.json", "help": "A summary of experiments.scaling."},
        seed={"type": int, "default": 0},
    )
    bases = measured_bases(given.scaling) if given.scaling.is_file() else {}
    bases |= {"70B, counted": planned(8), "70B, counted, all GPUs optimise": planned(4 * WORKERS[-1])}
    tables = {
        name: efficiencies(costs, Assumed().network, 2 if given.smoke else 20, given.seed)
        for name, costs in bases.items()
    }
    rows = {f"{name}, {pluralize(n, 'worker')}": row for name, table in tables.items() for n, row in table.items()}
    for label, row in rows.items():
        print(f"{label:44}", "  ".join(f"{name} {value:.3f}" for name, value in row.items()))
    if not given.smoke:
        draw(tables, FIGURE)
        facts = {"seed": given.seed, "pieces of a round": PER_WORKER * WORKERS[-1]}
        write_summary("cluster-simulation", "python -m experiments.cluster_simulation", ", ".join(bases), rows, facts)


if __name__ == "__main__":
    main()
