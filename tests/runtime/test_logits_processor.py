"""The plain processor in `generate` of transformers, against the library's own hooks: the same greedy tokens, and the same samples."""

from functools import cache
from typing import Any

import pytest
import torch
from tests.proxy.small_models import build, padded, proxy_for
from tests.runtime.bundles import Base, base_of, bundle_of
from transformers import LogitsProcessorList

from frugalign.proxy import attach
from frugalign_runtime import Proxies, ProxyError
from frugalign_runtime.logits_processor import GuidedLogits

base = cache(base_of)
MODELS = ["llama", "gpt2", "qwen2-tied", "gemma2"]


def greedy(model: Any, guided: Any = None, **more: Any) -> list[list[int]]:
    processors = LogitsProcessorList([] if guided is None else [guided])
    plain = {"do_sample": False, "max_new_tokens": 12, "top_k": 0} | more
    return model.generate(**padded(), logits_processor=processors, **plain)[:, -12:].tolist()


def loaded(here: Base, *proxies: Any) -> Proxies:
    return Proxies([bundle_of(here, each, str(number)) for number, each in enumerate(proxies)])


@pytest.mark.parametrize("objective", ["marginal", "sequential_integrated"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_attach(name: str, objective: str) -> None:
    here = base(name)
    proxy = proxy_for(here.model, objective=objective, initial_bias=2.0)
    with attach(here.model, proxy, strength=1.5):
        wanted = greedy(here.model)
    with GuidedLogits(loaded(here, proxy), here.model, strength=1.5) as guided:
        assert greedy(here.model, guided) == wanted
    assert greedy(here.model, GuidedLogits(loaded(here, proxy), strength=1.5)) == wanted, "from the scores alone"
    assert greedy(here.model) != wanted, "this proxy must change something"


def test_samples_are_those_of_attach() -> None:
    here = base("llama")
    proxy = proxy_for(here.model, temperature=0.7)
    sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    torch.manual_seed(0)
    with attach(here.model, proxy):
        wanted = greedy(here.model, **sampling)
    torch.manual_seed(0)
    with GuidedLogits(loaded(here, proxy), here.model) as guided:
        assert greedy(here.model, guided, **sampling) == wanted


def test_every_row_has_its_own_proxy_and_strength() -> None:
    here = base("llama")
    proxies = [proxy_for(here.model, seed) for seed in (0, 1)]
    plain = greedy(here.model)
    wanted = []
    for row, (proxy, strength) in enumerate([(1, 0.5), (-1, 1.0), (0, 2.0)]):
        if proxy < 0:
            wanted.append(plain[row])
            continue
        with attach(here.model, proxies[proxy], strength=strength):
            wanted.append(greedy(here.model)[row])
    with GuidedLogits(loaded(here, *proxies), here.model, proxy=[1, -1, 0], strength=[0.5, 1.0, 2.0]) as guided:
        assert greedy(here.model, guided) == wanted


def test_it_leaves_the_model_as_it_was() -> None:
    here = base("llama")
    before = greedy(here.model)
    with GuidedLogits(loaded(here, proxy_for(here.model)), here.model, proxy="0"):
        pass
    assert greedy(here.model) == before
    assert not here.model.get_output_embeddings()._forward_pre_hooks


def test_what_it_refuses() -> None:
    here = base("llama")
    proxies = loaded(here, proxy_for(here.model))
    with pytest.raises(ProxyError, match="There is no proxy 'kind'"):
        GuidedLogits(proxies, proxy="kind")
    with pytest.raises(ProxyError, match="0 was exported for tiny, and this model's LM head differs"):
        GuidedLogits(proxies, build("qwen2-untied"))
    guided = GuidedLogits(proxies, here.model)
    with pytest.raises(ProxyError, match="without calling its LM head"):
        guided(None, torch.zeros(1, 48))
    guided.detach()
