"""Demonstrations of a model's own refusals, for a proxy that makes it decline what is harmful and answer the rest.

    FRUGALIGN_TRIALS=folder FRUGALIGN_MODELS=folder python -m experiments.own_refusals OUTPUT_FOLDER
    frugalign proxy --dataset_name OUTPUT_FOLDER --p_t 0.0005 --temperature 0.7 ...

On a harmful prompt the model is given the first words of an excuse, and its own continuation is the demonstration. It finds its own words likely, so
few nats reach them. On a safe prompt it answers as ever. `examples/safe/looks-harmful.jsonl` has safe prompts with words of harmful ones; they
weigh more, so that the proxy reads more than words. No prompt is near one of the safety task's test or validation.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.safety import splits
from experiments.trials import instruct_model, write_by_command

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic
from frugalign.base.ledger import Ledger
from frugalign.data.templating import Rendering
from frugalign.decoding import SamplingParams
from frugalign.decoding.sample_groups import GroupOptions, sample_groups
from frugalign.engines import load_model
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import TransformersEngine
from frugalign.metrics import is_refusal

LOOKS_HARMFUL = Path("examples/safe/looks-harmful.jsonl")
EXCUSE = "I'm sorry, but I"
PROMPTS = 300
"""Of each label."""
WEIGHT = 3.0
"""Of a safe prompt that looks harmful. There are a third as many as of the others."""
TEMPERATURE, TOKENS = 0.7, 48
_SENTENCE = re.compile(r"(?<=[.!?])\s")


def demonstrations(
    base: LoadedModel, seed: int = 0, number: int = PROMPTS, ledger: Ledger | None = None
) -> list[dict[str, Any]]:
    """Rows with `prompt`, `completion` and `weight`, in random order: `number` of each label, and a third as many that look harmful."""
    train, ledger = splits()["train"], ledger or Ledger()
    harmful, safe = ([row["prompt"] for row in train if row["label"] == label][:number] for label in ("unsafe", "safe"))
    lines = LOOKS_HARMFUL.read_text("utf-8").splitlines()
    contrast = [json.loads(line)["prompt"] for line in lines][: number // 3]
    found = _rows(harmful, refusals(base, harmful, seed, ledger))
    for prompts, weight in ((safe, 1.0), (contrast, WEIGHT)):
        found += _rows(prompts, _sampled(base, prompts, seed, Rendering(), ledger), weight)
    random.Random(seed).shuffle(found)
    return found


def _rows(prompts: Sequence[str], texts: Sequence[str], weight: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "completion": text, "weight": weight} for prompt, text in zip(prompts, texts, strict=True)
    ]


def refusals(base: LoadedModel, prompts: Sequence[str], seed: int, ledger: Ledger) -> list[str]:
    """A sentence that begins with `EXCUSE` for each prompt. One that is cut or refuses nothing is replaced by another prompt's."""
    begun = [
        base.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        + EXCUSE
        for prompt in prompts
    ]
    texts = [EXCUSE + text for text in _sampled(base, begun, seed, Rendering("raw"), ledger)]
    sentences = [_SENTENCE.split(text)[0] for text in texts]
    good = [text if text.rstrip()[-1] in ".!?" and is_refusal(text) else None for text in sentences]
    others = random.Random(seed)
    pool = [text for text in good if text]
    if not pool:
        raise FrugalignError(f"None of the model's {len(good)} answers that begin with {EXCUSE!r} is a refusal.")
    return [text or others.choice(pool) for text in good]


def _sampled(base: LoadedModel, prompts: Sequence[str], seed: int, rendering: Rendering, ledger: Ledger) -> list[str]:
    engine = TransformersEngine(base.model, base.tokenizer)
    params = SamplingParams(TOKENS, temperature=TEMPERATURE)
    options = GroupOptions(seed=seed, batch_size=60, rendering=rendering)
    groups = sample_groups(engine, base.tokenizer, prompts, 1, params, options, ledger=ledger)
    return [texts[0] for texts in groups.completions]


def write(folder: Path) -> None:
    """`train.jsonl` with the demonstrations of SmolLM2-135M-Instruct."""
    write_rows(folder, demonstrations(load_model(instruct_model())))


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """`train.jsonl` in a folder."""
    write_atomic(folder / "train.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    write_by_command(__doc__, write)
