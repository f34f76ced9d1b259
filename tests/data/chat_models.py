"""Chat templates as public models ship them (tools left out), with a small tokenizer and the models' end tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') }}
            {{- '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
R1 = (
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\n'}}{% endif %}"
)
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL_V3 = MISTRAL.replace("loop.first and system", "loop.last and system")
"""Version 0.3 of the 7B model writes the system message into a last user turn only, so not once an answer follows."""


LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen divide text before merging. White space that ends in line breaks stays together."""
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 and SmolLM2 do. Two line breaks are one token at the end of a text, and two before a word."""


@dataclass(frozen=True)
class ChatModel:
    """A template, the text of the token that ends its turns, and special tokens: `ends` as a generation config lists
    them, the document's end first."""

    name: str
    template: str
    end: str
    ends: tuple[str, ...]
    bos: str | None
    eos: str
    others: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    def tokenizer(self, words: str = LLAMA3_WORDS) -> PreTrainedTokenizerFast:
        return byte_tokenizer(self, words)

    def model(self, tokenizer: PreTrainedTokenizerFast, context: int = 4096) -> Any:
        """What encoding reads of a model: its end tokens and its context."""
        return model_ending_with(tokenizer.convert_tokens_to_ids(list(self.ends)), context)


def model_ending_with(ids: Any, context: int = 4096) -> Any:
    """A stand-in for a model whose generation config has these end tokens."""
    config = LlamaConfig(max_position_embeddings=context)
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ids), config=config)


_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHAT_MODELS = (
    ChatModel(
        "Llama 3", LLAMA3, "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), "<|begin_of_text|>", "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    ChatModel("Qwen 3", QWEN3, "<|im_end|>", ("<|endoftext|>", "<|im_end|>"), None, "<|im_end|>", _IM, ("<think>", "</think>")),
    ChatModel("Gemma 3", GEMMA3, "<end_of_turn>", ("<eos>", "<end_of_turn>"), "<bos>", "<eos>", ("<start_of_turn>",)),
    ChatModel(
        "DeepSeek-R1-Distill", R1, "<｜end▁of▁sentence｜>", ("<|endoftext|>", "<｜end▁of▁sentence｜>"), "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>", (), ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    ChatModel("Mistral", MISTRAL, "</s>", ("[TOOL_CALLS]", "</s>"), "<s>", "</s>", ("[INST]", "[/INST]")),
    ChatModel("SmolLM2", SMOLLM2, "<|im_end|>", ("<|endoftext|>", "<|im_end|>"), "<|im_start|>", "<|im_end|>", _IM),
    ChatModel("ChatML", CHATML, "<|im_end|>", ("<|endoftext|>", "<|im_end|>"), None, "<|endoftext|>", _IM),
)  # fmt: skip
BY_NAME = {model.name: model for model in CHAT_MODELS}
GEMMA_2 = replace(BY_NAME["Gemma 3"], name="Gemma 2", template=GEMMA2)

_TEXTS = [
    "Hello there.\n\nHow is the weather today?\n\n\n",
    "The sky is blue, and it is cold outside.",
    "Hi! Hello. Yes. No.",
]


def byte_tokenizer(chat: ChatModel, words: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred merges with the model's special tokens. It adds BOS to plain text, as Llama's does."""
    backend = Tokenizer.from_str(_trained(words))
    special = (*chat.others, *chat.ends, chat.bos, chat.eos)
    backend.add_special_tokens(list(dict.fromkeys(text for text in special if text is not None)))
    backend.add_tokens(list(chat.plain))
    if chat.bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{chat.bos} $A", special_tokens=[(chat.bos, backend.token_to_id(chat.bos))]
        )
    built = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=chat.bos, eos_token=chat.eos, clean_up_tokenization_spaces=False
    )
    built.chat_template = chat.template
    return built


@cache
def _trained(words: str) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(_TEXTS * 3, trainer)
    return str(backend.to_str())


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


ASKED = {"role": "user", "content": "How is the weather today?"}
