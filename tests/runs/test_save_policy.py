"""A trained policy in its run folder: the adapter or the whole model has a record that loading checks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from tests.engines.toy_bases import save_base

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.engines.loading import load_model
from frugalign.runs.save_policy import lora_of, save_policy


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_saved_policy_is_known_by_its_record(train: str, tmp_path: Path) -> None:
    """Whole, it loads; with another setting in its config, it is refused."""
    base, run = str(save_base(tmp_path / "base")), tmp_path / "run"
    loaded = load_model(base, device_map="cpu")
    args = SimpleNamespace(
        output_dir=str(run), train=train, model_name_or_path=base, lora_r=2, lora_alpha=4, push_to_hub=False
    )
    args.options = lambda: {"lora_r": 2}
    policy = get_peft_model(loaded.model, lora_of(args)) if train == "lora" else loaded.model
    save_policy(policy, loaded.tokenizer, args, Ledger(), trained_on={}, done="tuned", description="A test.")
    record = run / ("frugalign_adapter.json" if train == "lora" else "frugalign_model.json")
    assert record.is_file() and not list(run.glob("*.bin"))
    name, adapter = (base, str(run)) if train == "lora" else (str(run), None)
    assert torch.isfinite(
        load_model(name, adapter=adapter, device_map="cpu").model(torch.tensor([[5, 6]])).logits
    ).all()
    config = run / ("adapter_config.json" if train == "lora" else "config.json")
    old, new = ('"lora_alpha": 4', '"lora_alpha": 5') if train == "lora" else ('"silu"', '"gelu"')
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(FrugalignError, match="has been changed since it was saved"):
        load_model(name, adapter=adapter, device_map="cpu")
