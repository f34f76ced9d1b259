"""Rows of different proxies, strengths, temperatures and budgets in one batch, against each row alone and against written-out formulas."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests.proxy.small_models import Tokens, V, build, formula, proxy_for
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.decoding.continuous import ContinuousBatch, Row
from frugalign.decoding.loop import SamplingParams, generate
from frugalign.decoding.noise import Noise, row_keys
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.mixed import MixedGuide, RowChoice, RowSettings, nucleus

LENGTH = 7
PROMPTS = [[5, 6, 7, 8, 9], [12, 13], [14, 15, 16, 17], [20]]


@cache
def model() -> Any:
    return build("llama")


@cache
def proxies(objective: str = "marginal", tail: str = "keep") -> Any:
    options = {"objective": objective, "tail": tail}
    return {name: proxy_for(model(), seed, **options) for seed, name in enumerate(["safe", "terse"])}


@cache
def mixed(objective: str = "marginal", tail: str = "keep") -> MixedGuide:
    return MixedGuide(proxies(objective, tail), embedding_rows(model()))


def engine() -> TransformersEngine:
    return TransformersEngine(model(), Tokens())  # type: ignore[arg-type]


def answers(guide: MixedGuide, rows: Sequence[tuple[int, RowSettings]], together: bool) -> list[list[RowChoice]]:
    """The choices of every (prompt, settings), in one batch that rows join one after another, or each alone."""
    keys = row_keys(7, 0, range(len(rows)), [0] * len(rows)).tolist()
    made = [
        Row(PROMPTS[prompt], key, LENGTH, replace(settings)) for key, (prompt, settings) in zip(keys, rows, strict=True)
    ]
    found: dict[int, list[RowChoice]] = {id(row): [] for row in made}
    batch, waiting = ContinuousBatch(engine(), guide), list(made)
    while waiting or batch.rows:
        got = []
        if waiting and (together or not batch.rows):
            got = batch.add([waiting.pop(0)])
        for row, choice in [*got, *batch.step()]:
            found[id(row)].append(choice)
    return [found[id(row)] for row in made]


BOTH = ("safe", "terse")
EVERY = [
    RowSettings(),
    RowSettings(temperature=0.7, top_p=0.8),
    RowSettings(temperature=0.0),
    RowSettings(("safe",), (1.0,)),
    RowSettings(("safe",), (0.3,)),
    RowSettings(("safe",), (0.0,)),
    RowSettings(("terse",), (1.0,), top_p=0.6),
    RowSettings(("terse",), (2.5,), temperature=1.7),
    RowSettings(BOTH, (0.7, 1.0)),
    RowSettings(BOTH, (1.0, 0.2), temperature=0.0),
    RowSettings(BOTH, (1.0, 1.0), max_kl=0.05),
    RowSettings(BOTH, (3.0, 3.0), temperature=0.5, top_p=0.9, max_kl=0.4),
]


@pytest.mark.parametrize(
    ("objective", "tail"),
    [
        ("marginal", "keep"),
        pytest.param("marginal", "drop", marks=pytest.mark.slow),
        pytest.param("sequential", "keep", marks=pytest.mark.slow),
        pytest.param("sequential_integrated", "drop", marks=pytest.mark.slow),
    ],
)
def test_a_row_in_a_mixed_batch_is_the_row_alone(objective: str, tail: str) -> None:
    guide = mixed(objective, tail)
    rows = [
        (place % len(PROMPTS), replace(each, trace=place % 2 == 0, top_logprobs=3 if place % 3 else None))
        for place, each in enumerate(EVERY)
    ]
    random.Random(0).shuffle(rows)
    for (_, settings), one, other in zip(rows, answers(guide, rows, True), answers(guide, rows, False), strict=True):
        assert [each.token for each in one] == [each.token for each in other], settings
        assert [each.n_rejected for each in one] == [each.n_rejected for each in other]
        for a, b in zip(one, other, strict=True):
            assert a.kl == pytest.approx(b.kl, abs=1e-5) and a.share == pytest.approx(b.share, abs=1e-3)
            assert [token for token, _ in a.top] == [token for token, _ in b.top]
            assert (a.log_prob is None) == (settings.top_logprobs is None)
            assert (a.trace is None) != settings.trace
            if settings.trace and a.trace is not None:
                assert a.trace.token == a.token and len(a.trace.rejected) == a.n_rejected


def test_a_plain_row_gets_the_tokens_of_the_decoding_loop() -> None:
    rows = [(place, RowSettings(("safe",), (0.7,))) for place in range(4)]
    keys, guide = (
        row_keys(7, 0, range(4), [0] * 4),
        ProxyGuide.build([proxies()["safe"]], embedding_rows(model()), [0.7]),
    )
    found = generate(engine(), PROMPTS, SamplingParams(LENGTH), keys=keys, guide=guide)
    ours = answers(mixed(), rows, True)
    assert [[each.token for each in row] for row in ours] == found.completion_ids
    assert found.kl_choice is not None
    assert [sum(each.kl for each in row) for row in ours] == pytest.approx(found.kl_choice.tolist(), abs=1e-5)


@pytest.mark.parametrize("tail", ["keep", "drop"])
def test_log_probabilities_are_of_pi_whatever_is_drawn_from_it(tail: str) -> None:
    settings = RowSettings(("safe",), (0.7,), temperature=0.5, top_p=0.9, top_logprobs=5)
    ((*choices,),) = answers(mixed(tail=tail), [(0, settings)], False)
    prefix = list(PROMPTS[0])
    for choice in choices:
        log_pi = formula(model(), proxies(tail=tail)["safe"], prefix, 0.7)
        assert choice.log_prob == pytest.approx(float(log_pi[choice.token]), abs=1e-4)
        values, ids = log_pi.topk(5)
        assert [token for token, _ in choice.top] == ids.tolist()
        assert [value for _, value in choice.top] == pytest.approx(values.tolist(), abs=1e-4)
        prefix.append(choice.token)


def drawn(settings: RowSettings, n: int = 4000) -> Tensor:
    """Frequencies of the first token over many keys."""
    torch.manual_seed(0)
    h, logits = torch.randn(1, 16).expand(n, -1), torch.randn(1, V).mul(2).expand(n, -1)
    rows = [Row([1], 0, 1, replace(settings)) for _ in range(n)]
    keys = row_keys(0, 0, range(n), [0] * n)
    choices = mixed()(h, logits, rows, Noise(keys, torch.zeros(n, dtype=torch.long)))
    return torch.bincount(torch.tensor([each.token for each in choices]), minlength=V) / n


@pytest.mark.parametrize("names", [(), ("safe",)])
def test_temperature_and_top_p_act_on_pi(names: tuple[str, ...]) -> None:
    strengths = (1.0,) * len(names)
    asked = RowSettings(names, strengths, top_logprobs=V)
    torch.manual_seed(0)
    h, logits = torch.randn(1, 16), torch.randn(1, V).mul(2)
    (choice,) = mixed()(h, logits, [Row([1], 0, 1, asked)], Noise(torch.tensor([5]), torch.tensor([0])))
    log_pi = torch.full((V,), -torch.inf)
    for token, value in choice.top:
        log_pi[token] = value
    sharp = (log_pi / 0.8).softmax(-1)
    values, ids = sharp.sort(descending=True)
    inside = ids[: int((values.cumsum(-1) < 0.7).sum()) + 1]
    wanted = torch.zeros(V).index_put((inside,), sharp[inside])
    found = drawn(RowSettings(names, strengths, temperature=0.8, top_p=0.7))
    assert set(found.nonzero().flatten().tolist()) <= set(inside.tolist())
    assert (found - wanted / wanted.sum()).abs().max() < 0.03
    assert drawn(RowSettings(names, strengths, temperature=0.0), 10)[int(log_pi.argmax())] == 1


def test_a_nucleus_holds_the_likeliest_tokens_of_that_mass() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log().expand(5, -1)
    kept = nucleus(scores, torch.tensor([0.4, 0.5, 0.6, 0.99, 1e-9])).isfinite().sum(-1)
    assert kept.tolist() == [1, 1, 2, 5, 1]
    flat = torch.zeros(1, 5000)
    assert int(nucleus(flat, torch.tensor([0.5])).isfinite().sum()) == 2500, "more than are sorted first"


@pytest.mark.parametrize("objective", ["marginal", pytest.param("sequential_integrated", marks=pytest.mark.slow)])
def test_no_response_passes_its_budget(objective: str) -> None:
    guide, random_ = mixed(objective), random.Random(3)
    budgets = [0.0, 1e-6, *(random_.uniform(0, 2) for _ in range(18))]
    rows = [(place % 4, RowSettings(BOTH, (2.0, 1.5), max_kl=budget)) for place, budget in enumerate(budgets)]
    free = [(place, replace(settings, max_kl=None)) for place, settings in rows]
    for budget, choices, unbound in zip(budgets, answers(guide, rows, True), answers(guide, free, True), strict=True):
        spent, without = sum(each.kl for each in choices), sum(each.kl for each in unbound)
        assert spent <= budget
        if without > budget:
            assert spent == pytest.approx(budget, rel=1e-4, abs=1e-7), "no part of the budget is wasted"
        else:
            assert [each.token for each in choices] == [each.token for each in unbound]
        assert all(0 <= each.share <= 1 for each in choices)


def test_the_reported_kl_is_that_of_the_strengths_in_effect() -> None:
    """Each position's KL(π ‖ p), from whole-prefix passes at the lowered strength."""
    settings = RowSettings(("safe",), (2.0,), max_kl=0.6)
    ((*choices,),) = answers(mixed(), [(1, settings)], False)
    prefix, shares = list(PROMPTS[1]), []
    for choice in choices:
        log_pi = formula(model(), proxies()["safe"], prefix, 2.0 * choice.share)
        log_p = formula(model(), proxies()["safe"], prefix, 0.0)
        assert choice.kl == pytest.approx(float((log_pi.exp() * (log_pi - log_p)).sum()), abs=1e-4)
        prefix.append(choice.token)
        shares.append(choice.share)
    assert shares[0] == 1.0 and shares[-1] < 1e-3


def test_what_cannot_be_served_is_said() -> None:
    with pytest.raises(FrugalignError, match="no proxy 'rude'; there are safe, terse"):
        mixed().guide(["rude"])
    with pytest.raises(FrugalignError, match="cannot be served"):
        ahead = proxy_for(model(), candidate_features="lookahead")
        MixedGuide({"ahead": ahead}, embedding_rows(model()))
    two = proxies() | {"cold": proxy_for(model(), 2, temperature=0.5)}
    guide = MixedGuide(two, embedding_rows(model()))
    with pytest.raises(FrugalignError, match="do not compose: temperature"):
        guide.guide(["safe", "cold"])
    assert guide.guide(["cold"]).temperature == 0.5
