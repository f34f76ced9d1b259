"""Not a test: a pretended accelerator, which counts how often the host waits for it.

Tensors on it are `Far`: ordinary CPU tensors whose `device` says "cuda". Inside `FarDevice`, whoever makes a tensor for that device gets one.
Counted is what would wait for a real device: reads of values, copies to the host, and operations whose result's shape depends on values. As
on a real one, tensors of both devices do not mix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda", 0)

_READS = {
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "is_nonzero",
    "equal",
    "allclose",
}
_SHAPED_BY_VALUES = {"nonzero", "argwhere", "bincount", "unique", "unique_consecutive", "masked_select"}


class Far(Tensor):
    """A tensor on the pretended device."""


def moved(model: nn.Module) -> nn.Module:
    """`model` with every parameter and buffer on the pretended device, sharing their memory. It only runs inside `FarDevice`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().as_subclass(Far), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.detach().as_subclass(Far)
    return model


class FarDevice(TorchFunctionMode):
    """The pretended device. `waits`: how often the host waited, by the operation that made it wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "__get__" and function == Tensor.device.__get__ and isinstance(args[0], Far):
            return DEVICE
        if name == "_parse_to":  # of `Module.to`, which then moves each tensor
            return function(*args, **kwargs)
        if name == "to":
            args = tuple(torch.device(leaf) if isinstance(leaf, str) else leaf for leaf in args)
        if isinstance(kwargs.get("device"), str):
            kwargs = kwargs | {"device": torch.device(kwargs["device"])}
        tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_far = any(isinstance(each, Far) for each in tensors)
        if is_far and name != "__get__":
            self._check(name, args, tensors)
            self._count(name, args)
        asked = [leaf for leaf in (*args, kwargs.get("device")) if isinstance(leaf, torch.device)]
        if name == "cpu":
            asked = [torch.device("cpu")]
        elif name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            asked = [DEVICE if isinstance(args[1], Far) else torch.device("cpu")]
        to_far = asked[0].type == DEVICE.type if asked else is_far
        if is_far and not to_far:
            self.waits["copy to the host"] += 1
        if asked:
            near = torch.device("cpu")
            args = tuple(near if isinstance(leaf, torch.device) else leaf for leaf in args)
            kwargs = kwargs | ({"device": near} if "device" in kwargs else {})
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
            return _as(Far if to_far else Tensor, result) if is_far or to_far else result

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        near = [each for each in tensors if not isinstance(each, Far) and each.dim() > 0]
        if not near or name in ("to", "copy_"):
            return
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], Far):
            self.waits["copy to the device"] += 1  # of an index
            return
        raise RuntimeError(f"{name}: tensors of two devices.")

    def _count(self, name: str, args: Any) -> None:
        by_values = (name == "where" and len(args) == 1) or (
            name == "repeat_interleave" and isinstance(args[1], Tensor)
        )
        if by_values or name in _READS or name in _SHAPED_BY_VALUES:
            self.waits[name] += 1
        elif name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            masks = [each for each in index if isinstance(each, Tensor) and each.dtype == torch.bool and each.dim()]
            if masks:
                self.waits["index by a mask"] += len(masks)


def _leaves(value: Any) -> Iterator[Any]:
    """What the tuples, lists and dictionaries in `value` hold."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _as(kind: type[Tensor], result: Any) -> Any:
    """`result` with its tensors on the device of `kind`."""
    if isinstance(result, Tensor):
        return result if type(result) is kind else result.as_subclass(kind)
    if isinstance(result, (tuple, list)) and any(isinstance(each, Tensor) for each in result):
        parts = [_as(kind, each) for each in result]
        return type(result)(parts) if type(result) in (tuple, list) or hasattr(result, "n_fields") else tuple(parts)
    return result
