"""The real `openai` client against the server: every field, and the errors."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import LONGEST

from frugalign.policies import PolicySpec, SamplingSettings, load
from frugalign.policies.answer import answer

ORDER = "Give me a jar to cure the cough of my aunt."
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": ORDER}], "seed": 3}


def chat(client: Any, model: str = "base@safe:0.7", **more: Any) -> Any:
    return client.chat.completions.create(**{"model": model, **ASK, **more})


def own(thing: Any) -> dict[str, Any]:
    """What the server adds to OpenAI's fields."""
    found: dict[str, Any] = thing.model_extra
    return found


def test_an_answer_is_that_of_the_library(client: Any, folders: dict[str, Path]) -> None:
    spec = PolicySpec.from_dict({"model_name_or_path": "frugalign.sandbox:model", "proxy": [f"{folders['safe']}@0.7"]})
    known = answer(load(spec), ASK["messages"], SamplingSettings(max_new_tokens=LONGEST, seed=3))
    found = chat(client)
    (choice,) = found.choices
    assert choice.message.content == known.text and choice.message.role == "assistant"
    assert choice.finish_reason == ("stop" if known.ended else "length")
    assert found.usage.completion_tokens == len(known.ids) == found.usage.total_tokens - found.usage.prompt_tokens
    assert found.model == "base@safe:0.7" and found.object == "chat.completion"
    assert own(choice)["kl"] > 0


def test_a_stream_is_the_whole_answer_in_pieces(client: Any) -> None:
    whole = chat(client, n=2)
    chunks = list(chat(client, n=2, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        parts = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [choice.finish_reason]
        assert own(parts[-1])["kl"] == pytest.approx(own(choice)["kl"], abs=1e-5)
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 10


def test_log_probabilities_are_of_pi(client: Any) -> None:
    (choice,) = chat(client, logprobs=True, top_logprobs=5, temperature=0.8).choices
    content = choice.logprobs.content
    assert "".join(each.token for each in content if each.token in choice.message.content)
    for each in content:
        values = [other.logprob for other in each.top_logprobs]
        assert len(values) == 5 and values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5 and each.logprob <= values[0] + 1e-6
        assert bytes(each.bytes).decode() == each.token
    greedy = chat(client, logprobs=True, top_logprobs=1, temperature=0).choices[0].logprobs.content
    assert all(each.logprob == each.top_logprobs[0].logprob for each in greedy)


def test_text_completions(client: Any) -> None:
    ask = {"model": "base@safe", "prompt": ["i want a balm", "sell me"], "seed": 1, "max_tokens": 6, "logprobs": 2}
    found = client.completions.create(**ask, n=2)
    assert [each.index for each in found.choices] == [0, 1, 2, 3] and found.object == "text_completion"
    alone = client.completions.create(**ask | {"prompt": "i want a balm"})
    assert alone.choices[0].text == found.choices[0].text
    logprobs = alone.choices[0].logprobs
    assert (
        len(logprobs.tokens)
        == len(logprobs.token_logprobs)
        == len(logprobs.text_offset)
        == alone.usage.completion_tokens
    )
    assert all(len(each) == 2 for each in logprobs.top_logprobs)
    streamed = list(client.completions.create(**ask | {"prompt": "i want a balm"}, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == alone.choices[0].text
    again = client.completions.create(model="base", prompt=[[5, 6, 7], [8]], max_tokens=1)
    assert again.usage.prompt_tokens == 4 and again.usage.completion_tokens == 2


@pytest.mark.slow
def test_stop_seed_temperature_and_top_p(client: Any) -> None:
    whole = chat(client).choices[0].message.content
    stop = whole.split()[1]
    cut = chat(client, stop=[stop, "never this"]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    assert chat(client, seed=4).choices[0].message.content != whole == chat(client).choices[0].message.content
    cold, narrow = chat(client, temperature=0, seed=8), chat(client, top_p=1e-6, seed=9)
    assert cold.choices[0].message.content == narrow.choices[0].message.content
    unseeded = {chat(client, seed=None).choices[0].message.content for _ in range(3)}
    assert len(unseeded) > 1
    assert chat(client, max_tokens=2).choices[0].finish_reason == "length"


def test_strengths_may_be_in_the_name_or_beside_it(client: Any) -> None:
    named = chat(client, "base@terse:0.2+safe:0.7").choices[0]
    for model, strength in [
        ("base", {"safe": 0.7, "terse": 0.2}),
        ("base@safe:0.7", {"terse": 0.2}),
        ("base@safe:0.7+terse", 0.2),
    ]:
        other = chat(client, model, extra_body={"strength": strength}).choices[0]
        assert other.message.content == named.message.content and own(other)["kl"] == own(named)["kl"]
    assert (
        chat(client, "base@safe").choices[0].message.content == chat(client, "base@safe:1").choices[0].message.content
    )
    assert own(chat(client, "base").choices[0])["kl"] == 0


def test_a_budget_is_never_passed(client: Any) -> None:
    free = own(chat(client, "base@safe:2+terse:2").choices[0])["kl"]
    for budget in (0.0, free / 10, free / 2, 2 * free):
        (choice,) = chat(client, "base@safe:2+terse:2", extra_body={"max_kl": budget, "show_rejections": True}).choices
        kl = own(choice)["kl"]
        assert kl <= budget and kl == pytest.approx(sum(each["kl"] for each in own(choice)["tokens"]))
        assert kl == pytest.approx(min(budget, free), rel=0.01)


def test_the_tokens_that_were_turned_down(client: Any) -> None:
    (choice,) = chat(client, "base@safe:1+terse:1", extra_body={"show_rejections": True}).choices
    tokens = own(choice)["tokens"]
    assert sum(len(each["rejected"]) for each in tokens) == own(choice)["rejections"] > 0
    for each in tokens:
        assert each["acceptance"] is None or 0 <= each["acceptance"] <= 1
        assert all(set(other) == {"token", "id", "acceptance"} for other in each["rejected"])
    plain = chat(client, "base@safe:1+terse:1").choices[0]
    assert own(plain)["rejections"] == own(choice)["rejections"] and "tokens" not in own(plain)


def test_models_have_parents(client: Any) -> None:
    cards = list(client.models.list())
    assert [card.id for card in cards] == ["base", "base@safe", "base@terse"]
    assert [own(card)["parent"] for card in cards] == [None, "base", "base"]
    mixture = client.models.retrieve("base@safe:0.7+terse")
    assert own(mixture)["strength"] == {"safe": 0.7, "terse": 1.0}


@pytest.mark.parametrize(
    ("changed", "kind", "sentence"),
    [
        ({"model": "bas"}, "NotFoundError", "There is no model 'bas'; did you mean base?"),
        ({"model": "base@saf"}, "NotFoundError", "There is no proxy 'saf'; did you mean safe?"),
        ({"model": "base@safe:x"}, "BadRequestError", "must be a number, not 'x'."),
        ({"model": "base@safe:1000"}, "BadRequestError", "between 0 and 100."),
        ({"model": "base@safe+safe"}, "BadRequestError", "names safe twice."),
        ({"extra_body": {"strength": {"safe": 1}}}, "BadRequestError", "both give the strength of safe."),
        ({"model": "base", "extra_body": {"strength": 0.5}}, "BadRequestError", "this model has none."),
        ({"max_tokens": LONGEST + 1}, "BadRequestError", f"max_tokens may be at most {LONGEST} here."),
        ({"messages": [{"role": "user", "content": "jar " * 3000}]}, "BadRequestError", "of the model's context of"),
        ({"temperature": 3}, "BadRequestError", "between 0 and 2"),
        ({"n": 100}, "BadRequestError", "at most 64 answers"),
        ({"messages": [{"role": "assistant", "content": "x"}, {"role": "system", "content": "y"}] * 3000}, "APIStatusError", "larger than"),
    ],
)  # fmt: skip
def test_mistakes_are_openai_s_errors(client: Any, changed: dict[str, Any], kind: str, sentence: str) -> None:
    import openai

    with pytest.raises(getattr(openai, kind)) as raised:
        chat(client, **changed)
    error = raised.value
    assert sentence in error.body["message"] and set(error.body) == {"message", "type", "param", "code"}


@pytest.mark.slow
def test_different_mixtures_at_once_are_those_of_each_alone(client: Any) -> None:
    asks: list[dict[str, Any]] = [
        {"model": "base"},
        {"model": "base@safe:0.7"},
        {"model": "base@terse:1.5", "temperature": 0.5},
        {"model": "base@safe+terse:0.3", "top_p": 0.7},
        {"model": "base@safe:2", "extra_body": {"max_kl": 0.5}},
        {"model": "base@safe:0", "temperature": 0},
    ]
    alone = [chat(client, **ask).choices[0].message.content for ask in asks]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda ask: chat(client, **ask).choices[0].message.content, asks * 2))
    assert together == alone * 2 and len(set(alone)) == len(alone)
