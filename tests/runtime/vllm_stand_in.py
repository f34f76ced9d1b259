"""Not a test: what the plug-in needs of vLLM, by its source as of 2026-11. Base classes, the logits layer, and two small runners.

`install` puts the modules into `sys.modules`. A runner keeps requests as its vLLM counterpart does: the first in rows that are
compacted when a request leaves, the second in slots whose order changes with every step.
"""

import importlib
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum, auto
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


class V1Processor(ABC):
    """`vllm.v1.sample.logits_processor.LogitsProcessor`."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        return None

    @abstractmethod
    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None: ...

    @abstractmethod
    def apply(self, logits: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def is_argmax_invariant(self) -> bool: ...

    @abstractmethod
    def update_state(self, batch_update: Any) -> None: ...


class V2Processor(ABC):
    """`vllm.v1.worker.gpu.sample.logits_processor.LogitsProcessor`."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        return None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        return None

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return True

    def apply_staged_writes(self) -> None:
        return None

    @abstractmethod
    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor: ...


class LogitsLayer(torch.nn.Module):
    """`vllm.model_executor.layers.logits_processor.LogitsProcessor`: the end of every model's `compute_logits`."""

    def __init__(self, soft_cap: float | None = None) -> None:
        super().__init__()
        self.soft_cap = soft_cap

    def forward(self, lm_head: Any, hidden_states: torch.Tensor, embedding_bias: Any = None) -> torch.Tensor:
        logits = lm_head(hidden_states)
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap


_V1, _V2 = "vllm.v1.sample.logits_processor", "vllm.v1.worker.gpu.sample.logits_processor"
_LAYER = "vllm.model_executor.layers.logits_processor"


def install(monkeypatch: pytest.MonkeyPatch, *, first: bool = True, second: bool = True) -> Any:
    """The stand-in as `vllm`, with one of its runners or both. Returns the plug-in, imported anew."""
    found = {_LAYER: {"LogitsProcessor": type("Layer", (LogitsLayer,), {"forward": LogitsLayer.forward})}}
    found |= {_V1: {"LogitsProcessor": V1Processor}} if first else {}
    found |= {_V2: {"LogitsProcessor": V2Processor}} if second else {}
    for name, content in found.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            module = sys.modules.get(".".join(parts[:length]))
            if module is None or not hasattr(module, "is_stand_in"):
                module = ModuleType(".".join(parts[:length]))
                module.__path__, module.is_stand_in = [], True  # type: ignore[attr-defined]
                monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(sys.modules[name]).update(content)
    monkeypatch.delitem(sys.modules, "frugalign_runtime.vllm", raising=False)
    plugin = importlib.import_module("frugalign_runtime.vllm")
    monkeypatch.setitem(sys.modules, "frugalign_runtime.vllm", plugin)
    return plugin


@dataclass
class Request:
    """A request in progress, decoded greedily."""

    prompt: list[int]
    xargs: dict[str, Any] | None = None
    length: int = 6
    tokens: list[int] = field(default_factory=list)

    @property
    def params(self) -> Any:
        return SimpleNamespace(extra_args=self.xargs)

    @property
    def is_done(self) -> bool:
        return len(self.tokens) == self.length


class _Runner:
    """Runs a tiny transformers model, one text at a time, and a processor on the logits of all."""

    def __init__(self, plugin: Any, model: Any, *arguments: Any) -> None:
        self.model = model
        layer_class = sys.modules[_LAYER].LogitsProcessor
        self.layer = layer_class(getattr(model.config, "final_logit_softcapping", None))
        self.processor = plugin.GuidedLogitsProcessor(None, *arguments)

    @torch.no_grad()
    def logits(self, requests: list[Request]) -> torch.Tensor:
        hidden = [self.model.model(torch.tensor([each.prompt + each.tokens]))[0][0, -1] for each in requests]
        found: torch.Tensor = self.layer(self.model.lm_head, torch.stack(hidden))
        return found


class FirstRunner(_Runner):
    """Requests in rows. A row that falls free is filled by a new request, or by the last one."""

    def __init__(self, plugin: Any, model: Any) -> None:
        super().__init__(plugin, model, torch.device("cpu"), False)
        self.rows: list[Request] = []

    def step(self, new: list[Request], swap: tuple[int, int] | None = None) -> None:
        free = [row for row, each in enumerate(self.rows) if each.is_done]
        removed, added, moved, waiting = list(free), [], [], list(new)
        while waiting:
            row = free.pop(0) if free else len(self.rows)
            self.rows[row : row + 1] = [waiting[0]]
            added.append((row, waiting[0].params, waiting[0].prompt, waiting[0].tokens))
            waiting.pop(0)
            removed = [each for each in removed if each != row]
        for row in sorted(free, reverse=True):
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last
                moved.append((len(self.rows), row, MoveDirectionality.UNIDIRECTIONAL))
        if swap is not None:
            one, other = swap
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
            moved.append((one, other, MoveDirectionality.SWAP))
        update = SimpleNamespace(batch_size=len(self.rows), removed=removed, added=added, moved=moved)
        self.processor.update_state(update if removed or added or moved else None)
        if self.rows:
            found = self.processor.apply(self.logits(self.rows).float())
            for each, token in zip(self.rows, found.argmax(-1).tolist(), strict=True):
                each.tokens.append(token)


class SecondRunner(_Runner):
    """Requests in slots, in another order at every step. With `drafts`, each has two rows, of which the first counts."""

    def __init__(self, plugin: Any, model: Any, n_slots: int = 4, *, drafts: bool = False, old: bool = False) -> None:
        super().__init__(plugin, model, SimpleNamespace(max_num_reqs=n_slots))
        self.slots: dict[int, Request] = {}
        self.n_slots, self.drafts, self.old = n_slots, drafts, old
        self.n_steps = 0

    def step(self, new: list[Request]) -> None:
        self.slots = {slot: each for slot, each in self.slots.items() if not each.is_done}
        for each in new:
            slot = next(number for number in range(self.n_slots) if number not in self.slots)
            self.slots[slot] = each
            self.processor.add_request(slot, each.params)
        self.n_steps += 1
        order = list(np.random.default_rng(self.n_steps).permutation(list(self.slots)))
        twice = 2 if self.drafts else 1
        expanded = [slot for slot in order for _ in range(twice)]
        if not expanded:
            return
        logits = self.logits([self.slots[slot] for slot in expanded]).float()
        slots, tensor = np.asarray(order), torch.tensor(expanded, dtype=torch.int32)
        where = (tensor, slots) if self.old else (SimpleNamespace(expanded_idx_mapping=tensor, idx_mapping_np=slots),)
        found = self.processor.apply(logits, *where)
        for row, slot in enumerate(order):
            self.slots[slot].tokens.append(int(found[row * twice].argmax()))
