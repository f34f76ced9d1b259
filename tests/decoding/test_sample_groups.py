"""Sampling groups: responses do not depend on chunks, on other prompts or on having been interrupted."""

from pathlib import Path

import pytest
from tests.two_layers import two_layers

import frugalign.decoding.sample_groups as module
import frugalign.sandbox as sandbox
from frugalign.base.ledger import Ledger
from frugalign.data import Rendering, encode_prompts
from frugalign.decoding.loop import SamplingParams, common_prefix
from frugalign.decoding.sample_groups import GroupOptions, sample_groups
from frugalign.engines.loading import load_model
from frugalign.engines.transformers import TransformersEngine

PROMPTS = [
    "I seek a balm to ease the fever of my sister.",
    "Mix me a powder to kill the cough of the miller.",
    "A balm.",
]
PARAMS = SamplingParams(max_new_tokens=6)


def test_a_group_is_its_own(tmp_path: Path) -> None:
    loaded = load_model(two_layers())
    whole = sample_groups(TransformersEngine(loaded.model, loaded.tokenizer), loaded.tokenizer, PROMPTS, 3, PARAMS)
    assert [len(group) for group in whole.completions] == [3, 3, 3] and len(set(whole.completions[0])) > 1
    alone = sample_groups(
        TransformersEngine(loaded.model, loaded.tokenizer),
        loaded.tokenizer,
        PROMPTS[1:2],
        3,
        PARAMS,
        GroupOptions(numbers=[1]),
    )
    assert alone.completions == whole.completions[1:2] and alone.completion_ids == (whole.completion_ids or [])[1:2]
    later = sample_groups(
        TransformersEngine(loaded.model, loaded.tokenizer), loaded.tokenizer, PROMPTS, 3, PARAMS, GroupOptions(epoch=1)
    )
    assert later.completions != whole.completions


def test_an_interrupted_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three prompts are on the disk, and half a line of the third: only the third is sampled, and all are as without."""
    loaded = load_model(two_layers())
    whole = sample_groups(TransformersEngine(loaded.model, loaded.tokenizer), loaded.tokenizer, PROMPTS, 3, PARAMS)
    monkeypatch.setattr(module, "_CHUNK", 1)
    partial = tmp_path / "x.partial"
    asked: list[int] = []
    sampling = module.generate

    def stops(*args: object, **kwargs: object) -> object:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return sampling(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "generate", stops)
    with pytest.raises(KeyboardInterrupt):
        sample_groups(
            TransformersEngine(loaded.model, loaded.tokenizer),
            loaded.tokenizer,
            PROMPTS,
            3,
            PARAMS,
            GroupOptions(batch_size=3, partial=partial),
        )
    with partial.open("a") as file:
        file.write('{"prompt": "A ba')
    again = sample_groups(
        TransformersEngine(loaded.model, loaded.tokenizer),
        loaded.tokenizer,
        PROMPTS,
        3,
        PARAMS,
        GroupOptions(batch_size=3, partial=partial),
    )
    assert again == whole and len(asked) == 4
    # Other arguments do not go on with it.
    other = sample_groups(
        TransformersEngine(loaded.model, loaded.tokenizer),
        loaded.tokenizer,
        PROMPTS,
        3,
        PARAMS,
        GroupOptions(seed=1, batch_size=3, partial=partial),
    )
    assert other.completions != whole.completions and len(asked) == 7


def told(prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": sandbox.PRINCIPLES}, {"role": "user", "content": prompt}]


def test_sharing_what_all_prompts_begin_with_changes_no_response_and_feeds_it_once() -> None:
    """Nine responses under the same system message: eight times the tokens that the prompts share are saved, whatever a batch holds."""
    loaded = load_model(two_layers())
    prompts = [told(prompt) for prompt in PROMPTS]
    shared = common_prefix(encode_prompts(prompts, loaded.tokenizer, max_new_tokens=6).ids)
    assert shared > 15, "the principles, and the opening of the user's turn"
    whole = Ledger()
    expected = sample_groups(
        TransformersEngine(loaded.model, loaded.tokenizer),
        loaded.tokenizer,
        prompts,
        3,
        PARAMS,
        GroupOptions(batch_size=4),
        ledger=whole,
    )
    assert len({text for group in expected.completions for text in group}) > 5
    found = Ledger()
    assert (
        sample_groups(
            TransformersEngine(loaded.model, loaded.tokenizer),
            loaded.tokenizer,
            prompts,
            3,
            PARAMS,
            GroupOptions(batch_size=4, share_prefix=True),
            ledger=found,
        )
        == expected
    )
    # Batches of four rows hold two, two and one prompt: five are fed, or what they share once.
    assert whole.lm_forward_tokens - found.lm_forward_tokens == (5 - 1) * shared
    assert found.generated_tokens == whole.generated_tokens


def test_a_shared_prefix_is_fed_once_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two prompts and of one: twice instead of three times, the same length in each though one prompt alone shares more with itself."""
    loaded = load_model(two_layers())
    prompts = [told(prompt) for prompt in PROMPTS]
    shared = common_prefix(encode_prompts(prompts, loaded.tokenizer, max_new_tokens=6).ids)
    expected = sample_groups(TransformersEngine(loaded.model, loaded.tokenizer), loaded.tokenizer, prompts, 3, PARAMS)
    monkeypatch.setattr(module, "_CHUNK", 1)
    whole, found = Ledger(), Ledger()
    sample_groups(
        TransformersEngine(loaded.model, loaded.tokenizer),
        loaded.tokenizer,
        prompts,
        3,
        PARAMS,
        GroupOptions(batch_size=6),
        ledger=whole,
    )
    again = sample_groups(
        TransformersEngine(loaded.model, loaded.tokenizer),
        loaded.tokenizer,
        prompts,
        3,
        PARAMS,
        GroupOptions(batch_size=6, share_prefix=True),
        ledger=found,
    )
    assert again == expected and whole.lm_forward_tokens - found.lm_forward_tokens == (3 - 2) * shared


def test_prompts_that_share_nothing_and_no_prompts_at_all_may_be_asked_to_share() -> None:
    loaded = load_model(two_layers())
    # Raw text, so that not even the template's first token is common to all.
    raw = GroupOptions(rendering=Rendering("raw"), share_prefix=True)
    few = ["Mix me a powder.", "A balm."]
    assert common_prefix(encode_prompts(few, loaded.tokenizer, max_new_tokens=6, rendering=Rendering("raw")).ids) == 0
    found = sample_groups(TransformersEngine(loaded.model, loaded.tokenizer), loaded.tokenizer, few, 2, PARAMS, raw)
    assert found == sample_groups(
        TransformersEngine(loaded.model, loaded.tokenizer),
        loaded.tokenizer,
        few,
        2,
        PARAMS,
        GroupOptions(rendering=Rendering("raw")),
    )
    assert (
        sample_groups(
            TransformersEngine(loaded.model, loaded.tokenizer),
            loaded.tokenizer,
            [],
            2,
            PARAMS,
            GroupOptions(share_prefix=True),
        ).completions
        == []
    )
