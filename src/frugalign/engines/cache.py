"""What is done to a transformers KV cache between forward passes: copy it, and join two of them.

Rows are padded on the left, so every row ends at the cache's last column. Two caches of different widths can then be
stacked: the narrower one gets more padding on the left, which its mask hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from frugalign.base.errors import FrugalignError


def copy_cache(cache: Any) -> Any:
    """A copy of a KV cache that shares no tensor that a later step changes.

    Raises:
        FrugalignError: the cache cannot be copied and expanded.
    """
    if not hasattr(cache, "batch_select_indices") or not hasattr(cache, "batch_repeat_interleave"):
        raise FrugalignError(f"A {type(cache).__name__} cannot be expanded, so this model does not support lookahead.")
    return deepcopy(cache)


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep these rows of a cache, int64 `[b]`, in this order. Its layers may lie on several devices."""
    devices = {
        layer.keys.device for layer in getattr(cache, "layers", ()) if isinstance(getattr(layer, "keys", None), Tensor)
    }
    cache.batch_select_indices(rows if devices <= {rows.device} else rows.cpu())


def holds_attention_alone(cache: Any) -> bool:
    """Whether every layer keeps keys and values by position: no convolution, no recurrence, no index beside them."""
    layers = getattr(cache, "layers", [])
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def ignores_padding(prefix: Any, longest: int) -> bool:
    """Whether rows of up to `longest` tokens can resume from this one-row cache with padding after it.

    Attention masks the padding. A sliding window would count it, and a convolution or a recurrence would read it.
    """
    layers = getattr(prefix, "layers", [])
    return bool(layers) and all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= longest)
        for layer in layers
    )


def join_caches(first: Any, second: Any, padding: Sequence[int], width: int) -> None:
    """Append the rows of `second` to `first`, whose layers hold attention alone.

    Args:
        padding: leading columns of each that no row uses, which are dropped.
        width: columns afterwards, at least as many as each cache has without them.
    """
    for mine, theirs in zip(first.layers, second.layers, strict=True):
        if not mine.is_initialized:  # a layer that shares another one's keys
            continue
        slides = isinstance(mine, DynamicSlidingWindowLayer)
        kept = min(width, mine.sliding_window - 1) if slides else width
        both = zip((mine, theirs), padding, strict=True)
        states = [_last(layer, cut, kept) for layer, cut in both]
        mine.keys = torch.cat([keys for keys, _ in states])
        mine.values = torch.cat([values for _, values in states])
        if slides:
            mine.cumulative_length = width


def _last(layer: Any, cut: int, width: int) -> tuple[Tensor, Tensor]:
    """A layer's keys and values without its first `cut` columns, as `width` columns: cut or padded on the left.

    A sliding window may have dropped some of the columns to cut already.
    """
    seen = layer.get_seq_length() - cut
    found = [states[..., max(0, states.shape[-2] - min(seen, width)) :, :] for states in (layer.keys, layer.values)]
    keys, values = (pad(states, (0, 0, width - states.shape[-2], 0)) for states in found)
    return keys, values
