"""A base that accelerate spreads over devices by `device_map`, with weights on the disk until they are used: read as one that lies in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.spread import PROMPTS, untied
from transformers import AutoModelForCausalLM, AutoTokenizer

from frugalign.decoding.loop import SamplingParams, generate
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.states import endpoint_states
from frugalign.engines.transformers import TransformersEngine, device_of, embedding_rows
from frugalign.proxy.attachment import attach
from frugalign.proxy.network import new_proxy

PLACES = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.mark.parametrize("on_disk", [("model.layers.1",), ("lm_head", "model.embed_tokens"), PLACES[:4]], ids=str)
def test_a_base_that_is_partly_on_the_disk(on_disk: tuple[str, ...], tmp_path: Path) -> None:
    base = untied(tmp_path / "base")
    places: dict[str, Any] = {place: "disk" if place in on_disk else "cpu" for place in PLACES}
    whole: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    spread: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, device_map=places, offload_folder=str(tmp_path / "offload")
    ).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="left")
    assert any(value.is_meta for value in spread.parameters()), "nothing is on the disk"
    assert device_of(spread) == torch.device("cpu")
    assert fingerprint(spread, tokenizer, name=base) == fingerprint(whole, tokenizer, name=base)
    assert torch.equal(embedding_rows(spread), embedding_rows(whole))
    prompts = [list(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    engines = [TransformersEngine(model, tokenizer) for model in (whole, spread)]
    found = [generate(engine, prompts, SamplingParams(8)).completion_ids for engine in engines]
    assert found[0] == found[1] and engines[0].weights_id() == engines[1].weights_id()
    states = [endpoint_states(model, prompts, [1, 2]) for model in (whole, spread)]
    assert torch.equal(*states)
    proxy = new_proxy(spread, {})
    for parameter in proxy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ids, logits = torch.tensor([prompts[0]]), []
    for model in (whole, spread):
        with torch.no_grad(), attach(model, proxy):
            logits.append(model(input_ids=ids).logits)
    assert torch.equal(*logits)
