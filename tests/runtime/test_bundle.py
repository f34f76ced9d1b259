"""A bundle on disk: read back as it was, and refused with one sentence where anything is wrong."""

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.proxy.small_models import proxy_for
from tests.runtime.bundles import Base, base_of, bundle_of

from frugalign_runtime import Bundle, Proxies, ProxyError, load
from frugalign_runtime.bundle import ARRAYS_FILE, SETTINGS_FILE, decode
from frugalign_runtime.head import pseudo_inverse, sampled_ids

base = cache(base_of)


def saved(folder: Path, bundle: Bundle) -> Path:
    folder.mkdir(parents=True)
    for name, content in bundle.files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    here = base("llama")
    return saved(tmp_path / "safe", bundle_of(here, proxy_for(here.model), key_dtype="float16"))


def test_it_is_read_as_it_was_written(folder: Path) -> None:
    here = base("llama")
    made, found = bundle_of(here, proxy_for(here.model), "safe", "float16"), Bundle.load(folder)
    assert found.settings == made.settings and found.name == "safe" and set(found.arrays) == set(made.arrays)
    for name, value in made.arrays.items():
        assert found.arrays[name].dtype == value.dtype and (found.arrays[name] == value).all(), name
    logits = here.logits.numpy()
    policies = [Proxies([each]).judge(logits, None, [0] * len(logits), 1.0) for each in (made, found)]
    assert (policies[0] == policies[1]).all()


def test_its_arrays_are_a_safetensors_file(folder: Path) -> None:
    """The library reads it, and what the library writes is read."""
    theirs = load_file(folder / ARRAYS_FILE)
    ours = decode((folder / ARRAYS_FILE).read_bytes(), folder)
    assert set(theirs) == set(ours) and all((theirs[name] == ours[name]).all() for name in ours)
    save_file(theirs, folder / "other")
    again = decode((folder / "other").read_bytes(), folder)
    assert all((again[name] == ours[name]).all() and again[name].dtype == ours[name].dtype for name in ours)


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match=r"There is no exported proxy in .*/none: No such file"):
        load(tmp_path / "none")
    (folder / ARRAYS_FILE).unlink()
    with pytest.raises(ProxyError, match=r"There is no exported proxy in .*/safe: No such file"):
        load(folder)


@pytest.mark.parametrize("cut", [0, 7, 100, 5000])
def test_a_truncated_file(folder: Path, cut: int) -> None:
    data = (folder / ARRAYS_FILE).read_bytes()
    (folder / ARRAYS_FILE).write_bytes(data[:cut])
    with pytest.raises(ProxyError, match="has been changed since it was written"):
        load(folder)
    with pytest.raises(ProxyError, match="it is not a safetensors file of plain numbers"):
        decode(data[:cut], folder)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("p_t", 0.5, "has been changed since it was written"),
        ("p_t", 1.5, "p_t is 1.5"),
        ("p_t", "a", "p_t is 'a'"),
        ("p_t", True, "p_t is True"),
        ("temperature", 0, "temperature is 0"),
        ("temperature", float("nan"), "temperature is nan"),
        ("max_candidates", 1.5, "max_candidates is 1.5"),
        ("width", -1, "width is -1"),
        ("objective", "best", "objective is 'best'"),
        ("tail", None, "tail is None"),
        ("logit_cap", -1.0, "logit_cap is -1.0"),
        ("format", "frugalign-proxy-bundle-2", "this version reads 'frugalign-proxy-bundle-1'"),
        ("new", 1, "its fields are not those of"),
    ],
)
def test_settings_that_were_edited(folder: Path, field: str, value: Any, says: str) -> None:
    path = folder / SETTINGS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ProxyError, match=says):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_settings_that_are_no_settings(folder: Path, text: str) -> None:
    (folder / SETTINGS_FILE).write_text(text)
    with pytest.raises(ProxyError, match=r"it is not valid JSON|has format None"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"keys": np.zeros((3, 4), np.float16)}, r"keys has shape \(3, 4\), and \(48, 4\) is needed"),
        ({"bias": np.full(1, np.nan, np.float32)}, "bias holds values that are not finite"),
        ({"more": np.zeros(1, np.float32)}, r"more has shape \(1,\), and None is needed"),
        ({"recovery.ids": np.full(48, 48)}, "recovery.ids holds numbers of no token"),
        ({"head.rows": np.zeros((48, 3), np.float16)}, r"head.rows has shape \(48, 3\), and \(48, 16\) is needed"),
    ],
)
def test_arrays_that_do_not_fit(folder: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    made = Bundle.load(folder)
    with pytest.raises(ProxyError, match=says):
        load(saved(tmp_path / "odd", Bundle(made.settings, {**made.arrays, **change})))
    lacking = {name: value for name, value in made.arrays.items() if name != next(iter(change))}
    if "more" not in change:
        with pytest.raises(ProxyError, match="has shape"):
            load(saved(tmp_path / "lacking", Bundle(made.settings, lacking)))


def rows_of(here: Base, moved: float = 0.0) -> Any:
    weight = here.model.get_output_embeddings().weight.detach().numpy()
    noise = np.random.default_rng(1).normal(size=weight.shape) * np.sqrt((weight**2).mean())
    return lambda ids: (weight + moved * noise)[ids]


def test_the_engine_s_head_is_compared(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The base's own rows, rows in bfloat16's precision, four bits' and another model's."""
    here = base("llama")
    load(folder, head_rows=rows_of(here), vocabulary=48)
    load(folder, head_rows=rows_of(here, 0.004))
    assert not caplog.messages
    load(folder, head_rows=rows_of(here, 0.12))
    [said] = caplog.messages
    assert re.fullmatch(
        r"safe was exported for tiny, and this model's LM head differs from that one's by 1\d\.\d% of its size, "
        r"as in another precision\. What was measured there may differ here\.",
        said,
    )
    with pytest.raises(
        ProxyError, match=r"safe was exported for tiny, and this model's LM head differs from that one's .* where 35%"
    ):
        load(folder, head_rows=rows_of(base("qwen2-untied")))
    with pytest.raises(ProxyError, match="for a model with 48 tokens, and this one has 50"):
        load(folder, head_rows=rows_of(here), vocabulary=50)
    with pytest.raises(ProxyError, match="for a model of width 16, and this one's head has width 3"):
        load(folder, head_rows=lambda ids: np.zeros((len(ids), 3)))


def test_a_quantised_head_recovers_hidden_states_by_its_own_rows(folder: Path) -> None:
    """The engine's logits come from its own rows: with the base's the states would be 8 % off, with its own they are exact."""
    here = base("llama")
    rows = rows_of(here, 0.08)
    hidden = here.hidden.numpy()
    logits = (hidden @ rows(np.arange(48)).T).astype(np.float32)
    exact = load(folder).judge(logits, hidden, [0] * len(logits), 1.0)
    own = load(folder, head_rows=rows).judge(logits, None, [0] * len(logits), 1.0)
    other = load(folder).judge(logits, None, [0] * len(logits), 1.0)
    np.testing.assert_allclose(np.exp(own), np.exp(exact), atol=1e-5)
    assert np.abs(np.exp(other) - np.exp(exact)).max() > 1e-3


def test_the_pseudo_inverse() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 16))
    found = pseudo_inverse(rows)
    assert found is not None and found.dtype == np.float32
    np.testing.assert_allclose(found, np.linalg.pinv(rows), atol=1e-6)
    rows[:, 3] = rows[:, 4]
    assert pseudo_inverse(rows) is None, "two dimensions that no logit tells apart"
    assert pseudo_inverse(rows[:15]) is None, "fewer rows than dimensions"


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65, 49152])
def test_the_sampled_rows_are_spread_and_in_range(vocabulary: int) -> None:
    ids = sampled_ids(vocabulary)
    assert ids[0] == 0 and ids[-1] == vocabulary - 1 and len(ids) == min(64, vocabulary)


def test_a_folder_may_be_copied(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere" / "terse")
    assert load([folder, tmp_path / "elsewhere" / "terse"]).names == ["safe", "terse"]
    assert load({"a": folder, "b": str(folder)}).names == ["a", "b"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_engine_s_outputs_are_compared(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Logits that the head makes of the states, the same in bfloat16, those of a quantised head, and those of another model."""
    here = base(name)
    proxies = Proxies([bundle_of(here, proxy_for(here.model))])
    caplog.clear()
    logits, hidden = here.logits.numpy().copy(), here.hidden.numpy()
    logits[:, 5:9] = -np.inf
    proxies.check_outputs(logits, hidden)
    proxies.check_outputs(here.logits.bfloat16(), here.hidden.bfloat16())
    assert not caplog.messages
    noise = np.random.default_rng(0).normal(size=logits.shape) * here.logits.numpy().std()
    proxies.check_outputs(here.logits.numpy() + 0.1 * noise, hidden)
    [said] = caplog.messages
    assert re.search(
        r"this model's logits differ from what .* by \d+\.\d% of their spread, as in another precision", said
    )
    with pytest.raises(ProxyError, match="p was exported for tiny"):
        proxies.check_outputs(here.logits.numpy()[::-1], hidden)


def test_rows_that_an_engine_does_not_hold_are_left_out(folder: Path) -> None:
    rows = rows_of(base("llama"))
    load(folder, head_rows=lambda ids: np.where(ids[:, None] < 10, rows(ids), np.nan))
    with pytest.raises(ProxyError, match="LM head differs"):
        load(folder, head_rows=lambda ids: np.where(ids[:, None] < 10, -rows(ids), np.nan))
