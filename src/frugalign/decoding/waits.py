"""How the decoding loop avoids waiting for an accelerator.

A host that looks at a value on an accelerator waits until everything before it has been computed, and the device then waits for the host's
next order. So what happens at a token stays on the device, and the loop looks once a token. What is computed in vain costs less than a look.
On a CPU a look costs nothing, and there nothing is computed in vain.
"""

from __future__ import annotations

import torch
from torch import Tensor


def looking_is_free(values: Tensor) -> bool:
    """Whether the host may look at `values` without waiting for a device."""
    return values.device.type == "cpu"


def places_of(mask: Tensor, n: int) -> Tensor:
    """The places of the true entries of `mask [B]`, of which there are known to be `n`: int64 `[n]`, in order. It does not look."""
    return mask.logical_not().sort(stable=True).indices[:n]


def places_to_do(mask: Tensor) -> Tensor:
    """The places of `mask [B]` to compute something for, int64: those that are true, or all of them where looking is not free."""
    return mask.nonzero().squeeze(-1) if looking_is_free(mask) else torch.arange(len(mask), device=mask.device)
