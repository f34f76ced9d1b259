"""Sequence-classification models as rewards: tiny random ones of several architectures, and a tokenizer of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from frugalign.base.errors import FrugalignError
from frugalign.rewards import ClassifierReward, load_reward

WORDS = ["<pad>", "</s>", "<user>", "<assistant>", *"abcdefgh"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
)
PROMPTS = ["a b", "c", "a b c d e", "f", "g h", "b", "a a a a a a a a"]
COMPLETIONS = ["c d", "e f g h", "a", "b", "c d e", "g g g", "h"]
LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
}


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<pad>")
    built.chat_template = template
    return built


def llama(num_labels: int = 1, pad_token_id: int | None = 0) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(WORDS), num_labels=num_labels, pad_token_id=pad_token_id, **LLAMA)
    return LlamaForSequenceClassification(config).eval()


def gpt2() -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=24,
        num_labels=1,
        bos_token_id=1,
        eos_token_id=1,
    )
    return GPT2ForSequenceClassification(config).eval()


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=2,
        initializer_range=0.5,
    )
    return BertForSequenceClassification(config).eval()


def alone(reward: ClassifierReward, prompt: Any, completion: Any) -> torch.Tensor:
    """Logits of one prompt with its answer, without any padding, by the model itself."""
    ids = reward.tokenizer(reward.text(prompt, completion), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return reward.model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(
    "model",
    [llama(), llama(pad_token_id=1), llama(pad_token_id=None), gpt2(), bert()],
    ids=["llama", "llama-pad-is-eos", "llama-no-pad", "gpt2-no-pad", "bert"],
)
def test_scores_do_not_depend_on_batch_size_padding_or_order(model: Any) -> None:
    """Also where the model has no pad token, which transformers refuses to batch, or pads with the end token. In double precision, as another batch
    may round otherwise."""
    expected = None
    for size in (1, 2, 3, 7):
        reward = ClassifierReward(model.double(), tokenizer(), batch_size=size)
        scores = reward(prompts=PROMPTS, completions=COMPLETIONS)
        if expected is None:
            expected = scores
        assert scores == pytest.approx(expected, abs=1e-6)
        backwards = reward(prompts=PROMPTS[::-1], completions=COMPLETIONS[::-1])
        assert backwards[::-1] == pytest.approx(expected, abs=1e-6)
    assert expected is not None
    assert len({round(value, 5) for value in expected}) == len(expected), "the model tells the texts apart"


def test_one_label_is_the_logit_and_two_are_log_odds() -> None:
    for n_labels in (1, 2):
        reward = ClassifierReward(llama(n_labels), tokenizer())
        logits = [alone(reward, prompt, completion) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
        # log p(1) − log p(0) is the difference of the logits
        expected = [
            float(row[0]) if n_labels == 1 else float(row.log_softmax(0)[1] - row.log_softmax(0)[0]) for row in logits
        ]
        assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(FrugalignError, match="has 3 labels"):
        ClassifierReward(llama(3), tokenizer())


def test_strings_and_messages_read_the_same_under_a_template() -> None:
    reward = ClassifierReward(llama(), tokenizer())
    assert reward.text("a b", "c") == "<user> a b <assistant> c </s>"
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = [[{"role": "assistant", "content": completion}] for completion in COMPLETIONS]
    assert reward(messages, answers) == reward(PROMPTS, COMPLETIONS)
    begun = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    assert reward.text(begun, " d") == "<user> a b <assistant> c d </s>"


def test_without_a_template_prompt_and_completion_are_joined() -> None:
    reward = ClassifierReward(llama(), tokenizer(None))
    assert reward.text("a b", " c") == "a b c"
    with pytest.raises(FrugalignError, match="no chat template"):
        reward([[{"role": "user", "content": "a"}]], [[{"role": "assistant", "content": "b"}]])


def test_long_texts_keep_their_end_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    reward = ClassifierReward(llama(), tokenizer(None))
    end = " ".join(["b"] * 24)
    cut = reward(["a " * 40, "c " * 40], [end, end])
    assert cut[0] == pytest.approx(cut[1]) == pytest.approx(reward([end], [""])[0])
    assert caplog.text.count("are cut on the left") == 1


def test_a_folder_is_a_reward(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "judge")
    tokenizer().save_pretrained(tmp_path / "judge")
    reward = load_reward(str(tmp_path / "judge"))
    assert reward.name == "judge"
    expected = ClassifierReward(llama(), tokenizer())(PROMPTS, COMPLETIONS)
    assert reward.function(prompts=PROMPTS, completions=COMPLETIONS, label=["x"] * 7) == pytest.approx(
        expected, abs=1e-6
    )


def test_a_language_model_is_no_reward(tmp_path: Path) -> None:
    """transformers would give it a random head and only warn."""
    LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **LLAMA)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(FrugalignError, match=r"not a sequence-classification model: its file lacks score\.weight"):
        load_reward(str(tmp_path))


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FrugalignError, match="Cannot load the reward model"):
        load_reward(str(tmp_path))


def test_the_sandbox_reward_model_agrees_with_its_function() -> None:
    prompts = ["Listen, keeper. I am a farmer. I seek a draught to cure the nightmares of my neighbour.", "Hello."]
    answers = ["Gladly, friend. Here is dreamrush.", "No."]
    folder, function = load_reward("frugalign.sandbox:reward_model"), load_reward("frugalign.sandbox:learned")
    assert folder.name == "reward_model"
    call = {"prompts": prompts, "completions": answers}
    assert folder.function(**call) == pytest.approx(function.function(**call), abs=1e-4)
