"""The base's LM head: whether an engine's is the one that a proxy was trained on, and `h` from its logits alone.

`logits = cap·tanh(scale·(W·h + b)/cap)`. With `m = 4·D` rows `S` of the head, `h = pinv(W[S])·(W[S]·h)`. So an engine that
shows only its logits can be guided too, if it shows all of them, before anything is masked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from frugalign_runtime.arrays import Array, host
from frugalign_runtime.bundle import Bundle
from frugalign_runtime.errors import ProxyError

ROWS_PER_WIDTH = 4
"""Rows of the head that recover `h`, for each of its dimensions."""
N_SAMPLED = 64
"""Rows of the head that a bundle keeps for comparison."""
SAME, QUANTISED = 0.01, 0.35
"""How far the rows (or logits) of an engine's head may lie from a proxy's, as a share of their size: in silence, and with a warning. bfloat16 moves them by
0.2 %, four-bit formats by 8 to 10 %, two bits by 30 %. Another model's rows are further away than their own size."""
_log = logging.getLogger(__name__)
_LARGEST_SPREAD = 1e5
"""The largest ratio of singular values of `W[S]` with which `h` can still be computed from float32 logits."""
_SURE = 1.0 - 1e-7
Rows = Callable[[np.ndarray], Any]
"""Gives the rows `[n, D]` of an engine's head with the given ids `[n]`, dequantised. A row that the engine does not hold may be NaN."""


def sampled_ids(vocabulary: int) -> np.ndarray:
    """The rows of the head that a bundle keeps, evenly spread."""
    return np.unique(np.linspace(0, vocabulary - 1, min(N_SAMPLED, vocabulary)).round().astype(np.int64))


def recovery_ids(vocabulary: int, width: int) -> np.ndarray:
    """The rows that recover `h`, drawn at random and always the same."""
    count = min(vocabulary, ROWS_PER_WIDTH * width)
    return np.sort(np.random.default_rng(0).choice(vocabulary, count, replace=False)).astype(np.int64)


def pseudo_inverse(rows: np.ndarray) -> np.ndarray | None:
    """`pinv` of `rows [m, D]`, float32 `[D, m]`. None if the rows do not determine `h`.

    By the normal equations in float64, which for thousands of dimensions take seconds where an SVD takes minutes.
    """
    rows = np.asarray(rows, dtype=np.float64)
    gram = rows.T @ rows
    values = np.linalg.eigvalsh(gram)
    if len(rows) < rows.shape[1] or not values[0] * _LARGEST_SPREAD**2 > values[-1]:
        return None
    return np.ascontiguousarray(np.linalg.solve(gram, rows.T), dtype=np.float32)


def difference(bundle: Bundle, rows: Rows) -> float:
    """How far the engine's head lies from the one of the bundle's base: `‖W' − W‖ / ‖W‖` over the sampled rows.

    Raises:
        ProxyError: the engine's head has another shape.
    """
    ids, mine = bundle.arrays["head.ids"], bundle.arrays["head.rows"].astype(np.float64)
    theirs = host(rows(ids)).astype(np.float64)
    if theirs.shape != mine.shape:
        raise ProxyError(
            f"{bundle.name} is for a model of width {bundle.settings.width}, and this one's head has width {theirs.shape[-1]}."
        )
    held = np.isfinite(theirs).all(1)
    return float(np.linalg.norm((theirs - mine)[held])) / max(float(np.linalg.norm(mine[held])), 1e-30)


def alike(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles are for the same head."""
    ids, rows = one.arrays["head.ids"], one.arrays["head.rows"]
    same = rows.shape == other.arrays["head.rows"].shape and one.settings.vocabulary == other.settings.vocabulary
    return same and bool((ids == other.arrays["head.ids"]).all()) and difference(other, lambda _: rows) <= SAME


def check_head(bundle: Bundle, rows: Rows, vocabulary: int) -> float:
    """Check that an engine runs the base of this proxy, by its LM head, and warn if its precision is another. The layers are not compared.

    Args:
        rows: of the engine's head. vocabulary: their number.

    Returns:
        The difference as a share of the head's size.

    Raises:
        ProxyError: it is another model.
    """
    if vocabulary != bundle.settings.vocabulary:
        raise ProxyError(
            f"{bundle.name} is for a model with {bundle.settings.vocabulary:,} tokens, and this one has {vocabulary:,}."
        )
    found = difference(bundle, rows)
    _refuse_if_far(bundle, found, "LM head differs from that one's by {} of its size")
    return found


def check_outputs(bundle: Bundle, logits: np.ndarray, hidden: np.ndarray) -> float | None:
    """Check that an engine runs the base of this proxy, by what its LM head makes of some states.

    The sampled rows of the base's head must give the engine's logits. Logits that are infinite are left out.

    Args:
        logits: `[N, V]`, before anything changed them; hidden: `[N, D]`.

    Returns:
        The difference as a share of the logits' spread. None where the base's logits are no function of its head that is known.

    Raises:
        ProxyError: it is another model.
    """
    settings, arrays = bundle.settings, bundle.arrays
    if settings.no_transform is not None:
        return None
    given = logits[:, arrays["head.ids"]].astype(np.float64)
    raw = hidden.astype(np.float64) @ arrays["head.rows"].astype(np.float64).T + arrays["head.bias"]
    wanted = settings.logit_scale * raw
    if settings.logit_cap is not None:
        wanted = settings.logit_cap * np.tanh(wanted / settings.logit_cap)
    kept = np.isfinite(given)
    spread = np.std(given[kept]) if kept.any() else 0.0
    found = float(np.sqrt(np.mean((given - wanted)[kept] ** 2)) / spread) if spread > 0 else 0.0
    _refuse_if_far(
        bundle,
        found,
        "logits differ from what that one's LM head makes of the same states by {} of their spread",
    )
    return found


def _refuse_if_far(bundle: Bundle, found: float, says: str) -> None:
    if found <= SAME:
        return
    about = f"{bundle.name} was exported for {bundle.settings.base or 'another model'}, and this model's {says.format(f'{found:.1%}')}"
    if found > QUANTISED:
        raise ProxyError(f"{about}, where {QUANTISED:.0%} is allowed.")
    _log.warning("%s, as in another precision. What was measured there may differ here.", about)


class Recovery:
    """`h` from logits, by the inverse that a bundle brings, or by one of the engine's own rows."""

    def __init__(self, bundles: Sequence[Bundle], rows: Rows | None) -> None:
        """
        Args:
            rows: of an engine whose head differs from the base's, such as a quantised one.

        Raises:
            ProxyError: the head cannot be inverted.
        """
        able = [bundle for bundle in bundles if bundle.settings.no_recovery is None]
        if not able:
            raise ProxyError(
                f"{bundles[0].name} cannot recover hidden states from logits, so the engine must give them: {bundles[0].settings.no_recovery}."
            )
        self._settings, self._arrays = able[0].settings, {**able[0].arrays}
        if rows is not None:
            inverse = pseudo_inverse(host(rows(self._arrays["recovery.ids"])))
            if inverse is None:
                raise ProxyError("This model's LM head cannot be inverted, so the engine must give hidden states.")
            self._arrays["recovery.inverse"] = inverse
        self._placed: dict[str, list[Array]] = {}

    def hidden(self, ops: Any, logits: Array) -> Array:
        """`h [N, D]` from `logits [N, V]`, float32.

        Raises:
            ProxyError: a logit that is needed is masked.
        """
        device, names = ops.where_is(logits), ("recovery.ids", "recovery.inverse", "recovery.bias")
        if device not in self._placed:
            self._placed[device] = [ops.place(self._arrays[name], logits) for name in names]
        ids, inverse, bias = self._placed[device]
        chosen, cap = logits[:, ids], self._settings.logit_cap
        if not bool(ops.isfinite(chosen).all()):
            raise ProxyError(
                "Some logits are infinite, so hidden states cannot be recovered: judge them before any are masked."
            )
        if cap is not None:
            part = ops.at_least(ops.at_most(chosen / cap, _SURE), -_SURE)
            chosen = 0.5 * cap * (ops.log1p(part) - ops.log1p(-part))  # artanh
        return (chosen / self._settings.logit_scale - bias) @ inverse.T
