"""Several proxies of one base, and the one function that an engine calls: `judge(logits, hidden, proxy, strength) → log π`.

It is the mathematics of `frugalign.proxy.guide` and `frugalign.proxy.candidates` over the whole vocabulary
(`docs/methods/proxy.md`). Each row has its own proxy and strength.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frugalign_runtime import head, overseer
from frugalign_runtime.arrays import Array, host, log_softmax, logsigmoid, logsumexp, ops_of
from frugalign_runtime.bundle import Bundle, Settings
from frugalign_runtime.errors import ProxyError

_MUST_AGREE = ("objective", "temperature", "tail")
_AT_ONCE = 1 << 24
"""Elements of the candidates' keys that are held at once."""
_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class _Scores:
    """A proxy's acceptance logits of its own candidates, one for each pair of a row and a column, and of the tail `[n, 1]`, which
    every other token shares. With the tail dropped, 0 stands for it, and nothing reads it."""

    rows: Array
    columns: Array
    of_pairs: Array
    of_tail: Array

    def everywhere(self, ops: Any, shape: tuple[int, int], function: Callable[[Array], Array], factor: Array) -> Array:
        """`factor·function(score)` of every column, of `shape [n, W]`. `factor [n, 1]`."""
        found = ops.full(shape, 0.0, self.of_tail) + factor * function(self.of_tail)
        found[self.rows, self.columns] = factor[self.rows, 0] * function(self.of_pairs)
        return found


class Proxies:
    """Exported proxies of one base, held at once. See `load`."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        """
        Raises:
            ProxyError: there is none, two have one name, or they are for different models.
        """
        if not bundles:
            raise ProxyError("There is no proxy to load.")
        self.names = [bundle.name for bundle in bundles]
        if len(set(self.names)) < len(self.names):
            raise ProxyError(f"Two proxies have one name: {', '.join(self.names)}.")
        first = bundles[0]
        for other in bundles[1:]:
            if not head.alike(first, other):
                raise ProxyError(f"{first.name} and {other.name} were exported for different models.")
        self.bundles = list(bundles)
        self._rows: head.Rows | None = None
        self.vocabulary, self.width = first.settings.vocabulary, first.settings.width
        self._recovery: head.Recovery | None = None
        self._placed: dict[str, list[dict[str, Array]]] = {}

    def index(self, name: str) -> int:
        """The number of the proxy with this name.

        Raises:
            ProxyError: there is none.
        """
        if name not in self.names:
            raise ProxyError(f"There is no proxy {name!r}; there are {', '.join(self.names)}.")
        return self.names.index(name)

    def check_head(self, rows: head.Rows, vocabulary: int) -> None:
        """Check that the engine runs the base of these proxies, by its LM head, and warn if its precision is another.

        `h` is then recovered by the engine's own rows.

        Args:
            rows: gives rows of the engine's head by their ids. vocabulary: their number.

        Raises:
            ProxyError: it is another model.
        """
        differs = [head.check_head(bundle, rows, vocabulary) for bundle in self.bundles]
        if max(differs) > head.SAME:
            self._rows, self._recovery = rows, None

    def check_outputs(self, logits: Array, hidden: Array) -> None:
        """Check the same by what the engine's head made of some states, where its rows are not at hand.

        Args:
            logits: `[N, V]`, before anything changed them. hidden: `[N, D]`.

        Raises:
            ProxyError: it is another model.
        """
        self._checked(logits, hidden, np.full(len(logits), -1), 0.0)
        for bundle in self.bundles:
            head.check_outputs(bundle, host(logits), host(hidden))

    def judge(self, logits: Array, hidden: Array | None, proxy: Any, strength: Any) -> Array:
        """`log π [N, V]`, float32: the policy of every row, under its own proxy at its own strength.

        A row of proxy −1 or strength 0 is untouched: it comes back as its logits, exactly. All others are normalised. With the tail
        dropped they are −inf outside the candidates. Nothing that is given is changed.

        Args:
            logits: `[N, V]`, as the model's own forward gives them: before temperature, penalties and masks. numpy or torch, on any
                device; the result is of the same kind.
            hidden: `[N, D]`, what the LM head reads. None: it is recovered from the logits.
            proxy: `[N]`, numbers of proxies. `[N, M]` composes several on one row: `log a = Σ λ_i·log a_i`.
            strength: λ, of the shape of `proxy`, or one number for all.

        Raises:
            ProxyError: a shape, a number or a strength is wrong, the proxies of a row do not compose, or `h` cannot be recovered.
        """
        proxies, strengths = self._checked(logits, hidden, proxy, strength)
        ops = ops_of(logits)
        with ops.quiet():
            logits = ops.floats(logits)
            groups = _groups(proxies, strengths)
            if not groups:
                return logits
            found = ops.copy(logits)
            for members, rows in groups.items():
                lambdas = np.stack([_strength_of(proxies[rows], strengths[rows], member) for member in members])
                whole, place = len(rows) == len(logits), ops.place(rows, logits)
                part = logits if whole else logits[place]
                h = hidden if hidden is None or whole else hidden[place]
                found[place] = self._log_pi(ops, part, h, members, ops.place(lambdas.astype(np.float32), logits))
            return found

    def _checked(self, logits: Array, hidden: Array | None, proxy: Any, strength: Any) -> tuple[np.ndarray, np.ndarray]:
        """`proxy` and `strength` as `[N, M]`."""
        if len(logits.shape) != 2 or logits.shape[1] != self.vocabulary:
            raise ProxyError(f"logits must be [N, {self.vocabulary}], and are {list(logits.shape)}.")
        if hidden is not None and tuple(hidden.shape) != (len(logits), self.width):
            raise ProxyError(f"hidden must be [{len(logits)}, {self.width}], and is {list(hidden.shape)}.")
        proxies = host(proxy)
        proxies = proxies[:, None] if proxies.ndim == 1 else proxies
        if proxies.ndim != 2 or len(proxies) != len(logits) or (proxies.size and proxies.dtype.kind not in "iu"):
            raise ProxyError(f"proxy must be {len(logits)} whole numbers, one a row, or as many rows of them.")
        if ((proxies < -1) | (proxies >= len(self.bundles))).any():
            raise ProxyError(f"proxy must be −1 for none, or from 0 to {len(self.bundles) - 1}.")
        strengths = host(strength).astype(np.float64)
        strengths = strengths[:, None] if strengths.ndim == 1 else strengths
        if strengths.ndim and strengths.shape != proxies.shape:
            raise ProxyError("strength must have the shape of proxy, or be one number.")
        if not (np.isfinite(strengths) & (strengths >= 0)).all():
            raise ProxyError("strength must be a finite number, at least 0.")
        return proxies, np.broadcast_to(strengths, proxies.shape)

    def _log_pi(self, ops: Any, logits: Array, hidden: Array | None, members: tuple[int, ...], lambdas: Array) -> Array:
        """`log π [n, V]` of rows that the same proxies guide, at strengths `lambdas [M, n]`."""
        settings = [self.bundles[member].settings for member in members]
        self._check_composition(members)
        first = settings[0]
        scaled = logits if first.temperature == 1.0 else logits / first.temperature
        log_total = logsumexp(ops, scaled)
        hidden = self._hidden(ops, logits, hidden, settings)
        own = [_candidates(ops, scaled, log_total, each.p_t, each.max_candidates) for each in settings]
        scores = [self._scores(ops, member, logits, hidden, mask) for member, mask in zip(members, own, strict=True)]
        joint = own[0]
        for mask in own[1:]:
            joint = joint | mask if first.tail == "keep" else joint & mask
        if first.objective == "marginal":
            # The tail's tokens share its acceptance, so that the tail as a whole keeps p_T within it.
            total = scaled - log_total
            for score, strength in zip(scores, lambdas, strict=True):
                total = total + score.everywhere(ops, total.shape, lambda x: logsigmoid(ops, x), strength[:, None])
            if first.tail == "drop":
                total = ops.where(joint, total, -math.inf)
            return log_softmax(ops, total)
        biases = [each.initial_bias for each in settings]
        return _sequential(ops, (scaled, log_total, joint), scores, biases, lambdas, keeps_tail=first.tail == "keep")

    def _hidden(self, ops: Any, logits: Array, hidden: Array | None, settings: list[Settings]) -> Array | None:
        if hidden is not None:
            return ops.floats(hidden)
        if all(each.candidate_features == "token_bias" for each in settings):
            return None
        if self._recovery is None:
            self._recovery = head.Recovery(self.bundles, self._rows)
        return self._recovery.hidden(ops, logits)

    def _check_composition(self, members: tuple[int, ...]) -> None:
        first = self.bundles[members[0]]
        for other in (self.bundles[member] for member in members[1:]):
            for name in _MUST_AGREE:
                one, two = getattr(first.settings, name), getattr(other.settings, name)
                if one != two:
                    raise ProxyError(
                        f"{first.name} and {other.name} do not compose: {name} is {one} in one and {two} in the other."
                    )

    def _scores(self, ops: Any, member: int, logits: Array, hidden: Array | None, own: Array) -> _Scores:
        """A proxy's acceptance logits, given its `own [n, V]` candidates."""
        settings, arrays = self.bundles[member].settings, self._arrays(ops, member, logits)
        keeps = settings.tail == "keep"
        of_tail = ops.full((len(logits), 1), 0.0, logits)
        rows, columns = ops.pairs(own)
        if settings.candidate_features == "token_bias":
            return _Scores(
                rows, columns, arrays["token_bias"][columns], of_tail + (arrays["tail_bias"] if keeps else 0.0)
            )
        query = _query(ops, hidden, arrays, settings.norm_eps) * settings.score_scale
        of_pairs = _products(ops, query, arrays["keys"], rows, columns) + arrays["bias"]
        if keeps:
            of_tail = (query @ arrays["tail_key"][:, None]) + arrays["bias"]
        return _Scores(rows, columns, of_pairs, of_tail)

    def _arrays(self, ops: Any, member: int, like: Array) -> dict[str, Array]:
        """A bundle's arrays as the library's of `like`, on its device. They are copied there once."""
        device = ops.where_is(like)
        if device not in self._placed:
            self._placed[device] = [
                {
                    name: ops.place(value, like)
                    for name, value in bundle.arrays.items()
                    if not name.startswith(("head.", "recovery."))
                }
                for bundle in self.bundles
            ]
        return self._placed[device][member]


def load(
    folders: Mapping[str, str | Path] | Sequence[str | Path] | str | Path,
    *,
    head_rows: head.Rows | None = None,
    vocabulary: int | None = None,
) -> Proxies:
    """Load exported proxies, and check that they are for the engine's model.

    Args:
        folders: bundles by name, or bundles alone, which are named by their folders.
        head_rows: gives rows of the engine's LM head by their ids. With it the head is compared with the one that a proxy was exported for,
            and where it differs, `h` is recovered by the engine's own rows.
        vocabulary: the number of the head's rows. Default: as many as the proxies expect.

    Raises:
        ProxyError: a bundle is damaged, or for another model.
    """
    if isinstance(folders, str | Path):
        folders = [folders]
    named = folders.items() if isinstance(folders, Mapping) else [(None, folder) for folder in folders]
    bundles = [Bundle.load(folder, name) for name, folder in named]
    proxies = Proxies(bundles)
    if head_rows is not None:
        proxies.check_head(head_rows, vocabulary or proxies.vocabulary)
    return proxies


def _groups(proxies: np.ndarray, strengths: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """The rows that each set of proxies guides. Rows that none guides are left out."""
    found: dict[tuple[int, ...], list[int]] = {}
    active = (proxies >= 0) & (strengths > 0)
    for row in np.flatnonzero(active.any(1)):
        members = tuple(sorted({int(member) for member in proxies[row][active[row]]}))
        found.setdefault(members, []).append(int(row))
    return {members: np.asarray(rows) for members, rows in found.items()}


def _strength_of(proxies: np.ndarray, strengths: np.ndarray, member: int) -> np.ndarray:
    """The strength of one proxy on each row. One that a row names twice acts with the sum."""
    found: np.ndarray = np.where(proxies == member, strengths, 0.0).sum(1)
    return found


def _candidates(ops: Any, scaled: Array, log_total: Array, p_t: float, most: int) -> Array:
    """`C = {c : p_T(c) ≥ p_t} ∪ {argmax p_T}`, at most the `most` likeliest: bool `[n, V]`."""
    # At p_t = 0 finite: a token that the model rules out, with a logit of −inf, is never a candidate.
    found = scaled >= log_total + (math.log(p_t) if p_t > 0 else _LOWEST)
    if most * p_t < 1 and int(found.sum(-1).max()) > most:
        likeliest = ops.none_of(found)
        ops.put(likeliest, ops.top(scaled, most), True)
        found = found & likeliest
    ops.put(found, scaled.argmax(-1)[:, None], True)
    return found


def _query(ops: Any, h: Array, arrays: Mapping[str, Array], eps: float) -> Array:
    """`q(h) [n, d]`: LayerNorm, Linear, SiLU, Linear."""
    centred = h - h.mean(-1)[:, None]
    normed = centred / ((centred * centred).mean(-1)[:, None] + eps) ** 0.5
    inner = (normed * arrays["norm.weight"] + arrays["norm.bias"]) @ arrays["query_in.weight"].T + arrays[
        "query_in.bias"
    ]
    gated = inner * ops.exp(logsigmoid(ops, inner))  # SiLU, without overflow
    return gated @ arrays["query_out.weight"].T + arrays["query_out.bias"]


def _products(ops: Any, query: Array, keys: Array, rows: Array, columns: Array) -> Array:
    """`q(h_r)·k(e_c)` of every pair of a row and a column, in float32 whatever the keys are stored in."""
    size = max(1, _AT_ONCE // query.shape[1])
    parts = [
        (query[rows[start : start + size]] * ops.floats(keys[columns[start : start + size]])).sum(-1)
        for start in range(0, len(rows), size)
    ]
    return parts[0] if len(parts) == 1 else ops.joined(parts)


def _sequential(
    ops: Any,
    proposals: tuple[Array, Array, Array],
    scores: list[_Scores],
    biases: list[float],
    lambdas: Array,
    *,
    keeps_tail: bool,
) -> Array:
    """`log π [n, V]` of the sequential overseer.

    Args:
        proposals: `scaled [n, V]`, `log_total [n, 1]`, and the candidates of all proxies together, bool `[n, V]`.
        scores: of each proxy; biases: the acceptance logit that each started with.
        lambdas: `[M, n]`.
    """
    scaled, log_total, joint = proposals
    listed = ops.where(joint, scaled, -math.inf)
    columns = ops.top(listed, int(joint.sum(-1).max()))
    mask, values = ops.gather(joint, columns), ops.gather(listed, columns)
    rest = ops.where(joint, -math.inf, scaled)
    of_rest = logsumexp(ops, rest)
    has_tail = of_rest > -math.inf
    # The tail's column is the last of all, and its number is V.
    columns = ops.joined([columns, 0 * columns[:, :1] + scaled.shape[1]])
    if keeps_tail:
        log_p = ops.joined([values, of_rest]) - log_total
    else:
        has_tail = has_tail & False
        log_p = ops.joined([values - logsumexp(ops, values), ops.full(of_rest.shape, -math.inf, of_rest)])
    mask = ops.joined([mask, has_tail])

    log_p, one = ops.doubles(log_p), ops.full(of_rest.shape, 1.0, of_rest)
    wide = (len(scaled), scaled.shape[1] + 1)
    judged = [
        ops.doubles(ops.gather(score.everywhere(ops, wide, lambda x: x, one), columns))
        + overseer.even_offset(ops, log_p, bias)
        for score, bias in zip(scores, biases, strict=True)
    ]
    log_a = sum(
        ops.doubles(strength)[:, None] * logsigmoid(ops, score) for strength, score in zip(lambdas, judged, strict=True)
    )
    log_1ma = overseer.scaled_acceptance(ops, log_a)
    if len(judged) == 1:  # at strength 1 it is exact
        log_1ma = ops.where(lambdas[0][:, None] == 1.0, logsigmoid(ops, -judged[0]), log_1ma)
    log_pi = ops.floats(overseer.sequential_log_pi(ops, log_p, log_a, log_1ma, mask))

    # What is emitted from the tail is drawn from p_T within it.
    if keeps_tail:
        found = rest - ops.where(has_tail, of_rest, 0.0) + log_pi[:, -1:]
    else:
        found = ops.full(scaled.shape, -math.inf, scaled)
    rows, places = ops.pairs(mask[:, :-1])
    found[rows, columns[rows, places]] = log_pi[rows, places]
    return found
