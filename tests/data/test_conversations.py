"""Stored and sampled answers to the templates of public models: one encoding, which is what the template renders."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from datasets import Dataset
from tests.data.chat_models import (
    ASKED,
    BY_NAME,
    CHAT_MODELS,
    GEMMA_2,
    GPT2_WORDS,
    LLAMA3_WORDS,
    MISTRAL_V3,
    ChatModel,
    ids_of,
    model_ending_with,
)
from transformers import PreTrainedTokenizerFast

from frugalign.base.errors import FrugalignError
from frugalign.data.encode import EncodedCompletions, encode_completions
from frugalign.data.templating import AUTO, Rendering, encode_prompts
from frugalign.engines.encode import encode_for_model, tokenize_pairs
from frugalign.engines.transformers import end_token_ids
from frugalign.methods.rerank.collator import PairCollator

SYSTEM = {"role": "system", "content": "Be brief."}
HISTORY = [{"role": "user", "content": "Is it cold?"}, {"role": "assistant", "content": "Yes."}]
PROMPTS: list[Any] = [
    "How is the weather today?",
    [ASKED],
    [*HISTORY, ASKED],
    [SYSTEM, ASKED],
    [SYSTEM, *HISTORY, ASKED],
]
ANSWER = "Hello there. It is cold outside."
THINKING_OFF = Rendering(chat_template_kwargs={"enable_thinking": False})


def rendered(chat: ChatModel, tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, Any]], **more: Any) -> str:
    """The whole conversation by transformers, cut after its last end token."""
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, **more))
    return text[: text.rindex(chat.end) + len(chat.end)]


@pytest.mark.parametrize("words", [LLAMA3_WORDS, GPT2_WORDS], ids=["llama", "gpt2"])
@pytest.mark.parametrize("name", BY_NAME)
def test_training_scoring_and_sampling_read_one_encoding(name: str, words: str) -> None:
    """A stored answer is the template's own rendering. Its prompt is what sampling reads, except where the template opens a
    thought for new answers only."""
    chat = BY_NAME[name]
    tokenizer = chat.tokenizer(words)
    thought = ids_of(tokenizer, "<think>\n") if "R1" in name else []
    for prompt in PROMPTS:
        for rendering in (AUTO, THINKING_OFF) if name == "Qwen 3" else (AUTO,):
            scored, sampled, whole = scored_and_sampled(chat, tokenizer, prompt, rendering)
            assert tokenizer.decode(scored.ids[0]) == whole
            # This tokenizer divides line breaks by what follows, so the opening's keep the ids that sampling reads.
            assert scored.ids[0] == ids_of(tokenizer, whole) or words == GPT2_WORDS
            assert scored.prompt_ids[0] + thought == sampled


def scored_and_sampled(
    chat: ChatModel, tokenizer: PreTrainedTokenizerFast, prompt: Any, rendering: Rendering
) -> tuple[EncodedCompletions, list[int], str]:
    """A stored answer as scoring reads it, the prompt as sampling does, and transformers' text of the conversation.

    Training must read the same as scoring, and scoring of a sampled answer the same as sampling."""
    model, arguments = chat.model(tokenizer), dict(rendering.chat_template_kwargs)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answer = [{"role": "assistant", "content": ANSWER}]
    whole = rendered(chat, tokenizer, [*turns, *answer], **arguments)
    scored = encode_for_model(model, tokenizer, [prompt], [ANSWER], rendering=rendering)

    other = [{"role": "assistant", "content": "No."}]
    pairs = Dataset.from_dict({"prompt": [prompt], "chosen": [answer], "rejected": [other]})
    trained = tokenize_pairs(pairs, model, tokenizer, rendering=rendering)
    assert trained["prompt_ids"] == scored.prompt_ids and trained["chosen_ids"] == scored.completion_ids
    assert trained["rejected_ids"][0][-1] == scored.completion_ids[0][-1]

    sampled = encode_prompts([prompt], tokenizer, max_new_tokens=8, rendering=rendering).ids[0]
    opened = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **arguments)
    assert sampled == ids_of(tokenizer, opened)
    generated = encode_for_model(model, tokenizer, [prompt], [""], completion_ids=[[5, 6]], rendering=rendering)
    assert (generated.prompt_ids, generated.completion_ids) == ([sampled], [[5, 6]])
    return scored, sampled, whole


@pytest.mark.parametrize("chat", CHAT_MODELS, ids=lambda chat: chat.name)
def test_an_answer_of_several_turns_is_rendered_as_turns(chat: ChatModel) -> None:
    tokenizer = chat.tokenizer()
    answer = [{"role": "assistant", "content": "Yes."}, ASKED, {"role": "assistant", "content": "It is cold."}]
    found = encode_for_model(chat.model(tokenizer), tokenizer, ["Hello there."], [answer])
    whole = rendered(chat, tokenizer, [{"role": "user", "content": "Hello there."}, *answer])
    assert tokenizer.decode(found.ids[0]) == whole
    assert "Hello there." not in tokenizer.decode(found.completion_ids[0])


def masked_texts(tokenizer: PreTrainedTokenizerFast, ids: list[int], mask: list[int]) -> list[str]:
    """The texts of the runs of tokens that count and of those that do not, in turns."""
    runs = [[token for token, _ in run] for _, run in groupby(zip(ids, mask, strict=True), key=lambda each: each[1])]
    return [tokenizer.decode(run) for run in runs]


NO_END = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"
MASKED = [*CHAT_MODELS, GEMMA_2, replace(BY_NAME["ChatML"], name="without end tokens", template=NO_END)]


@pytest.mark.parametrize("words", [LLAMA3_WORDS, GPT2_WORDS], ids=["llama", "gpt2"])
@pytest.mark.parametrize("chat", MASKED, ids=lambda chat: chat.name)
def test_only_the_assistants_turns_of_an_answer_count(chat: ChatModel, words: str) -> None:
    """Each of them with its end token, and nothing that the user writes or that opens a turn. The same with a cut prompt."""
    tokenizer = chat.tokenizer(words)
    model, contents = chat.model(tokenizer), ["Yes.", "It is cold.", "No."]
    answer = [{"role": "assistant", "content": text} for text in contents]
    answer[1:1], answer[3:3] = [ASKED], [{"role": "user", "content": "Yes. No."}]
    plain = answer[:1]
    end = "" if "{{ m.content }}\n" in chat.template else chat.end
    for prompt in ("Hello there.", [*HISTORY, ASKED]):
        found = encode_for_model(model, tokenizer, [prompt, prompt], [answer, plain])
        runs = masked_texts(tokenizer, found.completion_ids[0], found.completion_masks[0])
        texts = [_without_thought(run).removesuffix("<|endoftext|>") for run in runs[::2]]
        assert texts == [f"{text}{end}" for text in contents], runs
        assert ASKED["content"] in runs[1] and "Yes. No." in runs[3] and not any(text in runs[1] for text in contents)
        assert found.completion_masks[1] == [1] * len(found.completion_ids[1])
        cut = found.cut(len(found.ids[0]) - 3)
        assert cut.completion_masks == found.completion_masks
        assert found.cut(8).completion_masks[0] == found.completion_masks[0][-8:]
        pairs = Dataset.from_dict({"prompt": [prompt], "chosen": [answer], "rejected": [plain]})
        trained = tokenize_pairs(pairs, model, tokenizer)
        assert trained["chosen_mask"][0][-len(found.completion_masks[0]) :] == found.completion_masks[0]
        batch = PairCollator(0)([{name: values[0] for name, values in trained.items()}])
        counted = batch["input_ids"][0][batch["completion_mask"][0].bool()].tolist()
        assert counted == [
            token for token, counts in zip(found.completion_ids[0], found.completion_masks[0], strict=True) if counts
        ]
        assert "chosen_mask" not in tokenize_pairs(pairs.map(lambda _: {"chosen": plain}), model, tokenizer)


def _without_thought(text: str) -> str:
    return text.replace("<think>\n\n</think>\n\n", "").strip()


def test_turns_that_cannot_be_told_apart_are_refused() -> None:
    tokenizer = BY_NAME["ChatML"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'assistant' or loop.last or loop.first %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    answer = [{"role": "assistant", "content": "Yes."}, ASKED, {"role": "assistant", "content": "No."}]
    found = encode_completions(["Hi!"], [answer], tokenizer)  # a score at the end needs no turns
    for encoded in (found, found.cut(3)):
        with pytest.raises(FrugalignError, match="Answer 1: the chat template does not show which of its turns"):
            _ = encoded.completion_masks


@pytest.mark.parametrize("chat", CHAT_MODELS, ids=lambda chat: chat.name)
def test_an_answer_ends_with_the_templates_token_once(chat: ChatModel) -> None:
    """Not with the first of the model's end tokens. An answer that has the end token already gets no second one."""
    tokenizer = chat.tokenizer()
    end, model = tokenizer.convert_tokens_to_ids(chat.end), chat.model(tokenizer)
    answers = [
        "Hello.",
        f"Hello.{chat.end}",
        f"Hello.{chat.end}\n",
        [{"role": "assistant", "content": f"Hello.{chat.end}"}],
    ]
    found = encode_for_model(model, tokenizer, ["Hi!"] * 4, answers)
    assert found.completion_ids[0][-1] == end and found.completion_ids[0].count(end) == 1
    assert found.completion_ids == [found.completion_ids[0]] * 4
    assert end in end_token_ids(model, tokenizer)
    # Sampling stops at it even if the generation config does not list it.
    assert end_token_ids(model_ending_with(0), tokenizer) == (0, end)


def test_qwen_keeps_an_empty_thought_in_the_answer_unless_thinking_is_off() -> None:
    tokenizer = BY_NAME["Qwen 3"].tokenizer()
    texts = [
        tokenizer.decode(encode_completions(["Hi!"], ["Hello."], tokenizer, rendering=rendering).completion_ids[0])
        for rendering in (AUTO, THINKING_OFF)
    ]
    assert texts == ["<think>\n\n</think>\n\nHello.<|im_end|>", "Hello.<|im_end|>"]


def test_a_stored_answer_to_r1_stands_outside_the_opened_thought() -> None:
    tokenizer = BY_NAME["DeepSeek-R1-Distill"].tokenizer()
    found = encode_completions(["Hi!"], ["Hello."], tokenizer)
    assert tokenizer.decode(found.prompt_ids[0]).endswith("<｜User｜>Hi!<｜Assistant｜>")
    assert tokenizer.decode(found.completion_ids[0]) == "Hello.<｜end▁of▁sentence｜>"


@pytest.mark.parametrize(("thought", "opening"), [("", "<think>\n"), ("<think>\n\n</think>\n\n", "")])
def test_a_thought_in_plain_text_is_no_other_matter(thought: str, opening: str) -> None:
    """The tags need not be tokens of the vocabulary."""
    tokenizer = BY_NAME["ChatML"].tokenizer(GPT2_WORDS)
    tokenizer.chat_template = (
        (
            "{% for m in messages %}<|im_start|>{{ m.role }} {% if m.role == 'assistant' %}THOUGHT{% endif %}{{ m.content }}"
            "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant OPENING{% endif %}"
        )
        .replace("THOUGHT", thought)
        .replace("OPENING", opening)
    )
    found = encode_completions(["Hi!"], ["Hello."], tokenizer)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}], tokenize=False
    )
    assert tokenizer.decode(found.ids[0]) == whole
    assert tokenizer.decode(found.completion_ids[0]).strip() == f"{thought}Hello.<|im_end|>".strip()


def test_a_thought_that_the_template_leaves_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    answer = "<think>\nIt rains.\n</think>\n\nNo."
    kept, lost = BY_NAME["Qwen 3"].tokenizer(), BY_NAME["DeepSeek-R1-Distill"].tokenizer()
    found = encode_completions(["Hi!"], [answer], kept)
    assert kept.decode(found.completion_ids[0]) == f"{answer}<|im_end|>" and not caplog.text
    for _ in range(2):
        found = encode_completions(["Hi!", "Hi!"], ["Yes.", answer], lost)
    assert lost.decode(found.completion_ids[1]) == "\n\nNo.<｜end▁of▁sentence｜>"
    assert caplog.text.count("1 of 2 answers, such as answer 2") == 1


@pytest.mark.parametrize("chat", CHAT_MODELS, ids=lambda chat: chat.name)
def test_an_answer_that_its_prompt_begins(chat: ChatModel) -> None:
    """A final assistant message of the prompt is one turn with the answer."""
    tokenizer = chat.tokenizer()
    prompt = [ASKED, {"role": "assistant", "content": "The sky"}]
    found = encode_completions([prompt], [" is blue."], tokenizer)
    whole = rendered(chat, tokenizer, [ASKED, {"role": "assistant", "content": "The sky is blue."}])
    assert tokenizer.decode(found.ids[0]) == whole
    assert tokenizer.decode(found.completion_ids[0]) == f" is blue.{chat.end}"


# -- system messages, prompts that are rendered already, arguments of the template ------------------------------------------------


def test_a_template_without_a_system_message_is_refused_in_a_sentence() -> None:
    """Gemma 2 raises; another template leaves the message out in silence."""
    dropping = BY_NAME["ChatML"].tokenizer()
    dropping.chat_template = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    for tokenizer in (GEMMA_2.tokenizer(), dropping):
        with pytest.raises(FrugalignError, match=r"^Prompt 2: .*no place for a system message; begin the first user"):
            encode_completions([[ASKED], [SYSTEM, ASKED]], ["a", "b"], tokenizer)


def test_a_prompt_that_changes_when_the_answer_follows_is_refused() -> None:
    """Mistral 7B v0.3 leaves the system message out as soon as an answer follows. Sampling has it, and is not refused."""
    tokenizer = BY_NAME["Mistral"].tokenizer()
    tokenizer.chat_template = MISTRAL_V3
    assert encode_completions([[ASKED]], ["Yes."], tokenizer).completion_ids
    with pytest.raises(FrugalignError, match=r"^Answer 2: .*writes its prompt differently once the answer follows"):
        encode_completions([[ASKED], [SYSTEM, ASKED]], ["Yes.", "Yes."], tokenizer)
    found = encode_completions([[SYSTEM, ASKED]], [""], tokenizer, completion_ids=[[5]])
    assert "Be brief." in tokenizer.decode(found.prompt_ids[0])


@pytest.mark.parametrize("chat", [*CHAT_MODELS, GEMMA_2], ids=lambda chat: chat.name)
def test_a_prompt_that_is_rendered_already_is_warned_about_once(
    chat: ChatModel, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = chat.tokenizer()
    twice = str(tokenizer.apply_chat_template([ASKED], tokenize=False, add_generation_prompt=True))
    encode_prompts(["Is it cold?", [ASKED]], tokenizer, max_new_tokens=1)
    assert not caplog.text
    encode_prompts([twice], tokenizer, max_new_tokens=1, rendering=Rendering("raw"))
    assert not caplog.text
    for _ in range(2):
        encode_prompts(["Is it cold?", twice, [{"role": "user", "content": twice}]], tokenizer, max_new_tokens=1)
    assert caplog.text.count("2 of 3 prompts hold") == 1 and "prompt_format raw" in caplog.text


def test_a_plain_text_opening_is_recognised_too(caplog: pytest.LogCaptureFixture) -> None:
    """A template of plain words writes no special token."""
    tokenizer = BY_NAME["ChatML"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}\n### {{ m.role }}:\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}\n### assistant:\n{% endif %}"
    with caplog.at_level(logging.WARNING):
        encode_prompts(["### user:\nHi!\n\n### assistant:\n"], tokenizer, max_new_tokens=1)
    assert "'### assistant:'" in caplog.text


def test_an_argument_that_the_template_does_not_read_is_refused() -> None:
    tokenizer = BY_NAME["Qwen 3"].tokenizer()
    for name in ("chat_template", "tokenize", "messages", "padding"):
        taken = Rendering(chat_template_kwargs={name: "x"})
        for encode in (
            lambda taken=taken: encode_prompts(["Hi"], tokenizer, max_new_tokens=1, rendering=taken),
            lambda taken=taken: encode_completions(["Hi"], ["Ho"], tokenizer, rendering=taken),
        ):
            with pytest.raises(FrugalignError, match=f"chat_template_kwargs sets {name}"):
                encode()
    misspelt = Rendering(chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(FrugalignError, match="sets enable_thinkin, which the chat template does not read"):
        encode_prompts(["Hi!"], BY_NAME["Qwen 3"].tokenizer(), max_new_tokens=1, rendering=misspelt)
    with pytest.raises(FrugalignError, match="sets enable_thinking, which the chat template does not read"):
        encode_prompts(["Hi!"], BY_NAME["ChatML"].tokenizer(), max_new_tokens=1, rendering=THINKING_OFF)


def test_an_answer_must_end_with_the_assistant() -> None:
    tokenizer = BY_NAME["ChatML"].tokenizer()
    for answer in ([{"role": "assistant", "content": "Yes."}, ASKED], []):
        with pytest.raises(FrugalignError, match=r"^Answer 2: The answer does not end with the assistant's message"):
            encode_completions(["Hi!", "Hi!"], ["Yes.", answer], tokenizer)


def test_a_template_without_an_end_token_gets_the_tokenizers() -> None:
    """What the template writes after the answer is left out, as it is not part of it."""
    tokenizer = BY_NAME["Llama 3"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    found = encode_for_model(model_ending_with([3, tokenizer.eos_token_id]), tokenizer, ["Hi!"], ["Hello."])
    assert tokenizer.decode(found.ids[0]) == "user: Hi!\nassistant: Hello.<|eot_id|>"
