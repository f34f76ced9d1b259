"""`PSLETrainer` from Python: ten lines in a notebook, what it refuses, and that nothing of dropout is in its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.two_layers import two_layers
from transformers import GPT2Config, GPT2LMHeadModel

from frugalign import PSLEConfig, PSLETrainer
from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.engines.loading import load_model
from frugalign.policies.principles import Principles
from frugalign.sandbox.world import make_prompts

TOLD = Principles(preamble="Be polite.")


def settings(folder: Path, **options: Any) -> PSLEConfig:
    given: dict[str, Any] = {
        "rounds": 1, "max_new_tokens": 12, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "num_train_epochs": 1
    }  # fmt: skip
    return PSLEConfig(output_dir=str(folder), **(given | options))


def prompts(n: int = 6) -> Dataset:
    return Dataset.from_list([{"prompt": row["prompt"]} for row in make_prompts("train", n, 0)])


def by_length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.slow
def test_in_a_notebook(tmp_path: Path) -> None:
    trainer = PSLETrainer(two_layers(), by_length, settings(tmp_path, rounds=2), prompts(), principles=TOLD)
    manifests = trainer.train()
    assert [each["round"] for each in manifests] == [0, 1] and trainer.ledger.optimizer_steps == 2
    with pytest.raises(FrugalignError, match="has trained already"):
        PSLETrainer.train(_again(trainer, tmp_path / "other"))


def _again(trainer: PSLETrainer, folder: Path) -> PSLETrainer:
    trainer.args.output_dir = str(folder)
    return trainer


def test_every_weight_where_the_config_says_so(tmp_path: Path) -> None:
    trainer = PSLETrainer(two_layers(), by_length, settings(tmp_path, train="full"), prompts(), principles=TOLD)
    assert not hasattr(trainer.model, "peft_config")
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def scaled(scale: float) -> Any:
    def by_length(completions: list[str], **_: Any) -> list[float]:
        return [scale * len(text) for text in completions]

    return by_length


def test_a_run_is_resumed_with_its_own_settings_rewards_and_columns_only(tmp_path: Path) -> None:
    """Whatever changes what is learned, also under the same names."""
    labels = prompts().add_column("label", list("abcdef"))

    def refusal(reward: Any, data: Dataset, **options: Any) -> str:
        args = settings(tmp_path, resume_from_checkpoint="true", **options)
        with pytest.raises(FrugalignError) as error:
            PSLETrainer(two_layers(), reward, args, data, principles=TOLD).train(resume_from_checkpoint=True)
        return str(error.value)

    first = PSLETrainer(two_layers(), scaled(1.0), settings(tmp_path), labels, principles=TOLD)
    write_json_atomic(tmp_path / "run.json", first._run_settings())
    assert "another reward 'by_length'" in refusal(scaled(2.0), labels)
    assert "other prompts" in refusal(scaled(1.0), labels.remove_columns("label").add_column("label", list("abcdeg")))
    for name, value in (("weight_decay", 0.1), ("max_steps", 3), ("adam_beta1", 0.5)):
        assert f"was made with {name} " in refusal(scaled(1.0), labels, **{name: value})


def test_what_it_refuses(tmp_path: Path) -> None:
    loaded = load_model(two_layers())
    args = settings(tmp_path)
    with pytest.raises(FrugalignError, match="needs processing_class"):
        PSLETrainer(loaded.model, by_length, args, prompts(), principles=TOLD)
    with pytest.raises(FrugalignError, match="no prompts"):
        PSLETrainer(two_layers(), by_length, args, prompts().select([]), principles=TOLD)
    with pytest.raises(FrugalignError, match="principles is missing"):
        PSLETrainer(two_layers(), by_length, args, prompts())
    first = PSLETrainer(loaded.model, by_length, args, prompts(), principles=TOLD, processing_class=loaded.tokenizer)
    with pytest.raises(FrugalignError, match="has an adapter already"):
        PSLETrainer(first.model, by_length, args, prompts(), principles=TOLD, processing_class=loaded.tokenizer)


@pytest.mark.parametrize(("wanted", "warned"), [(3, False), (4, True), (0, False)])
def test_fewer_held_out_prompts_than_asked_for_are_said(
    wanted: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three prompts are held out. `eval_prompts` 0 measures no round, so there is nothing to say."""
    args = settings(tmp_path, eval_prompts=wanted)
    PSLETrainer(two_layers(), by_length, args, prompts(), principles=TOLD, eval_dataset=prompts(3))
    said = [
        text for text in caplog.messages if "Rounds are measured on 3 held-out prompts, not on eval_prompts = 4" in text
    ]
    assert bool(said) == warned


def test_a_model_with_dropout_is_its_own_start(tmp_path: Path) -> None:
    """At a learning rate of nothing the KL to the start is 0 and DPO's loss log 2, whatever dropout the model was built with."""
    loaded = load_model(two_layers())
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(loaded.tokenizer), n_positions=192, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.3, embd_pdrop=0.3,
        attn_pdrop=0.3, bos_token_id=loaded.tokenizer.bos_token_id, eos_token_id=loaded.tokenizer.eos_token_id,
    )  # fmt: skip
    args = settings(tmp_path, method="dpo", learning_rate=1e-20, kl_weight=1.0, tau=0.0)
    trainer = PSLETrainer(
        GPT2LMHeadModel(config), by_length, args, prompts(), principles=TOLD, eval_dataset=prompts(3),
        processing_class=loaded.tokenizer,
    )  # fmt: skip
    trainer.train()
    seen = json.loads((tmp_path / "round-000" / "evaluation.json").read_text())
    assert seen["kl_per_sequence"]["mean"] == pytest.approx(0.0, abs=1e-6)
    log = [json.loads(line) for line in (tmp_path / "round-000" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in log if "loss" in line)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5) and first["kl"] == pytest.approx(0.0, abs=1e-6)
