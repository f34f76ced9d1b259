"""One or more trained proxies as the decoding loop's `Guide`: candidates, acceptance, strength, composition, and
choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.decoding.chooser import (
    STREAM_ACCEPT,
    STREAM_EMIT,
    STREAM_ORDER,
    STREAM_REJECTIONS,
    Emission,
    Lookahead,
    TokenTrace,
)
from frugalign.decoding.noise import Noise, draw
from frugalign.options.check import check_value
from frugalign.options.kinds import NON_NEGATIVE
from frugalign.proxy import overseer
from frugalign.proxy.candidates import Candidates, candidates, intersect
from frugalign.proxy.network import ProxyModel

_SHOWN_REJECTIONS = 8
_REPLAYS = 64
_DENSE_UP_TO = 1 << 14


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

    Proxies compose: candidates are intersected, and `log a = Σ λ_i log a_i`. Strength λ = 1 is the trained proxy, 0
    the restricted base.
    """

    needs_hidden = True

    def __init__(
        self, proxies: Sequence[ProxyModel], keys: Sequence[Tensor | None], strengths: Sequence[float]
    ) -> None:
        for strength in strengths:
            check_value("strength", strength, NON_NEGATIVE)
        first = proxies[0].config
        for other in (proxy.config for proxy in proxies[1:]):
            for field in ("objective", "temperature", "vocabulary", "width"):
                if getattr(other, field) != getattr(first, field):
                    raise FrugalignError(
                        f"These proxies do not compose: {field} is {getattr(first, field)} in one and {getattr(other, field)} in another."
                    )
        self.proxies, self.keys, self.strengths = list(proxies), list(keys), list(strengths)
        self._transposed_keys: list[Tensor | None] | None = None
        # At most 1/p_t tokens reach the threshold, so a cap of at least 1/p_t has no effect.
        # Of several proxies, the highest p_t defines the intersection.
        p_t = max(proxy.config.p_t for proxy in proxies)
        cap = min(proxy.config.max_candidates for proxy in proxies)
        lookahead = any(proxy.config.candidate_features == "lookahead" for proxy in proxies)
        self._dense = first.objective == "marginal" and not lookahead and p_t * cap >= 1
        self._log_p_t = math.log(p_t) if p_t > 0 else -math.inf
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

    def acceptance(
        self, h: Tensor, logits: Tensor, lookahead: Lookahead | None
    ) -> tuple[Candidates, Tensor, Tensor, Tensor | None]:
        """Candidates, `log a` and `log(1 − a)` (`[B, K]` each), and the lookahead states. Composition and strength
        are applied."""
        chosen = self._candidates(logits)
        states = None
        if self.needs_lookahead:
            if lookahead is None:
                raise FrugalignError(
                    "This proxy reads the state after each candidate, which needs the KV cache: use_cache must be on."
                )
            states = lookahead(chosen.ids)
        scores = [
            proxy(h, chosen.ids, keys=keys, lookahead=states)
            for proxy, keys in zip(self.proxies, self.keys, strict=True)
        ]
        if len(scores) == 1 and self.strengths[0] == 1.0:
            log_a, log_1ma = overseer.log_acceptance(scores[0])
            return chosen, log_a, log_1ma, states
        parts = [
            strength * overseer.log_acceptance(score)[0] for strength, score in zip(self.strengths, scores, strict=True)
        ]
        log_a = torch.stack(parts).sum(0)
        return chosen, log_a, overseer.scaled_acceptance(log_a), states

    def _candidates(self, logits: Tensor) -> Candidates:
        found: Candidates | None = None
        for config in (proxy.config for proxy in self.proxies):
            own = candidates(logits, self.temperature, config.p_t, config.max_candidates)
            found = own if found is None else intersect(found, own)
        assert found is not None
        return found

    def log_pi(self, chosen: Candidates, log_a: Tensor, log_1ma: Tensor) -> Tensor:
        """The exact emission distribution `[B, K]` of either overseer."""
        if self.objective == "marginal":
            return overseer.marginal_log_pi(chosen.log_p, log_a, chosen.mask)
        exact = overseer.sequential_log_pi(chosen.log_p.double(), log_a.double(), log_1ma.double(), chosen.mask)
        return exact.float()

    @torch.no_grad()
    def dense_log_probs(self, h: Tensor, logits: Tensor) -> Tensor | None:
        """`log π` over the whole vocabulary `[B, V]`, −inf outside the candidates. Equals `log_probs`, without
        sorting.

        Cheaper for few rows. None if it does not apply: many rows, other objectives, lookahead, a cap that could take
        effect, or no token above p_t.
        """
        if not self._dense or logits.numel() > _DENSE_UP_TO:
            return None
        scaled = logits if self.temperature == 1.0 else logits / self.temperature
        above = scaled - (scaled.logsumexp(-1, keepdim=True) + self._log_p_t)
        if float(above.amax(-1).amin()) < 0:  # even the likeliest token is under the threshold
            return None
        # `threshold` keeps greater values, so a limit just below 0 keeps 0 too.
        # It is one vectorised pass; masking takes three.
        total = torch.nn.functional.threshold(above, -1e-38, -torch.inf)
        if self._transposed_keys is None:
            self._transposed_keys = [
                None if keys is None else (keys / math.sqrt(proxy.config.dim)).T.contiguous()
                for proxy, keys in zip(self.proxies, self.keys, strict=True)
            ]
        for proxy, turned, strength in zip(self.proxies, self._transposed_keys, self.strengths, strict=True):
            log_a = torch.nn.functional.logsigmoid(proxy.score_vocabulary(h, turned))
            total = total + (log_a if strength == 1.0 else strength * log_a)
        return torch.log_softmax(total, -1)

    @torch.no_grad()
    def log_probs(self, h: Tensor, logits: Tensor, lookahead: Lookahead | None = None) -> tuple[Tensor, Tensor]:
        chosen, log_a, log_1ma, _ = self.acceptance(h, logits, lookahead)
        return chosen.ids, self.log_pi(chosen, log_a, log_1ma)

    @torch.no_grad()
    def emit(
        self, h: Tensor, logits: Tensor, noise: Noise, *, do_sample: bool = True, lookahead: Lookahead | None = None
    ) -> Emission:
        chosen, log_a, log_1ma, states = self.acceptance(h, logits, lookahead)
        log_pi = self.log_pi(chosen, log_a, log_1ma)
        rejected = coin_flipped = None
        if not do_sample:
            choice = overseer.greedy_choice(chosen.log_p, log_a, chosen.mask, self.objective)
        elif self.objective == "sequential":
            gumbel, coins = noise.gumbel(STREAM_ORDER, chosen.ids), noise.uniform(STREAM_ACCEPT, chosen.ids)
            choice, rejected, coin_flipped = overseer.sample_sequential(chosen.log_p, log_a, chosen.mask, gumbel, coins)
        else:
            choice = overseer.choose(log_pi, noise.gumbel(STREAM_EMIT, chosen.ids))
        token = chosen.ids.gather(-1, choice[:, None]).squeeze(-1)
        details = Decision(chosen, log_a, log_pi, choice, rejected, coin_flipped, states)
        if not do_sample:
            return Emission(token, details=details)
        return Emission(token, -chosen.log_mass, overseer.kl_choice(log_pi, chosen.log_p, chosen.mask), details)

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
            ids, accept = details.candidates.ids[row].tolist(), shown[row].tolist()
            real = details.candidates.mask[row].tolist()  # not a prefix where proxies compose
            if sum(real) < 2:
                traces.append(TokenTrace(token=ids[column], acceptance=None, rejected=()))
                continue
            # Greedy decoding proposes in descending probability: columns are sorted so.
            if greedy:
                none_accepted = self.objective != "marginal" and accept[column] < 0.5
                proposed = range(len(ids)) if none_accepted else range(column)
                turned_down = [other for other in proposed if real[other] and other != column]
            elif draws is not None:
                turned_down = _geometric(details, relative, row, draws[row])
            else:
                turned_down = self._flipped(details, row, noise)
            pairs = tuple((ids[other], accept[other]) for other in turned_down)
            traces.append(TokenTrace(token=ids[column], acceptance=accept[column], rejected=pairs))
        return traces

    def _flipped(self, details: Decision, row: int, noise: Noise) -> list[int]:
        if details.rejected is not None:
            return [int(column) for column in details.rejected[row].nonzero().squeeze(-1)]
        return self._replayed(details, row, noise)

    def _replayed(self, details: Decision, row: int, noise: Noise) -> list[int]:
        """Integrated sequential: replay the process until it emits the same token. This draws flips given the
        emission."""
        found, column = details.candidates, int(details.choice[row])
        width = found.ids.shape[1]
        index = torch.arange(_REPLAYS * width, device=found.ids.device)[None]
        alone = Noise(noise.keys[row : row + 1], noise.position)
        uniform = alone.uniform(STREAM_REJECTIONS, index).reshape(_REPLAYS, width)
        coins = alone.uniform(STREAM_ACCEPT, index).reshape(_REPLAYS, width)
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
