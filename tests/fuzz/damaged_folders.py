"""Two classes of fuzzed input: artefacts and run folders, whose files are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.mutations import REFUSED, outcome, room, spoilt_bytes, spoilt_json, spoilt_value, written


@dataclass(frozen=True)
class Artefact:
    """A saved artefact: its folder, how it is loaded, and what it computes on fixed inputs."""

    folder: Path
    load: Callable[[Path], Any]
    compute: Callable[[Any], Any]

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.suffix in (".json", ".safetensors"))


@cache
def artefacts() -> dict[str, Artefact]:
    """A proxy, a representation reward and an adapter, tiny and with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tests.proxy.test_artefact import llama, tokenizer

    from frugalign.engines.adapters import attach_adapter, record_adapter
    from frugalign.engines.fingerprints import fingerprint
    from frugalign.proxy.network import load_proxy, new_proxy
    from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel, load_probes

    base = fingerprint(llama(), tokenizer(), name="my/base").to_dict()
    made = {name: room() / f"whole-{name}" for name in ("proxy", "reward", "adapter")}
    proxy = new_proxy(llama(), {"hidden": 4, "dim": 4})
    proxy.config.base = base
    proxy.save_pretrained(made["proxy"])
    config = RepresentationConfig(width=16, layers=[1, 2], mu=0.3, scale=0.7)
    config.base = base
    RepresentationModel(config).save_pretrained(made["reward"])
    adapted = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(made["adapter"])
    record_adapter(made["adapter"], fingerprint(adapted, tokenizer(), without_adapter=True))
    states, ids = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)), torch.arange(6)[None]

    def proxied(loaded: Any) -> Any:
        config = loaded.config
        settings = [config.objective, config.temperature, config.p_t, config.max_candidates, config.initial_bias]
        return loaded.query(states), settings

    def scored(loaded: Any) -> Any:
        return loaded.calibrated(states.unsqueeze(1).expand(3, 2, 16)), list(loaded.config.layers)

    def adapted_logits(loaded: Any) -> Any:
        return loaded(ids).logits, []

    return {
        "proxy": Artefact(made["proxy"], load_proxy, proxied),
        "reward": Artefact(made["reward"], load_probes, scored),
        "adapter": Artefact(made["adapter"], lambda path: attach_adapter(llama(), str(path)), adapted_logits),
    }


@cache
def right_outputs(kind: str) -> Any:
    import torch

    artefact = artefacts()[kind]
    with torch.no_grad():
        return artefact.compute(artefact.load(artefact.folder))


@st.composite
def damaged_artefacts(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """An artefact, one of its files, and that file's new bytes."""
    kind = draw(st.sampled_from(["proxy", "reward", "adapter"]))
    name = draw(st.sampled_from(artefacts()[kind].files))
    content = (artefacts()[kind].folder / name).read_bytes()
    spoilt = spoilt_json(json.loads(content)) if name.endswith(".json") else spoilt_bytes(content)
    return kind, name, draw(spoilt)


def check_artefact(case: tuple[str, str, bytes]) -> None:
    """A damaged artefact is refused, or the damage has no effect on what it computes."""
    import torch

    kind, name, content = case
    artefact, folder = artefacts()[kind], room() / f"damaged-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artefact.folder, folder)
    written(folder, name, content)
    found = outcome(lambda: artefact.load(folder))
    if found is REFUSED or content == (artefact.folder / name).read_bytes():
        return
    with torch.no_grad():
        values, settings = artefact.compute(found)
    right, right_settings = right_outputs(kind)
    assert values.shape == right.shape and torch.equal(values, right), f"{kind}: {name} was changed, and so are results"
    assert settings == right_settings, f"{kind}: settings in {name} were changed"


@cache
def run_files() -> dict[str, bytes]:
    """The files of a run with an evaluation."""
    from tests.reports.test_run_page import write_evaluation, write_log

    from frugalign.base.ledger import Ledger

    folder = room() / "whole-run"
    folder.mkdir()
    write_log(folder)
    ledger = Ledger()
    ledger.set_parameters(trainable=2_600, base=260_032)
    ledger.save(folder / "costs.json")
    (folder / "config.yaml").write_text("p_t: 0.01\nobjective: marginal\n")
    write_evaluation(folder / "evaluation")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@st.composite
def run_folders(draw: st.DrawFn) -> dict[str, bytes | None]:
    """Some files of a run with new bytes, or left out (None)."""
    names = draw(st.lists(st.sampled_from(sorted(run_files())), min_size=1, max_size=3, unique=True))
    found: dict[str, bytes | None] = {}
    for name in names:
        valid = run_files()[name]
        if name.endswith(".json") and draw(st.booleans()):
            found[name] = draw(spoilt_json(json.loads(valid)))
        elif name.endswith(".jsonl") and draw(st.booleans()):
            first = draw(spoilt_value(json.loads(valid.split(b"\n")[0])))
            found[name] = json.dumps(first).encode("utf-8", "surrogatepass") + b"\n" + valid
        else:
            found[name] = draw(st.none() | spoilt_bytes(valid))
    return found


def report_on(folder: Path) -> Any:
    """Write the page of a run."""
    from frugalign.reports.run_page import write_report

    return write_report(folder)


def check_run_folder(case: dict[str, bytes | None]) -> None:
    """`report` writes a page or says what is damaged."""
    folder = room() / "run"
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in (run_files() | case).items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    folder.mkdir(exist_ok=True)
    page = outcome(lambda: report_on(folder), seconds=20)  # its figures take seconds
    if page is not REFUSED:
        text = page.read_text(encoding="utf-8")
        assert text.rstrip().endswith("</html>") and "<script" not in text
