"""The ledger: counts, phases, shares, and that a resumed run goes on where it stopped."""

import json
from pathlib import Path

import pytest

from frugalign.base.ledger import Ledger
from frugalign.runs.layout import read_costs


def test_counts_add_up() -> None:
    ledger = Ledger()
    ledger.count(lm_forward_tokens=10, generated_tokens=3)
    ledger.count(lm_forward_tokens=5, reward_calls=2, optimizer_steps=1)
    costs = ledger.to_dict()
    assert (costs["lm_forward_tokens"], costs["generated_tokens"], costs["reward_calls"], costs["optimizer_steps"]) == (
        15,
        3,
        2,
        1,
    )


def test_phases_add_up_even_when_the_block_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    clock = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr("frugalign.base.ledger.time.perf_counter", lambda: next(clock))
    with ledger.phase("rollout"):
        pass
    with pytest.raises(KeyError), ledger.phase("rollout"):
        raise KeyError
    assert ledger.seconds == {"rollout": 2.5}


def test_shares() -> None:
    """2,600 trained of 260,000: 1 % of the base and of full fine-tuning; PPO trains two base-sized networks: 0.5 %."""
    ledger = Ledger()
    assert ledger.shares == {"of_base": None, "of_full_finetuning": None, "of_ppo": None}
    ledger.set_parameters(trainable=2_600, base=260_000)
    assert ledger.shares == pytest.approx({"of_base": 0.01, "of_full_finetuning": 0.01, "of_ppo": 0.005})


def test_a_resumed_ledger_continues(tmp_path: Path) -> None:
    first = Ledger()
    first.count(lm_forward_tokens=100, optimizer_steps=4)
    first.set_parameters(trainable=1, base=10)
    first.add_seconds("rollout", 2.0)
    first.save(tmp_path / "costs.json")
    saved = read_costs(tmp_path)
    assert saved == json.loads(json.dumps(saved))
    saved["wall_clock_seconds"] = 60.0
    second = Ledger()
    second.load_dict(saved)
    second.count(lm_forward_tokens=1)
    second.add_seconds("rollout", 1.0)
    costs = second.to_dict()
    assert costs["lm_forward_tokens"] == 101 and costs["optimizer_steps"] == 4
    assert costs["seconds"]["rollout"] == pytest.approx(3.0)
    assert costs["wall_clock_seconds"] >= 60.0
    assert costs["shares"]["of_base"] == pytest.approx(0.1)
    assert costs["peak_memory_mb"] > 1


def test_the_table_names_every_cost() -> None:
    ledger = Ledger()
    ledger.set_parameters(trainable=2_600, base=260_032)
    ledger.add_seconds("rollout", 1.0)
    rows = dict(ledger.table())
    assert rows["Trainable parameters"] == "2,600"
    assert rows["… share of the base"] == "1.00 %" and rows["… share of PPO's two networks"] == "0.50 %"
    assert rows["Seconds, rollout"] == "1.0"
