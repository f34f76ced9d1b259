"""The world's tokenizer: one token per word. It is built from the grammar, so it needs no training."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from frugalign.sandbox import principles, replies, world

SPECIALS: tuple[str, ...] = ("<pad>", "<unk>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def words() -> list[str]:
    """Every word that the world's prompts, replies and system messages use, lower case, in a fixed order."""
    texts = [
        *world.GREETINGS, *world.TRADES, *world.ASKS, *world.FORMS, *world.CONDITIONS, *world.TARGETS,
        *world.OPEN_TAILS, *world.COVERT_TAILS,
        *(f"{verb} {preposition}" for verb, preposition in world.SOFT_ACTS + world.HARSH_ACTS + world.HARM_ACTS),
        *replies.ALL_PRODUCTS, *replies.POLITE_ADDRESSES, *replies.RUDE_ADDRESSES, *replies.FLATTERIES,
        *replies.LAWFUL_PRICES, *replies.DIRE_PRICES, *replies.POLITE_FAREWELLS.values(),
        *replies.RUDE_FAREWELLS.values(),
        "here is take this that is silver . the law forbids it . alas , i may not sell this ! ? : to",
        *principles.LAWFUL, *principles.POLITE, *principles.CAREFUL, principles.LEDGER,
        *principles.LEDGER_LINES.values(),
    ]  # fmt: skip
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})


def token_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The id of one word of the vocabulary."""
    index = tokenizer.convert_tokens_to_ids(word)
    assert isinstance(index, int)
    return index


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with chat template, pad token and left padding."""
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # the WordPiece decoder is used only for its clean-up: it drops the space before punctuation
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    extra: dict[str, Any] = {"additional_special_tokens": list(SPECIALS[4:])}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=192,
        clean_up_tokenization_spaces=False,
        **extra,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
