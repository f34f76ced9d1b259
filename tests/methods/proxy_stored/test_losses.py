"""Losses and gradients from stored features, against brute force over the whole vocabulary, token by token."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.proxy.small_models import V, build, proxy_for
from torch import Tensor
from torch.nn.functional import logsigmoid

from frugalign.engines.transformers import embedding_rows
from frugalign.methods import answer_features as module
from frugalign.methods.answer_features import Answers, Proposals, Teacher, answer_features
from frugalign.methods.answer_scores import score_stored
from frugalign.methods.proxy_stored.losses import demonstration_loss, pair_loss, teacher_loss
from frugalign.proxy import overseer
from frugalign.proxy.network import ProxyModel
from frugalign.runs.shard_store import ShardStore

PROMPTS = [[5, 6, 7], [5, 6, 7], [12, 13], [12, 13, 14, 15, 16]]
ANSWERS = [[8, 9, 40, 3], [21, 1], [30], [31, 32, 33, 2, 47, 11]]
UNDER_PRINCIPLES = [[20, 21, 22, *prompt] for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def _without_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """These models have none, which only the key of the store would read."""
    monkeypatch.setattr(module, "fingerprint", lambda *_: SimpleNamespace(identity={}))


def base_log_p(model: Any, prefix: list[int]) -> tuple[Tensor, Tensor]:
    """The head's input, and `log p` over the vocabulary."""
    caught: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        logits = model(torch.tensor([prefix])).logits[0, -1].float()
    handle.remove()
    return caught[0][0, -1].float(), logits.log_softmax(-1)


def log_pi(model: Any, proxy: ProxyModel, prefix: list[int]) -> tuple[Tensor, Tensor]:
    """`log π` and `log p` over the whole vocabulary, with the proxy's gradient."""
    h, log_p = base_log_p(model, prefix)
    log_p = (log_p * 1.0 / proxy.config.temperature).log_softmax(-1)
    order = log_p.argsort(descending=True)[: proxy.config.max_candidates]
    chosen = [int(token) for token in order if log_p[token].exp() >= proxy.config.p_t] or [int(order[0])]
    rest = [token for token in range(V) if token not in chosen]
    rows = embedding_rows(model).float() * proxy.config.embedding_scale
    query = proxy.gain * proxy.query(h) / proxy.config.dim**0.5
    score = torch.cat([proxy.key(rows[chosen]) @ query, proxy.tail_key @ query]) + proxy.bias
    columns = torch.cat([log_p[chosen], log_p[rest].logsumexp(0)[None]])
    score = score + proxy.offset(columns)
    if proxy.config.objective == "marginal":
        found = (columns + logsigmoid(score)).log_softmax(-1)
    else:
        found = overseer.sequential_log_pi(
            columns[None],
            *(each[None] for each in overseer.log_acceptance(score)),
            torch.ones(1, len(columns), dtype=torch.bool),
        )[0]
    out = torch.empty(V)
    out[chosen] = found[:-1]
    out[rest] = found[-1] + log_p[rest] - columns[-1]
    return out, log_p


def gradients(loss: Tensor, proxy: ProxyModel) -> list[Tensor]:
    return [
        value
        for value in torch.autograd.grad(loss, list(proxy.parameters()), allow_unused=True, retain_graph=True)
        if value is not None
    ]


def args_of(**settings: Any) -> Any:
    return SimpleNamespace(**{"loss": "sigmoid", "beta": 0.3, "label_noise": 0.2, "sft_weight": 0.0} | settings)


def read(model: Any, proxy: ProxyModel, folder: Path, teacher: bool = False) -> Any:
    found = answer_features(
        model,
        None,
        Answers(PROMPTS, ANSWERS),
        Proposals(proxy.config.temperature, proxy.limits),
        ShardStore(folder),
        teacher=Teacher(model, None, UNDER_PRINCIPLES, 1.0) if teacher else None,
        dtype=torch.float32,
    )
    return found.read([0, 2, 1, 3])


@pytest.mark.parametrize("objective", ["marginal", "sequential_integrated"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2-softcap", "mistral-window"])
@pytest.mark.parametrize("settings", [{"p_t": 0.02}, {"p_t": 0.2, "temperature": 0.7}, {"max_candidates": 2}])
def test_every_number_is_that_of_the_whole_vocabulary(
    name: str, objective: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """log π(y), log π − log p, KL to the base and KL from the teacher, and the gradients of all: within 1e-5."""
    model = build(name)
    proxy = proxy_for(model, objective=objective, **settings)
    scored = score_stored(
        proxy, read(model, proxy, tmp_path, teacher=True), proxy.config.objective, embedding_rows(model)
    )
    found = [scored.log_prob, scored.log_ratio, scored.kl, scored.from_teacher]
    expected: list[list[Tensor]] = [[], [], [], []]
    for row in (0, 2, 1, 3):
        sums = [torch.zeros(()) for _ in range(4)]
        for place, token in enumerate(ANSWERS[row]):
            said = ANSWERS[row][:place]
            pi, p = log_pi(model, proxy, PROMPTS[row] + said)
            taught = base_log_p(model, UNDER_PRINCIPLES[row] + said)[1]
            for number, term in enumerate(
                (pi[token], pi[token] - p[token], (pi.exp() * (pi - p)).sum(), (taught.exp() * (taught - pi)).sum())
            ):
                sums[number] = sums[number] + term
        for number, total in enumerate(sums):
            expected[number].append(total)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, torch.stack(theirs), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            gradients(mine.sum(), proxy), gradients(torch.stack(theirs).sum(), proxy), atol=1e-5, rtol=1e-4
        )


def test_an_untrained_proxy_is_the_base(tmp_path: Path) -> None:
    model = build("llama")
    proxy = proxy_for(model)
    with torch.no_grad():
        proxy.query_out.weight.zero_()
        proxy.query_out.bias.zero_()
    scored = score_stored(proxy, read(model, proxy, tmp_path), "marginal", embedding_rows(model))
    assert float(scored.log_ratio.detach().abs().max()) <= 1e-6 and float(scored.kl.detach().abs().max()) <= 1e-6
    assert float(scored.log_prob.detach().max()) < -0.5


def scored_by_hand(log_ratio: list[float], log_prob: list[float], lengths: list[int]) -> Any:
    values = torch.tensor(log_ratio), torch.tensor(log_prob), torch.zeros(len(lengths)), torch.tensor(lengths)
    return SimpleNamespace(log_ratio=values[0], log_prob=values[1], kl=values[2], lengths=values[3], from_teacher=None)


@pytest.mark.parametrize(
    ("settings", "confidence", "expected"),
    [
        ({}, None, 0.437488),  # −log σ(0.3·2)
        ({}, [1.0], 0.437488),
        ({}, [0.75], 0.587488),  # ¾ of it and ¼ of −log σ(−0.6), which is 1.037488
        ({"loss": "conservative"}, None, 0.557488),
        ({"loss": "robust"}, None, 0.237488),  # (0.8·0.437488 − 0.2·1.037488)/0.6
        ({"loss": "ipo"}, None, 0.111111),  # (2 − 1/0.6)²
        ({"sft_weight": 0.5}, None, 1.437488),  # and half of 4/2
    ],
)
def test_the_losses_of_a_pair(settings: dict[str, Any], confidence: list[float] | None, expected: float) -> None:
    """Δ = 1.5 − (−0.5) = 2 at β = 0.3; the better answer has a log-probability of −4 and two tokens."""
    scored = scored_by_hand([1.5, -0.5], [-4.0, -9.0], [2, 3])
    gamma = None if confidence is None else torch.tensor(confidence)
    assert float(pair_loss(scored, args_of(**settings), gamma)) == pytest.approx(expected, abs=1e-5)


def test_a_demonstration_counts_per_token_and_a_teacher_per_answer() -> None:
    scored = scored_by_hand([0.0, 0.0], [-4.0, -9.0], [2, 3])
    assert demonstration_loss(scored).tolist() == [2.0, 3.0]
    scored.from_teacher = torch.tensor([1.0, 6.0])
    assert teacher_loss(scored).tolist() == [1.0, 6.0]
