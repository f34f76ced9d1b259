"""One guidance a model at a time: what would change that of an open block is refused, whoever asks."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.toy_bases import save_artefact, save_base

from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.proxy.attachment import ProxyLogitsProcessor, attach
from frugalign.proxy.network import ProxyModel, load_proxy

IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_artefact("proxy", save_base(folder / "base"), folder / "proxy")
    return folder


@pytest.fixture(scope="module")
def loaded(saved: Path) -> LoadedModel:
    return load_model(str(saved / "base"), device_map="cpu")


@pytest.fixture
def model(loaded: LoadedModel) -> Iterator[Any]:
    """The model; no hook and no setting is left on it afterwards."""
    before = loaded.model.generation_config.to_dict()
    yield loaded.model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())
    assert loaded.model.generation_config.to_dict() == before


@pytest.fixture
def proxy(saved: Path) -> ProxyModel:
    return load_proxy(saved / "proxy")


def in_thread(work: Any) -> Any:
    """What `work` returns or raises in another thread."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except FrugalignError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def guided(model: Any, proxy: Any, strength: float = 1.0) -> Any:
    with attach(model, proxy, strength=strength):
        return model(IDS).logits


@pytest.mark.parametrize("same_object", [True, False])
def test_another_strength_of_a_proxy_is_refused(same_object: bool, model: Any, proxy: ProxyModel, saved: Path) -> None:
    """In the same thread and in another, also if the proxy was loaded twice. The open block is as it was."""
    other = proxy if same_object else load_proxy(saved / "proxy")
    wanted = guided(model, proxy, 0.5)
    with attach(model, proxy, strength=0.5):
        with pytest.raises(FrugalignError, match=r"at strength 0\.5 already, so not at 1: a model has one strength"):
            guided(model, other)
        refused = in_thread(lambda: guided(model, other, 0.25))
        assert isinstance(refused, FrugalignError) and "so not at 0.25" in str(refused)
        assert torch.equal(model(IDS).logits, wanted)
    assert not torch.equal(guided(model, other), wanted), "after the block, the other strength is free"


def test_the_same_guidance_is_shared_and_acts_once(model: Any, proxy: ProxyModel, saved: Path) -> None:
    wanted = guided(model, proxy)
    with attach(model, proxy):
        assert torch.equal(guided(model, load_proxy(saved / "proxy")), wanted)
        assert torch.equal(in_thread(lambda: guided(model, saved / "proxy")), wanted)
        assert torch.equal(model(IDS).logits, wanted)
        assert sum(len(module._forward_hooks) for module in model.modules()) == 1


def test_another_proxy_in_another_thread_is_refused(model: Any, proxy: ProxyModel, saved: Path) -> None:
    """It would change the open block's guidance; joining one part of a composition would not be what it asks for."""
    other = load_proxy(saved / "proxy")
    with torch.no_grad():
        other.bias.add_(1)
    with attach(model, proxy):
        refused = in_thread(lambda: guided(model, other))
        assert "another proxy in another thread" in str(refused)
        with attach(model, other):
            assert "another thread" in str(in_thread(lambda: guided(model, proxy)))


def test_a_logits_processor_beside_an_attached_proxy_is_refused(model: Any, proxy: ProxyModel) -> None:
    processor = ProxyLogitsProcessor(model, proxy)
    with attach(model, proxy), pytest.raises(FrugalignError, match="would guide it twice"):
        model.generate(IDS, max_new_tokens=2, logits_processor=[processor])
    processor.detach()


def test_a_folder_is_a_proxy_too(model: Any, proxy: ProxyModel, saved: Path, tmp_path: Path) -> None:
    """By name or path; for another model, or if it is missing, it is refused and nothing is hooked."""
    wanted = guided(model, proxy)
    assert torch.equal(guided(model, str(saved / "proxy")), wanted)
    assert torch.equal(guided(model, saved / "proxy"), wanted)
    stranger = load_model(str(save_base(tmp_path / "stranger", seed=7)), device_map="cpu").model
    with pytest.raises(FrugalignError, match="was trained on"):
        guided(stranger, saved / "proxy")
    with pytest.raises(FrugalignError, match="No proxy in"):
        guided(model, tmp_path / "nowhere")


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf"), "1", True])
def test_a_strength_that_is_none(strength: Any, model: Any, proxy: ProxyModel) -> None:
    with pytest.raises(FrugalignError, match="strength is"):
        guided(model, proxy, strength)


@pytest.mark.parametrize("greedy", [False, True])
def test_a_pipeline_says_nothing(
    greedy: bool, model: Any, proxy: ProxyModel, loaded: LoadedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    """No warning of transformers, greedy or sampling, called three times with and without a batch."""
    from transformers import pipeline
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_propagation()
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        with attach(model, proxy):
            pipe = pipeline("text-generation", model=model, tokenizer=loaded.tokenizer)
            for prompts in ("w5 w6", ["w5 w6", "w7"], "w8"):
                pipe(prompts, max_new_tokens=3, do_sample=not greedy)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
        transformers_logging.disable_propagation()
    said = "\n".join([*records, *capfd.readouterr()])
    assert "warn" not in said.lower() and "may be ignored" not in said and not records
