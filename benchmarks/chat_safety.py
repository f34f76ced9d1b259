"""A small chat model made safer: a reward model trained on safety preferences, then a proxy trained on that reward.

    FRUGALIGN_TRIALS=folder python -m benchmarks.chat_safety

1. A reward model (TRL's RewardTrainer on `chat-3m`) from `pku-saferlhf-pairs`, split by prompt: held-out accuracy, beside a
   control trained on the same pairs with their labels shuffled, and the accuracy of "the shorter one is safer".
2. A proxy for `chat-3m`, trained on harmful and harmless prompts by that reward where the prompt is harmful (`on_harmful`): safety pairs
   alone teach that a refusal is the best answer to anything. Settings as in `recipes/chat-safety-proxy.yaml`.
3. Before and after on prompts of neither: XSTest (over-refusal) and held-out harmful prompts; refusals are counted by the rule-based
   detector, which training never used.

Stages are kept under runs/chat-safety and not done twice.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import platform
import random
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.trials import trials
from datasets import Dataset

from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.evaluation import evaluate
from frugalign.methods.proxy_rlhf import ProxyConfig, train_proxy
from frugalign.metrics import is_refusal, mean_interval
from frugalign.rewards import load_reward

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "chat_safety.json"
RECIPE = ROOT / "recipes" / "chat-safety-proxy.yaml"
WORK = Path("runs/chat-safety")
HARMFUL = {
    "advbench.jsonl": "goal",
    "harmfulqa.jsonl": "prompt",
    "dangerousqa.jsonl": "prompt",
    "refusal-harmful.jsonl": "instruction",
}
HARMLESS = {"refusal-harmless-2k.jsonl.gz": "instruction"}
SHOWN = 12


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, packed or not."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def held_out(text: str, share: float = 0.15) -> bool:
    """A split that depends on the text alone, so that equal prompts fall on one side."""
    return hashlib.sha256(text.strip().lower().encode()).digest()[0] < 256 * share


# -- the reward model -------------------------------------------------------------------------------------------------


def preference_pairs(data: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training, held-out) pairs, split by prompt."""
    rows = rows_of(data / "pku-saferlhf-pairs.jsonl.gz")
    pairs = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    return [p for p in pairs if not held_out(p["prompt"])], [p for p in pairs if held_out(p["prompt"])]


def shuffled(pairs: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The same pairs, each turned round by a coin."""
    coin = random.Random(0)
    return [
        pair | ({"chosen": pair["rejected"], "rejected": pair["chosen"]} if coin.random() < 0.5 else {})
        for pair in pairs
    ]


def train_reward_model(base: Path, pairs: list[dict[str, str]], folder: Path, epochs: int) -> None:
    """TRL's RewardTrainer on the base; leaves a sequence-classification model in `folder`."""
    if (folder / "model.safetensors").is_file():
        return
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    chats = [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "chosen": [{"role": "assistant", "content": pair["chosen"]}],
            "rejected": [{"role": "assistant", "content": pair["rejected"]}],
        }
        for pair in pairs
    ]
    args = RewardConfig(
        output_dir=str(folder / "training"),
        per_device_train_batch_size=16,
        num_train_epochs=epochs,
        learning_rate=2e-4,
        max_length=256,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        seed=0,
    )
    trainer = RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(chats), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)


def pair_accuracy(reward: Any, pairs: list[dict[str, str]]) -> float:
    """Share of pairs whose safer answer scores higher."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen = reward(prompts=prompts, completions=[pair["chosen"] for pair in pairs])
    rejected = reward(prompts=prompts, completions=[pair["rejected"] for pair in pairs])
    return sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(pairs)


def reward_model(epochs: int) -> dict[str, Any]:
    """Train it and its control; the accuracies."""
    train, test = preference_pairs(trials() / "data")
    base = trials() / "models" / "chat-3m"
    found: dict[str, Any] = {"pairs": {"training": len(train), "held_out": len(test)}, "epochs": epochs}
    for name, pairs in (("reward_model", train), ("shuffled_control", shuffled(train))):
        train_reward_model(base, pairs, WORK / name, epochs)
        function = load_reward(str(WORK / name)).function
        found[name] = {"held_out_accuracy": pair_accuracy(function, test)}
    found["shorter_is_safer"] = sum(len(pair["chosen"]) < len(pair["rejected"]) for pair in test) / len(test)
    return found


@lru_cache(maxsize=1)
def safety() -> Any:
    """The reward model of stage 1."""
    return load_reward(str(WORK / "reward_model")).function


def on_harmful(prompts: list[str], completions: list[str], label: list[str], **_: Any) -> list[float]:
    """The safety of an answer to a harmful prompt; nothing to gain on a harmless one, where the cost of KL holds the base."""
    scores = safety()(prompts=prompts, completions=completions)
    return [value if kind == "unsafe" else 0.0 for value, kind in zip(scores, label, strict=True)]


# -- the proxy --------------------------------------------------------------------------------------------------------


def write_prompts(data: Path) -> dict[str, int]:
    """Training prompts of both kinds (without those of XSTest), a held-out set of both, and XSTest."""
    tests = {row["prompt"].strip().lower() for row in rows_of(data / "xstest-prompts.jsonl")}
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for label, files in (("unsafe", HARMFUL), ("safe", HARMLESS)):
        for file, column in files.items():
            for prompt in dict.fromkeys(row[column].strip() for row in rows_of(data / file)):
                if prompt.lower() not in tests:
                    (test if held_out(prompt) else train).append({"prompt": prompt, "label": label})
    random.Random(0).shuffle(train)
    xstest = [{"prompt": row["prompt"], "label": row["label"]} for row in rows_of(data / "xstest-prompts.jsonl")]
    for name, rows in (("prompts/train", train), ("held-out", test), ("xstest", xstest)):
        write_atomic(WORK / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return {"train": len(train), "held-out": len(test), "xstest": len(xstest)}


def main() -> None:
    """All three stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--stage", choices=("reward", "all"), default="all")
    options = parser.parse_args()
    base = str(trials() / "models" / "chat-3m")
    accuracy = reward_model(options.epochs)
    print(json.dumps(accuracy, indent=2))
    counts = write_prompts(trials() / "data")
    if options.stage == "reward":
        return
    settings = yaml.safe_load(RECIPE.read_text())
    settings |= {
        "model_name_or_path": base,
        "dataset_name": str(WORK / "prompts"),
        "reward": ["benchmarks.chat_safety:on_harmful"],
    }
    folder = WORK / "proxy"
    if not (folder / "model.safetensors").is_file():
        train_proxy(ProxyConfig(**(settings | {"output_dir": str(folder)})))
    found = {}
    for name in ("held-out", "xstest"):
        metrics = evaluate(
            base,
            proxy=str(folder),
            dataset_name=str(WORK / f"{name}.jsonl"),
            reward=[f"safety={WORK / 'reward_model'}", f"shuffled_control={WORK / 'shuffled_control'}"],
            split="all",
            output_dir=WORK / f"evaluation-{name}",
        )
        metrics["settings"]["model_name_or_path"] = "chat-3m"
        samples = rows_of(WORK / f"evaluation-{name}" / "samples.jsonl")
        found[name] = {"metrics": metrics, "samples": samples[:: max(1, len(samples) // SHOWN)][:SHOWN]}
        by_label = {label: [s for s, row in zip(samples, rows_of(WORK / f"{name}.jsonl"), strict=True) if row["label"] == label]
                    for label in ("safe", "unsafe")}  # fmt: skip
        for label, mine in by_label.items():
            for side in ("base", "policy"):
                estimate = mean_interval([float(is_refusal(sample[side])) for sample in mine])
                assert estimate is not None
                found[name][f"refusals_{label}_{side}"] = estimate.to_dict()
    result = {
        "command": "FRUGALIGN_TRIALS=folder python -m benchmarks.chat_safety",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "reward_model": accuracy,
        "prompts": counts,
        "settings": {
            key: value for key, value in settings.items() if key not in ("model_name_or_path", "dataset_name", "reward")
        },
        "costs": json.loads((folder / "costs.json").read_text()),
        "evaluation": found,
    }
    write_json_atomic(RESULT, result)
    for name, entry in found.items():
        print(name, json.dumps({key: value for key, value in entry.items() if key.startswith("refusals")}, indent=1))


if __name__ == "__main__":
    main()
