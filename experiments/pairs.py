"""Methods that learn from a thousand preference pairs of the sandbox: gold against KL, with correct labels and with a quarter of them flipped.

    python -m experiments.pairs [--part choose test table] [--only LINE ...] [--seeds 1 2 3] [--noise 0 0.25] [--smoke]

The proxy has six settings. Each is trained once, on pairs of its own, and `chosen.json` freezes the one that orders the validation pairs best,
whose labels are as noisy as those in training: gold is never read for a choice. The DPO family has settings that gold has chosen. Only then are
test prompts read: a line is trained once a seed, on pairs drawn and flipped anew, and gold and the exact KL are measured along the training.
Finished trainings are not repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.pairs_curve import Measure
from experiments.pairs_data import SIZES, pairs_folder, read_rows, test_prompts, validation_prompts
from experiments.pairs_runs import Line, Run, fit_probes, lines
from experiments.pairs_table import Training, draw, interval, minus, row, training
from experiments.summary import script_options, write_summary

from frugalign.base.files import write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.runs.shard_store import ShardStore

WORK = Path("runs/pairs")
CHOOSING_SEED, SEEDS, NOISES = 10, (1, 2, 3, 4, 5), (0.0, 0.25)
TESTED, SHOWN, ORDERED = 200, 16, 100
"""Prompts of a test, validation prompts on which gold is shown for every setting, and validation pairs that settings are chosen by."""
CHOOSING_STEPS, STEPS = 16, 125
"""Of methods that feed the pairs at every step: an eighth of a pass, and one pass."""
MARKS = (32, 72)
"""Steps at which a policy is measured besides the last, of methods that feed the pairs at every step."""
STRENGTHS = (0.25, 0.5, 0.75)
"""Of a finished proxy, besides 1: its curve, which needs no training."""


class Bench:
    """The data, the measure and the probes of one seed and one share of wrong labels."""

    def __init__(self, work: Path, noise: float, seed: int, *, small: bool = False) -> None:
        self.work, self.noise, self.seed, self.small = work, noise, seed, small
        self.choosing = seed == CHOOSING_SEED
        sizes = {"train": 32, "validation": 8} if small else SIZES
        self.data = pairs_folder(work / "data", noise, seed, sizes)
        size = 4 if small else SHOWN if self.choosing else TESTED
        prompts = validation_prompts(size) if self.choosing else test_prompts(size)
        self.measure = Measure(
            prompts, read_rows(self.data / "validation.jsonl")[:ORDERED], seed, ShardStore(work / "features")
        )

    def probes(self) -> Path:
        """Fitted on the training pairs."""
        return fit_probes(self.data, self.work / "probes" / f"{self.noise:g}-{self.seed}", self.seed)

    def train(self, label: str, line: Line, setting: dict[str, Any]) -> dict[str, Any]:
        """Train and measure a line."""
        folder = self.work / "trainings" / f"{label.replace(' ', '-').replace(',', '')}-{self.noise:g}-{self.seed}"
        steps = 4 if self.small else CHOOSING_STEPS if self.choosing else STEPS
        marks = () if self.choosing or line.is_cheap else MARKS
        strengths = () if self.choosing else STRENGTHS
        run = Run(self.data, folder, self.probes, self.measure, steps, marks, self.seed, setting, strengths)
        if self.small and line.is_cheap:
            run.setting = {**setting, "max_steps": 4}
        return {"setting": setting, **line.train(run)}


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """The point that a training keeps: its own choice, or the one that orders the validation pairs best."""
    own: dict[str, Any] | None = found["kept"]
    return own or min(found["points"], key=lambda point: point["loss"])


def _named(setting: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())


class Cells:
    """Trainings on the disk, by noise, line and setting or seed. Missing ones are run."""

    def __init__(self, work: Path, noise: float, *, small: bool) -> None:
        self.work, self.noise, self.small = work, noise, small
        self._benches: dict[int, Bench] = {}

    def bench(self, seed: int) -> Bench:
        """Loaded once."""
        if seed not in self._benches:
            self._benches = {seed: Bench(self.work, self.noise, seed, small=self.small)}
        return self._benches[seed]

    def get(self, label: str, line: Line, setting: dict[str, Any], seed: int, *, name: str) -> dict[str, Any]:
        """The training's result. `name`: of its file."""
        file = self.work / "found" / f"{self.noise:g}" / label / f"{name}.json"
        if not file.is_file():
            write_json_atomic(file, self.bench(seed).train(label, line, setting))
            point, found = kept(read_json(file)), read_json(file)
            means = {key: sum(point[key]) / len(point[key]) for key in ("gold", "kl", "well_formed")}
            print(
                f"{self.noise:g} {label} {name} {setting}: step {point['step']}, gold {means['gold']:.2f} at {means['kl']:.2f} nats, well-formed {means['well_formed']:.3f}, "
                f"validation loss {point['loss']:.3f}, accuracy {point['accuracy']:.3f}, {found['costs']['seconds']:.0f} s",
                flush=True,
            )
        found = read_json(file)
        if found["setting"] != json.loads(json.dumps(setting)):
            sys.exit(f"{file} was trained with another setting. Delete it to train again.")
        return found

    def choose(self, label: str, line: Line) -> None:
        """Freeze a line's setting."""
        file = self.work / f"chosen-{self.noise:g}.json"
        frozen, settings = read_json(file), [dict(each) for each in line.settings[: 1 if self.small else None]]
        if line.as_proxy:
            settings = [frozen["proxy"]["setting"] | each for each in settings]
        if [each["setting"] for each in frozen.get(label, {}).get("tried", [])] == settings:
            return
        if len(settings) == 1:
            write_json_atomic(file, frozen | {label: {"setting": settings[0], "tried": [{"setting": settings[0]}]}})
            return
        tried = [self.get(label, line, each, CHOOSING_SEED, name=_named(each)) for each in settings]
        best = min(tried, key=lambda found: kept(found)["loss"])
        shown = [
            {
                "setting": each["setting"],
                "loss": kept(each)["loss"],
                "gold": sum(kept(each)["gold"]) / len(kept(each)["gold"]),
            }
            for each in tried
        ]
        write_json_atomic(file, frozen | {label: {"setting": best["setting"], "tried": shown}})

    def test(self, label: str, line: Line, seed: int) -> dict[str, Any]:
        """A line with its frozen setting."""
        frozen = read_json(self.work / f"chosen-{self.noise:g}.json")
        if label not in frozen:
            sys.exit(f"{label} has no chosen setting yet.")
        return self.get(label, line, frozen[label]["setting"], seed, name=f"seed-{seed}")

    def base(self, seed: int) -> dict[str, Any]:
        """The base on a seed's prompts and noise."""
        file = self.work / "found" / f"{self.noise:g}" / "base" / f"seed-{seed}.json"
        if not file.is_file():
            write_json_atomic(file, self.bench(seed).measure.of(None))
        found: dict[str, Any] = read_json(file)
        return found


def wanted(noise: float, only: Sequence[str]) -> dict[str, Line]:
    """The lines to run."""
    found = {label: line for label, line in lines(noise).items() if noise or not line.noisy_only}
    return {label: line for label, line in found.items() if not only or label in only}


def finished(cells: Cells, only: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[int, Training]]:
    """The tested trainings of every line, by seed."""
    found: dict[str, dict[int, Training]] = {}
    folder = cells.work / "found" / f"{cells.noise:g}"
    for label in wanted(cells.noise, only):
        for seed in seeds:
            file = folder / label / f"seed-{seed}.json"
            if file.is_file():
                base, tested = read_json(folder / "base" / file.name), read_json(file)
                found.setdefault(label, {})[seed] = training(base, tested, kept(tested))
    return found


def table(cells: dict[float, Cells], only: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the summary and the figure of what is finished. A line is compared with the proxy on the seeds that both have."""
    rows: dict[str, dict[str, Any]] = {}
    panels: dict[str, dict[str, list[Training]]] = {}
    chosen = {}
    for noise, each in cells.items():
        by_label, words = finished(each, only, seeds), f"{100 * noise:.0f} % flipped" if noise else "clean"
        panels[words if noise else "clean labels"] = {label: list(found.values()) for label, found in by_label.items()}
        proxy = by_label["proxy"]
        rows[f"{words}: base"] = {"gold": interval([each.base(seed)["gold"] for seed in proxy]), "KL, nats": 0.0}
        for label, found in by_label.items():
            mine = list(found.values())
            others = mine if label == "proxy" else [proxy[seed] for seed in found]
            rows[f"{words}: {label}"] = row(mine, others)
            without = by_label.get(label.removesuffix(", confidence"), {})
            if label.endswith("confidence") and without.keys() >= found.keys():
                added = [minus(found[seed].kept["gold"], without[seed].kept["gold"]) for seed in found]
                rows[f"{words}: {label}"]["what confidence adds"] = interval(added)
        frozen = read_json(each.work / f"chosen-{noise:g}.json")
        chosen |= {f"{words}: {label}": frozen[label] for label in by_label}
    facts = {"pairs": SIZES["train"], "test prompts": TESTED, "chosen": chosen}
    model = "frugalign.sandbox:model, a Llama of 1.1 million parameters"
    print(write_summary("pairs", "python -m experiments.pairs", model, rows, facts))
    draw(panels, Path("docs/img/pairs.png"))


def main() -> None:
    args = script_options(
        __doc__,
        **{
            "--part": {"nargs": "*", "default": ["test", "table"]},
            "--only": {"nargs": "*", "default": []},
            "--seeds": {"nargs": "*", "type": int, "default": list(SEEDS)},
            "--noise": {"nargs": "*", "type": float, "default": list(NOISES)},
        },
    )
    work = Path("runs/smoke/pairs") if args.smoke else WORK
    cells = {noise: Cells(work, noise, small=args.smoke) for noise in args.noise}
    if args.part != ["table"]:
        for noise, each in cells.items():
            for label, line in wanted(noise, args.only).items():
                each.choose(label, line)
    if "test" in args.part:
        for seed in args.seeds[:1] if args.smoke else args.seeds:
            for noise, each in cells.items():
                each.base(seed)
                for label, line in wanted(noise, args.only).items():
                    each.test(label, line, seed)
    if "table" in args.part and not args.smoke:
        table(cells, args.only, args.seeds)


if __name__ == "__main__":
    main()
