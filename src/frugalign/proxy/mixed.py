"""Rows of one forward pass under different proxies, strengths, temperatures and KL budgets.

Every row says what it wants in a `RowSettings`. Rows of proxies with the same candidates are judged together, each proxy on the
rows that name it; then each row's π is sharpened, cut and drawn from as the row asks. A row's result depends on its own
state, settings and noise alone.

What a row reports, its log-probabilities and its KL, is that of π, before the row's temperature and top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.decoding.chooser import STREAM_EMIT, Emission, TokenTrace, draw_token
from frugalign.decoding.continuous import Row
from frugalign.decoding.noise import Noise
from frugalign.proxy import overseer
from frugalign.proxy.candidates import Candidates
from frugalign.proxy.guide import Decision, ProxyGuide
from frugalign.proxy.network import ProxyModel

_ROUNDS, _PARTS = 6, 32
"""The search for a share tries all parts of an interval at once, and goes on in one of them: its error is 1e-9."""
_SPENT = 1e-9
"""The part of a budget that is not worth a search."""
_SAFE = 1.0 - 1e-6
"""The part of the remaining budget that a position may use, so that rounding stays inside it."""
_LIKELY = 1024
"""Tokens that are sorted first for a nucleus; only flat distributions need all of them."""


@dataclass
class RowSettings:
    """How one row is guided and sampled, and what has been spent on it.

    Args:
        proxies: names of its proxies, in the order of `MixedGuide`. None: the base.
        strengths: λ of each.
        temperature: applied to π, or to the base's distribution. 0 decodes greedily.
        top_p: the likeliest tokens that together have this probability are kept.
        max_kl: budget in nats for the sum of KL(π ‖ π at strength 0) over the response. Strengths are lowered, all by the
            same share, where a position would pass it.
        top_logprobs: report the token's log π and this many alternatives. None: neither.
        trace: report the proposals behind each token.
        kl: nats spent so far.
    """

    proxies: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    max_kl: float | None = None
    top_logprobs: int | None = None
    trace: bool = False
    kl: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether it samples from π as it is."""
        return self.temperature == 1.0 and self.top_p == 1.0


@dataclass
class RowChoice:
    """The token that a row got.

    `log_prob` and `top` (token, log π): if the row asked. `kl`: nats at this position. `share`: the part of the strengths
    that the budget left. `n_rejected`: proposals rejected before the token, at most eight are drawn for a marginal
    proxy. `trace`: if the row asked.
    """

    token: int
    log_prob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    kl: float = 0.0
    share: float = 1.0
    n_rejected: int = 0
    trace: TokenTrace | None = None


class MixedGuide:
    """Chooses tokens for rows of different settings (a `RowChooser`).

    Args:
        proxies: by name, of one base.
        rows: the base's output embeddings `[V, D]`.
    """

    def __init__(self, proxies: dict[str, ProxyModel], rows: Tensor) -> None:
        self._guides: dict[tuple[str, ...], ProxyGuide] = {}
        for name, proxy in proxies.items():
            self._guides[name,] = ProxyGuide.build([proxy], rows)
            if self._guides[name,].needs_lookahead:
                raise FrugalignError(
                    f"The proxy {name} reads the state after each candidate, which takes a pass per candidate: it cannot be served."
                )
        self.names = list(proxies)
        self._kinds = {name: self._guides[name,].kind for name in proxies}

    def guide(self, names: Sequence[str]) -> ProxyGuide:
        """The guide of these proxies, at no particular strength.

        Raises:
            FrugalignError: an unknown name, or proxies that do not compose.
        """
        key = tuple(names)
        if key not in self._guides:
            if unknown := [name for name in key if (name,) not in self._guides]:
                known = [first for first, *others in self._guides if not others]
                raise FrugalignError(f"There is no proxy {unknown[0]!r}; there are {', '.join(known) or 'none'}.")
            parts = [self._guides[name,] for name in key]
            self._guides[key] = ProxyGuide(
                [part.proxies[0] for part in parts], [part.keys[0] for part in parts], [1.0] * len(parts)
            )
        return self._guides[key]

    @torch.no_grad()
    def __call__(self, h: Tensor, logits: Tensor, rows: Sequence[Row], noise: Noise) -> list[RowChoice]:
        """A token for every row: `h [B, D]`, `logits [B, V]`, both float32."""
        found: list[RowChoice | None] = [None] * len(rows)
        groups: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(self._kind(row.settings.proxies), []).append(place)
        for kind, places in groups.items():
            settings: list[RowSettings] = [rows[place].settings for place in places]
            if len(groups) == 1:
                part = (h, logits, noise)
            else:
                index = torch.tensor(places, device=logits.device)
                part = (h[index], logits[index], noise.select(index))
            choices = _plain(part[1], part[2], settings) if kind is None else self._guided(*part, settings)
            for place, choice in zip(places, choices, strict=True):
                found[place] = choice
        done = [choice for choice in found if choice is not None]
        for row, choice in zip(rows, done, strict=True):
            row.settings.kl += choice.kl
        return done

    def _kind(self, names: tuple[str, ...]) -> Any:
        """Equal for rows that can be judged together. None without proxies."""
        if not names:
            return None
        kinds = {self._kinds[name] for name in names}
        return kinds.pop() if len(kinds) == 1 else names

    def _guided(self, h: Tensor, logits: Tensor, noise: Noise, settings: Sequence[RowSettings]) -> list[RowChoice]:
        guide, chosen, log_a = self._log_acceptance(h, logits, settings)
        log_a, log_pi, share, kl = _within_budget(guide, chosen, log_a, settings)
        token = _tokens(guide, chosen, log_a, log_pi, logits, noise, settings)
        choices = [
            RowChoice(each, kl=own_kl, share=own_share)
            for each, own_kl, own_share in zip(token.tolist(), kl.tolist(), share.tolist(), strict=True)
        ]
        wanted = [place for place, each in enumerate(settings) if each.top_logprobs is not None]
        if wanted:
            index = torch.tensor(wanted, device=logits.device)
            full = guide.spread(logits[index], chosen.select(index), log_pi[index])
            _add_log_probs(full, [choices[place] for place in wanted], [settings[place] for place in wanted])
        _add_rejections(guide, chosen, log_a, log_pi, noise, choices, settings)
        return choices

    def _log_acceptance(
        self, h: Tensor, logits: Tensor, settings: Sequence[RowSettings]
    ) -> tuple[ProxyGuide, Candidates, Tensor]:
        """`Σ λ_i·log a_i [B, K]` of rows of one kind, their candidates, and a guide of their kind."""
        first = settings[0].proxies
        if len({self._kinds[name] for name in first}) > 1:  # of different candidates, so all rows have these proxies
            guide = self.guide(first)
            chosen, scores, _ = guide.scores(h, logits, None)
            strengths = torch.tensor([each.strengths for each in settings], device=logits.device)
            parts = [
                overseer.log_acceptance(score)[0] * strengths[:, place, None] for place, score in enumerate(scores)
            ]
            return guide, chosen, torch.stack(parts).sum(0).masked_fill(~chosen.mask, 0.0)
        guide = self._guides[first[:1]]
        chosen = guide.candidates(logits)
        log_a = torch.zeros_like(chosen.log_p)
        for name in self.names:
            users = [place for place, each in enumerate(settings) if name in each.proxies]
            if not users:
                continue
            lambdas = [settings[place].strengths[settings[place].proxies.index(name)] for place in users]
            rows = None if len(users) == len(settings) else torch.tensor(users, device=logits.device)
            part = (h, chosen) if rows is None else (h[rows], chosen.select(rows))
            log_own = overseer.log_acceptance(self._guides[name,].score(*part))[0]
            log_own = (log_own * torch.tensor(lambdas, device=logits.device)[:, None]).masked_fill(~part[1].mask, 0.0)
            log_a = log_a + log_own if rows is None else log_a.index_add(0, rows, log_own)
        return guide, chosen, log_a


def _plain(logits: Tensor, noise: Noise, settings: Sequence[RowSettings]) -> list[RowChoice]:
    """Rows of the base alone. Its π is `softmax(logits)`."""
    token = _warped(logits, noise, settings)
    choices = [RowChoice(each) for each in token.tolist()]
    wanted = [place for place, each in enumerate(settings) if each.top_logprobs is not None]
    if wanted:
        full = torch.log_softmax(logits[torch.tensor(wanted, device=logits.device)], -1)
        _add_log_probs(full, [choices[place] for place in wanted], [settings[place] for place in wanted])
    for choice, each in zip(choices, settings, strict=True):
        if each.trace:
            choice.trace = TokenTrace(choice.token, None, ())
    return choices


def _within_budget(
    guide: ProxyGuide, chosen: Candidates, log_a: Tensor, settings: Sequence[RowSettings]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower the strengths of every row by the largest found share that keeps it inside its budget.

    Returns:
        `log a` and log π at these strengths, `[B, K]` each; the share and KL(π ‖ p), `[B]` each, float64.
    """
    exact = log_a.double()
    log_pi, kl = _at(guide, chosen, exact)
    share = torch.ones_like(kl)
    budgets = [torch.inf if each.max_kl is None else each.max_kl for each in settings]
    left = torch.tensor([(most - each.kl) * _SAFE for most, each in zip(budgets, settings, strict=True)]).to(kl)
    over = (kl > left).nonzero().squeeze(-1)
    if len(over):
        worth = left > _SPENT * torch.tensor(budgets).to(kl)
        rows = over[worth[over]]
        # At share 0 π is p itself, and its KL exactly 0.
        share[over] = 0.0
        if len(rows):
            share[rows] = _largest_share(guide, chosen.select(rows), exact[rows], left[rows])
        exact[over] = exact[over] * share[over, None]
        log_pi[over], kl[over] = _at(guide, chosen.select(over), exact[over])
        kl[over] = torch.where(share[over] > 0, kl[over], torch.zeros_like(kl[over]))
    return exact.to(log_a), log_pi.to(log_a), share, kl


def _at(guide: ProxyGuide, chosen: Candidates, log_a: Tensor) -> tuple[Tensor, Tensor]:
    """log π `[B, K]` and KL(π ‖ p) `[B]` for `log_a [B, K]`, float64."""
    log_pi = guide.log_pi(chosen, log_a, overseer.scaled_acceptance(log_a)).double()
    return log_pi, overseer.kl_choice(log_pi, chosen.log_p.double(), chosen.mask).clamp(min=0.0)


def _largest_share(guide: ProxyGuide, chosen: Candidates, log_a: Tensor, most: Tensor) -> Tensor:
    """The largest found share of `log_a [B, K]` whose KL is at most `most [B]`, float64 `[B]`."""
    parts = torch.arange(1, _PARTS, device=log_a.device).to(log_a) / _PARTS
    copies = torch.arange(len(log_a), device=log_a.device).repeat_interleave(len(parts))
    many, log_a = chosen.select(copies), log_a[copies]
    low, width = torch.zeros_like(most), torch.ones_like(most)
    for _ in range(_ROUNDS):
        shares = low[:, None] + width[:, None] * parts
        _, kl = _at(guide, many, log_a * shares.flatten()[:, None])
        fitting = (kl.view_as(shares) <= most[:, None]).cumprod(-1).sum(-1)
        width = width / _PARTS
        low = low + width * fitting
    return low


def _tokens(
    guide: ProxyGuide,
    chosen: Candidates,
    log_a: Tensor,
    log_pi: Tensor,
    logits: Tensor,
    noise: Noise,
    settings: Sequence[RowSettings],
) -> Tensor:
    """Each row's token `[B]`: drawn from π, from π sharpened or cut, or the greedy one."""
    kinds = ["greedy" if not each.temperature else "plain" if each.is_plain else "warped" for each in settings]
    token = torch.zeros(len(settings), dtype=torch.long, device=logits.device)
    for kind in sorted(set(kinds)):
        places = [place for place, each in enumerate(kinds) if each == kind]
        rows = torch.tensor(places, device=logits.device)
        whole = len(places) == len(settings)  # then nothing of the vocabulary's size is copied
        parts = (logits, chosen, log_a, log_pi, noise)
        if not whole:
            parts = (logits[rows], chosen.select(rows), log_a[rows], log_pi[rows], noise.select(rows))
        own_logits, part, own_a, own_pi, own_noise = parts
        if kind == "warped":
            full = guide.spread(own_logits, part, own_pi)
            found = _warped(full, own_noise, [settings[place] for place in places])
        elif kind == "greedy":
            found = guide.tokens(own_logits, part, guide.greedy(own_logits, part, own_a, own_pi), None)
        else:
            choice = overseer.choose(own_pi, own_noise.gumbel(STREAM_EMIT, part.ids))
            found = guide.tokens(own_logits, part, choice, own_noise)
        token[rows] = found
    return token


def _warped(log_pi: Tensor, noise: Noise, settings: Sequence[RowSettings]) -> Tensor:
    """A token per row from `log_pi [B, V]`, which may lack its normaliser, at the row's temperature and top-p."""
    temperatures = torch.tensor([each.temperature for each in settings], device=log_pi.device)
    scores = log_pi / temperatures.masked_fill(temperatures == 0, 1.0)[:, None]
    cut = [place for place, each in enumerate(settings) if each.top_p < 1.0 and each.temperature]
    if cut:
        index = torch.tensor(cut, device=log_pi.device)
        scores[index] = nucleus(scores[index], torch.tensor([settings[place].top_p for place in cut]).to(scores))
    drawn = draw_token(scores, noise)
    return torch.where(temperatures == 0, log_pi.argmax(-1), drawn)


def nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    """`scores [B, V]` with −inf outside the smallest set of likeliest tokens that has probability `top_p [B]`. At least one
    token stays."""
    total = scores.logsumexp(-1, keepdim=True)
    values, ids = scores.topk(min(_LIKELY, scores.shape[-1]), -1)
    mass = (values - total).exp().cumsum(-1)
    if bool((mass[:, -1] < top_p).any()) and values.shape[-1] < scores.shape[-1]:
        values, ids = scores.sort(-1, descending=True)
        mass = (values - total).exp().cumsum(-1)
    before = mass - (values - total).exp()
    kept = before < top_p[:, None]
    kept[:, 0] = True
    return torch.full_like(scores, -torch.inf).scatter(-1, ids, values.masked_fill(~kept, -torch.inf))


def _add_log_probs(log_pi: Tensor, choices: Sequence[RowChoice], settings: Sequence[RowSettings]) -> None:
    """Note each token's log π and its likeliest alternatives. `log_pi [B, V]`, normalised."""
    token = torch.tensor([choice.token for choice in choices], device=log_pi.device)
    own = log_pi.gather(-1, token[:, None]).squeeze(-1).tolist()
    most = max(each.top_logprobs or 0 for each in settings)
    values, ids = log_pi.topk(min(most, log_pi.shape[-1]), -1)
    for place, (choice, each) in enumerate(zip(choices, settings, strict=True)):
        pairs = zip(ids[place].tolist(), values[place].tolist(), strict=True)
        choice.log_prob, choice.top = own[place], tuple(list(pairs)[: each.top_logprobs])


def _add_rejections(
    guide: ProxyGuide,
    chosen: Candidates,
    log_a: Tensor,
    log_pi: Tensor,
    noise: Noise,
    choices: Sequence[RowChoice],
    settings: Sequence[RowSettings],
) -> None:
    """Note how many proposals were rejected before each token, and which ones for the rows that ask."""
    marginal = guide.objective == "marginal"
    if marginal and any(each.temperature and not each.trace for each in settings):
        counts = guide.n_rejected(chosen, log_a, noise).tolist()
        for choice, count, each in zip(choices, counts, settings, strict=True):
            choice.n_rejected = count if each.temperature else 0
    for greedy in (False, True):
        places = [
            place
            for place, each in enumerate(settings)
            if (not each.temperature) == greedy and (each.trace or greedy or not marginal)
        ]
        if not places:
            continue
        rows = torch.tensor(places, device=log_pi.device)
        part, token = chosen.select(rows), torch.tensor([choices[place].token for place in places]).to(log_pi.device)
        own = part.listed & (part.ids == token[:, None])
        column = torch.where(own.any(-1), own.float().argmax(-1), part.tail.float().argmax(-1))
        decision = Decision(part, log_a[rows], log_pi[rows], column, None, None, None)
        emission = Emission(token, kl_choice=None if greedy else log_pi.new_zeros(len(places)), details=decision)
        for place, trace in zip(places, guide.trace(emission, noise.select(rows)), strict=True):
            choices[place].n_rejected = len(trace.rejected)
            if settings[place].trace:
                choices[place].trace = trace
