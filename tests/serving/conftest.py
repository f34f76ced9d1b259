"""One server over the sandbox's model and two proxies, for all tests here."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from frugalign import sandbox
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.proxy.network import new_proxy

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

LONGEST = 24


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two proxies that reject a good deal."""
    base, found = load_model(sandbox.model), {}
    for seed, name in enumerate(("safe", "terse")):
        proxy = new_proxy(base.model, {"max_new_tokens": 32}, seed=seed)
        with torch.no_grad():
            for number, parameter in enumerate(proxy.parameters()):
                generator = torch.Generator().manual_seed(100 * seed + number)
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
        proxy.config.base = fingerprint(base.model, base.tokenizer, name="frugalign.sandbox:model").to_dict()
        found[name] = tmp_path_factory.mktemp(name)
        proxy.save_pretrained(found[name])
    return found


@pytest.fixture(scope="session")
def served(folders: dict[str, Path]) -> Any:
    from frugalign.serving.models import load_served

    given = [f"{name}={folder}" for name, folder in folders.items()]
    return load_served("frugalign.sandbox:model", given, served_name="base")


@pytest.fixture(scope="session")
def url(served: Any) -> Iterator[str]:
    from frugalign.serving.running import running
    from frugalign.serving.settings import ServerSettings

    with running(served, ServerSettings(max_new_tokens=LONGEST, max_body_bytes=100_000)) as found:
        yield found


@pytest.fixture(scope="session")
def client(url: str) -> Any:
    openai = pytest.importorskip("openai", reason="the client is not installed")
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def endless(served: Any) -> Any:
    """The same, but no token ends an answer."""
    from frugalign.engines.transformers import TransformersEngine

    engine = TransformersEngine(served.base.model, served.base.tokenizer)
    engine.end_token_ids = ()
    return replace(served, engine=engine)
