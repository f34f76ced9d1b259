"""The llama.cpp plug-in: on a stand-in of llama-cpp-python, and on the real engine where it and a GGUF are installed."""

import ctypes
import os
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.proxy.small_models import proxy_for
from tests.runtime.bundles import base_of, bundle_of

from frugalign.proxy import attach
from frugalign_runtime import Proxies, ProxyError
from frugalign_runtime.llama_cpp import GuidedLlama

base = cache(base_of)
MODELS = Path(os.environ.get("FRUGALIGN_MODELS", "nowhere"))


class StandIn:
    """What `GuidedLlama` needs of `llama_cpp.Llama`: sizes, the context, and one processor call for each new token."""

    def __init__(self, model: Any, *, embedding: bool = True) -> None:
        self.model, self.ctx = model, object()
        self.context_params = SimpleNamespace(embeddings=embedding)
        self.hidden = np.zeros(16, np.float32)

    def pooling_type(self) -> int:
        return 0

    def n_vocab(self) -> int:
        return int(self.model.config.vocab_size)

    def n_embd(self) -> int:
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def greedy(self, prompt: list[int], processor: Any, length: int) -> list[int]:
        ids = list(prompt)
        for _ in range(length):
            states = self.model.model(torch.tensor([ids]))[0][0, -1]
            self.hidden = states.numpy().astype(np.float32)
            scores = self.model.lm_head(states).numpy()
            ids.append(int(np.argmax(processor(np.asarray(ids, np.intc), scores))))
        return ids[len(prompt) :]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module `llama_cpp` whose newest hidden state is that of `api.llama`."""
    module: Any = ModuleType("llama_cpp")
    module.LLAMA_POOLING_TYPE_NONE = 0
    pointer = ctypes.POINTER(ctypes.c_float)
    module.llama_get_embeddings_ith = lambda ctx, place: module.llama.hidden.ctypes.data_as(pointer)
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    return module


def test_greedy_tokens_are_those_of_attach(api: Any) -> None:
    here = base("llama")
    proxies = {name: proxy_for(here.model, seed) for seed, name in enumerate(("safe", "terse"))}
    loaded = Proxies([bundle_of(here, proxy, name) for name, proxy in proxies.items()])
    api.llama = StandIn(here.model)
    for asked, strengths in (
        ("safe", {"safe": 1.5}),
        ("terse:0.5", {"terse": 0.5}),
        ("safe+terse:2", {"safe": 1.5, "terse": 2}),
    ):
        guided = GuidedLlama(api.llama, loaded, proxy=asked, strength=1.5)
        found = api.llama.greedy([5, 6, 7], guided, 10)
        with ExitStack() as blocks, torch.no_grad():
            for name, strength in strengths.items():
                blocks.enter_context(attach(here.model, proxies[name], strength=strength))
            ids = [5, 6, 7]
            for _ in range(10):
                ids.append(int(here.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert found == ids[3:]


def test_what_it_refuses(api: Any) -> None:
    here = base("llama")
    loaded = Proxies([bundle_of(here, proxy_for(here.model), "safe")])
    with pytest.raises(ProxyError, match="This Llama gives no hidden states: load it with embedding=True"):
        GuidedLlama(StandIn(here.model, embedding=False), loaded)
    with pytest.raises(ProxyError, match="There is no proxy 'kind'"):
        GuidedLlama(StandIn(here.model), loaded, proxy="kind")
    other: Any = StandIn(here.model)
    other.n_vocab = lambda: 50
    with pytest.raises(ProxyError, match="for a model of 48 tokens and width 16, and this one has 50 and 16"):
        GuidedLlama(other, loaded)
    api.llama = StandIn(base("qwen2-untied").model)
    guided = GuidedLlama(api.llama, loaded)
    with pytest.raises(ProxyError, match="safe was exported for tiny, and this model's logits differ"):
        api.llama.greedy([5, 6], guided, 1)


@pytest.mark.slow
@pytest.mark.skipif(not (MODELS / "smollm2-135m.gguf").exists(), reason="FRUGALIGN_MODELS has no smollm2-135m.gguf")
def test_the_real_engine_has_the_exact_distribution(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SmolLM2 with a random proxy, all of it in float32: π at every token, and greedy answers. In four bits the file is close, and told."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from experiments.gguf_precision import converted, distances, engine, outputs

    from frugalign.engines.loading import load_model
    from frugalign.proxy.export import export_proxy
    from frugalign.proxy.network import new_proxy

    loaded = load_model(str(MODELS / "smollm2-135m"), device_map="cpu")
    proxy = new_proxy(loaded.model, {"p_t": 0.003})
    with torch.no_grad():
        proxy.query_out.weight.normal_(std=1.0, generator=torch.Generator().manual_seed(0))
    proxies = Proxies([export_proxy(proxy, loaded).bundle])
    prompt = loaded.tokenizer("The quick brown fox").input_ids
    with attach(loaded.model, proxy), torch.no_grad():
        ids = loaded.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20, min_new_tokens=20)
        exact = loaded.model(ids).logits[0].log_softmax(-1)
    which = np.zeros((ids.shape[1], 1), np.int64)
    given = MODELS / "smollm2-135m.gguf"
    for path, bound, is_exact in ((converted(given, tmp_path, "F32"), 1e-5, True), (given, 0.05, False)):
        llm = engine(path, exact_cache=is_exact)
        logits, states = outputs(llm, ids[0].tolist(), proxies.width)
        found = torch.from_numpy(proxies.judge(logits, states, which, np.ones_like(which, np.float32)))
        assert float(distances(exact, found)["KL"].mean()) < bound
        assert (float(distances(exact, found)["difference"].max()) < 1e-3) is is_exact
        llm.reset()
        tokens = llm.generate(prompt, logits_processor=[GuidedLlama(llm, proxies)], temp=0.0)
        greedy = [int(next(tokens)) for _ in range(20)]
        assert not is_exact or greedy == ids[0, len(prompt) :].tolist()
        assert ("as in another precision" in caplog.text) is not is_exact
