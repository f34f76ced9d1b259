"""What a server offers: one base, proxies by name, and the name `base@safe:0.7+terse` for any mixture of them."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import did_you_mean, shown
from frugalign.data.templating import Rendering, encode_prompts
from frugalign.engines.fingerprints import check_base, fingerprint
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import TransformersEngine, embedding_rows, sampling_temperature
from frugalign.policies.loading import load_base
from frugalign.policies.spec import PolicySpec
from frugalign.proxy.mixed import MixedGuide
from frugalign.proxy.network import ProxyModel, load_proxy
from frugalign.serving.errors import RequestError

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
MAX_STRENGTH = 100.0


@dataclass(frozen=True)
class Served:
    """A base with its proxies, ready to answer.

    `name`: the base's, as clients call it. `strengths`: the default λ of each proxy.
    """

    name: str
    base: LoadedModel
    proxies: dict[str, ProxyModel]
    strengths: dict[str, float]
    guide: MixedGuide
    engine: TransformersEngine
    created: int
    lock: threading.Lock

    def mixture(self, model: str, strength: float | Mapping[str, float] | None) -> dict[str, float]:
        """The proxies of a request with their strengths, in the server's order.

        Args:
            model: `base`, or `base@safe:0.7+terse`.
            strength: of proxies that the name gives none, or of each by name. One that only the mapping names is added.

        Raises:
            RequestError: an unknown model, a strength given twice, or proxies that do not compose.
        """
        named = self._parse(model)
        found = {name: own for name, own in named.items() if own is not None}
        if isinstance(strength, Mapping):
            for name, value in strength.items():
                self._check_name(name, "strength")
                if name in found:
                    raise RequestError(f"The model name and strength both give the strength of {name}.", "strength")
                found[name] = value
        elif strength is not None and not named:
            raise RequestError("strength belongs to a proxy, and this model has none.", "strength")
        default = strength if isinstance(strength, float) else None
        for name in named:
            found.setdefault(name, self.strengths[name] if default is None else default)
        try:
            if found:
                self.guide.guide([name for name in self.proxies if name in found])
        except FrugalignError as error:
            raise RequestError(str(error), "model") from error
        return {name: found[name] for name in self.proxies if name in found}

    def _parse(self, model: str) -> dict[str, float | None]:
        if model == self.name:
            return {}
        base, _, mixture = model.rpartition("@")
        if base != self.name:
            known = [self.name, *(f"{self.name}@{name}" for name in self.proxies)]
            hint = did_you_mean(model, known) or f"; there is {self.name}."
            raise RequestError(f"There is no model {shown(model)}{hint}", "model", status=404, code="model_not_found")
        found: dict[str, float | None] = {}
        for part in mixture.split("+"):
            name, colon, number = part.partition(":")
            self._check_name(name, "model")
            if name in found:
                raise RequestError(f"The model names {name} twice.", "model")
            if colon and not _NUMBER.fullmatch(number):
                raise RequestError(f"The strength of {name} must be a number, not {shown(number)}.", "model")
            found[name] = float(number) if colon else None
            check_strength(found[name], name, "model")
        return found

    def _check_name(self, name: str, param: str) -> None:
        if name not in self.proxies:
            hint = did_you_mean(name, self.proxies) or f"; there are {', '.join(self.proxies) or 'none'}."
            status, code = (404, "model_not_found") if param == "model" else (400, None)
            raise RequestError(f"There is no proxy {shown(name)}{hint}", param, status=status, code=code)

    def encode(
        self, prompt: Any, mixture: Mapping[str, float], template_arguments: Mapping[str, Any] | None
    ) -> list[int]:
        """Token ids of messages, or of a text that is continued as it is.

        Raises:
            RequestError: a prompt that the template refuses, or one without tokens.
        """
        own = next((self.proxies[name].config.chat_template_kwargs for name in mixture), None)
        arguments = template_arguments if template_arguments is not None else own or {}
        try:
            with self.lock:  # a tokenizer is not made for several threads
                ids = encode_prompts(
                    [prompt], self.base.tokenizer, max_new_tokens=1, rendering=Rendering("raw", arguments)
                ).ids[0]
        except FrugalignError as error:
            message = str(error).removeprefix("Prompt 1: ").replace("Prompt 1 ", "The prompt ")
            raise RequestError(message, "messages" if isinstance(prompt, list) else "prompt") from error
        return ids

    def default_temperature(self, mixture: Mapping[str, float]) -> float:
        """The temperature of a request that gives none: 1 on a proxy's π, whose base is sampled as in training, else the
        model's own."""
        return 1.0 if mixture else sampling_temperature(self.base.model)

    def cards(self, max_new_tokens: int | None = None) -> list[dict[str, Any]]:
        """What `/v1/models` lists: the base, and each proxy with the base as its parent. `max_new_tokens`: the server's limit."""
        card = {
            "object": "model",
            "created": self.created,
            "owned_by": "frugalign",
            "max_model_len": self.engine.context_length,
        }
        about = {"chat_template": bool(self.base.tokenizer.chat_template), "max_new_tokens": max_new_tokens}
        found = [{"id": self.name, **card, "root": self.name, "parent": None, **about}]
        for name in self.proxies:
            own = {"root": name, "parent": self.name, "strength": self.strengths[name]}
            found.append({"id": f"{self.name}@{name}", **card, **own})
        return found


def check_strength(value: float | None, name: str, param: str) -> None:
    """Refuse a strength outside [0, 100].

    Raises:
        RequestError: it is.
    """
    if value is not None and not (math.isfinite(value) and 0 <= value <= MAX_STRENGTH):
        raise RequestError(
            f"The strength of {shown(name, quoted=False)} must be between 0 and {MAX_STRENGTH:g}.", param
        )


def load_served(
    model_name_or_path: str, proxies: Sequence[str] = (), *, served_name: str | None = None, **how: Any
) -> Served:
    """Load a base and its proxies.

    Args:
        proxies: `name=DIR`, `name=DIR@0.7` or DIR. A folder without a name is called after its last part.
        served_name: what clients call the base. Default: the last part of its path.
        how: `revision`, `dtype`, `device_map`, `load_in_4bit`, as in `load_model`.

    Raises:
        FrugalignError: a part that cannot be loaded or served, or two proxies of one name.
    """
    spec = PolicySpec.from_dict({"model_name_or_path": model_name_or_path, "proxy": list(proxies), **how})
    strengths: dict[str, float] = {}
    paths: dict[str, str] = {}
    for each in spec.proxy:
        name = each.name or PurePath(each.path).name
        if not _NAME.fullmatch(name):
            raise FrugalignError(
                f"A proxy cannot be called {shown(name)} in a model's name: give it another one, as name=DIR."
            )
        if name in strengths:
            raise FrugalignError(f"Two proxies are called {name}: give them names, as name=DIR.")
        strengths[name], paths[name] = each.strength, each.path
    base = load_base(spec)
    networks, found = {}, fingerprint(base.model, base.tokenizer, name=base.name)
    for name, path in paths.items():
        networks[name] = load_proxy(path)
        check_base(networks[name].config.base, found, f"The proxy in {path}")
    return Served(
        name=served_name or re.split(r"[/\\:]", model_name_or_path.rstrip("/"))[-1],
        base=base,
        proxies=networks,
        strengths=strengths,
        guide=MixedGuide(networks, embedding_rows(base.model)),
        engine=TransformersEngine(base.model, base.tokenizer),
        created=int(time.time()),
        lock=threading.Lock(),
    )
