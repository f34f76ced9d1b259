"""What makes a reward another one under the same name: code that it uses, values that it holds, weights."""

import functools
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engines.test_fingerprints import tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from frugalign.rewards.classifier import ClassifierReward
from frugalign.rewards.content import reward_contents
from frugalign.rewards.loading import NamedReward, load_rewards

SOURCE = '''"""A reward."""
import helper_of_reward as helper
from helper_of_reward import LIMIT
WORDS = ["bad", "worse"]
SCALE = {"a": 1.0}
UNUSED = 3

def _count(text):
    return sum(word in text for word in WORDS)

class Scorer:
    def __init__(self, weight=1.0):
        self.weight, self.calls = weight, 0

    def __call__(self, completions, **_):
        self.calls += 1
        return [self.weight * _count(text) for text in completions]

def reward(completions, **_):
    """Fewer bad words are better."""
    return [-SCALE["a"] * min(_count(text), LIMIT) + helper.bonus(text) for text in completions]

other = Scorer(weight=2.0)
'''
HELPER = "LIMIT = 5\n\ndef bonus(text):\n    return len(text)\n"
_folders = itertools.count()


def of_file(folder: Path, attribute: str = "reward", *changes: tuple[str, str]) -> str:
    """The hash of a reward in a new file with a helper module, after replacements in either."""
    home = folder / str(next(_folders))
    home.mkdir()
    source, helper = SOURCE, HELPER
    for old, new in changes:
        assert old in source + helper
        source, helper = source.replace(old, new), helper.replace(old, new)
    (home / "rewards.py").write_text(source)
    (home / "helper_of_reward.py").write_text(helper)
    sys.path.insert(0, str(home))
    try:
        return reward_contents(load_rewards([f"mine={home}/rewards.py:{attribute}"]))["mine"]
    finally:
        sys.path.remove(str(home))
        del sys.modules["helper_of_reward"]


@pytest.mark.parametrize(
    "change",
    [
        ("len(text)", "2 * len(text)"),
        ("LIMIT = 5", "LIMIT = 6"),
        ('"worse"', '"worst"'),
        ('"a": 1.0', '"a": 2.0'),
        ("word in text", "word == text"),
        ("-SCALE", "SCALE"),
    ],
)
def test_a_changed_file_is_another_reward(change: tuple[str, str], tmp_path: Path) -> None:
    """In the function, in what it calls, in a constant, in a module that it imports."""
    assert of_file(tmp_path, "reward") != of_file(tmp_path, "reward", change)


@pytest.mark.parametrize("names", ["*", "LIMIT as LIMIT"])
def test_names_may_come_from_a_module_as_a_whole(names: str, tmp_path: Path) -> None:
    """`from module import *` says which module the names are of, and not which names."""
    whole = ("from helper_of_reward import LIMIT", f"from helper_of_reward import {names}")
    alone = ("import helper_of_reward as helper\n", "")
    local = ("helper.bonus(text)", "0")
    before = of_file(tmp_path, "reward", whole, alone, local)
    assert before != of_file(tmp_path, "reward", whole, alone, local, ("LIMIT = 5", "LIMIT = 6"))


def test_a_lambda_counts_beside_an_import_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement binds its own name, and the import may bind the names that it uses."""
    found = set()
    for factor, limit in ((1, 5), (2, 5), (1, 6)):
        home = tmp_path / f"{factor}-{limit}"
        home.mkdir()
        (home / "star_of_reward.py").write_text(f"LIMIT = {limit}\n")
        (home / "rewards.py").write_text(
            f"from star_of_reward import *\nreward = lambda completions, **_: [LIMIT * {factor}]\n"
        )
        with monkeypatch.context() as patch:
            patch.syspath_prepend(home)
            (loaded,) = load_rewards([f"{home}/rewards.py:reward"])
            found.add(named(loaded.function))
            del sys.modules["star_of_reward"]
    assert len(found) == 3


@pytest.mark.parametrize("is_package", [True, False])
@pytest.mark.parametrize(
    "statement",
    [
        "from lazy_of_reward.inner import LIMIT",
        "from lazy_of_reward import inner",
        "import lazy_of_reward.inner as inner",
    ],
)
def test_what_a_reward_imports_when_it_is_called_counts(
    statement: str, is_package: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first call and after it alike. A folder without `__init__.py` is a package too."""
    used = "LIMIT" if "LIMIT" in statement else "inner.LIMIT"
    (tmp_path / "rewards.py").write_text(
        f"def reward(completions, **_):\n    {statement}\n    return [float({used})] * len(completions)\n"
    )
    inner = tmp_path / "lazy_of_reward" / "inner.py"
    inner.parent.mkdir()
    inner.write_text("LIMIT = 5\n")
    if is_package:
        (inner.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    (loaded,) = load_rewards([f"mine={tmp_path}/rewards.py:reward"])
    before = reward_contents([loaded])["mine"]
    try:
        assert "lazy_of_reward" not in sys.modules, "nothing is imported by describing it"
        assert loaded.function(completions=["a"]) == [5.0] and "lazy_of_reward.inner" in sys.modules
        assert reward_contents([loaded])["mine"] == before
        inner.write_text("LIMIT = 60\n")
        assert reward_contents([loaded])["mine"] != before
    finally:
        for name in ("lazy_of_reward.inner", "lazy_of_reward"):
            sys.modules.pop(name, None)


def test_a_package_that_only_its_own_finder_knows_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a package that was installed to be edited."""
    place = tmp_path / "elsewhere" / "edited_of_reward.py"
    place.parent.mkdir()

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            return importlib.util.spec_from_file_location(name, place) if name == "edited_of_reward" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    (tmp_path / "rewards.py").write_text(
        "def reward(completions, **_):\n    import edited_of_reward as edited\n    return [edited.LIMIT] * len(completions)\n"
    )
    (loaded,) = load_rewards([f"mine={tmp_path}/rewards.py:reward"])
    found = set()
    for limit in (5, 6):
        place.write_text(f"LIMIT = {limit}\n")
        found.add(reward_contents([loaded])["mine"])
    assert len(found) == 2 and "edited_of_reward" not in sys.modules


@pytest.mark.parametrize("change", [("UNUSED = 3", "UNUSED = 4"), ("    return sum", "    # why\n    return sum"), ("weight=2.0", "weight=3.0")])  # fmt: skip
def test_what_a_reward_does_not_use_makes_no_difference(change: tuple[str, str], tmp_path: Path) -> None:
    assert of_file(tmp_path, "reward") == of_file(tmp_path, "reward", change)


def test_an_instance_in_a_file_is_its_arguments_and_its_class(tmp_path: Path) -> None:
    before = of_file(tmp_path, "other")
    assert before == of_file(tmp_path, "other", ("LIMIT = 5", "LIMIT = 6"))
    for change in (("weight=2.0", "weight=3.0"), ("self.weight * ", ""), ('"bad", ', "")):
        assert before != of_file(tmp_path, "other", change)


class Weighted:
    """A reward as an object. `calls` changes as it is used."""

    def __init__(self, weight: float, words: list[str]) -> None:
        self.weight, self._words, self.calls = weight, words, 0

    def __call__(self, completions: Any, **_: Any) -> list[float]:
        self.calls += 1
        return [self.weight for _ in completions]


def named(reward: Any) -> str:
    return reward_contents([NamedReward("mine", reward)])["mine"]


def enclosing(value: Any) -> Any:
    def reward(completions: Any, **_: Any) -> list[Any]:
        return [value for _ in completions]

    return reward


def of_class(sign: int) -> Any:
    class Local:
        def __call__(self, completions: Any, **_: Any) -> list[int]:
            return [sign for _ in completions]

    return Local()


def scaled(completions: Any, scale: float = 1.0, **_: Any) -> list[float]:
    return [scale for _ in completions]


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (enclosing, 1.0, 2.0),
        (enclosing, ["a"], ["b"]),
        (enclosing, {"a": 1}, {"a": 2}),
        (enclosing, frozenset("abc"), frozenset("abd")),
        (enclosing, torch.zeros(2), torch.ones(2)),
        (enclosing, np.zeros(2000), np.arange(2000) * (np.arange(2000) == 1000)),
        (enclosing, np.array([1.0]), np.array([1])),
        (enclosing, Path("a"), Path("b")),
        (enclosing, re.compile("a"), re.compile("b")),
        (enclosing, Decimal("1"), Decimal("2")),
        (enclosing, range(2), range(3)),
        (lambda seed: enclosing(linear(seed)), 0, 1),
        (lambda weight: Weighted(weight, ["a"]), 1.0, 2.0),
        (lambda word: Weighted(1.0, [word]), "a", "b"),
        (lambda scale: functools.partial(scaled, scale=scale), 1.0, 2.0),
        (lambda scale: lambda completions, **_: [scale], 1, 2),
        (lambda weight: Weighted(weight, []).__call__, 1.0, 2.0),
    ],
)
def test_what_an_object_was_made_with_counts(make: Any, one: Any, other: Any) -> None:
    assert named(make(one)) == named(make(one)) != named(make(other))


def test_code_inside_a_function_counts() -> None:
    def first(completions: Any, **_: Any) -> list[int]:
        return [len(text) for text in completions]

    def second(completions: Any, **_: Any) -> list[int]:
        return [-len(text) for text in completions]

    assert named(first) == named(first) != named(second)
    assert named(of_class(1)) == named(of_class(1))


def test_an_object_is_the_same_after_use() -> None:
    reward = Weighted(1.0, ["a"])
    before = named(reward)
    reward(completions=["a"])
    assert reward.calls == 1 and named(reward) == before


def test_a_renewed_key_makes_no_other_reward() -> None:
    class Remote(Weighted):
        def __init__(self, api_key: str, url: str) -> None:
            super().__init__(1.0, [])
            self.api_key, self.url = api_key, url

    assert named(Remote("a", "x")) == named(Remote("b", "x")) != named(Remote("a", "y"))


def classifier(seed: int = 0, **config: Any) -> ClassifierReward:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    made = LlamaConfig(**sizes, num_attention_heads=2, num_labels=1, pad_token_id=0, **config)
    return ClassifierReward(LlamaForSequenceClassification(made), tokenizer(config.get("prefix", "w")))


def test_a_reward_model_is_its_weights_config_and_tokenizer() -> None:
    before = named(classifier())
    assert before == named(classifier())
    assert (
        len({before, named(classifier(seed=1)), named(classifier(rms_norm_eps=0.1)), named(classifier(prefix="v"))})
        == 4
    )
    narrow = classifier()
    narrow.model.to(torch.bfloat16)
    assert named(narrow) != before, "its scores differ"


def test_an_object_may_say_itself_what_it_is() -> None:
    class Reading(Weighted):
        def content_hash(self) -> str:
            return str(self.weight)

    assert named(Reading(1.0, ["a"])) == named(Reading(1.0, ["b"])) != named(Reading(2.0, ["a"]))


@pytest.mark.slow
def test_the_hash_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Where texts hash otherwise, and so sets are in another order."""
    (tmp_path / "rewards.py").write_text(
        SOURCE.replace("import helper_of_reward as helper", "import helper_of_reward as helper, json, os")
    )
    (tmp_path / "helper_of_reward.py").write_text(HELPER)
    code = (
        "from frugalign.rewards.content import reward_contents; from frugalign.rewards.loading import load_rewards\n"
        "def close(words):\n    return lambda completions, **_: [text in words for text in completions]\n"
        "close.__name__ = 'close'\n"
        "found = close(frozenset(map(str, range(50)))); found.__name__ = 'closed'\n"
        "print(reward_contents(load_rewards(['rewards.py:reward', found])))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and "closed" in said.pop()
