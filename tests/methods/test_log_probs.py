"""Log-probabilities on answers alone: those of a softmax over everything, and their gradients, whatever the architecture does to logits."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from frugalign.base.errors import FrugalignError
from frugalign.engines.sentences import SentenceEnds
from frugalign.engines.states import endpoint_states
from frugalign.methods import log_probs
from frugalign.methods.log_probs import Reading, disable_dropout, score_answers

_SIZES: dict[str, Any] = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**_SIZES, num_key_value_heads=2, intermediate_size=24, tie_word_embeddings=False),
    "tied": LlamaConfig(**_SIZES, num_key_value_heads=2, intermediate_size=24, tie_word_embeddings=True),
    "soft-capped": Gemma2Config(
        **_SIZES, num_key_value_heads=2, intermediate_size=24, head_dim=8, final_logit_softcapping=0.5
    ),
    "gpt2": GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=16),
}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    disable_dropout(model)
    return model


def batch() -> dict[str, torch.Tensor]:
    """Prompts of 2, 3 and 1 tokens, answers of 4, 2 and 1, padded on the right."""
    torch.manual_seed(1)
    shapes = [(2, 4), (3, 2), (1, 1)]
    completion = [[0] * prompt + [1] * answer + [0] * (6 - prompt - answer) for prompt, answer in shapes]
    attention = [[1] * (prompt + answer) + [0] * (6 - prompt - answer) for prompt, answer in shapes]
    return {
        "input_ids": torch.randint(0, 23, (3, 6)),
        "attention_mask": torch.tensor(attention),
        "completion_mask": torch.tensor(completion),
    }


@pytest.mark.parametrize("chunk", [1024, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_those_of_the_whole_softmax(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "_CHUNK", chunk)
    model, given = model_of(name), batch()
    scored = score_answers(model, model, given)
    weights = torch.tensor([1.0, -2.0, 0.5])
    (scored.sums * weights).sum().backward()
    ours = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits[:, :-1]
    log_p = torch.log_softmax(logits, -1)
    each = log_p.gather(-1, given["input_ids"][:, 1:, None]).squeeze(-1) * given["completion_mask"][:, 1:]
    torch.testing.assert_close(scored.log_probs, each)
    (each.sum(1) * weights).sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(ours[key], parameter.grad, atol=1e-6, rtol=1e-4)
    mask = given["completion_mask"][:, 1:]
    torch.testing.assert_close(scored.statistics.entropy, -(log_p.exp() * log_p).sum(-1) * mask)
    torch.testing.assert_close(scored.statistics.mean_logit, logits.mean(-1) * mask)
    assert torch.equal(scored.statistics.is_top1, (logits.argmax(-1) == given["input_ids"][:, 1:]) * mask)
    assert torch.equal(scored.mask, mask.bool())


def test_no_hook_is_left_and_only_answers_reach_the_head() -> None:
    model, given = model_of("llama"), batch()
    seen: list[torch.Size] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape))
    score_answers(model, model, given)
    assert seen == [torch.Size([1, 7, 23])]
    handle.remove()
    assert model(given["input_ids"]).logits.shape == (3, 6, 23)


def test_the_states_are_those_at_each_answers_end() -> None:
    model, given = model_of("llama").eval(), batch()
    rows = zip(given["input_ids"], given["attention_mask"].bool(), given["completion_mask"].bool(), strict=True)
    split = [(ids[real & ~answer].tolist(), ids[real & answer].tolist()) for ids, real, answer in rows]
    table = torch.zeros(23, dtype=torch.bool)
    table[split[0][1][0]] = True  # the first answer's first token ends a sentence
    ends = SentenceEnds(table, torch.zeros(0, 0, dtype=torch.long))
    found = score_answers(model, model, given, Reading([0, 2], ends)).states
    texts = [ends.read(*row) for row in split]
    assert len(texts[0]) == len(split[0][0]) + 1 + max(
        i for i, token in enumerate(split[0][1]) if token == split[0][1][0]
    )
    assert found is not None and not found.requires_grad
    torch.testing.assert_close(found, endpoint_states(model, texts, [0, 2]), atol=1e-5, rtol=1e-5)


def test_an_answer_of_several_turns_is_read_like_any_other() -> None:
    """The only sentence end is in a turn of the user's, within the answer. Fitting and scoring read it there too."""
    model = model_of("llama").eval()
    prompt, answer = [3, 4], [5, 6, 1, 7, 8, 9]
    given = {"input_ids": torch.tensor([prompt + answer]), "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    given["completion_mask"] = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1]])
    ends = SentenceEnds(torch.arange(23) == 1, torch.zeros(0, 0, dtype=torch.long))
    read = ends.read(prompt, answer)
    assert read == [*prompt, 5, 6, 1]
    found = score_answers(model, model, given, Reading([2], ends)).states
    torch.testing.assert_close(found, endpoint_states(model, [read], [2]), atol=1e-5, rtol=1e-5)


def test_half_precision_keeps_its_gradient_and_counts_in_float32() -> None:
    model, given = model_of("llama").bfloat16(), batch()
    scored = score_answers(model, model, given)
    assert scored.log_probs.dtype == torch.float32
    scored.sums.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_a_model_that_does_not_call_its_head_is_refused() -> None:
    model, given = model_of("llama"), batch()
    body, head = model.model, model.lm_head

    def fused(**inputs: Any) -> Any:
        inputs.pop("output_hidden_states")
        output = body(**inputs)
        output.logits = output.last_hidden_state @ head.weight.T
        return output

    model.forward = fused
    with pytest.raises(FrugalignError, match="without calling its LM head"):
        score_answers(model, model, given)
