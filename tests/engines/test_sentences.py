"""Where an answer is read: at its last sentence end, found from tokens, the same in lists and in padded batches."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from frugalign.engines.sentences import SentenceEnds, sentence_ends

ENDS = SentenceEnds(torch.tensor([False, False, True, False]), torch.tensor([[-1, 4, 5], [6, 5, 5]]))
"""Token 2 ends a sentence, and so do 4 5 and 6 5 5."""


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ([1, 2, 0], 2),
        ([1, 2, 1, 2, 1, 1], 4),
        ([2], 1),
        ([1, 0], 2),  # no sentence end: all of it
        ([1, 2, 9], 2),  # a token beyond the table
        ([1, 4, 5, 1], 3),
        ([1, 6, 5, 5, 1], 4),
        ([2, 5, 5, 1], 1),  # only the end of a mark
        ([2, 4, 1, 5], 1),
        ([5, 1, 1], 3),  # the prompt's last token does not count
        ([2, 6, 5], 1),  # a mark that was cut
    ],
)
def test_an_answer_is_read_to_its_last_sentence_end(answer: list[int], read: int) -> None:
    prompt = [2, 4]
    assert ENDS.read(prompt, answer) == prompt + answer[:read]
    ids, mask = torch.full((2, 12), 2), torch.zeros(2, 12, dtype=torch.bool)
    ids[0, : 2 + len(answer)], mask[0, 2 : 2 + len(answer)] = torch.tensor(prompt + answer), True
    mask[1, 3] = True
    assert ENDS.last(ids, mask).tolist() == [len(prompt) + read - 1, 3]


def test_token_by_token_finds_the_same_as_at_once() -> None:
    """As in the decoding loop, which sees the last `width` tokens only."""
    ids = torch.randint(0, 8, (200, 30), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([torch.full((200, ENDS.width - 1), -1), ids], 1)
    one_by_one = [ENDS(padded[:, end - ENDS.width : end])[:, -1] for end in range(ENDS.width, padded.shape[1] + 1)]
    assert torch.equal(torch.stack(one_by_one, 1), ENDS(ids))
    assert int(ENDS(ids).sum()) - int((ids == 2).sum()) > 0, "some marks have several tokens"


def test_cutting_after_a_sentence_end_moves_nothing() -> None:
    answer = [1, 1, 2, 1, 3, 1]
    assert {tuple(ENDS.read([0], answer[:n])) for n in range(3, 7)} == {(0, 1, 1, 2)}


def test_which_tokens_end_a_sentence() -> None:
    """Closing quotes, brackets and white space may follow; a special token ends none, whatever its text."""
    ending = [".", "end!", "who?", '."', ".)\n", "。", "？」", "...", "…", "!**", "؟", "।", "．"]
    others = ["word", ",", ".5", '"', "<end.>", "\n", "、", ":", "a.b"]
    vocabulary = {word: place for place, word in enumerate(ending + others)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="word")), eos_token="<end.>"
    )
    found = sentence_ends(tokenizer)
    assert [word for word, place in vocabulary.items() if found.table[place]] == ending
    assert found.spelled.numel() == 0, "the unknown token spells no mark"
    assert sentence_ends(tokenizer) is found


def byte_level() -> PreTrainedTokenizerFast:
    """One token per byte, as for scripts that a byte-level vocabulary has not learned."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As in Llama 2: bytes where the vocabulary has no piece, and a piece for the space."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    pieces = ["▁", "x", "a", "b", ".", "!", "?"]
    vocabulary |= {piece: 257 + place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("mark", ["。", "！", "？", "…", "؟", "।", "．", "."])
def test_a_mark_in_several_tokens_ends_a_sentence_at_its_last(make: object, mark: str) -> None:
    tokenizer = make()  # type: ignore[operator]
    ends = sentence_ends(tokenizer)
    whole, first = (tokenizer(text)["input_ids"] for text in (f"a{mark} b é 、", f"a{mark}"))
    assert len(first) > 2 or mark == "."
    assert ends.read([1], whole) == [1, *first]
    assert ends.read([1], first) == [1, *first]
    if mark != ".":
        assert ends.read([1], first[:-1]) == [1, *first[:-1]], "cut inside the mark: no sentence end"
        assert not ends(torch.tensor([first]))[0, :-1].any()
