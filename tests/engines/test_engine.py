"""The decoding loop runs an engine that knows nothing of transformers, and equals a naive loop over whole sequences."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.engines.table_engine import STATES, VOCABULARY, WIDTH, TableEngine
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding.chooser import BaseGuide, Chooser, Emission
from frugalign.decoding.loop import Generation, LoopOptions, SamplingParams, common_prefix, generate
from frugalign.decoding.noise import Noise, row_keys
from frugalign.engines.engine import Engine

PROMPTS = [[5, 3, 1 + row % 22, *range(1, 1 + row % 5)] for row in range(20)]
PARAMS = SamplingParams(max_new_tokens=16)


class NearGuide(BaseGuide):
    """The base among its three likeliest tokens, the nearer the state after a token is to the state before it, the likelier."""

    needs_hidden = needs_lookahead = True

    def emit(
        self, h: Tensor, logits: Tensor, noise: Noise, *, do_sample: bool = True, lookahead: Any = None
    ) -> Emission:
        values, ids = logits.topk(3, -1)
        scores = values - (lookahead(ids) - h[:, None]).norm(dim=-1)
        chosen = (scores + noise.gumbel(0, ids)).argmax(-1, keepdim=True)
        return Emission(ids.gather(-1, chosen).squeeze(-1), kl_choice=-scores.amax(-1))


def naive(prompts: Sequence[Sequence[int]], guide: Chooser, do_sample: bool = True) -> Generation:
    """One row at a time, its state computed again from its first token at every position."""
    table, keys = TableEngine(), row_keys(0, 0, range(len(prompts)), [0] * len(prompts))
    found, ended = [], []
    for row, prompt in enumerate(prompts):
        ids: list[int] = []
        while len(ids) < PARAMS.max_new_tokens and 0 not in ids:
            whole = [*prompt, *ids]
            output = table.read(torch.tensor([table.feed(0, whole)]))

            def look(candidates: Tensor, whole: list[int] = whole) -> Tensor:
                return torch.stack([table.states[table.feed(0, [*whole, int(each)])] for each in candidates[0]])[None]

            noise = Noise(keys[row : row + 1], len(ids))
            emission = guide.emit(output.hidden, output.logits, noise, do_sample=do_sample, lookahead=look)
            ids.append(int(emission.token))
        found.append(ids)
        ended.append(ids[-1] == 0)
    return Generation(found, ended)


@pytest.mark.parametrize("guide", [BaseGuide(1.0), BaseGuide(0.5), NearGuide(1.0)], ids=["base", "cold", "lookahead"])
@pytest.mark.parametrize(
    "capabilities", [{}, {"can_select": False}, {"max_rows": 3}, {"gives_layers": False}], ids=lambda each: str(each)
)
def test_the_loop_on_a_table_equals_a_naive_loop(guide: Chooser, capabilities: dict[str, Any]) -> None:
    engine: Engine = TableEngine(**capabilities)
    expected = naive(PROMPTS, guide)
    assert 0 < sum(expected.ended) < len(PROMPTS) and len(set(map(len, expected.completion_ids))) > 4
    for size in (1, 7, 64):
        found = generate(engine, PROMPTS, PARAMS, guide=guide, options=LoopOptions(batch_size=size))
        assert found.completion_ids == expected.completion_ids and found.ended == expected.ended


def test_greedy_decoding_needs_only_the_likeliest_logits() -> None:
    engine = TableEngine(gives_whole_vocabulary=False)
    params = SamplingParams(PARAMS.max_new_tokens, do_sample=False)
    assert generate(engine, PROMPTS, params).completion_ids == naive(PROMPTS, BaseGuide(1.0), False).completion_ids


def test_a_batch_never_has_more_rows_than_the_engine_takes() -> None:
    engine, sizes = TableEngine(max_rows=3), []
    prefill = engine.prefill
    engine.prefill = lambda rows, prefix=None: sizes.append(len(rows)) or prefill(rows, prefix)  # type: ignore[method-assign,func-returns-value]
    generate(engine, PROMPTS, PARAMS, options=LoopOptions(batch_size=8))
    assert sizes == [3] * 6 + [2]


def test_a_prompt_is_fed_once_for_all_its_rows() -> None:
    """Rows in any order, batches that part a prompt's rows, and engines that cannot copy a row: the same completions."""
    prompts = [PROMPTS[row] for row in (0, 3, 0, 1, 3, 0, 3, 1)]
    expected = naive(prompts, BaseGuide(1.0)).completion_ids
    steps = sum(map(len, expected)) - len(prompts)
    for capabilities, sizes in (({}, (8, 3)), ({"can_expand": False}, (8,)), ({"can_select": False}, (8,))):
        for size in sizes:
            engine, ledger = TableEngine(**capabilities), Ledger()
            found = generate(engine, prompts, PARAMS, options=LoopOptions(batch_size=size), ledger=ledger)
            assert found.completion_ids == expected and engine.fed == ledger.lm_forward_tokens
            if size == 8 and not capabilities:
                once = sum(len(PROMPTS[row]) for row in (0, 1, 3))
                assert engine.fed < sum(map(len, prompts)) + steps and engine.fed >= once + steps
            if capabilities:
                assert engine.fed >= sum(map(len, prompts)) + steps


def test_a_shared_prefix_is_resumed_from_and_the_ledger_counts_what_was_fed() -> None:
    expected, shared = naive(PROMPTS, NearGuide(1.0)), common_prefix(PROMPTS)
    assert shared == 2
    fed = []
    for capabilities, guide in (({}, NearGuide(1.0)), ({}, BaseGuide(1.0)), ({"can_expand": False}, BaseGuide(1.0))):
        engine, ledger = TableEngine(**capabilities), Ledger()
        options = LoopOptions(batch_size=7, shared_prefix=shared)
        found = generate(engine, PROMPTS, PARAMS, guide=guide, options=options, ledger=ledger)
        assert engine.fed == ledger.lm_forward_tokens
        assert ledger.generated_tokens == sum(map(len, found.completion_ids))
        assert found.completion_ids == (expected if guide.needs_lookahead else naive(PROMPTS, guide)).completion_ids
        fed.append(engine.fed)
    assert fed[2] - fed[1] == shared * (len(PROMPTS) - 1), "an engine that cannot expand is fed the prefix in every row"


@pytest.mark.parametrize("capabilities", [{}, {"can_select": False}], ids=["select", "no select"])
def test_states_at_the_endpoint(capabilities: dict[str, Any]) -> None:
    engine = TableEngine(**capabilities)
    found = generate(engine, PROMPTS, PARAMS, options=LoopOptions(batch_size=6, state_layers=(1, 3)))
    assert found.states is not None and found.states.shape == (len(PROMPTS), 2, WIDTH)
    lengths = []
    for row, (prompt, completion) in enumerate(zip(PROMPTS, found.completion_ids, strict=True)):
        read = engine.sentence_ends.read(prompt, completion)
        hidden = engine.states[engine.feed(0, read)]
        torch.testing.assert_close(found.states[row], torch.stack([hidden, 3 * hidden]))
        lengths.append(len(prompt) + len(completion) - len(read))
    assert min(lengths) == 0 < max(lengths), "some are read before their last token"


def test_a_proxy_guides_an_engine_by_its_output_embeddings() -> None:
    """The keys come from the engine, the states from its steps: no model object is involved."""
    from frugalign.proxy.guide import ProxyGuide
    from frugalign.proxy.network import ProxyModel, ProxyModelConfig

    torch.manual_seed(0)
    proxy = ProxyModel(ProxyModelConfig(width=WIDTH, vocabulary=VOCABULARY, hidden=4, dim=4, p_t=0.001))
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(torch.randn(parameter.shape))
    engine = TableEngine()
    guide = ProxyGuide.build([proxy], engine.output_embeddings())
    found = generate(engine, PROMPTS, PARAMS, guide=guide, options=LoopOptions(batch_size=7))
    assert found.completion_ids == naive(PROMPTS, guide).completion_ids
    assert found.completion_ids != naive(PROMPTS, BaseGuide(1.0)).completion_ids


@pytest.mark.parametrize(
    ("lacks", "guide", "options", "sentence"),
    [
        ("gives_hidden", NearGuide(1.0), LoopOptions(), "does not give the LM head's input, which this guide reads."),
        ("can_expand", NearGuide(1.0), LoopOptions(), "cannot expand its cache, so it does not support lookahead."),
        ("gives_whole_vocabulary", None, LoopOptions(), "gives logits for only part of the vocabulary, so it can only"),
        ("gives_layers", None, LoopOptions(state_layers=(1,)), "does not give hidden states of single layers, which"),
    ],
)
def test_what_an_engine_lacks_is_one_sentence(
    lacks: str, guide: Chooser | None, options: LoopOptions, sentence: str
) -> None:
    engine = TableEngine(**{lacks: False})
    with pytest.raises(FrugalignError, match=f"the table engine {sentence}"):
        generate(engine, PROMPTS, PARAMS, guide=guide, options=options)
    assert engine.fed == 0


@pytest.mark.slow
def test_the_loop_and_the_protocol_load_no_transformers() -> None:
    code = (
        "import sys, frugalign.decoding.loop, frugalign.engines.engine\n"
        "sys.exit(str([name for name in ('transformers', 'peft', 'trl', 'datasets') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_the_table_is_not_trivial() -> None:
    """Different states must lead to different likeliest tokens, or every loop would agree."""
    table = TableEngine()
    assert len(set(table.read(torch.arange(STATES)).logits.argmax(-1).tolist())) > 8
