"""Rollouts in pieces: joined they are the rollout of one piece, and it does not matter which process made which, or how often."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.proxy_rlhf.on_ray import TWO_WORKERS, killing, trainer
from tests.methods.proxy_rlhf.small_trainer import ORDERS, digest
from tests.methods.proxy_rlhf.small_trainer import trainer as trainer_of_module
from tests.two_layers import two_layers

from frugalign import sandbox
from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.quantities import KL_PARTS
from frugalign.cli.main import main
from frugalign.decoding import row_keys
from frugalign.engines.loading import load_model
from frugalign.engines.transformers import TransformersEngine
from frugalign.methods import base_workers
from frugalign.methods.proxy_rlhf import ProxyConfig
from frugalign.methods.proxy_rlhf.rollout import Recorded, Rollout, RolloutOptions, joined
from frugalign.methods.proxy_rlhf.rollout_worker import Rollouts, RolloutWorker, _from_record, _to_record
from frugalign.proxy.positions import Positions
from frugalign.runs.layout import read_log
from frugalign.workers.pool import LocalPool
from frugalign.workers.record import pack, unpack


def engine_of(found: Any) -> TransformersEngine:
    return TransformersEngine(found._base.model, found._base.tokenizer)


def rollout(found: Any, piece: int | None, spent: Ledger, **options: Any) -> Rollout:
    """The first rollout of a trainer in this process, in pieces of `piece` responses."""
    ids = [found.prompt_ids[prompt] for prompt in range(4) for _ in range(4)]
    keys = row_keys(0, 0, [prompt for prompt in range(4) for _ in range(4)], list(range(4)) * 4)
    rollouts = Rollouts(LocalPool(RolloutWorker(engine_of(found))), found._base, 4, piece)
    made = rollouts.complete(found.model, ids, keys, RolloutOptions(8, 16, **options), spent)
    assert made is not None
    return made


def rows(made: Rollout) -> list[tuple[int, int]]:
    return list(zip(made.positions.sequence.tolist(), made.positions.position.tolist(), strict=True))


def test_pieces_together_are_the_whole(tmp_path: Path) -> None:
    """The same tokens at the same places; numbers to rounding, since the batches differ."""
    found = trainer(tmp_path)
    with torch.no_grad():
        found.model.query_out.weight.normal_(generator=torch.Generator().manual_seed(0))
    one, spent = rollout(found, None, whole := Ledger(), state_layers=[1, 2]), Ledger()
    split = rollout(found, 4, spent, state_layers=[1, 2])
    assert split.generation.completion_ids == one.generation.completion_ids and len(one.generation.ended) == 16
    assert split.generation.ended == one.generation.ended
    assert torch.equal(split.valid, one.valid) and spent.generated_tokens == whole.generated_tokens > 0
    torch.testing.assert_close(split.kl, one.kl, atol=1e-5, rtol=1e-4)
    for name in (*KL_PARTS, "states"):
        torch.testing.assert_close(getattr(split.generation, name), getattr(one.generation, name), atol=1e-4, rtol=1e-4)
    assert split.statistics.keys() == one.statistics.keys()
    assert split.statistics == pytest.approx(one.statistics, rel=1e-4, abs=1e-5)
    # The same positions; within a piece they are in the order of time.
    order = [sorted(range(len(rows(each))), key=rows(each).__getitem__) for each in (one, split)]
    assert sorted(rows(one)) == sorted(rows(split)) and rows(one) != rows(split)
    wide = one.positions.hidden[order[0]], split.positions.hidden[order[1]]
    torch.testing.assert_close(*wide, atol=1e-4, rtol=1e-4)
    assert torch.equal(one.positions.choice[order[0]], split.positions.choice[order[1]])


@pytest.mark.parametrize(("piece", "parts"), [(None, 1), (1, 4), (4, 4), (7, 4), (8, 2), (12, 2), (100, 1)])
def test_a_piece_has_whole_groups(piece: int | None, parts: int) -> None:
    slices = Rollouts(LocalPool(None), None, 4, piece)._parts(16)  # type: ignore[arg-type]
    assert len(slices) == parts and [row for part in slices for row in range(16)[part]] == list(range(16))
    assert all(part.start % 4 == 0 for part in slices)


def test_a_piece_without_a_choice_is_joined_with_one_that_has(tmp_path: Path) -> None:
    found = trainer(tmp_path)
    sampled: list[Any] = []
    worker = RolloutWorker(engine_of(found))
    answer = worker.answer
    worker.answer = lambda piece: sampled.append(answer(piece)) or sampled[-1]  # type: ignore[method-assign,func-returns-value]
    rollouts = Rollouts(LocalPool(worker), found._base, 4, 4)
    keys = row_keys(0, 0, range(8), [0] * 8)
    rollouts.complete(found.model, found.prompt_ids[:2] * 4, keys, RolloutOptions(8, 16), Ledger())
    pieces = [_from_record(each, torch.device("cpu")) for each in sampled]
    assert len(pieces) == 2 and all(each.positions is not None for each in pieces)
    both = joined([replace(pieces[0], positions=None), pieces[1]])
    assert both is not None and both.positions.sequence.min() >= 4 and both.kl.shape[0] == 8
    assert joined([replace(each, positions=None) for each in pieces]) is None


@pytest.mark.parametrize("objective", ["marginal", "sequential"])
def test_a_record_that_travels_loses_nothing(tmp_path: Path, objective: str) -> None:
    found = trainer(tmp_path, objective=objective)
    rollouts, spent = Rollouts(LocalPool(RolloutWorker(engine_of(found))), found._base, 4, None), Ledger()
    made = rollouts.complete(
        found.model, found.prompt_ids, row_keys(0, 0, range(4), [0] * 4), RolloutOptions(8, 16), spent
    )
    assert made is not None
    whole = Recorded(made.generation, made.positions, made.kl, made.valid, {"entropy": 0.1}, 3)
    for dtype in (torch.float32, torch.bfloat16):  # of what was computed in float32, bfloat16 would lose most
        content = pack(_to_record(whole, spent, dtype))
        back = _from_record(unpack(content), torch.device("cpu"))
        assert back.generation.completion_ids == made.generation.completion_ids and back.sums == whole.sums
        for each in fields(Positions):
            one, other = getattr(made.positions, each.name), getattr(back.positions, each.name)
            assert (one is None) == (other is None), each.name
            assert one is None or (one.dtype == other.dtype and torch.equal(one, other)), each.name
        assert (made.positions.rejected is None) == (objective == "marginal")
    halved = replace(whole, positions=replace(made.positions, hidden=made.positions.hidden.bfloat16().float()))
    small = pack(_to_record(halved, spent, torch.bfloat16))
    assert len(content) - len(small) > made.positions.hidden.numel() * 2 - 100, "what bfloat16 holds is sent in it"


def test_a_module_without_a_name_cannot_be_loaded_by_workers(tmp_path: Path) -> None:
    base = load_model(two_layers())
    base.model.config._name_or_path = base.model.name_or_path = ""
    with pytest.raises(FrugalignError, match="Workers on Ray load the base by its name"):
        trainer_of_module(base, tmp_path, **TWO_WORKERS)


@pytest.fixture(scope="module")
def pool(ray_here: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The two workers of a trainer, which the trainers of all tests use one after the other: each start takes seconds."""
    found = trainer(tmp_path_factory.mktemp("pool"), **TWO_WORKERS).rollouts.pool
    yield found
    found.close()


def finished(folder: Path, pool: Any = None, kills: int = 0, **options: Any) -> tuple[str, dict[str, int], list[Any]]:
    """The weights' hash, the ledger's counts and the log of a training. `kills`: moments at which a worker is killed."""
    found = trainer(folder, **options)
    found.rollouts.pool = pool or found.rollouts.pool
    with killing(found.rollouts.pool, kills, seed=kills) as killed:
        found.train()
    assert len(killed) == kills
    log = [{name: value for name, value in line.items() if "second" not in name} for line in read_log(folder)]
    return digest(found.model), dict(found.ledger.counts()), log


@pytest.mark.slow
def test_two_workers_train_what_this_process_does(pool: Any, tmp_path: Path) -> None:
    """Bit by bit, with the same counts and the same log; also where workers are killed at two random moments."""
    one = finished(tmp_path / "one")
    assert finished(tmp_path / "two", pool) == one and pool.traffic.returned > 0
    assert finished(tmp_path / "killed", pool, kills=2) == one and pool.traffic.lost > 0


@pytest.mark.slow
def test_workers_killed_at_ten_random_moments(pool: Any, tmp_path: Path) -> None:
    steps = {"max_steps": 40, "num_train_epochs": 20}
    assert finished(tmp_path / "killed", pool, kills=10, **steps) == finished(tmp_path / "one", **steps)


@pytest.mark.slow
def test_shares_for_each_worker_give_the_same_tokens(pool: Any, tmp_path: Path) -> None:
    """Without a size of the pieces, each worker gets an even share: the same tokens, and numbers to rounding."""
    found, alone = (trainer(tmp_path / name, sampling_batch_size=None) for name in ("two", "one"))
    found.rollouts.pool = pool
    for each in (found, alone):
        each.train()
    logs = [read_log(tmp_path / name) for name in ("two", "one")]
    for name in ("reward", "completion_length"):
        assert [line.get(name) for line in logs[0]] == [line.get(name) for line in logs[1]]
    assert found.ledger.generated_tokens == alone.ledger.generated_tokens
    for name in ("kl", "loss"):
        first = [next(line[name] for line in log if name in line) for log in logs]
        assert first[0] == pytest.approx(first[1], abs=1e-4)


@pytest.mark.slow
def test_a_worker_with_another_base_is_refused(ray_here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_workers, "seen_from_anywhere", lambda name: str(sandbox.model))
    found = trainer(tmp_path, **TWO_WORKERS | {"ray_workers": 1})
    with pytest.raises(FrugalignError, match=r"of a worker on .* is not the trainer's: they differ in"):
        found.train()
    found.rollouts.pool.close()


@pytest.mark.slow
def test_the_command_makes_its_rollouts_on_ray(ray_here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends its worker. The run could be resumed anywhere."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ORDERS))
    words = f"proxy --model_name_or_path {two_layers()} --dataset_name prompts.jsonl --reward frugalign.sandbox:gold --use_cpu"
    words += " --max_steps 2 --num_iterations 1 --num_generations 4 --per_device_train_batch_size 8 --max_new_tokens 8 --p_t 0.001"
    assert (
        main([*words.split(), "--output_dir", "run", "--ray", ray_here, "--ray_workers", "1", "--ray_cpus", "0.5"]) == 0
    )
    assert json.loads(Path("run/costs.json").read_text())["generated_tokens"] > 0
    assert "ray: local" in Path("run/config.yaml").read_text()


def test_where_rollouts_are_made_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    given = {"ray": "10.0.0.1:6379", "ray_workers": 8, "ray_gpus": 1, "sampling_batch_size": 64}
    given |= {"ray_engine": "vllm", "ray_python": "/opt/vllm/bin/python", "vllm_args": {"max_num_seqs": 512}}
    here, there = (ProxyConfig(output_dir=str(tmp_path), use_cpu=True, **more) for more in ({}, given))
    assert here.fixed_settings() == there.fixed_settings()
