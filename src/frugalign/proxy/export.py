"""Export a proxy for engines that cannot install this library: a `Bundle` that `frugalign_runtime` reads with numpy alone.

It holds what guiding needs and training does not: the query network, the keys of the whole vocabulary, a sample of the base's
LM head for comparison, and the inverse of some of its rows, which gives `h` from logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import Forward, causal_lm, embedding_rows, evaluating, output_embeddings
from frugalign.proxy.network import ProxyModel
from frugalign_runtime import Bundle
from frugalign_runtime.arrays import ops_of
from frugalign_runtime.bundle import ARRAYS_FILE, SETTINGS_FILE, Settings
from frugalign_runtime.head import Recovery, pseudo_inverse, recovery_ids, sampled_ids

KeyDtype = Literal["float16", "float32"]
_LARGEST_HALF = 65_504.0
_STATES = 16
"""Hidden states by which the way from the head to the logits is found."""
_CLOSE = 0.02
"""How far the recovered states and logits may lie from the model's own. A bfloat16 model's logits are rounded by 0.2 to 0.4 %."""
_NETWORK = (
    "norm.weight",
    "norm.bias",
    "query_in.weight",
    "query_in.bias",
    "query_out.weight",
    "query_out.bias",
    "bias",
)


@dataclass(frozen=True)
class ExportedProxy:
    """A bundle, and what its making showed.

    `key_error`: the largest change of a logit of acceptance that storing the keys made on the states that were tried.
    `recovery_error`: the relative error of hidden states that are recovered from logits, or None where they are not.
    """

    bundle: Bundle
    key_error: float
    recovery_error: float | None


def export_proxy(
    proxy: ProxyModel, base: LoadedModel, *, key_dtype: KeyDtype = "float16", recover_hidden: bool = True
) -> ExportedProxy:
    """A proxy and its base as a bundle. `write_bundle` writes it.

    Args:
        key_dtype: of the keys. float16 halves the bundle, and moves a logit of acceptance by about 0.001.
        recover_hidden: whether the bundle can recover `h` from logits. It takes `16·D²` bytes.

    Raises:
        FrugalignError: the proxy reads states after its candidates, or its keys are too large for float16.
    """
    config = proxy.config
    if config.candidate_features == "lookahead":
        raise FrugalignError(
            "A lookahead proxy feeds every candidate to the base, which an exported one cannot: train one with candidate_features embedding."
        )
    rows, hidden, logits = embedding_rows(base.model), *_states(base)
    recovered = recovery_ids(config.vocabulary, config.width)
    transform = _transform(base, _of(rows, recovered), recovered, hidden, logits)
    settings, arrays = _settings(proxy, base, transform), _head_sample(base, rows)
    if config.candidate_features == "token_bias":
        arrays |= _biases(proxy)
        return ExportedProxy(Bundle(replace(settings, no_recovery="it reads no hidden states"), arrays), 0.0, None)

    keys = _keys(proxy, rows)
    arrays |= {name: _numpy(proxy.state_dict()[name]) for name in _NETWORK}
    arrays |= {"tail_key": _numpy(proxy.tail_key[0])} if proxy.keeps_tail else {}
    arrays["keys"] = _half(keys, "keys") if key_dtype == "float16" else _numpy(keys)
    error: float | None = None
    found: _Recovered | str = "it was exported without the head's inverse"
    if recover_hidden:
        found = _recovery(settings, (recovered, _of(rows, recovered), _head_bias(base, recovered)), hidden, logits)
    if isinstance(found, str):
        settings = replace(settings, no_recovery=found)
    else:
        arrays, error = arrays | found.arrays, found.error
    lost = torch.from_numpy(arrays["keys"].astype(np.float32)) - keys.cpu()
    with torch.no_grad():
        moved = float((proxy.query(hidden.to(keys.device)).cpu() * settings.score_scale @ lost.T).abs().max())
    return ExportedProxy(Bundle(settings, arrays), moved, error)


def _settings(proxy: ProxyModel, base: LoadedModel, transform: _Transform) -> Settings:
    config = proxy.config
    reads_states = config.candidate_features == "embedding"
    return Settings(
        objective=config.objective,
        candidate_features=config.candidate_features,
        tail=config.tail,
        temperature=float(config.temperature),
        p_t=float(config.p_t),
        max_candidates=config.max_candidates,
        width=config.width,
        vocabulary=config.vocabulary,
        initial_bias=float(config.initial_bias),
        score_scale=proxy.gain / math.sqrt(config.dim) if reads_states else 1.0,
        norm_eps=float(proxy.norm.eps) if reads_states else 1e-5,
        logit_scale=transform.scale,
        logit_cap=transform.cap,
        no_transform=transform.fails,
        base=str(config.base["name"]) if config.base else base.name,
        proxy=str(config.sha256 or ""),
    )


def _head_sample(base: LoadedModel, rows: Tensor) -> dict[str, np.ndarray]:
    """Some rows of the head, by which it is recognised."""
    ids = sampled_ids(len(rows))
    return {"head.ids": ids, "head.rows": _half(_of(rows, ids), "LM head"), "head.bias": _head_bias(base, ids)}


def _biases(proxy: ProxyModel) -> dict[str, np.ndarray]:
    """The acceptance logits of a proxy without states, with its gain applied."""
    start, vocabulary = proxy.config.initial_bias, proxy.config.vocabulary
    biases = _numpy(start + proxy.gain * (proxy.token_bias.detach() - start))
    of_tail = {"tail_bias": biases[vocabulary:].copy()} if proxy.keeps_tail else {}
    return {"token_bias": biases[:vocabulary].copy()} | of_tail


def write_bundle(exported: ExportedProxy, out: str | Path) -> None:
    """Write a bundle to a folder of its own, each file completely or not at all.

    Raises:
        FrugalignError: the folder holds other files, or cannot be written.
    """
    folder = Path(out).expanduser()
    check_free(folder)
    for name, content in exported.bundle.files().items():
        write_atomic(folder / name, content)


def check_free(folder: Path) -> None:
    """
    Raises:
        FrugalignError: something lies there that an export would not replace.
    """
    if folder.is_dir() and {each.name for each in folder.iterdir()} - {SETTINGS_FILE, ARRAYS_FILE}:
        raise FrugalignError(f"{folder} holds other files: an exported proxy has a folder of its own.")


@dataclass(frozen=True)
class _Transform:
    """How the base's logits follow from its head: `cap·tanh(scale·(W·h + b)/cap)`. `fails`: why they do not, or None."""

    scale: float = 1.0
    cap: float | None = None
    fails: str | None = None


@dataclass(frozen=True)
class _Recovered:
    """Arrays that give `h` from logits, and the relative error of that on the model's own states."""

    arrays: dict[str, np.ndarray]
    error: float


@torch.no_grad()
def _states(base: LoadedModel) -> tuple[Tensor, Tensor]:
    """The head's input `[n, D]` and logits `[n, V]` of a few random tokens, float32 on the CPU."""
    model = base.model
    embeddings: Any = causal_lm(model).get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(embeddings.weight), (1, _STATES), generator=generator).to(embeddings.weight.device)
    with evaluating(model), Forward(model) as forward:
        found = forward(ids, attention_mask=torch.ones_like(ids), use_cache=False, keep=_STATES)
    return found.hidden[0].float().cpu(), found.logits[0].float().cpu()


def _transform(base: LoadedModel, rows: Tensor, ids: np.ndarray, hidden: Tensor, logits: Tensor) -> _Transform:
    """What leads from the head's product to the logits, found on `hidden [n, D]` and `logits [n, V]` at some `rows [m, D]` of the head."""
    cap = getattr(base.model.config.get_text_config(), "final_logit_softcapping", None)
    cap = float(cap) if isinstance(cap, int | float) and cap > 0 else None
    given = logits[:, torch.from_numpy(ids)].double()
    given = given if cap is None else cap * torch.atanh((given / cap).clamp(-1 + 1e-7, 1 - 1e-7))
    raw = hidden.double() @ rows.double().T + torch.from_numpy(_head_bias(base, ids)).double()
    scale = float((given * raw).sum() / (raw * raw).sum())
    if not (scale > 0 and float((given - scale * raw).norm() / given.norm()) <= _CLOSE):
        return _Transform(fails="its base's logits are more than the LM head's product, a scale and a soft cap")
    is_plain = float((given - raw).norm() / given.norm()) <= _CLOSE / 10
    return _Transform(1.0 if is_plain else scale, cap)


def _recovery(
    settings: Settings, head: tuple[np.ndarray, Tensor, np.ndarray], hidden: Tensor, logits: Tensor
) -> _Recovered | str:
    """What recovers `h` from the base's logits, tried on `hidden [n, D]` and `logits [n, V]`. Text where nothing does: the reason.

    `head`: ids, rows and biases of some of its rows.
    """
    ids, rows, bias = head
    if settings.no_transform is not None:
        return settings.no_transform
    inverse = pseudo_inverse(rows.double().numpy())
    if inverse is None:
        return "the LM head of its base cannot be inverted, as its rows do not span the hidden states"
    arrays = {"recovery.ids": ids, "recovery.inverse": inverse, "recovery.bias": bias}
    recovery = Recovery([Bundle(settings, arrays)], None)
    tried = torch.from_numpy(recovery.hidden(ops_of(logits.numpy()), logits.numpy()))
    error = float((tried - hidden).norm() / hidden.norm())
    if not error <= _CLOSE:
        return f"the LM head of its base gives hidden states back with an error of {error:.0%}"
    return _Recovered(arrays, error)


def _of(rows: Tensor, ids: np.ndarray) -> Tensor:
    """Some rows of the head, float32 on the CPU."""
    return rows[torch.from_numpy(ids).to(rows.device)].float().cpu()


def _head_bias(base: LoadedModel, ids: np.ndarray) -> np.ndarray:
    """The head's bias at some rows, zero if it has none."""
    bias: Any = getattr(output_embeddings(base.model), "bias", None)
    return (
        np.zeros(len(ids), np.float32) if bias is None else _numpy(bias.detach().float().cpu()[torch.from_numpy(ids)])
    )


@torch.no_grad()
def _keys(proxy: ProxyModel, rows: Tensor) -> Tensor:
    """`k(e_c)` of every token, float32 `[V, d]`."""
    torch.nn.Module.to(proxy, device=rows.device, dtype=torch.float32)
    return proxy.keys(rows)[: len(rows)]


def _half(value: Tensor, what: str) -> np.ndarray:
    if float(value.abs().max()) > _LARGEST_HALF:
        raise FrugalignError(f"Values of the {what} are too large for float16: give --key_dtype float32.")
    return _numpy(value.half(), np.float16)


def _numpy(value: Tensor, dtype: Any = np.float32) -> np.ndarray:
    return np.ascontiguousarray(value.detach().cpu().numpy(), dtype=dtype)
