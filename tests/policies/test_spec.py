"""A policy as plain values: YAML, flags, JSON and Python say the same, and contradictions are one sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from frugalign.base.errors import FrugalignError
from frugalign.cli.parser import Command, parse
from frugalign.options.policy import PolicyOptions
from frugalign.policies.spec import PolicySpec, ProxySpec, SamplingSettings

COMMAND = Command("answer", "Answer.", PolicyOptions)
FULL: dict[str, Any] = {
    "model_name_or_path": "org/base",
    "revision": "main",
    "dtype": "bfloat16",
    "device_map": "auto",
    "load_in_4bit": True,
    "principles": "chat",
    "proxy": ["org/kind@0.7", "plain=org/short"],
    "best_of_n": 4,
    "selection_reward": ["a.b:c", "other=d.e:f"],
    "decoding_reward_weights": [1.0, 0.5],
}


def test_one_policy_in_four_ways() -> None:
    spec = PolicySpec.from_dict(FULL)
    assert spec.to_dict() == FULL
    assert spec == PolicySpec.from_dict(yaml.safe_load(yaml.safe_dump(FULL)))
    assert spec == PolicySpec.from_dict(json.loads(json.dumps(FULL)))
    words = ["--load_in_4bit"]
    for name, value in FULL.items():
        if name != "load_in_4bit":
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert spec == PolicySpec.from_dict(parse(COMMAND, words).policy_values())
    assert spec.proxy == (ProxySpec("org/kind", 0.7), ProxySpec("org/short", 1.0, "plain"))


def test_flags_alone_are_the_base() -> None:
    values = parse(COMMAND, ["--model_name_or_path", "org/base"]).policy_values()
    assert PolicySpec.from_dict(values) == PolicySpec("org/base")
    assert PolicySpec("org/base").kind == "base" and PolicySpec("org/base").to_dict() == {
        "model_name_or_path": "org/base"
    }
    assert parse(COMMAND, ["--model_name_or_path", "m", "--use_cpu"]).policy_values()["device_map"] == "cpu"


def test_every_field_has_a_flag() -> None:
    extra = {"strength", "use_cpu"}
    assert set(PolicyOptions.__dataclass_fields__) == {*PolicySpec.__dataclass_fields__, *extra}


def test_one_item_may_stand_for_several() -> None:
    spec = PolicySpec.from_dict({"proxy": "runs/a", "best_of_n": 2, "selection_reward": "a.b:c"})
    assert spec.proxy == (ProxySpec("runs/a"),) and spec.selection_reward == ("a.b:c",)
    assert PolicySpec(proxy="runs/a@0.5") == PolicySpec(proxy=(ProxySpec("runs/a", 0.5),))  # type: ignore[arg-type]


def test_strength_is_that_of_proxies_without_their_own() -> None:
    spec = PolicySpec.from_dict({"proxy": ["a", "b@2"], "strength": 0.25})
    assert [each.strength for each in spec.proxy] == [0.25, 2.0]
    assert spec.to_dict() == {"proxy": ["a@0.25", "b@2.0"]}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("runs/a", ProxySpec("runs/a")),
        ("runs/a@0", ProxySpec("runs/a", 0.0)),
        ("runs/a@1e-1", ProxySpec("runs/a", 0.1)),
        ("kind=runs/a@.5", ProxySpec("runs/a", 0.5, "kind")),
        ("runs/a@b", ProxySpec("runs/a@b")),
        ("./x=y/a", ProxySpec("./x=y/a")),
    ],
)
def test_a_proxy_as_text(text: str, found: ProxySpec) -> None:
    assert ProxySpec.parse(text) == found
    assert ProxySpec.read(found.written()) == found


@pytest.mark.parametrize("proxy", [ProxySpec("runs/a@0.5"), ProxySpec("x=y", 0.5), ProxySpec("x=y", 2.0, "z")])
def test_a_path_that_reads_as_something_else_survives_writing(proxy: ProxySpec) -> None:
    assert PolicySpec.from_dict(json.loads(json.dumps(PolicySpec(proxy=(proxy,)).to_dict()))).proxy == (proxy,)


def test_a_steering_vector_is_written_as_it_is_read() -> None:
    for value, found in (("runs/a@2", ProxySpec("runs/a", 2.0)), ("runs/a", ProxySpec("runs/a"))):
        spec = PolicySpec.from_dict({"steering": value})
        assert spec.steering == found and PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert PolicySpec.from_dict({"steering": "a@2"}).to_dict() == {"steering": "a@2.0"}


def test_a_path_that_exists_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a@0.5").mkdir()
    assert ProxySpec.parse(str(tmp_path / "a@0.5")).strength == 1.0


@pytest.mark.parametrize(
    ("values", "kind", "title"),
    [
        ({"adapter": "runs/a"}, "adapter", "runs/a"),
        ({"policy": "runs/a"}, "policy", "runs/a"),
        ({"steering": "runs/a@2"}, "steering", "runs/a"),
        ({"steering": "a", "guiding_reward": ["b.c:d"]}, "steering+reward_guided", "a guided by b.c:d"),
        (
            {"proxy": ["p", "q"], "best_of_n": 2, "selection_reward": "a.b:c", "principles": "chat"},
            "principles+proxy+best_of_n",
            "best of 2 of p and q by a.b:c under chat",
        ),
        ({"best_of_n": 2, "selection_reward": "a.b:c"}, "best_of_n", "best of 2 by a.b:c"),
        ({"guiding_reward": ["a.b:c"]}, "reward_guided", "the base guided by a.b:c"),
        ({"guiding_reward": ["a.b:c"], "adapter": "runs/a"}, "adapter+reward_guided", "runs/a guided by a.b:c"),
    ],
)
def test_parts_compose(values: dict[str, Any], kind: str, title: str) -> None:
    spec = PolicySpec.from_dict(values)
    assert (spec.kind, spec.title()) == (kind, title)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"proxy": "a", "adapter": "b"}, r"Give only one of proxy and adapter; a proxy brings the adapter"),
        ({"proxy": "a", "policy": "b"}, r"Give only one of proxy and policy"),
        ({"adapter": "a", "policy": "b"}, r"Give only one of adapter and policy\.$"),
        ({"adapter": "a", "steering": "b"}, r"Give only one of adapter and steering\.$"),
        ({"steering": 3}, r"steering must be DIR, DIR@STRENGTH"),
        ({"steering": ["a", "b"]}, r"steering must be DIR, DIR@STRENGTH"),
        ({"steering": "a@-1"}, r"strength is -1.0"),
        ({"proxy": ["a", "a@0.5"]}, r"The proxy a is given twice"),
        ({"best_of_n": 2, "selection_reward": "r", "guiding_reward": "r"}, r"only one of best_of_n and guiding_reward"),
        ({"proxy": "a", "guiding_reward": "r"}, r"only one of proxy and guiding_reward"),
        ({"best_of_n": 2}, r"best_of_n needs a selection_reward"),
        ({"selection_reward": "r"}, r"best_of_n, which is not given"),
        ({"best_of_n": 0, "selection_reward": "r"}, r"best_of_n is 0; it must be at least 1"),
        ({"guiding_weight": 2.0}, r"belong to a guiding_reward"),
        ({"guiding_top_k": 3}, r"belong to a guiding_reward"),
        ({"guiding_reward": "r", "guiding_top_k": 0}, r"guiding_top_k is 0; it must be at least 1"),
        ({"guiding_reward": "r", "guiding_weight": float("nan")}, r"guiding_weight is nan"),
        ({"decoding_reward_weights": [1.0]}, r"none is given"),
        ({"guiding_reward": ["r"], "decoding_reward_weights": [1.0, 2.0]}, r"1 finite numbers are needed"),
        ({"proxy": "a@-1"}, r"strength is -1.0"),
        ({"proxy": "a", "strength": float("inf")}, r"strength must be a number"),
        ({"strength": 0.5}, r"strength belongs to a proxy"),
        ({"proxy": 3}, r"proxy must be DIR"),
        ({"proxy": {"path": "a", "strong": 1}}, r"proxy must be DIR"),
        ({"adaptor": "a"}, r"A policy has no 'adaptor'; did you mean adapter\?"),
        ({"nonsense": 1}, r"A policy has no 'nonsense'; it has model_name_or_path"),
        ({"model_name_or_path": 3}, r"model_name_or_path must be text, not 3"),
        ({"load_in_4bit": "yes"}, r"load_in_4bit must be true or false"),
        ({"best_of_n": 2.5}, r"best_of_n must be a whole number"),
        ({"guiding_weight": "much"}, r"guiding_weight must be a number"),
        ({"selection_reward": 3}, r"selection_reward must be a reward"),
        ({"decoding_reward_weights": ["a"]}, r"decoding_reward_weights must be a list of numbers"),
    ],
)
def test_contradictions_and_mistakes(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FrugalignError, match=sentence):
        PolicySpec.from_dict(values)


def test_an_object_is_a_reward_in_python_alone() -> None:
    spec = PolicySpec(best_of_n=2, selection_reward=(len,))
    assert spec.title() == "best of 2 by len"
    with pytest.raises(FrugalignError, match="selection_reward holds an object"):
        spec.to_dict()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": 0.0}, "it must be above 0"),
        ({"temperature": float("nan")}, "it must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_prompt_length": -1}, "max_prompt_length is -1; it must be at least 1"),
    ],
)
def test_sampling_settings_have_ranges(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FrugalignError, match=sentence):
        SamplingSettings(**values)


def test_a_specification_loads_no_torch() -> None:
    code = "import sys, frugalign.policies.spec, frugalign.options.policy\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
