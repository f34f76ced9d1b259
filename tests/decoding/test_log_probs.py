"""Teacher-forced scoring against one row at a time."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from frugalign.decoding import Reference, compare_sequences, sequence_kl, sequence_log_probs
from frugalign.decoding.chooser import BaseGuide

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
COMPLETIONS = [[20, 21], [22, 23, 24, 25, 26], [27]]


def tiny(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # a random head is nearly uniform
    return model


def naive(model: Any, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """`[n, V]` log-probabilities that predicted the completion, without padding or batch."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_of_completions(batch_size: int, temperature: float) -> None:
    """Left padding and neighbours change nothing."""
    model = tiny(0)
    found = sequence_log_probs(model, PROMPTS, COMPLETIONS, temperature=temperature, batch_size=batch_size)
    for prompt, completion, mine in zip(PROMPTS, COMPLETIONS, found, strict=True):
        wanted = naive(model, prompt, completion, temperature)[torch.arange(len(completion)), completion]
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_kl_between_two_models_is_exact_over_the_vocabulary(batch_size: int, temperature: float) -> None:
    """The policy at its temperature, the base at 1."""
    policy, base = tiny(1), tiny(0)
    compared = compare_sequences(
        policy, Reference(base), PROMPTS, COMPLETIONS, guide=BaseGuide(temperature), batch_size=batch_size
    )
    found = compared.kl
    alone = sequence_log_probs(base, PROMPTS, COMPLETIONS, batch_size=batch_size)
    assert compared.reference_log_probs.tolist() == pytest.approx([float(each.sum()) for each in alone], rel=1e-5)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        log_pi, log_p = naive(policy, prompt, completion, temperature), naive(base, prompt, completion, 1.0)
        wanted = float((log_pi.exp() * (log_pi - log_p)).sum())
        assert wanted > 0.1
        assert float(found[row]) == pytest.approx(wanted, rel=1e-4)


def test_a_model_has_no_divergence_from_itself() -> None:
    assert (
        float(sequence_kl(tiny(0), Reference(tiny(0)), PROMPTS, COMPLETIONS, guide=BaseGuide(1.0)).abs().max()) < 1e-6
    )


def test_a_model_at_another_temperature_diverges_from_itself() -> None:
    cold = sequence_kl(tiny(0), Reference(tiny(0)), PROMPTS, COMPLETIONS, guide=BaseGuide(0.5))
    assert float(cold.min()) > 0.1


def test_tokens_that_both_models_rule_out_add_nothing() -> None:
    policy, base = tiny(1), tiny(0)

    def rule_out(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([0, 39]), -torch.inf)

    for model in (policy, base):
        model.lm_head.register_forward_hook(rule_out)
    found = sequence_kl(policy, Reference(base), PROMPTS, COMPLETIONS, guide=BaseGuide(0.5))
    assert bool((found > 0.1).all() and found.isfinite().all())


def test_an_empty_completion_scores_nothing() -> None:
    assert sequence_log_probs(tiny(0), [[5], [6]], [[], [7]])[0].numel() == 0
