"""The feature cache: computed once, in shards that survive a kill, read row by row, and true to the base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.sentences import sentence_ends
from frugalign.engines.states import endpoint_states
from frugalign.methods import answer_features as module
from frugalign.methods.answer_features import AnswerFeatures, Answers, Proposals, Teacher, answer_features
from frugalign.methods.imitation import imitate
from frugalign.proxy.candidates import Limits, candidates
from frugalign.runs.shard_store import ShardFile, ShardStore

PROMPTS = [[5, 6, 7], [5, 6, 7], [12, 13], [12, 13], [9, 9, 9, 9], [9, 9, 9, 9], [4, 4], [4, 5]]
TEXTS = [[20, 21, 22, 23], [24, 25], [26], [27, 28, 29, 30, 31], [32, 33], [34, 35, 36], [20, 21], [22]]
ANSWERS = Answers(PROMPTS, TEXTS)
PROPOSALS = Proposals(1.0, Limits(0.01, 16))


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two answers each: four shards."""
    monkeypatch.setattr(module, "_SHARD_TOKENS", 13)
    yield
    ShardFile.of.cache_clear()
    module._begins.cache_clear()


def features(
    base: LoadedModel, folder: Path, answers: Answers = ANSWERS, proposals: Proposals = PROPOSALS, **more: Any
) -> AnswerFeatures:
    return answer_features(base.model, base.tokenizer, answers, proposals, ShardStore(folder), **more)


def fed(base: LoadedModel, folder: Path, *args: Any, **more: Any) -> int:
    """Tokens that a pass feeds, beyond what is stored."""
    ledger = Ledger()
    features(base, folder, *args, ledger=ledger, **more)
    return ledger.lm_forward_tokens


def same(one: Any, other: Any) -> bool:
    names = ("sequence", "position", "hidden", "ids", "log_p", "mask", "choice")
    return torch.equal(one.base_log_prob, other.base_log_prob) and all(
        torch.equal(getattr(one.positions, name), getattr(other.positions, name)) for name in names
    )


def test_it_is_computed_once_and_again_only_where_it_is_damaged(base: LoadedModel, tmp_path: Path) -> None:
    whole = fed(base, tmp_path)
    found = features(base, tmp_path)
    assert whole == found.n_tokens > 0 and len(found.shards.files) == 4
    assert fed(base, tmp_path) == 0
    before = found.read(range(8))
    content = found.shards.files[1].read_bytes()
    for damaged in (content[:-8], content[:-1] + bytes([content[-1] ^ 1]), found.shards.files[2].read_bytes()):
        found.shards.files[1].write_bytes(damaged)
        # The second shard's pair: a prompt of two tokens, and answers of one and five, whose last token predicts nothing.
        assert fed(base, tmp_path) == 2 + 0 + 4
        assert found.shards.files[1].read_bytes() == content and same(features(base, tmp_path).read(range(8)), before)


def test_a_killed_pass_goes_on_with_the_next_shard(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the third of four: two are kept, and the rows are those of a pass in one go."""
    calls: list[list[int]] = []
    shard = module.FeaturePass.shard

    def counted(self: Any, rows: Any) -> Any:
        calls.append(list(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return shard(self, rows)

    monkeypatch.setattr(module.FeaturePass, "shard", counted)
    with pytest.raises(KeyboardInterrupt):
        features(base, tmp_path / "a")
    found = features(base, tmp_path / "a")
    assert calls == [[0, 1], [2, 3], [4, 5], [4, 5], [6, 7]]
    assert same(found.read(range(8)), features(base, tmp_path / "b").read(range(8)))


def test_whatever_the_features_depend_on_is_in_the_key(base: LoadedModel, tmp_path: Path) -> None:
    """Each of these is computed anew, and none of them twice."""
    masks = [[1] * len(ids) for ids in TEXTS]
    teacher = Teacher(base.model, base.tokenizer, [[7, *ids] for ids in PROMPTS], 1.0)
    other = load_model(two_layers())
    with torch.no_grad():
        next(other.model.parameters()).add_(0.5)
    variants: list[tuple[LoadedModel, Answers, Proposals, dict[str, Any]]] = [
        (base, ANSWERS, PROPOSALS, {}),
        (base, ANSWERS, replace(PROPOSALS, temperature=0.7), {}),
        (base, ANSWERS, replace(PROPOSALS, limits=Limits(0.02, 16)), {}),
        (base, ANSWERS, replace(PROPOSALS, limits=Limits(0.01, 8)), {}),
        (base, replace(ANSWERS, masks=masks), PROPOSALS, {}),
        (base, replace(ANSWERS, answer_ids=[*TEXTS[:-1], [23]]), PROPOSALS, {}),
        (base, ANSWERS, PROPOSALS, {"layers": [1]}),
        (base, ANSWERS, PROPOSALS, {"dtype": torch.float32}),
        (base, ANSWERS, PROPOSALS, {"teacher": teacher}),
        (base, ANSWERS, PROPOSALS, {"teacher": replace(teacher, temperature=0.5)}),
        (base, ANSWERS, PROPOSALS, {"teacher": replace(teacher, prompt_ids=[[8, *ids] for ids in PROMPTS])}),
        (other, ANSWERS, PROPOSALS, {}),
    ]
    for model, answers, proposals, more in variants:
        assert fed(model, tmp_path, answers, proposals, **more) > 0
    assert len(list(tmp_path.iterdir())) == len(variants)
    for model, answers, proposals, more in variants:
        assert fed(model, tmp_path, answers, proposals, **more) == 0


def test_states_are_rounded_to_bfloat16_and_nothing_else(base: LoadedModel, tmp_path: Path) -> None:
    rounded = features(base, tmp_path).read(range(8))
    exact = features(base, tmp_path, dtype=torch.float32).read(range(8))
    assert torch.equal(rounded.positions.hidden, exact.positions.hidden.bfloat16().float())
    assert not torch.equal(rounded.positions.hidden, exact.positions.hidden)
    exact.positions.hidden = rounded.positions.hidden
    assert same(rounded, exact)


def test_rows_come_in_the_order_that_is_asked(base: LoadedModel, tmp_path: Path) -> None:
    """Across shards, one of them twice."""
    found = features(base, tmp_path)
    part = found.read([6, 1, 6])
    assert part.lengths.tolist() == [2, 2, 2] and part.positions.sequence.tolist() == [0, 0, 1, 1, 2, 2]
    alone = [found.read([row]) for row in (6, 1, 6)]
    torch.testing.assert_close(part.base_log_prob, torch.cat([each.base_log_prob for each in alone]), atol=0, rtol=0)
    torch.testing.assert_close(
        part.positions.hidden, torch.cat([each.positions.hidden for each in alone]), atol=0, rtol=0
    )


def test_turns_of_others_are_read_and_do_not_count(base: LoadedModel, tmp_path: Path) -> None:
    """The positions that are left are those of the whole answer at the same places."""
    masks = [[1] * len(ids) for ids in TEXTS]
    masks[3] = [1, 0, 0, 1, 1]
    whole = features(base, tmp_path).read([3])
    part = features(base, tmp_path, replace(ANSWERS, masks=masks)).read([3])
    kept = [0, 3, 4]
    assert part.lengths.tolist() == [3] and part.positions.position.tolist() == kept
    torch.testing.assert_close(part.base_log_prob, whole.base_log_prob[kept])
    torch.testing.assert_close(part.positions.hidden, whole.positions.hidden[kept], atol=1e-5, rtol=1e-5)
    others = features(base, tmp_path, replace(ANSWERS, masks=masks)).read([2, 4])
    assert others.lengths.tolist() == [1, 2]
    masks[5] = [0, 0, 0]
    with pytest.raises(FrugalignError, match="Answer 6 has no tokens"):
        features(base, tmp_path, replace(ANSWERS, masks=masks))


def test_states_at_the_last_sentence_end_are_those_that_probes_read(base: LoadedModel, tmp_path: Path) -> None:
    """From the same pass, for texts that end with a sentence, in the middle of one, and without any."""
    texts = ["A cup of tea. It helps", "Take this draught.", "no", "Wait! Who are you?"]
    ids = [base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    answers = Answers(PROMPTS[:4], ids)
    found = features(base, tmp_path, answers, layers=[1, 2])
    ends = sentence_ends(base.tokenizer)
    read = [ends.read(prompt, answer) for prompt, answer in zip(PROMPTS, ids, strict=False)]
    assert len(read[0]) < len(PROMPTS[0]) + len(ids[0]) and len(read[2]) == len(PROMPTS[2]) + len(ids[2])
    direct = endpoint_states(base.model, read, [1, 2])
    torch.testing.assert_close(found.states(range(4)), direct, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.states([3, 0]), direct[[3, 0]], atol=1e-5, rtol=1e-5)


def test_reading_rows_reads_those_rows_alone(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten times as much data in the store, two rows are as many bytes, and nothing stays open or in memory."""
    sizes = []
    read = ShardFile.rows

    def counted(self: ShardFile, *args: Any) -> Any:
        found = read(self, *args)
        sizes.append(found.numel() * found.element_size())
        return found

    totals = []
    for times in (1, 10):
        many = Answers(PROMPTS * times, TEXTS * times)
        found = features(base, tmp_path, many)
        found.read([0, 1])  # where rows begin is read once a shard
        monkeypatch.setattr(ShardFile, "rows", counted)
        sizes.clear()
        found.read([0, 1])
        totals.append(sum(sizes))
        monkeypatch.setattr(ShardFile, "rows", read)
    stored = sum(file.stat().st_size for file in features(base, tmp_path).shards.files)
    assert totals[0] == totals[1] < stored / 2


def test_logits_of_a_batch_are_bounded(base: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two answers of four tokens: many answers to one prompt are fed in several batches, and a long one alone."""
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(module, "_LOGIT_BYTES", 2 * 4 * vocabulary * 4)
    answers = Answers([[5, 6]] * 7, [[20, 21, 22, 23]] * 6 + [list(range(20, 40))])
    reading = module.FeaturePass(base.model, answers, PROPOSALS, None, (), None, torch.float32, None)
    batches = reading._batches(range(6))
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert [6] in reading._batches([0, 6]) or reading._batches([0, 6]) == [[0], [6]]


def test_more_than_the_store_may_hold_is_refused(base: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match=r"The features of 8 answers take about .* raise its bound"):
        answer_features(base.model, base.tokenizer, ANSWERS, PROPOSALS, ShardStore(tmp_path, max_gib=1e-6))
    assert not list(tmp_path.iterdir())


def test_what_a_teacher_says_of_columns_and_within_the_tail() -> None:
    """Base (½, ¼, ⅛, ⅛) with the first two as candidates; the teacher's (¼, ¼, ⅜, ⅛) has ½ in the tail, of which ¾ and ¼, against ½ each."""
    base_p, teacher_p = torch.tensor([[0.5, 0.25, 0.125, 0.125]]), torch.tensor([[0.25, 0.25, 0.375, 0.125]])
    chosen = candidates(base_p.log(), 1.0, Limits(0.2, 16), "keep")
    said = imitate(teacher_p.log(), base_p.log(), chosen)
    assert said.log_p[0][chosen.mask[0]].exp().tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert float(said.rest) == pytest.approx(0.5 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    # A teacher that is sure: nothing is infinite.
    sure = imitate(torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]]), base_p.log(), chosen)
    assert bool(sure.log_p[chosen.mask].isfinite().all()) and float(sure.rest) == 0.0
