"""The proxy itself, a `PreTrainedModel` of a few thousand parameters: `a(c|s) = σ(q(h_t)·k(e_c)/√d + b)` (`docs/methods/proxy.md#the-network`).

`q` reads the input of the frozen LM's head, `k` the candidate's output embedding. When the proxy guides, `k` of the
whole vocabulary is computed once. Scoring every candidate is then one small product and no LM pass. `q`'s last layer
starts at zero, so an untrained proxy treats all tokens alike. `lookahead` reads the hidden state *after* the
candidate instead. `token_bias` is the state-free control, one number per token. A kept tail has a learned key, reads the
state before it under `lookahead`, and has one more number under `token_bias`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init

from frugalign.base.errors import FrugalignError
from frugalign.engines.artefacts import ArtefactKind, SealedModel, load_artefact
from frugalign.engines.fingerprints import BaseFingerprint, check_base, fingerprint
from frugalign.engines.transformers import embedding_rows
from frugalign.options.kinds import BELOW_ONE, COUNT, POSITIVE
from frugalign.proxy.candidates import Limits, Tail
from frugalign.proxy.overseer import Objective, even_offset

CandidateFeatures = Literal["embedding", "lookahead", "token_bias"]

_SIZES = (256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
_SHARE = 0.0099
_DENSE_BELOW = 1024
_INTEGRATED_GAIN = 4.0
_ROWS = 1 << 11
"""Embedding rows that are converted at once."""
_ABOUT = ("base", "trained_on")
"""Fields of the config that only describe where a proxy comes from."""


class ProxyModelConfig(PreTrainedConfig):
    """A proxy's architecture and training setting. `base` and `trained_on` describe the frozen LM and the data."""

    model_type = "frugalign_proxy"

    width: int = 64
    vocabulary: int = 512
    hidden: int = 16
    dim: int = 16
    objective: str = "marginal"
    candidate_features: str = "embedding"
    temperature: float = 1.0
    p_t: float = 0.01
    max_candidates: int = 256
    tail: str = "keep"
    max_new_tokens: int = 128
    max_prompt_length: int | None = None
    initial_bias: float = 0.0
    embedding_scale: float = 1.0
    value_head: bool = False
    prompt_format: str = "auto"
    chat_template_kwargs: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
    trained_on: dict[str, Any] | None = None
    sha256: str | None = None

    def _get_generation_parameters(self) -> dict[str, Any]:
        # transformers refuses to save a config with the field `temperature`, taking it for a stray generation setting.
        return {}


class ProxyModel(SealedModel):
    """The overseer's network, with a value head if GAE needs one.

    `forward` takes `h [N, D]` and the candidates' features and returns the logits of acceptance `[N, K]`.
    """

    config_class = ProxyModelConfig
    base_model_prefix = "proxy"

    def __init__(self, config: ProxyModelConfig) -> None:
        super().__init__(config)
        features = config.candidate_features
        if features == "embedding":
            self.norm = nn.LayerNorm(config.width)
            self.query_in = nn.Linear(config.width, config.hidden)
            self.query_out = nn.Linear(config.hidden, config.dim)
            self.key = nn.Linear(config.width, config.dim)
            self.bias = nn.Parameter(torch.empty(1))
            if self.keeps_tail:
                self.tail_key = nn.Parameter(torch.empty(1, config.dim))
        elif features == "lookahead":
            self.norm = nn.LayerNorm(config.width)
            self.query_in = nn.Linear(config.width, config.hidden)
            self.query_out = nn.Linear(config.hidden, 1)
            self.bias = nn.Parameter(torch.empty(1))
            if self.keeps_tail:
                self.tail_out = nn.Linear(config.hidden, 1)
        elif features == "token_bias":
            self.token_bias = nn.Parameter(torch.empty(config.vocabulary + self.keeps_tail))
        else:
            raise FrugalignError(f"candidate_features {features!r} is not one of embedding, lookahead, token_bias.")
        if config.value_head:
            self.value_in = nn.Linear(config.width, config.hidden)
            self.value_out = nn.Linear(config.hidden, 1)
        self.post_init()

    @property
    def keeps_tail(self) -> bool:
        """Whether everything outside the candidates is judged as one more."""
        return bool(self.config.tail == "keep")

    @property
    def limits(self) -> Limits:
        """Which tokens the proxy judges one by one."""
        return Limits(self.config.p_t, self.config.max_candidates)

    @property
    def gain(self) -> float:
        """What the logits are multiplied by, but for their bias. An integrated sequential proxy starts with few rejections, so its
        logits have further to move. Where decisions are sampled, it would multiply their noise."""
        return _INTEGRATED_GAIN if self.config.objective == "sequential_integrated" else 1.0

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=1.0 / math.sqrt(module.in_features))
            init.zeros_(module.bias)
            if module in (getattr(self, name, None) for name in ("query_out", "value_out", "tail_out")):
                init.zeros_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif module is self:
            if hasattr(self, "bias"):
                init.constant_(self.bias, self.config.initial_bias)
            if hasattr(self, "token_bias"):
                init.constant_(self.token_bias, self.config.initial_bias)
            if hasattr(self, "tail_key"):
                init.normal_(self.tail_key, mean=0.0, std=1.0)  # the size of a token's key

    def query(self, h: Tensor) -> Tensor:
        """`q(h)`: `[..., D]` -> `[..., d]` (embedding), or the score itself `[..., 1]` (lookahead)."""
        # Functional, since this runs at every token and a module call costs as much as a small product.
        return nn.functional.linear(self._hidden(h), self.query_out.weight, self.query_out.bias)

    def _hidden(self, h: Tensor) -> Tensor:
        normed = nn.functional.layer_norm(h, h.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
        return nn.functional.silu(nn.functional.linear(normed, self.query_in.weight, self.query_in.bias))

    def keys(self, embeddings: Tensor) -> Tensor:
        """`k(e_c)` for embedding rows `[U, D]`, and last the tail's key if it is kept: `[U, d]` or `[U + 1, d]`.

        A constant of the base scales the rows to unit size. They may have the base's dtype: a float32 copy of a head of a large
        vocabulary would take gigabytes, so only a chunk of it exists at a time, and the keys themselves only once.
        """
        if torch.is_grad_enabled():  # the few rows of a minibatch
            found = self._keys(embeddings)
            return torch.cat([found, self.tail_key]) if self.keeps_tail else found
        found = self.key.weight.new_empty((len(embeddings) + self.keeps_tail, self.config.dim))
        for start in range(0, len(embeddings), _ROWS):
            rows = embeddings[start : start + _ROWS]
            found[start : start + len(rows)] = self._keys(rows)
        if self.keeps_tail:
            found[-1:] = self.tail_key
        return found

    def _keys(self, rows: Tensor) -> Tensor:
        # The scale goes into the small matrix, so that rows in float32 are not copied at all.
        weight = self.key.weight
        return nn.functional.linear(rows.to(weight.dtype), weight * self.config.embedding_scale, self.key.bias)

    def offset(self, log_p: Tensor) -> Tensor | float:
        """What a sequential proxy adds to its logits of acceptance, so that an untrained one hardly changes the base. 0 for a marginal one."""
        config = self.config
        return 0.0 if config.objective == "marginal" else even_offset(log_p, config.initial_bias)

    def value(self, h: Tensor) -> Tensor:
        """`V(s_t)` from `h [N, D]` -> `[N]`."""
        out: Tensor = self.value_out(torch.tanh(self.value_in(nn.functional.layer_norm(h, (h.shape[-1],))))).squeeze(-1)
        return out

    def forward(
        self,
        h: Tensor,
        ids: Tensor,
        *,
        embeddings: Tensor | None = None,
        keys: Tensor | None = None,
        lookahead: Tensor | None = None,
        index: Tensor | None = None,
        log_p: Tensor | None = None,
        with_value: bool = False,
    ) -> Any:
        """Logits of acceptance and, `with_value`, also `V(s_t) [N]`. One forward lets a data-parallel wrapper see
        every parameter.

        Args:
            h: `[N, D]` LM head inputs.
            ids: `[N, K]` candidate token ids.
            embeddings: `[U, D]` embedding rows that `index [N, K]` points into. In training: the minibatch's distinct
                candidates. The tail's index is U.
            keys: what `keys` gives for the rows. When guiding: the whole vocabulary, with `index` = `ids`.
            lookahead: `[N, K, D]` hidden states after each candidate (feature `lookahead`). The tail's are not read.
            log_p: `[N, K]` of the candidates as proposals. What it adds is `offset`, which the caller adds if it is left out.

        Returns:
            `[N, K]` float32.
        """
        scores = self._scores(h, ids, embeddings, keys, lookahead, index)
        if log_p is not None:
            scores = scores + self.offset(log_p)
        return (scores, self.value(h)) if with_value else scores

    def _scores(
        self,
        h: Tensor,
        ids: Tensor,
        embeddings: Tensor | None,
        keys: Tensor | None,
        lookahead: Tensor | None,
        index: Tensor | None,
    ) -> Tensor:
        features = self.config.candidate_features
        if features == "token_bias":
            start = self.config.initial_bias
            biases: Tensor = start + self.gain * (self.token_bias[ids] - start)
            return biases
        if features == "lookahead":
            assert lookahead is not None
            scores = self.query(lookahead).squeeze(-1)
            if self.keeps_tail:
                before = nn.functional.linear(self._hidden(h), self.tail_out.weight, self.tail_out.bias)
                scores = torch.where(ids == self.config.vocabulary, before, scores)
            return self.gain * scores + self.bias
        if keys is None:
            assert embeddings is not None
            keys = self.keys(embeddings)
        columns = ids if index is None else index
        query = self.query(h) * (self.gain / math.sqrt(self.config.dim))
        if len(keys) <= _DENSE_BELOW:
            scores = (query @ keys.T).gather(-1, columns)
        else:
            scores = (keys[columns] @ query[:, :, None]).squeeze(-1)
        return scores + self.bias

    def score_vocabulary(self, h: Tensor, transposed_keys: Tensor | None) -> Tensor:
        """Logits of acceptance for the whole vocabulary, and last for the tail if it is kept: `[N, V]` or `[N, V + 1]`.

        Not for `lookahead`. `transposed_keys`: `k/√d` of each, as columns.
        """
        if transposed_keys is None:
            biases: Tensor = self.token_bias.expand(len(h), -1)
            return biases
        return torch.addmm(self.bias, self.query(h), transposed_keys)


PROXY = ArtefactKind(
    "proxy",
    ProxyModelConfig,
    ProxyModel,
    kinds=dict.fromkeys(("width", "vocabulary", "hidden", "dim", "max_candidates", "max_new_tokens"), COUNT)
    | {"max_prompt_length": COUNT, "temperature": POSITIVE, "embedding_scale": POSITIVE, "p_t": BELOW_ONE},
    words={
        "objective": get_args(Objective),
        "candidate_features": get_args(CandidateFeatures),
        "tail": get_args(Tail),
        "prompt_format": ("auto", "chat", "raw"),
    },
)


def network_size(width: int, budget: int, features: str = "embedding") -> int:
    """The largest `hidden = dim` for a proxy of at most 0.99 % of `budget` parameters. At least 1."""

    def count(size: int) -> int:
        shared = 2 * width + (width + 1) * size + 1
        # With what a kept tail adds.
        return shared + (2 * (size + 1) if features == "lookahead" else (size + 2) * size + (width + 1) * size)

    return next((size for size in _SIZES if count(size) <= _SHARE * budget), 1)


def default_p_t(vocabulary: int) -> float:
    """The least probability of a candidate for a base with this many tokens, `0.1/√V`, at most 0.01: 0.0044 at 512, 0.00045 at 49,152.

    The larger the vocabulary, the more tokens share what the likeliest leaves, and no single token that is not a candidate can be raised.
    """
    return float(f"{min(0.01, 0.1 / math.sqrt(vocabulary)):.2g}")


def new_proxy(model: PreTrainedModel, config: dict[str, Any], *, seed: int = 0) -> ProxyModel:
    """An untrained proxy for `model`. Sizes not in `config` keep it below one per cent of the base's parameters, and `p_t` follows its vocabulary."""
    rows = embedding_rows(model)
    vocabulary, width = rows.shape
    size = network_size(width, model.num_parameters(), config.get("candidate_features", "embedding"))
    defaults = {
        "width": width,
        "vocabulary": vocabulary,
        "hidden": size,
        "dim": size,
        "p_t": default_p_t(vocabulary),
        "embedding_scale": float(1.0 / _mean_square(rows).sqrt().clamp(min=1e-12)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProxyModel(
            ProxyModelConfig(**(defaults | {key: value for key, value in config.items() if value is not None}))
        )


def _mean_square(rows: Tensor) -> Tensor:
    parts = [part.float().pow(2).mean() * (len(part) / len(rows)) for part in rows.split(_ROWS)]
    return torch.stack(parts).sum()


def settings_of(proxy: ProxyModel) -> dict[str, Any]:
    """What its network and its guidance depend on, beside the weights. JSON-ready."""
    return {name: getattr(proxy.config, name) for name in PROXY.hints() if name not in _ABOUT}


def proxy_of(settings: dict[str, Any], weights: Mapping[str, Tensor]) -> ProxyModel:
    """The proxy with these settings around these weights, which are not copied."""
    with torch.device("meta"):  # nothing is drawn for weights that are replaced
        proxy = ProxyModel(ProxyModelConfig(**settings))
    proxy.load_state_dict(dict(weights), assign=True)
    return proxy


def check_proxy(proxy: ProxyModel, wanted: dict[str, Any], base: BaseFingerprint) -> None:
    """Check that a given proxy fits the options and the base.

    `wanted`: the values that the options require; None leaves one open.

    Raises:
        FrugalignError: something differs; the message names it.
    """
    for name in ("objective", "candidate_features", "temperature", "p_t", "max_candidates", "tail", "value_head"):
        has = getattr(proxy.config, name)
        if wanted[name] is not None and has != wanted[name]:
            raise FrugalignError(f"The given proxy has {name} {has}, but the options say {wanted[name]}.")
    if proxy.config.base is not None:
        check_base(proxy.config.base, base, "The given proxy")


def load_proxy(
    folder: str | Path,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str = "",
    objective: str | None = None,
) -> ProxyModel:
    """Load a trained proxy strictly, and check that it fits `model` and `objective` if given.

    Args:
        folder: a folder or a hub id.
        tokenizer: of `model`. Without it the tokenizer is not compared.

    Raises:
        FrugalignError: a file is missing, truncated or damaged, or the base or the objective differs.
    """
    proxy: ProxyModel = load_artefact(PROXY, folder)
    if objective not in (None, proxy.config.objective):
        raise FrugalignError(
            f"The proxy in {folder} was trained under objective {proxy.config.objective!r}, not {objective!r}."
        )
    if model is not None:
        check_base(proxy.config.base, fingerprint(model, tokenizer, name=name), f"The proxy in {folder}")
    return proxy
