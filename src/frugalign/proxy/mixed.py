"""Rows of one forward pass under different proxies, strengths, temperatures and KL budgets.

Every row says what it wants in a `RowSettings`. Rows with the same proxies are judged together, whatever their
strengths; then each row's π is sharpened, cut and drawn from as the row asks. A row's result depends on its own state,
settings and noise alone.

What a row reports, its log-probabilities and its KL, is that of π, before the row's temperature and top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

_HALVINGS = 30
"""Steps of the search for a share: its error is 1e-9."""
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
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(row.settings.proxies, []).append(place)
        for names, places in groups.items():
            settings: list[RowSettings] = [rows[place].settings for place in places]
            if len(groups) == 1:
                part = (h, logits, noise)
            else:
                index = torch.tensor(places, device=logits.device)
                part = (h[index], logits[index], noise.select(index))
            choices = self._guided(names, *part, settings) if names else _plain(part[1], part[2], settings)
            for place, choice in zip(places, choices, strict=True):
                found[place] = choice
        done = [choice for choice in found if choice is not None]
        for row, choice in zip(rows, done, strict=True):
            row.settings.kl += choice.kl
        return done

    def _guided(
        self, names: tuple[str, ...], h: Tensor, logits: Tensor, noise: Noise, settings: Sequence[RowSettings]
    ) -> list[RowChoice]:
        guide = self.guide(names)
        chosen, scores, _ = guide.scores(h, logits, None)
        strengths = torch.tensor([each.strengths for each in settings], device=logits.device)
        parts = [overseer.log_acceptance(score)[0] * strengths[:, place, None] for place, score in enumerate(scores)]
        log_a = torch.stack(parts).sum(0).masked_fill(~chosen.mask, 0.0)
        share, kl = _within_budget(guide, chosen, log_a, settings)
        log_a = log_a * share.to(log_a)[:, None]
        log_pi = guide.log_pi(chosen, log_a, overseer.scaled_acceptance(log_a))
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
) -> tuple[Tensor, Tensor]:
    """The largest found share of the strengths that keeps every row inside its budget, and its KL(π ‖ p): `[B]` each, float64."""
    log_p, log_a = chosen.log_p.double(), log_a.double()

    def kl_at(share: Tensor, rows: Tensor) -> Tensor:
        scaled, part = log_a[rows] * share[:, None], chosen.select(rows)
        log_pi = guide.log_pi(part, scaled, overseer.scaled_acceptance(scaled))
        return overseer.kl_choice(log_pi.double(), log_p[rows], part.mask).clamp(min=0.0)

    every = torch.arange(len(log_a), device=log_a.device)
    share = torch.ones(len(log_a), dtype=torch.float64, device=log_a.device)
    kl = kl_at(share, every)
    left = torch.tensor(
        [torch.inf if each.max_kl is None else max(0.0, each.max_kl - each.kl) * _SAFE for each in settings],
        dtype=torch.float64,
        device=log_a.device,
    )
    over = (kl > left).nonzero().squeeze(-1)
    if not len(over):
        return share, kl
    # At share 0 π is p itself, and its KL exactly 0.
    low, low_kl, high = torch.zeros_like(left[over]), torch.zeros_like(left[over]), share[over].clone()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = kl_at(middle, over)
        fits = found <= left[over]
        low, low_kl = torch.where(fits, middle, low), torch.where(fits, found, low_kl)
        high = torch.where(fits, high, middle)
    share[over], kl[over] = low, low_kl
    return share, kl


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
        rows = torch.tensor([place for place, each in enumerate(kinds) if each == kind], device=logits.device)
        part, own_logits, own_pi, own_noise = chosen.select(rows), logits[rows], log_pi[rows], noise.select(rows)
        if kind == "warped":
            full = guide.spread(own_logits, part, own_pi)
            token[rows] = _warped(full, own_noise, [settings[int(row)] for row in rows])
            continue
        if kind == "greedy":
            choice = guide.greedy(own_logits, part, log_a[rows], own_pi)
        else:
            choice = overseer.choose(own_pi, own_noise.gumbel(STREAM_EMIT, part.ids))
        token[rows] = guide.tokens(own_logits, part, choice, None if kind == "greedy" else own_noise)
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
