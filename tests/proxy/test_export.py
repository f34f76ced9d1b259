"""`frugalign export`, and what it refuses."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.engines.toy_bases import save_artefact, save_base
from tests.proxy.small_models import build, proxy_for
from tests.runtime.bundles import Base, base_of, guided

from frugalign.base.errors import FrugalignError
from frugalign.cli.main import main
from frugalign.engines.loading import load_model
from frugalign.proxy.export import export_proxy
from frugalign.proxy.network import load_proxy
from frugalign_runtime import Proxies, ProxyError, load

base = cache(base_of)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    return save_artefact("proxy", save_base(folder / "base"), folder / "proxy")


def test_the_command_writes_what_the_runtime_runs(
    proxy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the files alone, against the library's guide with keys in float16."""
    out = tmp_path / "new" / "safe"
    assert main(["export", str(proxy), str(out), "--model_name_or_path", str(proxy.parent / "base"), "--use_cpu"]) == 0
    says = capsys.readouterr().out
    assert "MB, for" in says and "Keys in float16" in says and "Hidden states from logits: relative error" in says
    assert {each.name for each in out.iterdir()} == {"proxy.json", "proxy.safetensors"}
    loaded = load_model(str(proxy.parent / "base"), device_map="cpu")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        output = loaded.model(tokens, output_hidden_states=True)
    here = Base(loaded.model, output.hidden_states[-1][0], output.logits[0])
    wanted = guided(here, [load_proxy(proxy)], [1.0])
    rows = loaded.model.get_output_embeddings().weight.detach()
    proxies = load(out, head_rows=lambda ids: rows[ids], vocabulary=64)
    for hidden in (here.hidden.numpy(), None):
        found = proxies.judge(here.logits.numpy(), hidden, [0] * 40, 1.0)
        np.testing.assert_allclose(np.exp(found), wanted.exp().numpy(), atol=1e-4)


def test_the_base_may_be_left_out_and_an_export_written_again(proxy: Path, tmp_path: Path) -> None:
    for keys in ("float32", "float16"):
        assert (
            main(
                [
                    "export",
                    str(proxy),
                    str(tmp_path / "safe"),
                    "--use_cpu",
                    "--key_dtype",
                    keys,
                    "--recover_hidden",
                    "false",
                ]
            )
            == 0
        )
    settings = json.loads((tmp_path / "safe" / "proxy.json").read_text())
    assert settings["no_recovery"] == "it was exported without the head's inverse"
    proxies = load(tmp_path / "safe")
    with pytest.raises(
        ProxyError, match="safe cannot recover hidden states from logits, so the engine must give them: it was"
    ):
        proxies.judge(np.zeros((1, 64), np.float32), None, [0], 1.0)


def test_what_the_command_refuses(proxy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(proxy), str(proxy), "--use_cpu"]) == 2
    assert "holds other files: an exported proxy has a folder of its own" in capsys.readouterr().err
    other = save_base(tmp_path / "other", seed=1)
    assert main(["export", str(proxy), str(tmp_path / "out"), "--model_name_or_path", str(other), "--use_cpu"]) == 2
    assert "they differ in weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_lookahead_proxy_is_refused() -> None:
    here = base("llama")
    proxy = proxy_for(here.model, candidate_features="lookahead")
    with pytest.raises(FrugalignError, match="A lookahead proxy feeds every candidate"):
        export_proxy(proxy, here.loaded)


def test_keys_that_float16_cannot_hold() -> None:
    here = base("llama")
    proxy = proxy_for(here.model)
    with torch.no_grad():
        proxy.key.bias.fill_(1e6)
    with pytest.raises(FrugalignError, match="keys are too large for float16: give --key_dtype float32"):
        export_proxy(proxy, here.loaded)
    assert export_proxy(proxy, here.loaded, key_dtype="float32").bundle.arrays["keys"].max() > 1e5


class Changed(torch.nn.Module):
    """A head with a bias, or of rows that do not span the states."""

    def __init__(self, inner: Any, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = inner.weight, bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, self.weight, self.bias)


def with_head(bias: torch.Tensor | None = None, scale: Any = None) -> Base:
    """A tiny Llama whose logits are its head's, plus `bias`, through `scale`."""
    here = base_of("llama")
    model = here.model
    model.lm_head = Changed(model.lm_head, bias)
    if scale is not None:

        def scaled(module: Any, inputs: Any, output: Any) -> Any:
            output.logits = scale(output.logits)
            return output

        model.register_forward_hook(scaled)
    with torch.no_grad():
        logits = model.lm_head(here.hidden)
    return Base(model, here.hidden, logits if scale is None else scale(logits))


@pytest.mark.parametrize("change", ["bias", "scale", "both"])
def test_heads_with_a_bias_and_a_scale_are_inverted(change: str) -> None:
    """As in Phi and GPT-J, Cohere and Granite."""
    here = with_head(
        torch.linspace(-2, 2, 48) if change != "scale" else None, (lambda z: z * 0.25) if change != "bias" else None
    )
    exported = export_proxy(proxy_for(here.model), here.loaded, key_dtype="float32")
    assert exported.recovery_error is not None and exported.recovery_error < 1e-5
    logits, rows = here.logits.numpy(), [0] * len(here.logits)
    with_states, without = (Proxies([exported.bundle]).judge(logits, h, rows, 1.0) for h in (here.hidden.numpy(), None))
    np.testing.assert_allclose(np.exp(with_states), np.exp(without), atol=1e-5)


def test_heads_that_cannot_be_inverted() -> None:
    """Logits that are something else, and rows that do not span the states: guiding by given states still works."""
    odd = with_head(scale=lambda z: z**3)
    exported = export_proxy(proxy_for(odd.model), odd.loaded)
    assert (
        exported.bundle.settings.no_recovery
        == "its base's logits are more than the LM head's product, a scale and a soft cap"
    )
    flat = base_of("llama")
    with torch.no_grad():
        flat.model.lm_head.weight[:, 3] = 0
    exported = export_proxy(proxy_for(flat.model), flat.loaded)
    assert exported.bundle.settings.no_recovery is not None and "do not span" in exported.bundle.settings.no_recovery
    rows = [0] * len(flat.logits)
    with pytest.raises(ProxyError, match="so the engine must give them: the LM head of its base cannot be inverted"):
        Proxies([exported.bundle]).judge(flat.logits.numpy(), None, rows, 1.0)
    assert Proxies([exported.bundle]).judge(flat.logits.numpy(), flat.hidden.numpy(), rows, 1.0).shape == (40, 48)


def test_a_bfloat16_base() -> None:
    """Its logits are rounded, and the states with them: within what bfloat16 resolves."""
    model = build("llama").bfloat16()
    loaded: Any = SimpleNamespace(model=model, tokenizer=None, name="tiny", revision=None)
    exported = export_proxy(proxy_for(model), loaded)
    assert exported.recovery_error is not None and exported.recovery_error < 0.02
