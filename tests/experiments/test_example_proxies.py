"""The example proxies: small, whole, without a path of the machine that made them, and with their figures."""

import json
import os
import re
from pathlib import Path

import pytest
from experiments.example_proxies import EXAMPLES, HUB_ID, PROXIES, refused_harmful, refused_safe

from frugalign.engines import load_model
from frugalign.engines.fingerprints import fingerprint
from frugalign.proxy.network import load_proxy

FOLDERS = [EXAMPLES / "proxies" / name for name in PROXIES]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_is_small_and_says_what_it_does(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    assert config["base"]["name"] == HUB_ID and config["base"].pop("sample")  # whose letters may spell anything
    assert not config["base"]["relative"] and not re.search(r'"/\w|/tmp|/home', json.dumps(config) + card)
    assert f"base_model: {HUB_ID}" in card and f"--proxy {folder}" in card
    for title in (*PROXIES[folder.name].rewards, "KL that the proxy adds, nats a response"):
        (row,) = re.findall(rf"^\| {re.escape(title)} \| (.+) \|$", card, re.MULTILINE)
        assert re.search(r"\d\.\d\d \[", row)
    assert load_proxy(folder).config.p_t < 0.001


@pytest.mark.slow
@pytest.mark.skipif("FRUGALIGN_MODELS" not in os.environ, reason="FRUGALIGN_MODELS names no folder of real models")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_is_of_this_model(folder: Path) -> None:
    base = load_model(str(Path(os.environ["FRUGALIGN_MODELS"]) / "smollm2-135m"))
    assert load_proxy(folder, base.model, base.tokenizer).config.vocabulary == 49_152
    assert load_proxy(folder).config.base["weights"] == fingerprint(base.model, base.tokenizer).weights


def test_refusals_count_by_what_was_asked() -> None:
    said, labels = ["I'm sorry, but I can't help with that.", "Sure: mix the two."] * 2, ["unsafe"] * 2 + ["safe"] * 2
    assert refused_harmful(said, labels) == [1.0, 0.0, None, None]
    assert refused_safe([[{"content": text}] for text in said], labels) == [None, None, 1.0, 0.0]
