"""Sampling groups: responses do not depend on chunks, on other prompts or on having been interrupted."""

from pathlib import Path

import pytest

import frugalign.generation.groups as module
import frugalign.sandbox as sandbox
from frugalign.generation.groups import sample_groups
from frugalign.generation.loop import SamplingParams
from frugalign.models.loading import load_model

PROMPTS = [
    "I seek a balm to ease the fever of my sister.",
    "Mix me a powder to kill the cough of the miller.",
    "A balm.",
]
PARAMS = SamplingParams(max_new_tokens=6)


def test_a_group_is_its_own(tmp_path: Path) -> None:
    loaded = load_model(sandbox.model)
    whole = sample_groups(loaded.model, loaded.tokenizer, PROMPTS, 3, PARAMS)
    assert [len(group) for group in whole.completions] == [3, 3, 3] and len(set(whole.completions[0])) > 1
    alone = sample_groups(loaded.model, loaded.tokenizer, PROMPTS[1:2], 3, PARAMS, numbers=[1])
    assert alone.completions == whole.completions[1:2] and alone.completion_ids == (whole.completion_ids or [])[1:2]
    later = sample_groups(loaded.model, loaded.tokenizer, PROMPTS, 3, PARAMS, epoch=1)
    assert later.completions != whole.completions


def test_an_interrupted_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three prompts are on the disk, and half a line of the third: only the third is sampled, and all are as without."""
    loaded = load_model(sandbox.model)
    whole = sample_groups(loaded.model, loaded.tokenizer, PROMPTS, 3, PARAMS)
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
        sample_groups(loaded.model, loaded.tokenizer, PROMPTS, 3, PARAMS, batch_size=3, partial=partial)
    with partial.open("a") as file:
        file.write('{"prompt": "A ba')
    again = sample_groups(loaded.model, loaded.tokenizer, PROMPTS, 3, PARAMS, batch_size=3, partial=partial)
    assert again == whole and len(asked) == 4
    # Other arguments do not go on with it.
    other = sample_groups(loaded.model, loaded.tokenizer, PROMPTS, 3, PARAMS, seed=1, batch_size=3, partial=partial)
    assert other.completions != whole.completions and len(asked) == 7
