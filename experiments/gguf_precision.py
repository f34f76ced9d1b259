"""A proxy that was trained on Hugging Face weights, guiding llama.cpp: how far π is from the exact one, by the format of the GGUF.

    FRUGALIGN_MODELS=folder python -m experiments.gguf_precision

The answers are those of the guided Hugging Face model to questions of examples/to-the-point. Every format is made from the same weights, by llama.cpp. At
every token of an answer the exact π and the engine's are compared over the whole vocabulary, and so is the base without the proxy: what the engine's own
arithmetic moves. Needs llama-cpp-python.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.summary import script_options, write_summary
from experiments.trials import instruct_model
from torch import Tensor

PROXY, QUESTIONS = Path("examples/proxies/to-the-point"), Path("examples/to-the-point")
ANSWERS, TOKENS, GREEDY = 24, 40, 8
"""Answers that are compared, tokens of each at most, and greedy answers."""
FORMATS = {"F32": 0, "Q8_0": 7, "Q4_1": 3, "Q4_0": 2}
"""llama.cpp's number of each format."""


@dataclass
class Answer:
    """The ids of a prompt with its answer, the `places` that predict the answer, and there the exact log-probabilities `[n, V]` of the base and of π."""

    ids: list[int]
    places: slice
    base: Tensor
    guided: Tensor


def converted(source: Path, folder: Path, name: str) -> Path:
    """The GGUF in a format. F32 comes from the file, and the others from F32."""
    import llama_cpp

    path = folder / f"{name}.gguf"
    given = source if name == "F32" else converted(source, folder, "F32")
    if not path.is_file():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = FORMATS[name], True, 1
        # Every matrix in this format, the LM head too, whatever llama.cpp would choose for it.
        params.pure = name != "F32"
        if llama_cpp.llama_model_quantize(str(given).encode(), str(path).encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp could not write {path}.")
    return path


def prompts_of(tokenizer: Any, number: int) -> list[list[int]]:
    """Questions as the model reads them."""
    lines = (QUESTIONS / "test.jsonl").read_text("utf-8").splitlines()[:number]
    asked = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
    found = tokenizer.apply_chat_template(asked, add_generation_prompt=True)
    return list(found["input_ids"] if not isinstance(found, list) else found)


@torch.no_grad()
def exact(model: Any, proxy: Any, prompts: list[list[int]]) -> Iterator[Answer]:
    """Sampled answers of the guided model."""
    from frugalign.proxy import attach

    torch.manual_seed(0)
    for prompt in prompts:
        with attach(model, proxy):
            ids = model.generate(
                torch.tensor([prompt]), do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=TOKENS
            )
            guided = model(ids).logits[0].float().log_softmax(-1)
        # The proxy's base proposes at its temperature, and so does the base beside it.
        base = (model(ids).logits[0].float() / proxy.config.temperature).log_softmax(-1)
        places = slice(len(prompt) - 1, ids.shape[1] - 1)
        yield Answer(ids[0].tolist(), places, base[places], guided[places])


def engine(path: Path, *, exact_cache: bool = False) -> Any:
    """llama.cpp with hidden states and logits at every position. Its cache is in float16 unless `exact_cache`."""
    import llama_cpp

    kind = llama_cpp.GGML_TYPE_F32 if exact_cache else llama_cpp.GGML_TYPE_F16
    settings = {
        "pooling_type": llama_cpp.LLAMA_POOLING_TYPE_NONE,
        "n_ctx": 512,
        "n_threads": 1,
        "type_k": kind,
        "type_v": kind,
    }
    return llama_cpp.Llama(str(path), embedding=True, logits_all=True, verbose=False, **settings)


def outputs(llm: Any, ids: list[int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[n, V]` and hidden states `[n, D]` of a text."""
    import llama_cpp

    llm.reset()
    llm.eval(ids)
    pointers = [llama_cpp.llama_get_embeddings_ith(llm.ctx, place) for place in range(len(ids))]
    states = np.stack([np.ctypeslib.as_array(each, shape=(width,)).copy() for each in pointers])
    return np.array(llm.scores[: len(ids)], dtype=np.float32), states


def distances(exactly: Tensor, found: Tensor) -> dict[str, Tensor]:
    """At every position: the KL to what was found, the largest difference of a probability, and whether the likeliest token is the same."""
    p, q = exactly.exp(), found.exp()
    return {
        "KL": (p * (exactly - found)).where(p > 0, 0.0).sum(-1),
        "difference": (p - q).abs().amax(-1),
        "same": (exactly.argmax(-1) == found.argmax(-1)).float(),
    }


def measured(llm: Any, bundle: Any, answers: list[Answer], temperature: float) -> dict[str, float]:
    """A row of the table."""
    noted: dict[str, list[Tensor]] = {}
    for answer in answers:
        logits, states = (each[answer.places] for each in outputs(llm, answer.ids, bundle.width))
        base = (torch.from_numpy(logits) / temperature).log_softmax(-1)
        which = np.zeros((len(logits), 1), dtype=np.int64)
        guided = torch.from_numpy(bundle.judge(logits, states, which, np.ones((len(logits), 1))))
        for name, one, other in (("base", answer.base, base), ("π", answer.guided, guided)):
            for what, values in distances(one, other).items():
                noted.setdefault(f"{name}, {what}", []).append(values)
    every = {name: torch.cat(values).double() for name, values in noted.items()}
    return {
        "base, KL, nats a token": float(every["base, KL"].mean()),
        "π, KL, nats a token": float(every["π, KL"].mean()),
        "π, largest difference": float(every["π, difference"].max()),
        "base, same likeliest token": float(every["base, same"].mean()),
        "π, same likeliest token": float(every["π, same"].mean()),
        "positions": len(every["π, KL"]),
    }


def greedy_alike(llm: Any, bundle: Any, prompts: list[list[int]], model: Any, proxy: Any) -> float:
    """The share of greedy answers that are the exact ones, token for token."""
    from frugalign.proxy import attach
    from frugalign_runtime.llama_cpp import GuidedLlama

    alike = 0
    for prompt in prompts:
        with attach(model, proxy), torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=TOKENS)[
                0, len(prompt) :
            ].tolist()
        llm.reset()
        tokens = llm.generate(prompt, logits_processor=[GuidedLlama(llm, bundle)], temp=0.0)
        alike += [int(next(tokens)) for _ in ids] == ids
    return alike / len(prompts)


def main() -> None:
    """Measure, print and write the table."""
    from frugalign.engines.loading import load_model
    from frugalign.proxy.export import export_proxy
    from frugalign.proxy.network import load_proxy
    from frugalign_runtime import Proxies

    given = script_options(__doc__)
    torch.set_num_threads(1)
    base, proxy = load_model(instruct_model(), device_map="cpu"), load_proxy(PROXY)
    bundle = Proxies([export_proxy(proxy, base).bundle])
    prompts = prompts_of(base.tokenizer, 2 if given.smoke else ANSWERS)
    answers = list(exact(base.model, proxy, prompts))
    source, rows = Path(instruct_model()).with_suffix(".gguf"), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in [("F32, cache too", "F32"), *([] if given.smoke else [(each, each) for each in FORMATS])]:
            llm = engine(converted(source, Path(folder), kind), exact_cache=name != kind)
            rows[name] = measured(llm, bundle, answers, proxy.config.temperature)
            rows[name]["greedy answers alike"] = greedy_alike(llm, bundle, prompts[:GREEDY], base.model, proxy)
            print(name, json.dumps(rows[name], ensure_ascii=False), flush=True)
    if not given.smoke:
        command = "FRUGALIGN_MODELS=folder python -m experiments.gguf_precision"
        write_summary("gguf-precision", command, "SmolLM2-135M-Instruct, examples/proxies/to-the-point", rows)


if __name__ == "__main__":
    main()
