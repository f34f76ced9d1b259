"""The vLLM plug-in on a stand-in of vLLM's interfaces: every request's tokens are those of the library at its own guidance."""

from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.proxy.small_models import proxy_for
from tests.runtime.bundles import base_of, bundle_of
from tests.runtime.vllm_stand_in import FirstRunner, Request, SecondRunner, install

from frugalign.proxy import attach
from frugalign_runtime import ProxyError

base = cache(base_of)
ASKED: list[dict[str, Any] | None] = [
    {"proxy": "safe"},
    None,
    {"proxy": "terse:0.5"},
    {"proxy": "safe", "strength": 2},
    {"proxy": "safe:0.5+terse"},
    {"proxy": "terse", "strength": 0.0},
    {},
    {"proxy": "terse:2"},
]
STRENGTHS: list[dict[str, float]] = [
    {"safe": 1},
    {},
    {"terse": 0.5},
    {"safe": 2},
    {"safe": 0.5, "terse": 1},
    {},
    {},
    {"terse": 2},
]
LENGTHS = [6, 4, 5, 2, 6, 3, 4, 5]
PROMPTS = [[5, 6, 7, 8], [12, 13], [14, 15, 16], [20, 21], [9, 8, 7], [30, 31, 32], [40, 41], [5, 6]]


@pytest.fixture(params=["llama", "gemma2"])
def plugin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plug-in, the model, and its proxies."""
    here = base(request.param)
    proxies = {"safe": proxy_for(here.model, 0), "terse": proxy_for(here.model, 1)}
    for name, proxy in proxies.items():
        (tmp_path / name).mkdir()
        for file, content in bundle_of(here, proxy).files().items():
            (tmp_path / name / file).write_bytes(content)
    monkeypatch.setenv("FRUGALIGN_PROXIES", ",".join(f"{name}={tmp_path / name}" for name in proxies))
    return SimpleNamespace(install=lambda **runners: install(monkeypatch, **runners), model=here.model, proxies=proxies)


def requests() -> list[Request]:
    return [Request(list(p), xargs, n) for p, xargs, n in zip(PROMPTS, ASKED, LENGTHS, strict=True)]


def wanted(plugin: Any) -> list[list[int]]:
    """The library's own tokens, one request at a time."""
    found = []
    for prompt, strengths, length in zip(PROMPTS, STRENGTHS, LENGTHS, strict=True):
        with ExitStack() as blocks, torch.no_grad():
            for name, strength in strengths.items():
                blocks.enter_context(attach(plugin.model, plugin.proxies[name], strength=strength))
            ids = list(prompt)
            for _ in range(length):
                ids.append(int(plugin.model(torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(ids[len(prompt) :])
    return found


def test_requests_that_come_leave_and_move_in_the_first_runner(plugin: Any) -> None:
    runner, all_of_them = FirstRunner(plugin.install(second=False), plugin.model), requests()
    waiting = list(all_of_them)
    runner.step(waiting[:4])
    runner.step([], swap=(0, 2))
    runner.step(waiting[4:6])  # one takes the row of a request that has left
    runner.step([])
    runner.step(waiting[6:], swap=(1, 3))
    while not all(each.is_done for each in runner.rows):
        runner.step([])
    assert [each.tokens[: each.length] for each in all_of_them] == wanted(plugin)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("drafts", [False, True])
def test_requests_in_slots_of_the_second_runner(plugin: Any, drafts: bool, old: bool) -> None:
    """In either form of `apply`, with one row a request or two."""
    runner = SecondRunner(plugin.install(first=False), plugin.model, 5, drafts=drafts, old=old)
    all_of_them = requests()
    waiting = list(all_of_them)
    while waiting or runner.slots:
        free = 5 - sum(not each.is_done for each in runner.slots.values())
        runner.step([waiting.pop(0) for _ in range(min(2, free, len(waiting)))])
    assert [each.tokens for each in all_of_them] == wanted(plugin)


def test_one_class_is_right_for_both_runners(plugin: Any) -> None:
    from tests.runtime.vllm_stand_in import V1Processor, V2Processor

    found = plugin.install().GuidedLogitsProcessor
    assert issubclass(found, V1Processor) and issubclass(found, V2Processor)
    assert found(None, torch.device("cpu"), False).is_argmax_invariant() is False
    assert found(None, SimpleNamespace()).should_apply(SimpleNamespace(extra_args={"proxy": "safe"}))


def test_a_batch_without_guidance_is_untouched(plugin: Any) -> None:
    runner = FirstRunner(plugin.install(), plugin.model)
    runner.step([Request([5, 6])])
    logits = torch.randn(1, 48)
    assert runner.processor.apply(logits) is logits


@pytest.mark.parametrize(
    ("xargs", "says"),
    [
        ({"proxy": "kind"}, "There is no proxy 'kind'; there are safe, terse"),
        ({"proxy": "safe", "strength": -1}, "at least 0"),
        ({"proxy": 3}, "proxy must be text"),
        ({"strength": 0.5}, "strength needs a proxy to apply to"),
    ],
)
def test_requests_that_are_refused_when_they_come(plugin: Any, xargs: dict[str, Any], says: str) -> None:
    """As a ValueError, which vLLM answers with status 400."""
    processor = plugin.install().GuidedLogitsProcessor
    with pytest.raises(ValueError, match=says):
        processor.validate_params(SimpleNamespace(extra_args=xargs))
    processor.validate_params(SimpleNamespace(extra_args=None))


def test_what_it_refuses_while_it_runs(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model, and rows whose hidden states are elsewhere."""
    runner = FirstRunner(plugin.install(), plugin.model)
    runner.step([Request([5, 6], {"proxy": "safe"})])
    with pytest.raises(ProxyError, match=r"3 rows of logits from 1 hidden states.*switch batch-sharded sampling off"):
        runner.processor.apply(torch.zeros(3, 48))
    other = FirstRunner(plugin.install(), base("qwen2-untied").model)
    with pytest.raises(ProxyError, match="safe was exported for tiny, and this model's logits differ"):
        other.step([Request([5, 6], {"proxy": "safe"})])


@pytest.mark.parametrize("text", ["", "safe", "safe=", "=x", "safe=a,terse"])
def test_the_variable(plugin: Any, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FRUGALIGN_PROXIES", text)
    with pytest.raises(ProxyError, match="FRUGALIGN_PROXIES must name the exported proxies"):
        plugin.install().proxies_by_name()
