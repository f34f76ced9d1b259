"""A proxy as the trained weights: its scores are those of the guided model, and its base reads every answer once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.two_layers import two_layers
from torch import Tensor

import frugalign.methods.proxy_carrier as module
from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.engines.loading import load_model
from frugalign.engines.sentences import sentence_ends
from frugalign.engines.states import endpoint_states
from frugalign.methods.answer_features import Answers, answer_features
from frugalign.methods.carriers import weights_digest
from frugalign.methods.log_probs import Reading
from frugalign.methods.proxy_carrier import Proxy, carrier_of
from frugalign.methods.rerank.config import RerankConfig
from frugalign.runs.save_policy import lora_of

PROMPTS = [[5, 6, 7], [5, 6, 7], [12, 13, 14, 15, 16]]
ANSWERS = [[8, 9, 40, 3], [21, 1], [31, 32, 33, 2, 47, 11]]
FED = 17
"""Tokens of one pass: the first two share a prompt, and the last token of an answer predicts nothing."""
MASKS = [[1, 1, 1, 1], [1, 1], [1, 1, 0, 0, 1, 1]]


def carrier(folder: Path, **options: Any) -> Proxy:
    """With a proxy that does something, the same one each time."""
    loaded = load_model(two_layers())
    args = RerankConfig(
        output_dir=str(folder), train="proxy", confidence="constant", use_cpu=True, save_strategy="no",
        cache_dir=str(folder / "cache"), **options,
    )  # fmt: skip
    found = carrier_of(loaded.model, loaded.tokenizer, args, keeps_start=False)
    assert isinstance(found, Proxy)
    perturb(found)
    return found


def perturb(found: Proxy) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def batch_of(rows: list[int], masks: list[list[int]] = MASKS) -> dict[str, Tensor]:
    width = max(len(PROMPTS[row]) + len(ANSWERS[row]) for row in rows)
    batch: dict[str, Any] = {"input_ids": [], "attention_mask": [], "completion_mask": []}
    for row in rows:
        length = len(PROMPTS[row]) + len(ANSWERS[row])
        batch["input_ids"].append([*PROMPTS[row], *ANSWERS[row], *[0] * (width - length)])
        batch["attention_mask"].append([1] * length + [0] * (width - length))
        batch["completion_mask"].append([0] * len(PROMPTS[row]) + masks[row] + [0] * (width - length))
    return {name: torch.tensor(values) for name, values in batch.items()}


@contextmanager
def counted_passes(found: Proxy) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = found.lm.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize("settings", [{}, {"p_t": 0.2, "temperature": 0.7}, {"candidate_features": "token_bias"}])
def test_scores_are_those_of_the_guided_model(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token's log π, the log-ratio to the base and the KL to it, against the whole vocabulary; other speakers' turns left out."""
    monkeypatch.setattr(module, "answer_features", partial(answer_features, dtype=torch.float32))
    found = carrier(tmp_path, **settings)
    found.read("answers", Answers(PROMPTS, ANSWERS, MASKS), Ledger())
    scored = found.score(found.policy, batch_of([2, 0, 1]))
    temperature = found.policy.config.temperature
    for place, row in enumerate([2, 0, 1]):
        ask = found.lm, [PROMPTS[row]], [ANSWERS[row]]
        pi = sequence_log_probs(*ask, guide=found.guide())[0] * torch.tensor(MASKS[row])
        base = sequence_log_probs(*ask, temperature=temperature)[0] * torch.tensor(MASKS[row])
        start = len(PROMPTS[row]) - 1
        torch.testing.assert_close(scored.log_probs[place, start : start + len(pi)].detach(), pi, atol=1e-5, rtol=1e-5)
        assert float(scored.log_probs[place].sum().detach()) == pytest.approx(float(pi.sum()), abs=1e-4)
        assert scored.log_ratio is not None
        assert float(scored.log_ratio[place].detach()) == pytest.approx(float((pi - base).sum()), abs=1e-4)
    assert scored.kl is not None and float(scored.kl.detach().min()) > 1e-3
    whole = found.log_probs(PROMPTS[:2], ANSWERS[:2], 1, Ledger())
    torch.testing.assert_close(whole, scored.sums.detach()[1:], atol=1e-4, rtol=1e-5)


def test_every_answer_is_read_once(tmp_path: Path) -> None:
    """Epochs, the reference and the order of a batch cost no pass; nor does a second process that finds the cache."""
    found, ledger = carrier(tmp_path), Ledger()
    with counted_passes(found) as calls:
        found.read("train", Answers([*PROMPTS, PROMPTS[0]], [*ANSWERS, ANSWERS[0]]), ledger)
        assert calls and ledger.lm_forward_tokens == FED, "an answer twice is one"
        assert set(ledger.seconds) == {"read"}
        calls.clear()
        ones = [[1] * len(ids) for ids in ANSWERS]
        sums = [found.score(found.policy, batch_of(rows, ones)).sums for rows in ([0, 1, 2], [2, 1, 0])]
        assert torch.equal(sums[0], sums[1].flip(0))
        with found.start() as start:
            assert start is found.lm
        found.log_probs(PROMPTS, ANSWERS, 2, ledger)
        assert not calls
    again, ledger = carrier(tmp_path), Ledger()
    with counted_passes(again) as calls:
        again.read("train", Answers(PROMPTS, ANSWERS), ledger)
        assert not calls and ledger.lm_forward_tokens == FED
        assert torch.equal(again.score(again.policy, batch_of([0, 1, 2], ones)).sums, sums[0])


def test_a_set_of_answers_replaces_the_one_of_its_name_alone(tmp_path: Path) -> None:
    found = carrier(tmp_path)
    ones = [[1] * len(ids) for ids in ANSWERS]
    found.read("train", Answers(PROMPTS[:2], ANSWERS[:2]), Ledger())
    found.read("held-out", Answers(PROMPTS[2:], ANSWERS[2:]), Ledger())
    found.read("train", Answers(PROMPTS[:1], ANSWERS[:1]), Ledger())
    assert len(found.score(found.policy, batch_of([0, 2], ones)).sums) == 2
    with pytest.raises(LookupError):
        found.score(found.policy, batch_of([1], ones))


def test_probes_read_the_states_that_their_own_pass_gives(tmp_path: Path) -> None:
    found = carrier(tmp_path)
    tokenizer = load_model(two_layers()).tokenizer
    ones = [[1] * len(ids) for ids in ANSWERS]
    found.read("train", Answers(PROMPTS, ANSWERS), Ledger(), [1, 2])
    scored = found.score(found.policy, batch_of([2, 0], ones), Reading([1, 2], sentence_ends(tokenizer)))
    assert scored.states is not None
    ends = sentence_ends(tokenizer)
    texts = [[*PROMPTS[row], *ANSWERS[row][: len(ends.read((), ANSWERS[row]))]] for row in (2, 0)]
    expected = endpoint_states(found.lm, texts, [1, 2])
    torch.testing.assert_close(scored.states, expected, atol=1e-5, rtol=1e-5)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    found = carrier(tmp_path)
    found.save(tmp_path / "saved", None, SimpleNamespace())  # type: ignore[arg-type]
    other = carrier(tmp_path)
    with torch.no_grad():
        other.policy.bias.add_(1.0)
    assert weights_digest(other.policy) != weights_digest(found.policy)
    other.load(tmp_path / "saved")
    assert weights_digest(other.policy) == weights_digest(found.policy)
    assert not any(parameter.requires_grad for parameter in other.lm.parameters())


@pytest.mark.parametrize("train", ["lora", "full", "proxy"])
def test_the_temperature_is_the_models_own_unless_told(train: str, tmp_path: Path) -> None:
    """A proxy to start from has fixed it already."""

    def settled(own: float | None, **options: Any) -> float | None:
        loaded = load_model(two_layers())
        model: Any = loaded.model
        model.generation_config.do_sample, model.generation_config.temperature = own is not None, own
        config = RerankConfig(output_dir=str(tmp_path), train=train, confidence="constant", use_cpu=True, **options)
        carrier_of(model, loaded.tokenizer, config, keeps_start=False)
        return config.temperature

    assert (settled(None), settled(0.6), settled(0.6, temperature=0.8)) == (1.0, 0.6, 0.8)
    if train == "proxy":
        carrier(tmp_path, temperature=0.7).save(tmp_path / "saved", None, SimpleNamespace())  # type: ignore[arg-type]
        assert settled(0.6, initial_proxy=str(tmp_path / "saved")) == 0.7


def test_a_base_with_an_adapter_in_training_is_refused(tmp_path: Path) -> None:
    loaded = load_model(two_layers())
    args = RerankConfig(output_dir=str(tmp_path), train="proxy", confidence="constant", use_cpu=True)
    model = get_peft_model(loaded.model, lora_of(args))
    with pytest.raises(FrugalignError, match="has an adapter: merge it first"):
        carrier_of(model, loaded.tokenizer, args, keeps_start=False)
