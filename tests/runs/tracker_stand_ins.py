"""Not a test: modules in place of wandb, mlflow and trackio, with what transformers' callbacks and ours call, which record it.

The real libraries are tried by `tests/runs/test_real_trackers.py` where they are installed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

NAMES = ("wandb", "mlflow", "trackio")


@dataclass
class Recorded:
    """What a tracker was told: `runs` begun and `ended`, `scalars` as (step, values), `tables` as columns, and `config`."""

    runs: int = 0
    ended: int = 0
    scalars: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    tables: list[dict[str, list[Any]]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def begin(self, *args: Any, **kwargs: Any) -> None:
        self.runs += 1

    def end(self, *args: Any, **kwargs: Any) -> None:
        self.ended += 1

    def log(self, values: dict[str, Any], **kwargs: Any) -> None:
        """As wandb and trackio: one dictionary with the step in it, and tables among the values."""
        plain = {name: value for name, value in values.items() if not isinstance(value, _Table)}
        self.tables += [value.columns for value in values.values() if isinstance(value, _Table)]
        step = plain.pop("train/global_step")
        if plain:
            self.scalars.append((step, {name.removeprefix("train/"): value for name, value in plain.items()}))

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.scalars]


@dataclass
class _Table:
    columns: dict[str, list[Any]]


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """The tracker `name`, in place of the installed one if there is any."""
    found = Recorded()
    _MAKERS[name](found, monkeypatch)
    return found


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__, module.__path__ = ModuleSpec(name, None), []
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class _Config(dict[str, Any]):
    def __init__(self, found: Recorded) -> None:
        self.found = found

    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:  # type: ignore[override]
        self.found.config |= values

    def __setitem__(self, name: str, value: Any) -> None:
        self.found.config[name] = value


def _wandb(found: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**kwargs: Any) -> None:
        found.begin()
        module.run = SimpleNamespace(_label=lambda **_: None, summary={}, id="x", name="x")  # type: ignore[attr-defined]

    def table(columns: list[str], data: list[list[Any]]) -> _Table:
        return _Table({name: [row[place] for row in data] for place, name in enumerate(columns)})

    module = _module(
        monkeypatch, "wandb", run=None, init=init, log=found.log, Table=table, config=_Config(found), termwarn=print,
        define_metric=lambda *_, **__: None,
    )  # fmt: skip
    for part in ("wandb.sdk", "wandb.sdk.lib"):
        _module(monkeypatch, part)
    _module(monkeypatch, "wandb.sdk.lib.config_util", ConfigError=ValueError)


def _trackio(found: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(
        monkeypatch, "trackio", init=found.begin, finish=found.end, log=found.log, config=_Config(found),
        Table=lambda dataframe: _Table(dataframe.to_dict("list")), __version__="1.0",
        context_vars=SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None)),
    )  # fmt: skip


def _mlflow(found: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    active: list[Any] = []

    def start_run(**kwargs: Any) -> None:
        found.begin()
        active.append(SimpleNamespace(info=SimpleNamespace(run_id="x")))

    def end_run() -> None:
        found.end()
        active.clear()

    def log_metrics(metrics: dict[str, float], step: int, synchronous: bool = True) -> None:
        found.scalars.append((step, metrics))

    def log_table(data: dict[str, list[Any]], artifact_file: str) -> None:
        assert artifact_file == "completions.json"
        found.tables.append(data)

    validation = SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
    _module(
        monkeypatch, "mlflow", active_run=lambda: active[0] if active else None, start_run=start_run, end_run=end_run,
        log_metrics=log_metrics, log_table=log_table, is_tracking_uri_set=lambda: True, get_tracking_uri=lambda: "here",
        log_params=lambda params, synchronous=True: found.config.update(params), __version__="3.0.0",
        utils=SimpleNamespace(validation=validation),
    )  # fmt: skip


_MAKERS = {"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}
