"""`generate` with a proxy attached, our loop, and the formula written out over the whole prefix: the same policy."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from tests.proxy.small_models import MODELS, PROMPTS, Tokens, V, build, formula, padded, proxy_for

from frugalign.decoding import SamplingParams, generate
from frugalign.decoding.loop import LoopOptions
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.proxy import attach
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel


@pytest.fixture
def llama() -> Iterator[Any]:
    yield build("llama")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_of_generate_our_loop_and_the_formula(name: str, temperature: float) -> None:
    """A left-padded batch of different lengths, ten tokens: all three the same on every architecture."""
    model = build(name)
    proxy = proxy_for(model, temperature=temperature)
    with attach(model, proxy):
        hooked = model.generate(**padded(), do_sample=False, max_new_tokens=10)[:, -10:].tolist()
    params = SamplingParams(max_new_tokens=10, do_sample=False)
    ours = generate(
        TransformersEngine(model, Tokens()), PROMPTS, params, guide=ProxyGuide.build([proxy], embedding_rows(model))
    ).completion_ids
    naive = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(10):
            ids.append(int(formula(model, proxy, ids).argmax()))
        naive.append(ids[len(prompt) :])
    assert hooked == naive
    assert ours == naive
    base = model.generate(**padded(), do_sample=False, max_new_tokens=10)[:, -10:].tolist()
    assert base != naive, "this proxy must change something"


@pytest.mark.parametrize("tail", ["keep", "drop"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_the_hooked_logits_are_the_formula_at_every_position(name: str, temperature: float, tail: str) -> None:
    model = build(name)
    proxy = proxy_for(model, temperature=temperature, tail=tail)
    prompt = PROMPTS[0]
    with attach(model, proxy), torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0]
    for position in range(len(prompt)):
        wanted = formula(model, proxy, prompt[: position + 1])
        assert torch.equal(wanted.isfinite(), logits[position].isfinite())
        assert bool(wanted.isfinite().all()) == (tail == "keep")
        torch.testing.assert_close(logits[position].exp(), wanted.exp(), atol=1e-5, rtol=1e-4)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The p-value of `counts [V]`. Tokens expected fewer than ten times count together."""
    expected = int(counts.sum()) * probabilities / probabilities.sum()
    rare = expected < 10
    observed, wanted = ([*each[~rare].tolist(), float(each[rare].sum())] for each in (counts, expected))
    keep = -1 if wanted[-1] < 10 else None  # too few even together
    scale = sum(observed[:keep]) / sum(wanted[:keep])
    return float(stats.chisquare(observed[:keep], [scale * each for each in wanted[:keep]]).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_of_generate_and_of_our_loop_follow_the_formula(llama: Any, temperature: float) -> None:
    """Chi-square of 30,000 first tokens each, at α = 1e-3; the base's own distribution is rejected."""
    n, prompt = 30_000, PROMPTS[0]
    proxy = proxy_for(llama, temperature=temperature)
    wanted = formula(llama, proxy, prompt).exp().double()
    torch.manual_seed(0)
    with attach(llama, proxy):
        parts = [
            llama.generate(torch.tensor([prompt] * 5000), do_sample=True, max_new_tokens=1)[:, -1]
            for _ in range(n // 5000)
        ]
    ours = generate(
        TransformersEngine(llama, Tokens()),
        [prompt] * n,
        SamplingParams(max_new_tokens=1),
        guide=ProxyGuide.build([proxy], embedding_rows(llama)),
        options=LoopOptions(batch_size=5000),
    )
    for tokens in (torch.cat(parts), torch.tensor([ids[0] for ids in ours.completion_ids])):
        counts = tokens.bincount(minlength=V)
        assert chi_square(counts, wanted) > 1e-3
        assert chi_square(counts, formula(llama, proxy, prompt, strength=0.0).exp().double()) < 1e-3


def beams(model: Any, proxy: ProxyModel, prompt: list[int], n_beams: int, length: int) -> list[int]:
    """Beam search over the formula, by hand."""
    alive: list[tuple[float, list[int]]] = [(0.0, list(prompt))]
    for _ in range(length):
        grown = []
        for score, ids in alive:
            log_pi = formula(model, proxy, ids)
            grown += [
                (score + float(log_pi[token]), [*ids, token])
                for token in log_pi.isfinite().nonzero().flatten().tolist()
            ]
        alive = sorted(grown, key=lambda item: -item[0])[:n_beams]
    return alive[0][1][len(prompt) :]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_beams_are_those_of_the_formula(name: str, temperature: float) -> None:
    model = build(name)
    proxy = proxy_for(model, temperature=temperature)
    with attach(model, proxy):
        found = model.generate(
            torch.tensor([PROMPTS[0]]), num_beams=3, do_sample=False, max_new_tokens=5, length_penalty=0.0
        )
    assert found[0, -5:].tolist() == beams(model, proxy, PROMPTS[0], 3, 5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["sequential", "sequential_integrated"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_sequential_forms_sample_within_their_emission_probabilities(name: str, objective: str) -> None:
    """Our loop's coin flips, or its integral, against the hooked logits, which are the integral: chi-square of 20,000."""
    model, n = build(name), 20_000
    proxy = proxy_for(model, objective=objective)
    with attach(model, proxy), torch.no_grad():
        log_pi = model(torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    ours = generate(
        TransformersEngine(model, Tokens()),
        [PROMPTS[0]] * n,
        SamplingParams(max_new_tokens=1),
        guide=ProxyGuide.build([proxy], embedding_rows(model)),
        options=LoopOptions(batch_size=5000),
    )
    counts = torch.tensor([ids[0] for ids in ours.completion_ids]).bincount(minlength=V)
    assert chi_square(counts, log_pi.exp()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-window"])
def test_lookahead_reads_the_state_after_each_candidate(name: str) -> None:
    """Greedy, our loop and `generate`, against a full forward pass per candidate. The tail is judged from the state before."""
    model = build(name)
    proxy = proxy_for(model, candidate_features="lookahead", max_candidates=4)
    params = SamplingParams(max_new_tokens=6, do_sample=False)
    ours = generate(
        TransformersEngine(model, Tokens()), PROMPTS[:1], params, guide=ProxyGuide.build([proxy], embedding_rows(model))
    ).completion_ids[0]
    with attach(model, proxy):
        hooked = model.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=6)[0, -6:].tolist()
    ids, caught = list(PROMPTS[0]), []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        for _ in range(6):
            log_p = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            before = proxy.tail_out(proxy._hidden(caught[-1][0, -1])).squeeze(-1) + proxy.bias
            top = [
                c
                for c in log_p.topk(4).indices.tolist()
                if log_p[c] >= torch.tensor(0.02).log() or c == int(log_p.argmax())
            ]
            weights = []
            for candidate in top:
                model(torch.tensor([[*ids, candidate]]))
                score = proxy.query(caught[-1][0, -1]).squeeze(-1) + proxy.bias
                weights.append(float(log_p[candidate] + torch.nn.functional.logsigmoid(score)))
            rest = log_p + torch.nn.functional.logsigmoid(before)
            rest[top] = -torch.inf
            in_tail = float(rest.max()) > max(weights)
            ids.append(int(rest.argmax()) if in_tail else top[weights.index(max(weights))])
    handle.remove()
    assert ours == ids[len(PROMPTS[0]) :] == hooked
