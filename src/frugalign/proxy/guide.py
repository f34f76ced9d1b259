"""One or more trained proxies as the decoding loop's `Guide`: candidates, acceptance, strength, composition, and
choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.decoding.chooser import (
    STREAM_ACCEPT,
    STREAM_EMIT,
    STREAM_ORDER,
    STREAM_REJECTIONS,
    STREAM_TAIL,
    Emission,
    Lookahead,
    TokenTrace,
    temperature_gain,
)
from frugalign.decoding.noise import Noise, draw
from frugalign.decoding.waits import looking_is_free, places_to_do
from frugalign.options.check import check_value
from frugalign.options.kinds import NON_NEGATIVE
from frugalign.proxy import overseer
from frugalign.proxy.candidates import Candidates, Tail, beyond, candidates, shared_candidates
from frugalign.proxy.network import ProxyModel

_SHOWN_REJECTIONS = 8
_REPLAYS = 64
_DENSE_UP_TO = 1 << 14
_AT_ONCE = 1 << 24
"""Logits that are worked on at once."""


@dataclass
class Decision:
    """What a proxy did at one position, for the observer. The optimisation needs nothing else, so it runs no LM
    forward.

    `log_a` and `log_pi` are `[B, K]`; `choice [B]` is a column. `rejected [B, K]` and `coin_flipped [B]` are the coin
    flips of a sequential overseer, else None. `lookahead [B, K, D]` is None for proxies without lookahead.
    """

    candidates: Candidates
    log_a: Tensor
    log_pi: Tensor
    choice: Tensor
    rejected: Tensor | None
    coin_flipped: Tensor | None
    lookahead: Tensor | None

    def select(self, rows: Tensor) -> Decision:
        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        return Decision(
            self.candidates.select(rows),
            self.log_a[rows],
            self.log_pi[rows],
            self.choice[rows],
            pick(self.rejected),
            pick(self.coin_flipped),
            pick(self.lookahead),
        )


class ProxyGuide:
    """Guides generation with one or more proxies of the same base.

    Proxies compose: `log a = Σ λ_i log a_i` on the union of their candidates, where a token that one of them does not
    judge by itself takes that proxy's acceptance of the tail. With the tail dropped, on their intersection. Strength
    λ = 1 is the trained proxy, and 0 the base, restricted if the tail is dropped.
    """

    needs_hidden = True

    def __init__(
        self, proxies: Sequence[ProxyModel], keys: Sequence[Tensor | None], strengths: Sequence[float]
    ) -> None:
        for strength in strengths:
            check_value("strength", strength, NON_NEGATIVE)
        first = proxies[0].config
        for other in (proxy.config for proxy in proxies[1:]):
            for field in ("objective", "temperature", "tail", "vocabulary", "width"):
                if getattr(other, field) != getattr(first, field):
                    raise FrugalignError(
                        f"These proxies do not compose: {field} is {getattr(first, field)} in one and {getattr(other, field)} in another."
                    )
        self.proxies, self.keys, self.strengths = list(proxies), list(keys), list(strengths)
        self._transposed_keys: list[Tensor | None] | None = None
        # At most 1/p_t tokens reach the threshold, so a cap of at least 1/p_t has no effect.
        lookahead = any(proxy.config.candidate_features == "lookahead" for proxy in proxies)
        uncapped = all(proxy.limits.p_t * proxy.limits.max_candidates >= 1 for proxy in proxies)
        self._dense = first.objective == "marginal" and not lookahead and uncapped
        self.tail: Tail = first.tail
        self.objective: overseer.Objective = first.objective
        self.temperature: float = first.temperature
        self.needs_lookahead = lookahead

    @classmethod
    def build(cls, proxies: Sequence[ProxyModel], rows: Tensor, strengths: Sequence[float] | None = None) -> ProxyGuide:
        """Compute `k(e_c)` of the vocabulary for each proxy, and move the proxies to the base's device.

        Args:
            rows: the base's output embeddings `[V, D]`, as `embedding_rows` or an engine's `output_embeddings` gives them.
            strengths: one per proxy; default: 1 each.
        """
        keys: list[Tensor | None] = []
        for proxy in proxies:
            if proxy.config.width != rows.shape[1] or proxy.config.vocabulary != rows.shape[0]:
                raise FrugalignError(
                    f"This proxy is for a base of width {proxy.config.width} and vocabulary {proxy.config.vocabulary}; "
                    f"this one has {rows.shape[1]} and {rows.shape[0]}."
                )
            torch.nn.Module.to(proxy, device=rows.device, dtype=torch.float32)
            with torch.no_grad():
                keys.append(proxy.keys(rows) if proxy.config.candidate_features == "embedding" else None)
        return cls(proxies, keys, [1.0] * len(proxies) if strengths is None else strengths)

    @property
    def kind(self) -> Any:
        """Equal for proxies whose candidates and overseer are the same."""
        return self.objective, self.temperature, self.tail, self.proxies[0].limits

    def candidates(self, logits: Tensor) -> Candidates:
        """Of a single proxy."""
        return candidates(logits, self.temperature, self.proxies[0].limits, self.tail)

    def score(self, h: Tensor, chosen: Candidates) -> Tensor:
        """A single proxy's logits of acceptance `[B, K]`, without lookahead."""
        [proxy], [keys] = self.proxies, self.keys
        scores: Tensor = proxy(h, chosen.ids, keys=keys) + proxy.offset(chosen.log_p)
        return scores

    def scores(
        self, h: Tensor, logits: Tensor, lookahead: Lookahead | None
    ) -> tuple[Candidates, list[Tensor], Tensor | None]:
        """Candidates, every proxy's logits of acceptance (`[B, K]` each), and the lookahead states."""
        own: list[Tensor] = []
        if len(self.proxies) == 1:
            chosen = self.candidates(logits)
        else:
            limits = [proxy.limits for proxy in self.proxies]
            chosen, own = shared_candidates(logits, self.temperature, limits, self.tail)
        states = None
        if self.needs_lookahead:
            if lookahead is None:
                raise FrugalignError(
                    "This proxy reads the state after each candidate, which needs the KV cache: use_cache must be on."
                )
            states = self._look_ahead(lookahead, chosen)
        ids, after = chosen.ids, states
        takes_tails = bool(own) and self.tail == "keep"
        if takes_tails:
            # One more column: a proxy judges what is not its own as its tail, also where the union leaves no tail.
            ids = torch.nn.functional.pad(ids, (0, 1), value=self.proxies[0].config.vocabulary)
            after = None if states is None else torch.nn.functional.pad(states, (0, 0, 0, 1))
        scores = [
            proxy(h, ids, keys=keys, lookahead=after) for proxy, keys in zip(self.proxies, self.keys, strict=True)
        ]
        if takes_tails:
            scores = [
                torch.where(columns, score[:, :-1], score[:, -1:]) for score, columns in zip(scores, own, strict=True)
            ]
        scores = [score + proxy.offset(chosen.log_p) for proxy, score in zip(self.proxies, scores, strict=True)]
        return chosen, scores, states

    def acceptance(
        self, h: Tensor, logits: Tensor, lookahead: Lookahead | None
    ) -> tuple[Candidates, Tensor, Tensor, Tensor | None]:
        """Candidates, `log a` and `log(1 − a)` (`[B, K]` each), and the lookahead states. Composition and strength
        are applied."""
        chosen, scores, states = self.scores(h, logits, lookahead)
        if len(scores) == 1 and self.strengths[0] == 1.0:
            log_a, log_1ma = overseer.log_acceptance(scores[0])
            return chosen, log_a, log_1ma, states
        parts = [
            strength * overseer.log_acceptance(score)[0] for strength, score in zip(self.strengths, scores, strict=True)
        ]
        log_a = torch.stack(parts).sum(0)
        return chosen, log_a, overseer.scaled_acceptance(log_a), states

    def _look_ahead(self, lookahead: Lookahead, chosen: Candidates) -> Tensor:
        """The states after every candidate `[B, K, D]`, zero at the tail, which cannot be fed."""
        if self.tail == "drop":
            return lookahead(chosen.ids)
        # The last column is a tail or padding in every row.
        states = lookahead(chosen.ids.masked_fill(chosen.tail, 0)[:, :-1])
        return torch.nn.functional.pad(states, (0, 0, 0, 1))

    def log_pi(self, chosen: Candidates, log_a: Tensor, log_1ma: Tensor) -> Tensor:
        """The exact emission distribution `[B, K]` of either overseer."""
        if self.objective == "marginal":
            return overseer.marginal_log_pi(chosen.log_p, log_a, chosen.mask)
        exact = overseer.sequential_log_pi(chosen.log_p.double(), log_a.double(), log_1ma.double(), chosen.mask)
        return exact.float()

    @torch.no_grad()
    def log_probs(self, h: Tensor, logits: Tensor, lookahead: Lookahead | None = None) -> Tensor:
        """`log π` over the whole vocabulary `[B, V]`, normalised, float32. With the tail dropped, −inf outside the candidates.

        A long prompt has gigabytes of logits. The copies that the steps here make of them exist for some rows at a time.
        """
        rows = max(1, _AT_ONCE // logits.shape[-1])
        if lookahead is not None or len(logits) <= rows:
            return self._log_probs(h.float(), logits.float(), lookahead)
        found = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            found[part] = self._log_probs(h[part].float(), logits[part].float(), None)
        return found

    def _log_probs(self, h: Tensor, logits: Tensor, lookahead: Lookahead | None) -> Tensor:
        dense = self._dense_log_probs(h, logits)
        if dense is not None:
            return dense
        chosen, log_a, log_1ma, _ = self.acceptance(h, logits, lookahead)
        return self.spread(logits, chosen, self.log_pi(chosen, log_a, log_1ma))

    def spread(self, logits: Tensor, chosen: Candidates, log_pi: Tensor) -> Tensor:
        """`log π [B, K]` of the candidates as that of the whole vocabulary, `[B, V]`."""
        if self.tail == "keep":
            found = self._log_p_in_tail(logits, chosen) + log_pi.masked_fill(~chosen.tail, -math.inf).amax(
                -1, keepdim=True
            )
        else:
            found = torch.full_like(logits, -math.inf)
        # The other columns write −inf where a candidate does: reduce by the maximum.
        columns = torch.where(chosen.listed, chosen.ids, chosen.ids[:, :1])
        return found.scatter_reduce_(-1, columns, log_pi.masked_fill(~chosen.listed, -math.inf), "amax")

    def _log_p_in_tail(self, logits: Tensor, chosen: Candidates) -> Tensor:
        """`log p_T` of every token given that it is in the tail, `[B, V]`: −inf outside, and everywhere if there is no tail."""
        rest = beyond(logits / self.temperature, chosen.ids, chosen.listed)
        return torch.log_softmax(rest, -1).nan_to_num(nan=-math.inf, neginf=-math.inf)

    def _dense_log_probs(self, h: Tensor, logits: Tensor) -> Tensor | None:
        """The same without sorting, which is cheaper for few rows.

        None if it does not apply: many rows, other objectives, lookahead, a cap that could take effect, or no token
        above p_t.
        """
        if not self._dense or logits.numel() > _DENSE_UP_TO:
            return None
        scaled = logits if self.temperature == 1.0 else logits / self.temperature
        log_p = scaled - scaled.logsumexp(-1, keepdim=True)
        likeliest, total = float(log_p.amax(-1).amin()), log_p
        if self._transposed_keys is None:
            self._transposed_keys = [
                None if keys is None else (keys / math.sqrt(proxy.config.dim)).T.contiguous()
                for proxy, keys in zip(self.proxies, self.keys, strict=True)
            ]
        vocabulary = logits.shape[-1]
        for proxy, turned, strength in zip(self.proxies, self._transposed_keys, self.strengths, strict=True):
            log_p_t = math.log(proxy.config.p_t)
            if likeliest < log_p_t:  # even the likeliest token is under the threshold
                return None
            log_a = torch.nn.functional.logsigmoid(proxy.score_vocabulary(h, turned))
            log_a = log_a if strength == 1.0 else strength * log_a
            beyond_p_t = log_a[:, vocabulary:] if self.tail == "keep" else log_a.new_tensor(-math.inf)
            total = total + torch.where(log_p >= log_p_t, log_a[:, :vocabulary], beyond_p_t)
        return torch.log_softmax(total, -1)

    @torch.no_grad()
    def emit(
        self, h: Tensor, logits: Tensor, noise: Noise, *, do_sample: bool = True, lookahead: Lookahead | None = None
    ) -> Emission:
        chosen, log_a, log_1ma, states = self.acceptance(h, logits, lookahead)
        log_pi = self.log_pi(chosen, log_a, log_1ma)
        rejected = coin_flipped = None
        if not do_sample:
            choice = self.greedy(logits, chosen, log_a, log_pi)
        elif self.objective == "sequential":
            gumbel, coins = noise.gumbel(STREAM_ORDER, chosen.ids), noise.uniform(STREAM_ACCEPT, chosen.ids)
            choice, rejected, coin_flipped = overseer.sample_sequential(chosen.log_p, log_a, chosen.mask, gumbel, coins)
        else:
            choice = overseer.choose(log_pi, noise.gumbel(STREAM_EMIT, chosen.ids))
        token = self.tokens(logits, chosen, choice, noise if do_sample else None)
        details = Decision(chosen, log_a, log_pi, choice, rejected, coin_flipped, states)
        if not do_sample:
            return Emission(token, details=details)
        choice_kl = overseer.kl_choice(log_pi, chosen.log_p, chosen.mask)
        return Emission(token, self._kl_temperature(logits, chosen, log_pi), -chosen.log_mass, choice_kl, details)

    def tokens(self, logits: Tensor, chosen: Candidates, choice: Tensor, noise: Noise | None) -> Tensor:
        """The token of every chosen column, `[B]`. In the tail it is drawn from `p_T`, or without `noise` the likeliest."""
        token = chosen.ids.gather(-1, choice[:, None]).squeeze(-1)
        in_tail = token == logits.shape[-1]
        rows = places_to_do(in_tail)
        if len(rows):
            log_p = self._log_p_in_tail(logits[rows], chosen.select(rows))
            uniform = None if noise is None else noise.uniform(STREAM_TAIL)[rows]
            drawn = log_p.argmax(-1) if uniform is None else draw(log_p.exp(), uniform)
            token[rows] = torch.where(in_tail[rows], drawn, token[rows])
        return token

    def _kl_temperature(self, logits: Tensor, chosen: Candidates, log_pi: Tensor) -> Tensor:
        """`E_π[log p_T − log p_1]`, `[B]`. Within the tail, π is `p_T`."""
        gain = temperature_gain(logits, self.temperature)
        if gain is None:
            return torch.zeros_like(chosen.log_mass)
        listed = overseer.mass_of(log_pi, chosen.listed, gain.gather(-1, chosen.ids.masked_fill(~chosen.listed, 0)))
        if self.tail == "drop":
            return listed
        within = self._log_p_in_tail(logits, chosen).exp()
        return listed + overseer.mass_of(log_pi, chosen.tail) * (within * gain).sum(-1)

    def greedy(self, logits: Tensor, chosen: Candidates, log_a: Tensor, log_pi: Tensor) -> Tensor:
        """Column of the greedy token `[B]`: the tail's where its likeliest token is likelier under π than any candidate."""
        choice = overseer.greedy_choice(chosen.log_p, log_a, chosen.listed, self.objective)
        if self.tail == "drop" or self.objective != "marginal":
            return choice
        best = log_pi.gather(-1, choice[:, None])
        # A tail whose mass as a whole is less likely than the best candidate needs no look at its tokens.
        as_a_whole, place = log_pi.masked_fill(~chosen.tail, -math.inf).max(-1, keepdim=True)
        if looking_is_free(best) and not bool((as_a_whole > best).any()):
            return choice
        likeliest = as_a_whole + self._log_p_in_tail(logits, chosen).amax(-1, keepdim=True)
        return torch.where(likeliest > best, place, choice[:, None]).squeeze(-1)

    def trace(self, emission: Emission, noise: Noise) -> list[TokenTrace]:
        """The proposals rejected before each token.

        A sequential overseer shows its own coin flips. The integrated overseers flip no coins, so flips are drawn
        from their exact distribution given the emitted token.
        """
        details: Decision = emission.details
        relative = overseer.relative_acceptance(details.log_a, details.candidates.mask)
        shown = details.log_a.exp() if self.objective != "marginal" else relative
        greedy = emission.kl_choice is None
        draws = None
        if not greedy and self.objective == "marginal":
            index = torch.arange(2 * _SHOWN_REJECTIONS, device=relative.device).expand(len(relative), -1)
            draws = noise.uniform(STREAM_REJECTIONS, index)
        traces = []
        for row, column in enumerate(details.choice.tolist()):
            emitted, accept = int(emission.token[row]), shown[row].tolist()
            tails, real = details.candidates.tail[row].tolist(), details.candidates.mask[row].tolist()
            ids = [
                None if tail else token for token, tail in zip(details.candidates.ids[row].tolist(), tails, strict=True)
            ]
            if sum(real) < 2:
                traces.append(TokenTrace(token=emitted, acceptance=None, rejected=()))
                continue
            # Greedy decoding proposes in descending probability: columns are sorted so.
            if greedy:
                none_accepted = self.objective != "marginal" and accept[column] < 0.5
                proposed = range(len(ids)) if none_accepted else range(column)
                turned_down = [other for other in proposed if real[other] and not tails[other] and other != column]
            elif draws is not None:
                turned_down = _geometric(details, relative, row, draws[row])
            else:
                turned_down = self._flipped(details, row, noise)
            pairs = tuple((ids[other], accept[other]) for other in turned_down)
            traces.append(TokenTrace(token=emitted, acceptance=accept[column], rejected=pairs))
        return traces

    def n_rejected(self, chosen: Candidates, log_a: Tensor, noise: Noise) -> Tensor:
        """How many proposals `trace` lists as rejected before a sampled token of a marginal proxy, `[B]`."""
        relative = overseer.relative_acceptance(log_a, chosen.mask)
        lost = (chosen.log_p.exp() * (1 - relative)).sum(-1, keepdim=True)
        index = torch.arange(2 * _SHOWN_REJECTIONS, device=relative.device).expand(len(relative), -1)
        again = noise.uniform(STREAM_REJECTIONS, index)[:, ::2] < lost
        return again.long().cumprod(-1).sum(-1) * (chosen.mask.sum(-1) > 1)

    def _flipped(self, details: Decision, row: int, noise: Noise) -> list[int]:
        if details.rejected is not None:
            return [int(column) for column in details.rejected[row].nonzero().squeeze(-1)]
        return self._replayed(details, row, noise)

    def _replayed(self, details: Decision, row: int, noise: Noise) -> list[int]:
        """Integrated sequential: replay the process until it emits the same token. This draws flips given the
        emission."""
        found, column = details.candidates, int(details.choice[row])
        # Noise by token, so that a row's replay does not depend on how many columns its batch has.
        tokens = self.proxies[0].config.vocabulary + 1
        index = torch.arange(_REPLAYS, device=found.ids.device)[:, None] * tokens + found.ids[row]
        alone = noise.select(torch.full((_REPLAYS,), row, device=found.ids.device))
        uniform, coins = alone.uniform(STREAM_REJECTIONS, index), alone.uniform(STREAM_ACCEPT, index)
        log_p, log_a, mask = (part[row].expand(_REPLAYS, -1) for part in (found.log_p, details.log_a, found.mask))
        choice, rejected, _ = overseer.sample_sequential(log_p, log_a, mask, -torch.log(-torch.log(uniform)), coins)
        same = (choice == column).nonzero()
        return [int(other) for other in rejected[int(same[0])].nonzero().squeeze(-1)] if len(same) else []


def _geometric(details: Decision, relative: Tensor, row: int, draws: Tensor) -> list[int]:
    """Marginal: proposals with replacement. The number of rejections is geometric and independent of the emitted
    token."""
    lost = details.candidates.log_p[row].exp() * (1 - relative[row])
    total = float(lost.sum())
    columns: list[int] = []
    while len(columns) < _SHOWN_REJECTIONS and float(draws[2 * len(columns)]) < total:
        columns.append(int(draw(lost[None], draws[None, 2 * len(columns) + 1])))
    return columns
