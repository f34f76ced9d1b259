"""A custom logits processor for vLLM, for both of its model runners. Written against vLLM's source, and tested on a stand-in of its interfaces.

    FRUGALIGN_PROXIES=safe=exported/safe,terse=exported/terse \\
    vllm serve MODEL --logits-processors frugalign_runtime.vllm:GuidedLogitsProcessor

A request names its guidance in `vllm_xargs`: `{"proxy": "safe:0.7+terse"}`, or `{"proxy": "safe", "strength": 0.7}`. One without it
is the base, untouched. Temperature, top-k and top-p act on π. Log-probabilities are the base's unless the server runs with
`--logprobs-mode processed_logprobs`.

vLLM gives a processor logits, but no hidden states. The layer that ends every model's `compute_logits` is therefore wrapped: it
is called with the LM head and with what the head reads.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from frugalign_runtime.errors import ProxyError
from frugalign_runtime.judge import Proxies, load
from frugalign_runtime.requests import Guidance, read_guidance

VARIABLE = "FRUGALIGN_PROXIES"
_NAMES = ("proxy", "strength")


def _interfaces() -> tuple[type, ...]:
    """The base classes that this version's runners ask for: of the first runner, of the second, or of both."""
    found: list[type] = []
    try:
        from vllm.v1.sample.logits_processor import LogitsProcessor as ForV1

        found.append(ForV1)
    except ImportError:
        pass
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ForV2

        found.append(ForV2)
    except ImportError:
        pass
    if not found:
        raise ImportError("This version of vLLM has no custom logits processors.")
    return tuple(found)


def proxies_by_name() -> dict[str, str]:
    """The proxies that the variable FRUGALIGN_PROXIES names: `name=folder`, with commas between.

    Raises:
        ProxyError: there is none, or the text is something else.
    """
    text = os.environ.get(VARIABLE, "")
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if not pairs or not all(name and folder for name, _, folder in pairs):
        raise ProxyError(f"{VARIABLE} must name the exported proxies, such as safe=exported/safe,terse=exported/terse.")
    return {name: folder for name, _, folder in pairs}


def guidance_of(params: Any, names: list[str]) -> Guidance:
    """The guidance in a request's sampling parameters.

    Raises:
        ProxyError: it names no proxy that there is, or no possible strength.
    """
    asked = getattr(params, "extra_args", None) or {}
    if asked.get("strength") is not None and not asked.get("proxy"):
        raise ProxyError("strength needs a proxy to apply to.")
    return read_guidance(asked.get("proxy"), names, asked.get("strength"))


class Captured:
    """The newest call of the model's logits layer: the LM head, what the head reads `[rows, D]`, and the logits `[rows, V]`. `listener`: called
    with these two after each call."""

    lm_head: Any = None
    hidden: Any = None
    logits: Any = None
    listener: Any = None


CAPTURED = Captured()


def capture() -> None:
    """Wrap the layer that turns hidden states into logits, once in a process."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor as Layer

    if getattr(Layer.forward, "is_frugalign", False):
        return
    plain = Layer.forward

    def forward(self: Any, lm_head: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        logits = plain(self, lm_head, hidden_states, *args, **kwargs)
        CAPTURED.lm_head, CAPTURED.hidden, CAPTURED.logits = lm_head, hidden_states, logits
        if CAPTURED.listener is not None:
            CAPTURED.listener(hidden_states, logits)
        return logits

    forward.is_frugalign = True  # type: ignore[attr-defined]
    Layer.forward = forward


class GuidedLogitsProcessor(*_interfaces()):  # type: ignore[misc]
    """Guides every request by its own proxies at its own strengths.

    The first runner numbers requests by their row, and reports who moved. The second one gives each a slot, and every step
    says which row belongs to which.
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """
        Raises:
            ValueError: the request asks for what there is not.
        """
        guidance_of(sampling_params, list(proxies_by_name()))

    def __init__(self, vllm_config: Any, *of_runner: Any) -> None:
        """
        Args:
            of_runner: a device and whether memory is pinned, or the state of requests. Neither is needed.

        Raises:
            ProxyError: a bundle cannot be read.
        """
        self._proxies: Proxies = load(proxies_by_name())
        self._guidance: dict[int, Guidance] = {}
        self._is_checked = False
        capture()

    def is_argmax_invariant(self) -> bool:
        """Whether the likeliest token stays the same: it does not."""
        return False

    # -- requests -------------------------------------------------------------------------------------------------------

    def update_state(self, batch_update: Any = None) -> None:
        """First runner: who left, who came and who moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._guidance.pop(row, None)
        for row, params, *_ in batch_update.added:
            self.add_request(row, params)
        for one, other, direction in batch_update.moved:
            moved, replaced = self._guidance.pop(one, []), self._guidance.pop(other, [])
            self._set(other, moved)
            if direction.name == "SWAP":
                self._set(one, replaced)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request in a row or a slot, whatever was there before. Returns whether it is guided."""
        self._set(req_idx, guidance_of(sampling_params, self._proxies.names))
        return req_idx in self._guidance

    def remove_request(self, req_idx: int) -> None:
        """Second runner, in versions that say so: a slot is free."""
        self._guidance.pop(req_idx, None)

    def should_apply(self, sampling_params: Any) -> bool:
        """Second runner, in versions that ask so: whether a request is guided."""
        return bool(guidance_of(sampling_params, self._proxies.names))

    def _set(self, place: int, guidance: Guidance) -> None:
        if guidance:
            self._guidance[place] = guidance
        else:
            self._guidance.pop(place, None)

    # -- logits ---------------------------------------------------------------------------------------------------------

    def apply(self, logits: Any, *where: Any) -> Any:
        """`log π` in the rows of guided requests; the others are returned as they came.

        Args:
            logits: `[rows, V]`.
            where: nothing from the first runner. From the second, the step's layout, or the slot of each row.

        Raises:
            ProxyError: hidden states are not those of these rows, as in batch-sharded sampling, or the model is another one.
        """
        places = _places(len(logits), where)
        rows = [self._guidance.get(place, []) for place in places]
        if not any(rows):
            return logits
        hidden = CAPTURED.hidden
        if hidden is None or len(hidden) != len(logits):
            raise ProxyError(
                f"vLLM computed {len(logits)} rows of logits from {0 if hidden is None else len(hidden)} hidden states, so proxies cannot guide them: "
                "switch batch-sharded sampling off."
            )
        if not self._is_checked:
            self._proxies.check_outputs(CAPTURED.logits, hidden)
            self._is_checked = True
        width = max(map(len, rows))
        proxy, strength = np.full((len(rows), width), -1), np.zeros((len(rows), width))
        for row, guidance in enumerate(rows):
            for column, (number, its_strength) in enumerate(guidance):
                proxy[row, column], strength[row, column] = number, its_strength
        return self._proxies.judge(logits, hidden, proxy, strength)


def _places(n_rows: int, where: tuple[Any, ...]) -> list[int]:
    """Of every row of logits: its request's row or slot."""
    if not where:
        return list(range(n_rows))
    slots = getattr(where[0], "idx_mapping_np", where[-1])
    if len(slots) != n_rows:  # with drafts, a request has several rows
        slots = getattr(where[0], "expanded_idx_mapping", where[0])
    return [int(slot) for slot in slots.tolist()]
