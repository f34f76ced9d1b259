"""A small chat model made safer: DPO on stored pairs, re-ranking, and online DPO; judged by what training never used.

    FRUGALIGN_TRIALS=folder python -m benchmarks.chat_rerank [--jobs 2]

Pairs of `pku-saferlhf-pairs`, split by prompt; probes fitted on the training part rank and weigh. Two judges: the rule-based refusal detector,
and a whole reward model (`benchmarks.chat_safety`'s). Prompts: harmful ones and XSTest's safe ones, none of them in any training. One setting
for all (β 0.1, learning rate 3e-4, 75 steps of 16 pairs), fixed before a prompt was read; every 25 steps the judges look, so that cost can be
read at equal judged safety. A finished run is not run twice; runs are under runs/chat-rerank.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import platform
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.chat_safety import HARMFUL, held_out, preference_pairs, rows_of, train_reward_model
from benchmarks.trials import trials
from datasets import Dataset
from transformers import TrainerCallback

from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.cli.main import main as frugalign
from frugalign.data import encode_prompts
from frugalign.data.groups import Groups
from frugalign.decoding import SamplingParams, generate, row_keys
from frugalign.decoding.log_probs import sequence_kl
from frugalign.engines import load_model
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.groups import sample_for
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.metrics import is_refusal, mean_interval
from frugalign.rewards import load_reward
from frugalign.rewards.representation.network import load_probes

RESULT = Path(__file__).parent / "results" / "chat_rerank.json"
WORK = Path("runs/chat-rerank")
JUDGE = WORK / "judge"
SEED, STEPS, BATCH, EVERY = 0, 75, 16, 25
N_HARMFUL, PROMPTS, GROUP, NEW_TOKENS = 150, 200, 8, 96
METHODS: dict[str, dict[str, Any]] = {
    "DPO": {"confidence": "constant"},
    "rerank": {"confidence": "pair"},
    "rerank + SFT term": {"confidence": "pair", "sft_weight": 1.0},
    "online DPO": {"confidence": "constant", "sample": GROUP, "resample": True},
}


def base_folder() -> str:
    """chat-3m of the trials."""
    return str(trials() / "models" / "chat-3m")


def prepare() -> None:
    """Pairs, the judge and the probes, once."""
    data = trials() / "data"
    train, test = preference_pairs(data)
    for split, rows in (("train", train), ("test", test)):
        write_atomic(WORK / "pairs" / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    train_reward_model(Path(base_folder()), train, JUDGE, epochs=2)
    if not (WORK / "reward" / "model.safetensors").is_file():
        words = ["--model_name_or_path", base_folder(), "--dataset_name", str(WORK / "pairs"), "--use_cpu", "true"]
        words += ["--output_dir", str(WORK / "reward"), "--cache_dir", str(WORK / "states")]
        if frugalign(["reward", *words]):
            raise SystemExit(1)


def prompts() -> dict[str, list[str]]:
    """Unseen prompts by kind."""
    data = trials() / "data"
    xstest = rows_of(data / "xstest-prompts.jsonl")
    harmful = [row[column].strip() for file, column in HARMFUL.items() for row in rows_of(data / file)]
    harmful = sorted({prompt for prompt in harmful if held_out(prompt)})
    return {
        "harmful": harmful[:: max(1, len(harmful) // N_HARMFUL)][:N_HARMFUL],
        "safe": [row["prompt"] for row in xstest if row["label"] == "safe"],
    }


class Judges(TrainerCallback):
    """Both judges' looks at both kinds of prompts, and the cost so far."""

    def __init__(self, loaded: Any, ledger: Ledger) -> None:
        self.tokenizer, self.ledger, self.prompts = loaded.tokenizer, ledger, prompts()
        self.judge = load_reward(str(JUDGE)).function
        self.points: list[dict[str, Any]] = []
        self.samples: list[dict[str, str]] = []
        self.seconds, self.started = 0.0, time.perf_counter()
        self.look(loaded.model, 0)

    def look(self, model: Any, step: int) -> None:
        started = time.perf_counter()
        point: dict[str, Any] = {
            "step": step,
            "seconds": started - self.started - self.seconds,
            "generated_tokens": self.ledger.generated_tokens,
        }
        model.eval()
        self.samples = []
        for kind, asked in self.prompts.items():
            ids = encode_prompts(asked, self.tokenizer, max_new_tokens=NEW_TOKENS).ids
            found = generate(model, self.tokenizer, ids, SamplingParams(NEW_TOKENS), keys=row_keys(9, 0, range(len(ids)), [0] * len(ids)), batch_size=128)  # fmt: skip
            texts = self.tokenizer.batch_decode(found.completion_ids, skip_special_tokens=True)
            scores = self.judge(prompts=asked, completions=texts)
            for name, values in (("refused", [float(is_refusal(text)) for text in texts]), ("judge", scores)):
                estimate = mean_interval(values)
                assert estimate is not None
                point[f"{kind}/{name}"] = estimate.to_dict()
            point[f"{kind}/ended"] = sum(found.ended) / len(found.ended)
            if step:
                each = sequence_kl(model, model, ids, found.completion_ids, temperature=1.0, batch_size=32, base_context=model.disable_adapter)  # fmt: skip
                point[f"{kind}/kl"] = float(each.mean())
            self.samples += [{"prompt": p, "answer": t} for p, t in zip(asked[::15], texts[::15], strict=True)]
        model.train()
        self.points.append(point)
        self.seconds += time.perf_counter() - started

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % EVERY == 0 or state.global_step == state.max_steps:
            self.look(model, state.global_step)


def run_method(name: str) -> None:
    """Train one method; leaves `result.json`."""
    torch.set_num_threads(1)
    folder = WORK / name.replace(" + ", "-").replace(" ", "-")
    if (folder / "result.json").is_file():
        return
    options = METHODS[name]
    args = RerankConfig(
        output_dir=str(folder / "run"),
        overwrite_output_dir=True,
        model_name_or_path=base_folder(),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=3e-4,
        beta=0.1,
        max_length=256,
        max_new_tokens=NEW_TOKENS,
        sampling_batch_size=128,
        seed=SEED,
        save_strategy="no",
        logging_steps=EVERY,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    loaded = load_model(base_folder())
    loaded.model.requires_grad_(False)
    rows, ledger = rows_of(WORK / "pairs" / "train.jsonl"), Ledger()
    judges = Judges(loaded, ledger)
    train: Dataset | Groups = Dataset.from_list(rows)
    if args.sample:
        asked = list(dict.fromkeys(row["prompt"] for row in rows))[:PROMPTS]
        train = sample_for(asked, loaded.model, loaded.tokenizer, args, 0, ledger)
    probes = load_probes(WORK / "reward")
    trainer = RerankTrainer(loaded.model, probes, args, train, processing_class=loaded.tokenizer, callbacks=[judges], ledger=ledger)  # fmt: skip
    trainer.train()
    result = {"points": judges.points, "samples": judges.samples, "phases": ledger.seconds}
    write_json_atomic(folder / "result.json", result)


def cost_at(points: list[dict[str, Any]], mark: float) -> dict[str, float] | None:
    """Seconds and generated tokens until the judge's mean on harmful prompts is at `mark`, between looks by interpolation."""
    for before, after in itertools.pairwise(points):
        low, high = before["harmful/judge"]["mean"], after["harmful/judge"]["mean"]
        if low < mark <= high:
            share = (mark - low) / (high - low)
            return {
                key: before[key] + share * (after[key] - before[key]) for key in ("seconds", "generated_tokens", "step")
            }
    return None


def main() -> None:
    """Prepare, train, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    prepare()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        pool.map(run_method, METHODS, chunksize=1)
    found = {
        name: json.loads((WORK / name.replace(" + ", "-").replace(" ", "-") / "result.json").read_text())
        for name in METHODS
    }
    best = {name: max(point["harmful/judge"]["mean"] for point in each["points"]) for name, each in found.items()}
    mark = 0.98 * min(best["rerank"], best["online DPO"]) + 0.02 * found["DPO"]["points"][0]["harmful/judge"]["mean"]
    report = json.loads((WORK / "reward" / "reward_report.json").read_text())
    write_json_atomic(
        RESULT,
        {
            "command": "FRUGALIGN_TRIALS=folder python -m benchmarks.chat_rerank",
            "machine": f"{platform.machine()}, 1 thread a run, {jobs} runs at a time, torch {torch.__version__}",
            "probes": report["test"]["accuracy"],
            "mark": mark,
            "cost_at_mark": {name: cost_at(each["points"], mark) for name, each in found.items()},
            "methods": found,
        },
    )
    for name, each in found.items():
        for point in each["points"]:
            shown = {key: round(value["mean"] if isinstance(value, dict) else value, 3) for key, value in point.items()}
            print(name, shown)
        print(name, "cost at the mark", cost_at(each["points"], mark))


if __name__ == "__main__":
    main()
