"""The runtime's policy against the library's own guide, on real architectures, for every objective."""

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.proxy.small_models import proxy_for
from tests.runtime.bundles import Base, base_of, biased, bundle_of, guided

from frugalign.proxy.network import ProxyModel
from frugalign_runtime import Proxies, ProxyError

base = cache(base_of)
SETTINGS: dict[str, dict[str, Any]] = {
    "marginal": {},
    "cold": {"temperature": 0.5, "p_t": 0.1},
    "drop": {"tail": "drop", "temperature": 1.5},
    "cap": {"p_t": 0.0, "max_candidates": 3},
    "all": {"p_t": 0.0, "max_candidates": 100},
    "sequential": {"objective": "sequential", "initial_bias": 3.0},
    "sequential-drop": {"objective": "sequential", "tail": "drop", "initial_bias": 1.0},
    "integrated": {"objective": "sequential_integrated", "initial_bias": 3.0, "temperature": 0.7},
    "integrated-cap": {"objective": "sequential_integrated", "p_t": 0.0, "max_candidates": 2},
}


def both(base: Base, proxies: list[ProxyModel], strengths: list[float], hidden: bool = True) -> tuple[Any, Any]:
    """`log π` of the library and of the runtime with float32 keys, on numpy arrays."""
    loaded = Proxies([bundle_of(base, each, str(number)) for number, each in enumerate(proxies)])
    rows = len(base.logits)
    proxy, strength = np.tile(np.arange(len(proxies)), (rows, 1)), np.tile(strengths, (rows, 1))
    h = base.hidden.numpy() if hidden else None
    return guided(base, proxies, strengths).numpy(), loaded.judge(base.logits.numpy(), h, proxy, strength)


def close(found: np.ndarray, wanted: np.ndarray, within: float = 1e-5) -> None:
    assert found.dtype == np.float32 and found.shape == wanted.shape
    assert (np.isfinite(found) == np.isfinite(wanted)).all()
    np.testing.assert_allclose(np.exp(found), np.exp(wanted), atol=within, rtol=0)
    np.testing.assert_allclose(found, wanted, atol=10 * within, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2-tied", "gemma2"])
def test_it_is_the_library_s_policy(name: str, setting: str) -> None:
    proxy = proxy_for(base(name).model, **SETTINGS[setting])
    for strength in (1.0, 0.3, 2.5):
        wanted, found = both(base(name), [proxy], [strength])
        close(found, wanted)
    plain = torch.log_softmax(base(name).logits, -1).exp().numpy()
    assert np.abs(np.exp(wanted) - plain).max() > 0.05, "this proxy must change something"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_it_is_the_same_from_logits_alone(name: str, setting: str) -> None:
    """`h` comes from the head's inverse, through Gemma's soft cap."""
    wanted, found = both(base(name), [proxy_for(base(name).model, **SETTINGS[setting])], [1.0], hidden=False)
    close(found, wanted)


@pytest.mark.parametrize("setting", ["marginal", "drop", "cap", "sequential", "integrated"])
def test_a_proxy_without_states(setting: str) -> None:
    proxy = biased(base("llama"), **SETTINGS[setting])
    for hidden in (True, False):
        wanted, found = both(base("llama"), [proxy], [0.7], hidden=hidden)
        close(found, wanted)


@pytest.mark.parametrize("setting", SETTINGS)
def test_composed_proxies_are_the_library_s(setting: str) -> None:
    """Three proxies with candidates of their own, one without states."""
    model, options = base("llama").model, SETTINGS[setting]
    others = [
        proxy_for(model, 1, **options | {"p_t": 0.2, "max_candidates": 4, "initial_bias": 2.0}),
        biased(base("llama"), **options | {"p_t": 0.05}),
    ]
    if setting == "all":  # the library gives up the second proxy's tail where the first has none
        others = others[1:]
        others[0].config.p_t = 0.0
    proxies = [proxy_for(model, **options), *others]
    wanted, found = both(base("llama"), proxies, [1.0, 0.4, 2.0][: len(proxies)])
    close(found, wanted)


def test_a_row_is_judged_by_its_own_proxy_at_its_own_strength() -> None:
    """Every pair of a proxy and a strength in one batch, shuffled, against one at a time; and torch against numpy."""
    here = base("llama")
    names = ("marginal", "drop", "sequential", "integrated")
    proxies = [proxy_for(here.model, number, **SETTINGS[name]) for number, name in enumerate(names)]
    loaded = Proxies([bundle_of(here, each, name) for name, each in zip(names, proxies, strict=True)])
    pairs = list(itertools.product([-1, 0, 1, 2, 3], [0.0, 0.5, 1.0, 2.0]))
    order = np.random.default_rng(0).permutation(len(pairs))
    rows = np.arange(len(pairs))
    proxy, strength = (np.asarray([pairs[place][part] for place in order]) for part in (0, 1))
    logits, hidden = here.logits.numpy()[rows], here.hidden.numpy()[rows]
    before = logits.copy(), hidden.copy()
    found = loaded.judge(logits, hidden, proxy, strength)
    assert (logits == before[0]).all() and (hidden == before[1]).all()
    for row in rows:
        if proxy[row] < 0 or strength[row] == 0:
            assert (found[row] == logits[row]).all(), "exactly the base"
            continue
        alone = loaded.judge(logits[row : row + 1], hidden[row : row + 1], proxy[row : row + 1], strength[row])
        wanted = guided(here, [proxies[proxy[row]]], [float(strength[row])])[row].numpy()
        close(found[row], alone[0])
        close(found[row], wanted)
    tensors = loaded.judge(here.logits[: len(rows)], here.hidden[: len(rows)], proxy.tolist(), torch.tensor(strength))
    assert isinstance(tensors, torch.Tensor)
    close(tensors.numpy(), found)


def test_nothing_is_done_where_nothing_is_asked() -> None:
    here = base("llama")
    loaded = Proxies([bundle_of(here, proxy_for(here.model))])
    logits = here.logits.numpy()
    assert (loaded.judge(logits, None, np.full(len(logits), -1), 1.0) == logits).all()
    assert loaded.judge(logits[:0], None, np.zeros(0, int), 1.0).shape == (0, logits.shape[1])


def test_half_precision_in_and_float32_out() -> None:
    here = base("llama")
    loaded = Proxies([bundle_of(here, proxy_for(here.model))])
    logits, hidden = here.logits.bfloat16(), here.hidden.bfloat16()
    found = loaded.judge(logits, hidden, [0] * len(logits), 1.0)
    wanted = guided(Base(here.model, hidden.float(), logits.float()), [proxy_for(here.model)], [1.0])
    assert found.dtype == torch.float32
    close(found.numpy(), wanted.numpy())


def test_a_token_that_the_engine_has_masked_stays_impossible() -> None:
    here = base("llama")
    for setting in ("marginal", "cap", "all", "sequential", "drop"):
        proxy = proxy_for(here.model, **SETTINGS[setting])
        logits = here.logits.clone()
        logits[:, ::3] = -torch.inf
        wanted = guided(Base(here.model, here.hidden, logits), [proxy], [1.0]).numpy()
        loaded = Proxies([bundle_of(here, proxy)])
        close(loaded.judge(logits.numpy(), here.hidden.numpy(), [0] * len(logits), 1.0), wanted)
        with pytest.raises(ProxyError, match="Some logits are infinite"):
            loaded.judge(logits.numpy(), None, [0] * len(logits), 1.0)


@pytest.mark.parametrize("setting", ["marginal", "drop"])
def test_keys_in_float16_move_the_policy_within_their_bound(setting: str) -> None:
    """`|Δ log π| ≤ 2·λ·max |Δ score|`, and `|Δ score| ≤ 2⁻¹¹·Σ_j |q_j·k_cj|·scale`: the rounding of a key's parts."""
    here = base("llama")
    proxy = proxy_for(here.model, **SETTINGS[setting])
    exact, half = (bundle_of(here, proxy, key_dtype=kind) for kind in ("float32", "float16"))
    assert half.arrays["keys"].dtype == np.float16
    ones = [0] * len(here.logits)
    policies = [Proxies([each]).judge(here.logits.numpy(), here.hidden.numpy(), ones, 1.5) for each in (exact, half)]
    with torch.no_grad():
        query = proxy.query(here.hidden).abs().numpy()
    bound = 2**-11 * exact.settings.score_scale * (query @ np.abs(exact.arrays["keys"]).T).max(-1, keepdims=True)
    kept = np.isfinite(policies[0])
    moved = np.abs(np.where(kept, policies[1] - np.where(kept, policies[0], 0), 0))
    assert (moved <= 2 * 1.5 * bound + 1e-6).all()
    assert moved.max() > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"logits": np.zeros((2, 7), np.float32)}, r"logits must be \[N, 48\], and are \[2, 7\]"),
        ({"hidden": np.zeros((2, 3), np.float32)}, r"hidden must be \[2, 16\], and is \[2, 3\]"),
        ({"proxy": [0]}, "proxy must be 2 whole numbers"),
        ({"proxy": [0.5, 1]}, "proxy must be 2 whole numbers"),
        ({"proxy": [0, 2]}, "proxy must be −1 for none, or from 0 to 1"),
        ({"strength": [1.0]}, "strength must have the shape of proxy"),
        ({"strength": [1.0, -1.0]}, "at least 0"),
        ({"strength": [1.0, float("nan")]}, "at least 0"),
        (
            {"proxy": [[0, 1], [0, 1]], "strength": 1.0},
            "warm and cold do not compose: temperature is 1.0 in one and 0.5",
        ),
    ],
)
def test_what_it_refuses(arguments: dict[str, Any], says: str) -> None:
    here = base("llama")
    loaded = Proxies(
        [
            bundle_of(here, proxy_for(here.model, temperature=each), name)
            for each, name in ((1.0, "warm"), (0.5, "cold"))
        ]
    )
    given = {"logits": here.logits.numpy()[:2], "hidden": here.hidden.numpy()[:2], "proxy": [0, 1], "strength": 1.0}
    with pytest.raises(ProxyError, match=says):
        loaded.judge(**given | arguments)


def test_names() -> None:
    here = base("llama")
    loaded = Proxies([bundle_of(here, proxy_for(here.model), name) for name in ("safe", "terse")])
    assert loaded.index("terse") == 1
    with pytest.raises(ProxyError, match="There is no proxy 'kind'; there are safe, terse"):
        loaded.index("kind")
    with pytest.raises(ProxyError, match="one name"):
        Proxies([bundle_of(here, proxy_for(here.model))] * 2)
    other = bundle_of(base("gpt2"), proxy_for(base("gpt2").model), "other")
    with pytest.raises(ProxyError, match="p and other were exported for different models"):
        Proxies([bundle_of(here, proxy_for(here.model)), other])
