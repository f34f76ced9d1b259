"""Not a test: a tiny base as one process has it, and as two that hold it together; what each of them reads, returned as plain values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from tests.two_layers import two_layers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from frugalign import sandbox
from frugalign.base.ledger import Ledger
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.decoding.loop import LoopOptions, SamplingParams, generate
from frugalign.decoding.noise import row_keys
from frugalign.engines.fingerprints import fingerprint, weights_hash
from frugalign.engines.loading import load_model
from frugalign.engines.sharding import gathered, meet, replica
from frugalign.engines.states import endpoint_states
from frugalign.engines.transformers import TransformersEngine, base_parameters, embedding_rows
from frugalign.evaluation import evaluate
from frugalign.evaluation.settings import EvaluationSettings
from frugalign.policies.spec import PolicySpec
from frugalign.proxy.network import new_proxy
from frugalign.runs.processes import gather_rows, local_rows, share_counts

PROMPTS = ["Keeper!", "Good day. I seek a balm.", "Quick, a poison.", "I ask", "Tell me of the draught, please."]


def untied(folder: Path) -> str:
    """A Llama with grouped heads and a head of its own, whose vocabulary no two processes share evenly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=259,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(sandbox.model).save_pretrained(folder)
    return str(folder)


def read(name: str, **sizes: Any) -> dict[str, Any]:
    """What the library reads of a base: by all processes together, whose rows are of different number and length."""
    loaded = load_model(name, **sizes)
    model, tokenizer = loaded.model, loaded.tokenizer
    about = fingerprint(model, tokenizer, name=name)
    rows = embedding_rows(model)
    mine = local_rows(len(PROMPTS))
    prompts = [list(tokenizer(PROMPTS[row])["input_ids"]) for row in mine]
    ledger = Ledger()
    engine = TransformersEngine(model, tokenizer)
    keys = row_keys(0, 0, mine, [0] * len(mine))
    params = SamplingParams(24)
    # A row at a time: the processes make passes of different number. One has more rows, and answers end where they end.
    found = generate(engine, prompts, params, keys=keys, options=LoopOptions(batch_size=1), ledger=ledger)
    states = endpoint_states(model, prompts, [0, 1, 2], max_tokens=16, ledger=ledger)
    answers = [ids or [1] for ids in found.completion_ids]
    scored = sequence_log_probs(model, prompts, answers, batch_size=1, ledger=ledger)
    share_counts(ledger)
    found_of_mine = zip(mine, found.completion_ids, states.tolist(), [each.tolist() for each in scored], strict=True)
    shards = {name: list(gathered(value).shape) for name, value in model.named_parameters()}
    meet()
    return {
        "fingerprint": about.to_dict(),
        "again": fingerprint(model, tokenizer, name=name).to_dict(),
        "hash": weights_hash(model),
        "rows": rows.tolist(),
        "proxy": new_proxy(model, {}).num_parameters(),
        "parameters": base_parameters(model),
        "shapes": shards,
        "read": [row[1:] for row in gather_rows(list(found_of_mine))],
        "counts": ledger.counts(),
        "mine": mine,
        "replica": replica().index,
        "weights_id": engine.weights_id() != "",
    }


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def measured(folder: Path, **sizes: Any) -> dict[str, Any]:
    spec = PolicySpec(two_layers(), **sizes)
    settings = EvaluationSettings(max_new_tokens=12, num_samples=2)
    return evaluate(spec, Dataset.from_dict({"prompt": PROMPTS}), length, settings, output_dir=folder / "evaluation")


def rank(folder: Path, name: str, size: str) -> None:
    """One of the processes of which two hold the base together; what it saw is in `rank-0.json` and so on."""
    seen = {"read": read(name, **{size: 2}), "evaluate": measured(folder, **{size: 2})}
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(seen))
