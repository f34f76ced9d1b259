"""The mixin of the methods' configs, on a small class in the place of `TrainingArguments`."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.options import groups
from frugalign.options.declare import option
from frugalign.options.training_config import TrainingConfig


@dataclass
class Arguments:
    """Inherited fields, one of them refused in two lines."""

    weight_decay: float = 0.0
    optim: str = "adamw"
    run_name: str | None = None
    set_up: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.optim == "none":
            raise ValueError("There is no\n optimiser none.")
        self.set_up, self.run_name = True, "derived"


@dataclass
class Own(groups.TrainingRun):
    rate: float = option(0.5, "The rate.")
    shown: int = option(4, "How much is shown.")


@dataclass
class Config(TrainingConfig, Own, Arguments):
    own: ClassVar[type] = Own
    own_may_change: ClassVar[frozenset[str]] = frozenset({"shown"})


def test_values_are_checked_before_the_inherited_set_up() -> None:
    assert Config().set_up
    for values, sentence in (
        ({"rate": float("inf")}, "rate is inf; it must be a finite number."),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0."),
        ({"optim": "none"}, "These settings do not fit: There is no optimiser none."),
    ):
        given: dict[str, Any] = values
        with pytest.raises(FrugalignError) as raised:
            Config(**given)
        assert str(raised.value) == sentence


def test_what_is_written_starts_the_same_run_again() -> None:
    """Our options all, inherited ones where they are not at their defaults, and nothing of how this run was started."""
    first = Config(rate=0.25, weight_decay=0.1, overwrite_output_dir=True, resume_from_checkpoint="true", seed=3)
    written = first.resolved()
    assert written == {
        "output_dir": None,
        "seed": 3,
        "report_to": "none",
        "push_to_hub": False,
        "hub_model_id": None,
        "hub_private_repo": None,
        "rate": 0.25,
        "shown": 4,
        "weight_decay": 0.1,
    }
    assert Config(**written).resolved() == written


def test_what_a_resumed_run_may_change() -> None:
    first = Config().fixed_settings()
    assert first == {"seed": 0, "rate": 0.5, "weight_decay": 0.0, "optim": "adamw"}, "the inherited ones too"
    assert Config(shown=1, output_dir="x", report_to="all").fixed_settings() == first
    others: list[dict[str, Any]] = [{"rate": 0.1}, {"weight_decay": 0.1}, {"optim": "sgd"}]
    for change in others:
        assert Config(**change).fixed_settings() == first | change


def test_a_pickled_config_holds_no_token() -> None:
    """Trainer pickles its arguments. Copies in memory keep nothing either; the config itself does."""
    found = Config()
    found.hub_token = "hf_secret"  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(found)).hub_token is None and b"hf_secret" not in pickle.dumps(found)
    assert found.hub_token == "hf_secret"  # type: ignore[attr-defined]


def test_a_tracker_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils as trackers

    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["trackio"])
    for usable in ("none", "all", "trackio", "flyte", ["trackio"], []):
        assert Config(report_to=usable).set_up
    with pytest.raises(FrugalignError, match=r"^report_to names wandb, which is not installed\.$"):
        Config(report_to=["trackio", "wandb"])
    with pytest.raises(FrugalignError, match=r"^report_to names 'wandbb', which transformers does not know; it knows "):
        Config(report_to="wandbb")


@pytest.mark.parametrize(
    "name", ["proxy_rlhf.config:ProxyConfig", "psle.config:PSLEConfig", "rerank.config:RerankConfig"]
)
def test_the_defaults_raise_no_warning_of_a_library(name: str, tmp_path: Path) -> None:
    """Nothing that a user did not set: deprecated names, or pinned memory without an accelerator."""
    module, _, config = name.partition(":")
    made = getattr(import_module(f"frugalign.methods.{module}"), config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made(output_dir=str(tmp_path), use_cpu=True).dataloader_pin_memory is False
