"""Endpoint states: the model's own hidden states at a text's last token, whatever the batch."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.engines.states import affordable_tokens, endpoint_states, resolve_layers

TEXTS = [[3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13, 14, 15, 16, 17, 18, 19], [3, 4, 5]]


def build(name: str) -> LlamaForCausalLM | GPT2LMHeadModel:
    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=32)).eval()
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    ).eval()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("max_tokens", [1, 9, 1000])
def test_states_are_those_of_each_text_alone(name: str, max_tokens: int) -> None:
    """In batches of one, a few and all; padded texts between longer ones."""
    model, ledger = build(name), Ledger()
    found = endpoint_states(model, TEXTS, [0, 2, 3], max_tokens=max_tokens, ledger=ledger)
    assert found.shape == (5, 3, 16) and ledger.lm_forward_tokens == sum(map(len, TEXTS))
    for row, text in enumerate(TEXTS):
        states = model(torch.tensor([text]), output_hidden_states=True).hidden_states
        alone = torch.stack([states[layer][0, -1] for layer in (0, 2, 3)])
        torch.testing.assert_close(found[row], alone, atol=2e-6, rtol=1e-5)


def test_layers_are_counted_from_either_end() -> None:
    model = build("llama")
    assert resolve_layers(model, None) == [1, 2, 3]
    assert resolve_layers(model, [-1, 0]) == [0, 3]
    for wrong in ([4], [-5], [1, -3], []):
        with pytest.raises(FrugalignError):
            resolve_layers(model, wrong)


def test_an_empty_text_is_named() -> None:
    with pytest.raises(FrugalignError, match="Text 2 has no token"):
        endpoint_states(build("llama"), [[3], []], [1])


@pytest.mark.parametrize(("layers", "width", "expected"), [(4, 64, 8192), (30, 576, None), (32, 4096, None)])
def test_the_activations_of_a_batch_take_a_quarter_of_the_model(layers: int, width: int, expected: int | None) -> None:
    """A small model always gets 64 MiB. Counted in bytes: every layer's states, as `hidden_states` returns them."""
    with torch.device("meta"):
        config = LlamaConfig(vocab_size=1000, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers)
        model = LlamaForCausalLM(config)
    tokens = affordable_tokens(model)
    if expected is not None:
        assert tokens == expected
        return
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert (layers + 1) * width * 4 * tokens <= size / 4 and 256 <= tokens <= 8192
