"""`PSLEConfig`: contradictions in one sentence, the way to YAML and back, and a help that needs no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from frugalign.base.errors import FrugalignError
from frugalign.cli.main import VERBS, main
from frugalign.cli.method import command_of
from frugalign.cli.parser import parse
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.options import PSLEOptions

COMMAND = command_of("psle")
NAN, INF = float("nan"), float("inf")


def config(tmp_path: Path, **options: Any) -> PSLEConfig:
    return PSLEConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *(
            ({name: 0}, f"{name} is 0; it must be at least 1.")
            for name in (
                "rounds",
                "num_generations",
                "max_new_tokens",
                "sampling_batch_size",
                "prompts_per_round",
                "per_device_train_batch_size",
                "lora_r",
            )
        ),
        *(
            ({name: -1}, f"{name} is -1; it must be at least 0.")
            for name in ("tau", "tau_decay", "sft_weight", "kl_weight", "eval_prompts")
        ),
        ({"from_round": -1, "resume_from_checkpoint": "true"}, "from_round is -1; it must be at least 0."),
        *(
            ({name: 0.0}, f"{name} is 0.0; it must be above 0.")
            for name in ("temperature", "ranking_temperature", "weight_temperature", "weight_cap", "beta")
        ),
        ({"num_train_epochs": 0}, "num_train_epochs is 0; it must be above 0."),
        ({"target_kl": 0.0}, "target_kl is 0.0; it must be above 0."),
        ({"tau": NAN}, "tau is nan; it must be at least 0."),
        ({"tau_decay": INF}, "tau_decay is inf; it must be at least 0."),
        ({"weight_cap": INF}, "weight_cap is inf; it must be above 0."),
        (
            {"method": "ppo"},
            "method is 'ppo'; it must be one of psle, context_distillation, raft, dpo, rejection, sft.",
        ),
        ({"learning_rate": -2}, "learning_rate is -2; it must be at least 0, or -1."),
        ({"p_t": 0.1}, "p_t is an option of a proxy: it goes with train proxy."),
        ({"train": "full", "hidden": 8}, "hidden is an option of a proxy: it goes with train proxy."),
        ({"max_cache_gib": 1.0}, "max_cache_gib is an option of a proxy: it goes with train proxy."),
        ({"train": "proxy", "tail": "drop"}, "tail drop gives every answer with a token outside"),
        ({"train": "proxy", "candidate_features": "lookahead"}, "candidate_features lookahead needs"),
        ({"train": "proxy", "bf16": True}, "bf16 is not carried over to a proxy: the proxy trains in float32"),
        ({"train": "proxy", "gradient_checkpointing": True}, "gradient_checkpointing is not carried over to a proxy"),
        ({"train": "adapter"}, "train is 'adapter'; it must be one of lora, full, proxy."),
        ({"weighting": "rounds"}, "weighting is 'rounds'; it must be one of round, pair, none."),
        ({"tau_scale": "STD"}, "tau_scale is 'STD'; it must be one of std, raw."),
        ({"prompt_format": "xml"}, "prompt_format is 'xml'; it must be one of auto, raw, chat."),
        ({"reward_on_error": "ignore"}, "reward_on_error is 'ignore'; it must be one of raise, skip."),
        *(
            ({"method": "dpo", name: value}, f"{name} is an ablation of psle itself and has no part in method dpo.")
            for name, value in (("use_ranking", False), ("sft_weight", 0.5), ("weighting", "pair"))
        ),
        (
            {"method": "context_distillation", "use_principles": False},
            "method context_distillation learns from responses under the principles; no_use_principles leaves none.",
        ),
        (
            {"use_ranking": False, "sft_weight": 0.0},
            "no_use_ranking and sft_weight 0 together leave nothing to learn from.",
        ),
        ({"from_round": 1}, "from_round goes with resume_from_checkpoint true: it changes a run that is there."),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is not carried over: a step's couples are part of"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1},
            "load_best_model_at_end is not carried over: every round is kept",
        ),
        ({"eval_steps": 5}, "eval_steps is not carried over: every round is measured"),
        ({"per_device_eval_batch_size": 4}, "per_device_eval_batch_size is not carried over"),
        ({"label_names": ["x"]}, "label_names is not carried over"),
        ({"include_for_metrics": ["loss"]}, "include_for_metrics is not carried over"),
        # What transformers itself refuses comes as a sentence of ours.
        ({"lr_scheduler_type": "steep"}, "These settings do not fit: "),
        (
            {"warmup_steps": 0.5, "log_level": "info", "accelerator_config": "nowhere.json"},
            "These settings do not fit: ",
        ),
    ],
    ids=lambda value: "-".join(f"{name}={each}" for name, each in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError) as raised:
        config(tmp_path, **options)
    said = str(raised.value)
    assert said.startswith(sentence) and said.endswith(".") and "\n" not in said


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0, "tau_decay": 0.0, "kl_weight": 0.0, "eval_prompts": 0, "learning_rate": 0.0},
        {"sft_weight": 0.0},
        {"use_ranking": False},
        {"prompts_per_round": None},
        {"method": "raft", "use_principles": False},
        {"method": "rejection", "use_ranking": True, "sft_weight": 1.0, "weighting": "round"},
        {"from_round": 0, "resume_from_checkpoint": "true"},
    ],
)
def test_the_edge_of_what_is_allowed(options: dict[str, Any], tmp_path: Path) -> None:
    found = config(tmp_path, **options)
    assert {name: getattr(found, name) for name in options} == options


def test_whether_principles_are_needed(tmp_path: Path) -> None:
    """RAFT samples plainly, and so does the ablation; everything else compares with responses under the principles."""
    needed = {
        method: config(tmp_path, method=method).needs_principles
        for method in ("psle", "context_distillation", "raft", "dpo", "rejection", "sft")
    }
    assert needed.pop("raft") is False and all(needed.values())
    assert not config(tmp_path, use_principles=False).needs_principles


def test_the_options_are_our_own_as_plain_values(tmp_path: Path) -> None:
    found = config(tmp_path, tau=0.3, lr_scheduler_type="cosine")
    options = found.options()
    assert list(options) == [each.name for each in fields(PSLEOptions)]
    assert options["tau"] == 0.3 and options["lr_scheduler_type"] == "cosine" and options["rounds"] == 3
    assert yaml.safe_load(yaml.safe_dump(options)) == options


def test_the_resolved_options_reload_from_yaml(tmp_path: Path) -> None:
    """Options of every kind, none of them at its default, and inherited ones beside them."""
    first = config(
        tmp_path,
        model_name_or_path="base",
        dataset_name="prompts",
        principles="harmless",
        reward=["frugalign.sandbox:gold", "frugalign.sandbox:learned"],
        eval_reward=["frugalign.sandbox:rude"],
        reward_weights=[0.25, 1e-3],
        rounds=5,
        prompts_per_round=64,
        num_generations=2,
        tau=0.35,
        tau_decay=1.0,
        tau_scale="raw",
        use_ranking=False,
        sft_weight=0.5,
        weighting="pair",
        kl_weight=0.01,
        train="full",
        share_prefix=False,
        learning_rate=3e-5,
        lr_scheduler_type="cosine",
        save_total_limit=None,
        max_grad_norm=0.5,
        gradient_accumulation_steps=2,
        report_to="none",
        seed=5,
    )
    options = first.resolved()
    assert options["max_grad_norm"] == 0.5 and options["gradient_accumulation_steps"] == 2
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(options, sort_keys=False))
    again: PSLEConfig = parse(COMMAND, ["--config", str(file)])
    assert again.resolved() == options and again.options() == first.options()
    assert again.train == "full" and again.reward_weights == [0.25, 1e-3] and again.save_total_limit is None
    overridden: PSLEConfig = parse(COMMAND, ["--config", str(file), "--seed", "9", "--use_ranking"])
    assert overridden.seed == 9 and overridden.use_ranking and overridden.tau == 0.35


@pytest.mark.parametrize(
    "of_one_start",
    [
        {"resume_from_checkpoint": "true"},
        {"resume_from_checkpoint": "true", "from_round": 1},
        {"overwrite_output_dir": True},
    ],
)
def test_how_a_run_was_started_is_no_part_of_it(of_one_start: dict[str, Any], tmp_path: Path) -> None:
    """The `config.yaml` that a resumed run leaves starts a run like any other."""
    resumed, plain = config(tmp_path, **of_one_start), config(tmp_path)
    assert resumed.resolved() == plain.resolved()
    assert resumed.fixed_settings() == plain.fixed_settings()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(resumed.resolved()))
    again: PSLEConfig = parse(COMMAND, ["--config", str(file)])
    assert again.resume_from_checkpoint is None and again.from_round is None and not again.overwrite_output_dir


def test_what_a_resumed_run_may_change(tmp_path: Path) -> None:
    """How far it goes, where its parts lie and what is measured; not what the finished rounds were made by.

    Principles may be another *name*: the run is held to their fingerprint instead.
    """
    before = config(tmp_path).fixed_settings()
    may = {"rounds": 9, "principles": "p.yaml", "eval_reward": ["a:b"], "share_prefix": False}
    may |= {"output_dir": str(tmp_path / "moved"), "dataset_name": "d", "logging_steps": 1}
    assert PSLEConfig(use_cpu=True, **may).fixed_settings() == before  # type: ignore[arg-type]
    for name, value in (("tau", 0.3), ("method", "sft"), ("num_generations", 2), ("seed", 1), ("temperature", 0.9)):
        assert config(tmp_path, **{name: value}).fixed_settings() == before | {name: value} != before


def test_the_config_keeps_every_column_for_the_rewards(tmp_path: Path) -> None:
    found = config(tmp_path, remove_unused_columns=True)
    assert found.remove_unused_columns is False


def test_the_config_and_the_light_options_have_the_same_defaults() -> None:
    """What `--help` says is what runs."""
    found, light = PSLEConfig(use_cpu=True), PSLEOptions()
    assert found.output_dir == "runs/psle" and not found.report_to
    ours = found.options() | {
        "output_dir": None,
        "report_to": "none",
        "use_cpu": False,
        "learning_rate": -1,  # of a LoRA, which is the default
    }  # `none` runs as an empty list of trackers
    assert ours == {each.name: getattr(light, each.name) for each in fields(light)}


def test_the_help_names_every_option_and_loads_nothing_heavy() -> None:
    """From the light options alone: with torch and transformers kept from being imported it is the same text."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'datasets', 'peft', 'yaml'): sys.modules[name] = None\n"
        "from frugalign.cli.main import main\n"
        "sys.exit(main(['psle', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = set(done.stdout.replace(",", " ").replace("]", " ").split())
    for each in fields(PSLEOptions):
        assert f"--{each.name}" in words, each.name
    assert "--max_grad_norm" not in words and "--help_all" in done.stdout and "%%" not in done.stdout


def test_the_verb_is_in_the_front_doors_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert f"  psle      {VERBS['psle']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--tua 0.3", "There is no flag --tua; did you mean --tau?"),
        ("--tau high", "--tau: 'high' is not a number"),
        ("--method ppo", "--method: 'ppo' is not one of psle, context_distillation"),
        ("--tau -1", "tau is -1.0; it must be at least 0."),
    ],
)
def test_a_mistake_in_a_flag_is_one_sentence(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["psle", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"frugalign: {sentence}") and said.count("\n") == 1
