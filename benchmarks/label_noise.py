"""Does moving confidence help under label noise? Re-ranking beside DPO and its family on the sandbox, a quarter of the labels flipped.

    python -m benchmarks.label_noise [--jobs 2] [--variants]

Pairs of the sandbox's annotator, ordered by the exact reward, then 25 % flipped. The same noisy pairs fit and calibrate the probes, train every
method and choose its settings: six each (learning rate and β), by the accuracy of the implicit reward on noisy validation pairs. The chosen
settings then run with five seeds (pairs, flips and training all differ), and each method's gold score on unseen prompts is read, by
interpolation along its own training, at the KL of DPO's best validation point. Methods that train on sampled responses use the same probes.
A finished cell is not run twice; cells are in runs/label-noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.cells import result_in, run_cells
from datasets import Dataset
from scipy.stats import t as student_t
from transformers import TrainerCallback

from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.cli.main import main as frugalign
from frugalign.data import encode_prompts
from frugalign.data.groups import Groups
from frugalign.decoding import SamplingParams, generate, row_keys
from frugalign.decoding.log_probs import sequence_kl, sequence_log_probs
from frugalign.decoding.sample_groups import sample_groups
from frugalign.engines import load_model
from frugalign.engines.encode import exchanges_for
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.groups import rank_groups
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.rewards.representation.network import load_probes
from frugalign.sandbox.annotating import AnnotatingSettings, sample_comparison
from frugalign.sandbox.judging import judge, sandbox_metrics
from frugalign.sandbox.world import make_prompts

RESULT = Path(__file__).parent / "results" / "label_noise.json"
WORK = Path("runs/label-noise")
MODEL = "frugalign.sandbox:model"
NOISE = 0.25
N_TRAIN, N_VALIDATION, N_TEST = 1000, 1000, 500
PROMPTS, GROUP = 250, 8
SEEDS = (11, 12, 13, 14, 15)
CHOOSING_SEED = 10
GRID = [(rate, beta) for rate in (2e-4, 4e-4) for beta in (0.03, 0.1, 0.3)]
EPOCHS, BATCH, EVERY = 2, 16, 21
TEST_SEED = 61_000
FIXED_KL = 0.1
"""Nats that every run passes before any of them becomes unstable: a second reading, which no choice of a best point moves."""

STORED: dict[str, dict[str, Any]] = {
    "DPO": {"confidence": "constant"},
    "conservative DPO": {"confidence": "constant", "constant_confidence": 1 - NOISE},
    "IPO": {"loss_type": "ipo"},
    "robust DPO": {"loss_type": "robust", "label_smoothing": NOISE},
    "DPO, relabelled once": {"confidence": "constant", "relabel": True},
    "rerank": {"confidence": "pair"},
    "DPO + SFT term": {"confidence": "constant", "sft_weight": 1.0},
    "rerank + SFT term": {"confidence": "pair", "sft_weight": 1.0},
    "rerank, floor 0": {"confidence": "pair", "confidence_floor": 0.0},
    "rerank, told the noise": {"confidence": "pair", "confidence_floor": 0.0, "label_noise": NOISE},
    "rerank, floor 0, probes follow": {"confidence": "pair", "confidence_floor": 0.0, "reward_refresh_steps": 5},
}
SAMPLED: dict[str, dict[str, Any]] = {
    "DPO, sampled and ranked once": {"confidence": "constant", "rerank_groups": False},
    "rerank, sampled once": {"confidence": "pair", "confidence_floor": 0.0},
    "online DPO": {"confidence": "constant", "resample": True, "sample": GROUP},
}
METHODS = STORED | SAMPLED
VARIANTS = (
    "rerank, floor 0",
    "rerank, told the noise",
    "rerank, floor 0, probes follow",
    "DPO, sampled and ranked once",
    "rerank, sampled once",
)
"""Run where asked for, after the others; the result is written before and after."""
CLEAN = ("DPO", "rerank")


# -- data ---------------------------------------------------------------------------------------------------------------


def gold_pairs(split: str, size: int, seed: int, noise: float) -> list[dict[str, str]]:
    """Pairs in the order of the exact reward, ties left out, a share of them flipped."""
    rng, flips = random.Random(f"noise-{split}-{seed}"), random.Random(f"flip-{split}-{seed}")
    found: list[dict[str, str]] = []
    while len(found) < size:
        pair = sample_comparison(rng, "train", AnnotatingSettings())
        prompt, better, worse = pair.request.text(), pair.chosen.text(), pair.rejected.text()
        gap = judge(prompt, better).reward - judge(prompt, worse).reward
        if gap == 0:
            continue
        if (gap < 0) != (flips.random() < noise):
            better, worse = worse, better
        found.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return found


def pairs_of(seed: int, noise: float) -> Path:
    """The folder with a seed's train, validation and test pairs and, in `reward`, the probes fitted on them."""
    folder = WORK / f"data-{seed}-{noise:g}"
    for split, size in (("train", N_TRAIN), ("validation", N_VALIDATION), ("test", N_VALIDATION)):
        path = folder / "pairs" / f"{split}.jsonl"
        if not path.is_file():
            rows = gold_pairs(split, size, seed, noise)
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def prepare(seed: int, noise: float) -> None:
    """Fit the probes of a seed, once."""
    folder = pairs_of(seed, noise)
    if not (folder / "reward" / "model.safetensors").is_file():
        words = ["--model_name_or_path", MODEL, "--dataset_name", str(folder / "pairs"), "--use_cpu", "true"]
        status = frugalign(
            ["reward", *words, "--output_dir", str(folder / "reward"), "--cache_dir", str(WORK / "states")]
        )
        if status:
            raise SystemExit(status)


def read(folder: Path, split: str) -> list[dict[str, str]]:
    """Rows of one split."""
    return [json.loads(line) for line in (folder / "pairs" / f"{split}.jsonl").read_text().splitlines()]


# -- one cell -----------------------------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """Every so many steps: accuracy of the implicit reward on noisy validation pairs and, where `judged`, gold and KL on unseen prompts."""

    def __init__(self, rows: list[dict[str, str]], loaded: Any, judged: bool) -> None:
        self.tokenizer, self.judged, self.seconds = loaded.tokenizer, judged, 0.0
        self.sides = [
            exchanges_for(loaded.model, loaded.tokenizer, [row["prompt"] for row in rows], [row[side] for row in rows])
            for side in ("chosen", "rejected")
        ]
        self.reference = self._log_probs(loaded.model)
        self.prompts = [str(row["prompt"]) for row in make_prompts("test", N_TEST, TEST_SEED)]
        self.points: list[dict[str, float]] = []
        if judged:
            self.points.append({"step": 0, "kl": 0.0} | self._judge(loaded.model, None))

    def _log_probs(self, model: Any) -> torch.Tensor:
        parts = [sequence_log_probs(model, side.prompt_ids, side.completion_ids, batch_size=64) for side in self.sides]
        return torch.tensor([[float(row.sum()) for row in part] for part in parts])

    def _judge(self, model: Any, policy: Any) -> dict[str, float]:
        ids = encode_prompts(self.prompts, self.tokenizer, max_new_tokens=64).ids
        keys = row_keys(TEST_SEED, 0, range(len(ids)), [0] * len(ids))
        found = generate(model, self.tokenizer, ids, SamplingParams(64), keys=keys, batch_size=125)
        texts = self.tokenizer.batch_decode(found.completion_ids, skip_special_tokens=True)
        scores = sandbox_metrics(self.prompts, texts)
        if policy is not None:
            each = sequence_kl(
                policy,
                policy,
                ids,
                found.completion_ids,
                temperature=1.0,
                batch_size=64,
                base_context=policy.disable_adapter,
            )
            scores["kl"] = float(each.mean())
        return scores

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % EVERY and state.global_step != state.max_steps:
            return
        started = time.perf_counter()
        model.eval()
        delta = self._log_probs(model) - self.reference
        point = {"step": float(state.global_step), "accuracy": float((delta[0] > delta[1]).float().mean())}
        if self.judged:
            point |= self._judge(model, model)
        model.train()
        self.points.append(point)
        self.seconds += time.perf_counter() - started


def run_cell(cell: dict[str, Any]) -> None:
    """Train one method with one setting and seed; leaves `cell.json`."""
    torch.set_num_threads(1)
    name, seed, noise = cell["method"], cell["seed"], cell["noise"]
    folder = cell_folder(cell)
    if (folder / "cell.json").is_file():
        return
    data, options = pairs_of(seed, noise), dict(METHODS[name])
    rows = read(data, "train")
    loaded = load_model(MODEL)
    loaded.model.requires_grad_(False)
    watch = Watch(read(data, "validation"), loaded, cell["judged"])
    ledger = Ledger()
    common: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": cell["learning_rate"],
        "beta": cell["beta"],
        "seed": seed,
        "logging_steps": EVERY,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    started = time.perf_counter()
    if "loss_type" in options:
        trainer = stock_trainer(loaded, rows, common | options, [watch])
    else:
        common |= {
            "overwrite_output_dir": True,
            "save_strategy": "no",
            "max_new_tokens": 64,
            "sampling_batch_size": 125,
        }
        trainer = our_trainer(name, loaded, rows, options, common, data / "reward", watch, ledger)
    trainer.train()
    seconds = time.perf_counter() - started - watch.seconds
    costs = {"seconds": seconds, "generated_tokens": ledger.generated_tokens, "phases": ledger.seconds}
    write_json_atomic(folder / "cell.json", cell | {"points": watch.points, "cost": costs})


def our_trainer(
    name: str,
    loaded: Any,
    rows: list[dict[str, str]],
    options: dict[str, Any],
    common: dict[str, Any],
    reward: Path,
    watch: Watch,
    ledger: Ledger,
) -> RerankTrainer:
    """`RerankTrainer` on stored pairs, on pairs relabelled by the probes, or on responses sampled from the model."""
    probes = load_probes(reward)
    relabel = options.pop("relabel", False)
    args = RerankConfig(model_name_or_path=MODEL, **common, **options)
    train: Dataset | Groups
    if name in SAMPLED:
        prompts = list(dict.fromkeys(row["prompt"] for row in rows))[:PROMPTS]
        with ledger.phase("rollout"):
            params = SamplingParams(64)
            train = sample_groups(
                loaded.model, loaded.tokenizer, prompts, GROUP, params, seed=args.seed, batch_size=125, ledger=ledger
            )
    elif relabel:
        groups = Groups([row["prompt"] for row in rows], [[row["chosen"], row["rejected"]] for row in rows])
        ranked = rank_groups(groups, loaded.model, loaded.tokenizer, probes, args, ledger)
        turned = [pair[0] < pair[1] for pair in ranked.rewards or []]
        sides = [("rejected", "chosen") if turn else ("chosen", "rejected") for turn in turned]
        train = Dataset.from_list(
            [
                {"prompt": row["prompt"], "chosen": row[better], "rejected": row[worse]}
                for row, (better, worse) in zip(rows, sides, strict=True)
            ]
        )
    else:
        train = Dataset.from_list(rows)
    return RerankTrainer(
        loaded.model, probes, args, train, processing_class=loaded.tokenizer, callbacks=[watch], ledger=ledger
    )


def stock_trainer(loaded: Any, rows: list[dict[str, str]], options: dict[str, Any], callbacks: list[Any]) -> Any:
    """TRL's own `DPOTrainer` with one of its other losses, on the same tokens and LoRA."""
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    class Quiet(DPOTrainer):
        def _send_telemetry(self) -> None:
            """Nothing is sent."""

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    data = [
        {
            "prompt": turn("user", row["prompt"]),
            "chosen": turn("assistant", row["chosen"]),
            "rejected": turn("assistant", row["rejected"]),
        }
        for row in rows
    ]
    args = DPOConfig(bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", **options)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Quiet(
        loaded.model, args=args, train_dataset=Dataset.from_list(data), processing_class=loaded.tokenizer,
        peft_config=lora, callbacks=callbacks,
    )  # fmt: skip
    ours = exchanges_for(loaded.model, loaded.tokenizer, [rows[0]["prompt"]], [rows[0]["chosen"]])
    first: Any = trainer.train_dataset[0]
    if [first["prompt_ids"], first["chosen_ids"]] != [ours.prompt_ids[0], ours.completion_ids[0]]:
        raise SystemExit(f"TRL's tokens are others: {first} against {ours}")
    return trainer


# -- all cells ----------------------------------------------------------------------------------------------------------


def cell_folder(cell: dict[str, Any]) -> Path:
    """Where a cell's result is."""
    kind = "judged" if cell["judged"] else "choosing"
    name = cell["method"].replace(" + ", "-").replace(", ", "-").replace(" ", "-")
    return WORK / kind / f"{name}-{cell['noise']:g}-{cell['learning_rate']:g}-{cell['beta']:g}-{cell['seed']}"


def result_of(cell: dict[str, Any]) -> dict[str, Any]:
    """The finished cell."""
    return result_in(cell_folder(cell))


def make_cell(method: str, noise: float, setting: tuple[float, float], seed: int, judged: bool) -> dict[str, Any]:
    """A method with a setting and a seed."""
    rate, beta = setting
    return {"method": method, "noise": noise, "learning_rate": rate, "beta": beta, "seed": seed, "judged": judged}


def run_all(cells: list[dict[str, Any]], jobs: int) -> None:
    """Run what is not finished yet."""
    run_cells(cells, cell_folder, run_cell, jobs)


def best_point(points: list[dict[str, float]]) -> dict[str, float]:
    """The point with the highest accuracy on noisy validation pairs, the earliest of equals."""
    return max(
        (point for point in points if "accuracy" in point), key=lambda point: (point["accuracy"], -point["step"])
    )


def choose(method: str, noise: float) -> tuple[float, float]:
    """The setting whose best validation point is the most accurate."""
    found = [result_of(make_cell(method, noise, setting, CHOOSING_SEED, False)) for setting in GRID]
    return GRID[max(range(len(GRID)), key=lambda place: best_point(found[place]["points"])["accuracy"])]


def at_kl(points: list[dict[str, float]], kl: float, measure: str) -> tuple[float, bool]:
    """A measure where the training last crosses a KL, by linear interpolation; whether it does (else the measure of the point nearest to it).

    The last, as the KL of a decaying learning rate comes down again, and a policy that has been trained longer is the better one there.
    """
    for before, after in reversed(list(itertools.pairwise(points))):
        low, high = sorted((before, after), key=lambda point: point["kl"])
        if low["kl"] <= kl <= high["kl"]:
            share = (kl - low["kl"]) / max(high["kl"] - low["kl"], 1e-12)
            return low[measure] + share * (high[measure] - low[measure]), True
    return min(points, key=lambda point: abs(point["kl"] - kl))[measure], False


def interval(values: list[float]) -> dict[str, float]:
    """Mean and 95 % t-interval over seeds."""
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.mean(values)
    return {"mean": mean, "low": mean - half, "high": mean + half}


MEASURES = ("gold", "forbidden_served", "over_refusal", "right_remedy", "rude", "well_formed")


def compare(methods: tuple[str, ...], noise: float, settings: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Every method at the KL of DPO's best validation point, seed by seed, and its difference to DPO."""
    runs = {
        method: [result_of(make_cell(method, noise, settings[method], seed, True)) for seed in SEEDS]
        for method in methods
    }
    marks = [best_point(run["points"])["kl"] for run in runs["DPO"]]
    found: dict[str, Any] = {"kl": marks}
    read: dict[str, dict[str, list[float]]] = {}
    for method, each in runs.items():
        read[method] = {
            measure: [at_kl(run["points"], kl, measure)[0] for run, kl in zip(each, marks, strict=True)]
            for measure in MEASURES
        }
        reached = [at_kl(run["points"], kl, "gold")[1] for run, kl in zip(each, marks, strict=True)]
        fixed = [at_kl(run["points"], FIXED_KL, "gold") for run in each]
        own = [best_point(run["points"]) for run in each]
        found[method] = {
            "setting": settings[method],
            **{measure: interval(values) for measure, values in read[method].items()},
            "difference_to_DPO": interval(
                [a - b for a, b in zip(read[method]["gold"], read["DPO"]["gold"], strict=True)]
            ),
            "seeds_that_reach_the_kl": sum(reached),
            "at_fixed_kl": {
                "seeds_that_reach_it": sum(there for _, there in fixed),
                "difference_to_DPO": interval(
                    [
                        gold - at_kl(run["points"], FIXED_KL, "gold")[0]
                        for (gold, _), run in zip(fixed, runs["DPO"], strict=True)
                    ]
                ),
            },
            "well_formed_at_the_end": [run["points"][-1]["well_formed"] for run in each],
            "kl_at_the_end": [run["points"][-1]["kl"] for run in each],
            "own_best_point": {
                key: statistics.mean(point[key] for point in own) for key in ("accuracy", "kl", *MEASURES)
            },
            "seconds": statistics.median(run["cost"]["seconds"] for run in each),
            "generated_tokens": statistics.median(run["cost"]["generated_tokens"] for run in each),
            "points": [run["points"] for run in each],
        }
    found["base"] = {measure: runs["DPO"][0]["points"][0][measure] for measure in MEASURES}
    online = "online DPO"
    if online in read:
        for method in methods:
            found[method]["difference_to_online_DPO"] = interval(
                [a - b for a, b in zip(read[method]["gold"], read[online]["gold"], strict=True)]
            )
    return found


def main() -> None:
    """Choose, run, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--variants", action="store_true", help="also: " + "; ".join(VARIANTS))
    asked = parser.parse_args()
    jobs: int = asked.jobs
    for seed in (CHOOSING_SEED, *SEEDS):
        for noise in (NOISE, 0.0):
            prepare(seed, noise)
    first = [(method, NOISE) for method in METHODS if method not in VARIANTS] + [(method, 0.0) for method in CLEAN]
    wanted: list[tuple[str, float]] = []
    for part in [first] + [[(method, NOISE) for method in VARIANTS]] * asked.variants:
        wanted += part
        run_all([make_cell(*each, setting, CHOOSING_SEED, False) for each in wanted for setting in GRID], jobs)
        chosen = {each: choose(*each) for each in wanted}
        print(chosen, flush=True)
        run_all([make_cell(*each, chosen[each], seed, True) for seed in SEEDS for each in wanted], jobs)
        write_result(chosen, jobs)


def write_result(chosen: dict[tuple[str, float], tuple[float, float]], jobs: int) -> None:
    """Compare what has run, write and print."""
    probes = [
        json.loads((pairs_of(seed, NOISE) / "reward" / "reward_report.json").read_text())["test"]["accuracy"]["mean"]
        for seed in SEEDS
    ]
    there = tuple(method for method in METHODS if (method, NOISE) in chosen)
    noisy = compare(there, NOISE, {method: chosen[method, NOISE] for method in there})
    clean = compare(CLEAN, 0.0, {method: chosen[method, 0.0] for method in CLEAN})
    write_json_atomic(
        RESULT,
        {
            "command": "python -m benchmarks.label_noise",
            "machine": f"{platform.machine()}, 1 thread a run, {jobs} runs at a time, torch {torch.__version__}",
            "noise": NOISE,
            "probe_accuracy_on_noisy_pairs": probes,
            "noisy": noisy,
            "clean": clean,
        },
    )

    def show(found: dict[str, float]) -> str:
        return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"

    for title, part in (("25 % flipped", noisy), ("clean", clean)):
        print(title, "KL", [round(kl, 2) for kl in part["kl"]])
        for method, row in part.items():
            if method not in ("kl", "base"):
                print(f"{method:32}", show(row["gold"]), "to DPO", show(row["difference_to_DPO"]), row["setting"])


if __name__ == "__main__":
    main()
