"""The specification of a policy, with the same names in YAML, on the command line, in a request and in Python. No torch.

A policy is a base with parts on top. Principles precede every prompt. At most one of proxies, an adapter, a steering vector or a
whole model changes the weights, the states or the logits. At most one of best-of-n or a guiding reward changes the decoding.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import did_you_mean, shown
from frugalign.data.templating import Rendering
from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT, FINITE, NON_NEGATIVE, SEED, TEMPERATURE, TEMPLATE_ARGUMENTS

if TYPE_CHECKING:
    from frugalign.decoding.loop import SamplingParams
    from frugalign.rewards.loading import RewardSpec

_WEIGHTS = ("proxy", "adapter", "steering", "policy")
"""The parts that change what the base says. One policy has at most one kind of them."""
_PROXY = re.compile(
    r"(?:(?P<name>[A-Za-z_][\w.-]*)=)?(?P<path>.+?)(?:@(?P<strength>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?))?"
)


@dataclass(frozen=True)
class ProxySpec:
    """The folder or hub id of a proxy or a steering vector, its strength λ (1: as trained, 0: the base), and a name for it.

    Raises:
        FrugalignError: an empty path, or a strength that is not a finite number of at least 0.
    """

    path: str
    strength: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise FrugalignError("A proxy or a steering vector needs a folder or a hub id.")
        check_value("strength", self.strength, NON_NEGATIVE)

    @classmethod
    def parse(cls, text: str, strength: float = 1.0) -> ProxySpec:
        """Parse `DIR`, `DIR@0.7` or `name=DIR@0.7`. A path that exists is used verbatim. `strength` is the default."""
        found = _PROXY.fullmatch(text)
        if found is None or os.path.exists(text):
            return cls(text, strength)
        own = found["strength"]
        return cls(found["path"], strength if own is None else float(own), found["name"])

    @classmethod
    def read(cls, value: Any, strength: float = 1.0, named: str = "proxy") -> ProxySpec:
        """Read a text, or a mapping of `path`, `strength` and `name`. `named`: the field, for messages.

        Raises:
            FrugalignError: anything else.
        """
        if isinstance(value, ProxySpec):
            return value
        if isinstance(value, str):
            return cls.parse(value, strength)
        known: dict[str, Any] = {"path": str, "strength": (int, float), "name": str}
        if (
            isinstance(value, Mapping)
            and isinstance(value.get("path"), str)
            and all(key in known and isinstance(item, known[key]) for key, item in value.items())
        ):
            return cls(**({"strength": strength} | dict(value)))
        raise FrugalignError(f"{named} must be DIR, DIR@STRENGTH or name=DIR@STRENGTH, not {value!r}.")

    def written(self) -> str | dict[str, Any]:
        """The text that `parse` reads back, or a mapping if no text does."""
        text = (f"{self.name}=" if self.name else "") + self.path
        text += "" if self.strength == 1.0 else f"@{self.strength!r}"
        if ProxySpec.parse(text) == self:
            return text
        found: dict[str, Any] = {"path": self.path, "strength": self.strength}
        return found | ({"name": self.name} if self.name else {})


@dataclass(frozen=True)
class PolicySpec:
    """The specification of a policy. `revision`, `dtype`, `device_map`, `load_in_4bit`, `tp_size` and `fsdp_size`: how the base is loaded, as in `load_model`.

    Args:
        model_name_or_path: the base, as a hub id, folder or `package.module:attribute`. None if a loaded base is passed separately.
        principles: a shipped set, a file or `package.module:attribute`. They precede every prompt.
        proxy: proxies of the base with their strengths. Several compose: `log a = Σ λ_i log a_i`.
        adapter: a PEFT adapter of the base.
        steering: a steering vector of the base with its strength.
        policy: a whole model instead of the base.
        best_of_n: draw this many completions and keep the best by `selection_reward`.
        guiding_reward: `guiding_weight` times this reward of the text so far is added to the logits of the `guiding_top_k` most likely tokens.
        decoding_reward_weights: weights of several selection or guiding rewards. Default: 1 each.

    Raises:
        FrugalignError: parts that contradict each other, or a value out of range.
    """

    model_name_or_path: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    load_in_4bit: bool = False
    tp_size: int = 1
    fsdp_size: int = 1
    principles: str | None = None
    proxy: tuple[ProxySpec, ...] = ()
    adapter: str | None = None
    steering: ProxySpec | None = None
    policy: str | None = None
    best_of_n: int | None = None
    selection_reward: tuple[RewardSpec, ...] = ()
    guiding_reward: tuple[RewardSpec, ...] = ()
    guiding_weight: float = 1.0
    guiding_top_k: int = 10
    decoding_reward_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        # One item may stand for several, as in YAML.
        object.__setattr__(self, "proxy", tuple(ProxySpec.read(item) for item in _items(self.proxy)))
        if self.steering is not None:
            object.__setattr__(self, "steering", ProxySpec.read(self.steering, named="steering"))
        for name in ("selection_reward", "guiding_reward"):
            object.__setattr__(self, name, tuple(_items(getattr(self, name))))
        if self.decoding_reward_weights is not None:
            object.__setattr__(self, "decoding_reward_weights", tuple(_items(self.decoding_reward_weights)))
        self._check_model()
        self._check_decoding()

    def _check_model(self) -> None:
        for name in ("tp_size", "fsdp_size"):
            check_value(name, getattr(self, name), COUNT)
        given = [name for name in _WEIGHTS if getattr(self, name)]
        if len(given) > 1:
            reason = "; a proxy brings the adapter of the base that it was trained on" if "proxy" in given else ""
            raise FrugalignError(f"Give only one of {' and '.join(given)}{reason}.")
        paths = [each.path for each in self.proxy]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise FrugalignError(f"The proxy {twice[0]} is given twice; give it once, at the sum of the strengths.")

    def _check_decoding(self) -> None:
        if self.best_of_n is not None and self.guiding_reward:
            raise FrugalignError("Give only one of best_of_n and guiding_reward.")
        if self.guiding_reward and self.proxy:
            raise FrugalignError("Give only one of proxy and guiding_reward: both choose the tokens.")
        if self.best_of_n is None and self.selection_reward:
            raise FrugalignError("selection_reward chooses among the draws of best_of_n, which is not given.")
        if self.best_of_n is not None and not self.selection_reward:
            raise FrugalignError("best_of_n needs a selection_reward to choose by.")
        if self.best_of_n is not None:
            check_value("best_of_n", self.best_of_n, COUNT)
        if not self.guiding_reward and (self.guiding_weight, self.guiding_top_k) != (1.0, 10):
            raise FrugalignError("guiding_weight and guiding_top_k belong to a guiding_reward, which is not given.")
        check_value("guiding_weight", self.guiding_weight, FINITE)
        check_value("guiding_top_k", self.guiding_top_k, COUNT)
        weights, rewards = self.decoding_reward_weights, self.selection_reward or self.guiding_reward
        if weights is None:
            return
        if not rewards:
            raise FrugalignError(
                "decoding_reward_weights belong to a selection_reward or a guiding_reward; none is given."
            )
        if len(weights) != len(rewards) or not all(map(_is_number, weights)):
            raise FrugalignError(
                f"decoding_reward_weights are {list(weights)}; {len(rewards)} finite numbers are needed, one a reward."
            )

    @property
    def kind(self) -> str:
        """The parts on top of the base, joined by `+`; `base` where there are none."""
        names = ("principles", *_WEIGHTS, "best_of_n")
        parts = [name for name in names if getattr(self, name)] + ["reward_guided"] * bool(self.guiding_reward)
        return "+".join(parts) or "base"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **more: Any) -> PolicySpec:
        """The specification in a mapping (YAML, JSON, flags) of field names.

        Args:
            values: fields of this class, and `strength` for proxies without one of their own.
            more: further fields, which take precedence.

        Raises:
            FrugalignError: an unknown name, a value of the wrong type, or anything that the class refuses.
        """
        given = {name: value for name, value in {**values, **more}.items() if value is not None}
        strength = given.pop("strength", 1.0)
        if not _is_number(strength):
            raise FrugalignError(f"strength must be a number, not {strength!r}.")
        known = [each.name for each in fields(cls)]
        for name, value in given.items():
            if name not in known:
                hint = did_you_mean(str(name), known) or f"; it has {', '.join(known)}."
                raise FrugalignError(f"A policy has no {shown(name)}{hint}")
            _check_type(name, value)
        if "proxy" in given:
            given["proxy"] = tuple(ProxySpec.read(item, float(strength)) for item in _items(given["proxy"]))
        elif strength != 1.0:
            raise FrugalignError("strength belongs to a proxy, which is not given.")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, ready for YAML and JSON. `from_dict` reads them back.

        Raises:
            FrugalignError: a reward that is an object without a name.
        """
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value == each.default:
                continue
            if each.name == "proxy":
                value = [proxy.written() for proxy in value]
            elif each.name == "steering":
                value = value.written()
            elif each.name in ("selection_reward", "guiding_reward"):
                value = [_reward_text(reward, each.name) for reward in value]
            found[each.name] = list(value) if isinstance(value, tuple) else value
        return found

    def _other_weights(self) -> str:
        steered = None if self.steering is None else self.steering.path
        return self.adapter or steered or self.policy or "the base"

    def title(self) -> str:
        """A short description for a heading."""
        on = [each.path for each in self.proxy] or [self._other_weights()]
        name = " and ".join(on)
        if self.best_of_n is not None:
            of = "" if name == "the base" else f" of {name}"
            name = f"best of {self.best_of_n}{of} by {_names(self.selection_reward)}"
        if self.guiding_reward:
            name += f" guided by {_names(self.guiding_reward)}"
        return f"{name} under {self.principles}" if self.principles else name


_KINDS = {
    "temperature": TEMPERATURE,
    "max_new_tokens": COUNT,
    "max_prompt_length": COUNT,
    "seed": SEED,
    "chat_template_kwargs": TEMPLATE_ARGUMENTS,
}


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled. None stands for the proxy's value, else for the default.

    Args:
        max_new_tokens: maximum length of a completion, in tokens.
        temperature: the base's temperature. A proxy fixes it at the one that it was trained at.
        do_sample: sample; otherwise decode greedily.
        prompt_format: how string prompts are encoded. `auto` and `chat` make one user turn if there is a chat template; `raw` uses the text.
        chat_template_kwargs: arguments of the chat template, such as `{"enable_thinking": False}`.
        max_prompt_length: longer prompts are truncated on the left. None: a prompt that exceeds the context is an error.
        seed: seed of all noise.

    Raises:
        FrugalignError: a temperature or a length that is not above 0.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    do_sample: bool = True
    prompt_format: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    max_prompt_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            if getattr(self, name) is not None:
                check_value(name, getattr(self, name), kind)

    @property
    def rendering(self) -> Rendering:
        """How prompts become text."""
        return Rendering.of(self)

    def params(self) -> SamplingParams:
        """Parameters of the decoding loop. Length and temperature must be set (`Policy.with_defaults`)."""
        from frugalign.decoding.loop import SamplingParams

        assert self.max_new_tokens is not None and self.temperature is not None
        return SamplingParams(self.max_new_tokens, self.temperature, self.do_sample)


_TEXTS = ("model_name_or_path", "revision", "dtype", "device_map", "principles", "adapter", "policy")


def _check_type(name: str, value: Any) -> None:
    if name in _TEXTS:
        fits, needed = isinstance(value, str), "text"
    elif name == "load_in_4bit":
        fits, needed = isinstance(value, bool), "true or false"
    elif name in ("best_of_n", "guiding_top_k", "tp_size", "fsdp_size"):
        fits, needed = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif name == "guiding_weight":
        fits, needed = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    elif name == "decoding_reward_weights":
        fits, needed = all(map(_is_number, _items(value))), "a list of numbers"
    elif name in ("selection_reward", "guiding_reward"):
        fits = all(isinstance(item, str) or callable(item) or hasattr(item, "function") for item in _items(value))
        needed = "a reward or a list of rewards"
    else:
        return  # ProxySpec checks its own fields
    if not fits:
        raise FrugalignError(f"{name} must be {needed}, not {value!r}.")


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _reward_text(reward: Any, field: str) -> str:
    text = reward if isinstance(reward, str) else getattr(reward, "spec", "")
    if not text:
        raise FrugalignError(f"{field} holds an object; only a reward that a text names can be written down.")
    return str(text)


def _names(rewards: Sequence[Any]) -> str:
    return ", ".join(
        each if isinstance(each, str) else getattr(each, "name", getattr(each, "__name__", type(each).__name__))
        for each in rewards
    )
