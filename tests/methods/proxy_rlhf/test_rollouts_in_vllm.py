"""Rollouts in vLLM, on a stand-in of its interfaces: what training reads is what the loop in this process records."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.decoding.vllm_stand_in import BLOCK
from tests.methods.proxy_rlhf.on_ray import trainer
from tests.methods.proxy_rlhf.small_trainer import ORDERS
from tests.methods.proxy_rlhf.small_trainer import trainer as trainer_of_base
from tests.two_layers import two_layers

from frugalign.base.ledger import Ledger
from frugalign.base.quantities import KL_PARTS
from frugalign.cli.main import main
from frugalign.decoding.noise import row_keys
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.methods.base_in_vllm import described
from frugalign.methods.proxy_rlhf import rollout_worker
from frugalign.methods.proxy_rlhf.rollout import Rollout, RolloutOptions
from frugalign.methods.proxy_rlhf.rollout_worker import worker_on
from frugalign.proxy.positions import log_probabilities
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel, RepresentationReward
from frugalign.runs.layout import read_log
from frugalign.workers.pool import NOTHING, Traffic
from frugalign.workers.record import Piece, Record, pack, unpack


class Travelling:
    """One worker in this process. What it is given and what it answers are bytes, as on Ray."""

    def __init__(self, worker: Any) -> None:
        self.size, self.traffic, self.worker = 1, Traffic(), worker

    def run(self, pieces: Sequence[Piece], shared: Record = NOTHING) -> Iterator[Record]:
        self.worker.share(unpack(pack(shared)))
        for piece in pieces:
            yield unpack(pack(self.worker.answer(unpack(pack(piece.record)))))

    def close(self) -> None:
        pass


def in_vllm(found: Any, **settings: Any) -> Travelling:
    """The pool of a trainer, with its worker in vLLM, whose cache holds three rows of five."""
    room = 3 * (max(map(len, found.prompt_ids)) + 12) // BLOCK
    found.args.vllm_args = {"max_num_seqs": 5, "max_num_batched_tokens": 40, "num_gpu_blocks_override": room} | settings
    record = described(found.args, found._base, found._base.name)
    return Travelling(worker_on(unpack(pack(Record({"engine": "vllm", **record.values}, record.tensors)))))


def rollout(found: Any, **options: Any) -> Rollout:
    ids = [found.prompt_ids[prompt] for prompt in range(4) for _ in range(4)]
    keys = row_keys(0, 0, [prompt for prompt in range(4) for _ in range(4)], list(range(4)) * 4)
    made = found.rollouts.complete(found.model, ids, keys, RolloutOptions(12, 16, **options), Ledger())
    assert made is not None
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {}),
        ({"objective": "sequential", "tail": "drop", "temperature": 0.8}, {}),
        ({"advantage": "gae"}, {"keep_all": True}),
    ],
)
def test_the_records_of_the_loop(vllm: str, tmp_path: Path, options: dict[str, Any], kept: dict[str, Any]) -> None:
    """The same tokens and candidates at the same places; states, KL and log π to rounding."""
    found = trainer(tmp_path, **options)
    with torch.no_grad():
        found.model.query_out.weight.normal_(generator=torch.Generator().manual_seed(0))
    one = rollout(found, **kept)
    found.rollouts.pool = in_vllm(found)
    other = rollout(found, **kept)
    assert found.rollouts.pool.worker._engine._llm.happened["preempted"] > 0
    assert (
        other.generation.completion_ids == one.generation.completion_ids
        and other.generation.ended == one.generation.ended
    )
    assert torch.equal(other.valid, one.valid) and other.statistics == pytest.approx(one.statistics, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(other.kl, one.kl, atol=1e-5, rtol=1e-4)
    for name in KL_PARTS:
        torch.testing.assert_close(getattr(other.generation, name), getattr(one.generation, name), atol=1e-5, rtol=1e-4)
    seen = []
    for made in (one, other):
        places = list(zip(made.positions.sequence.tolist(), made.positions.position.tolist(), strict=True))
        assert len(set(places)) == len(places)
        order = torch.tensor(sorted(range(len(places)), key=places.__getitem__))
        positions = made.positions
        score = found.model(positions.hidden, positions.ids, embeddings=found._embeddings) + found.model.offset(
            positions.log_p
        )
        chosen, _ = log_probabilities(score, positions, found.args.objective)
        parts = (
            positions.sequence,
            positions.position,
            positions.choice,
            positions.ids,
            positions.hidden,
            positions.log_p,
            chosen,
        )
        seen.append([part[order] for part in parts])
    for mine, theirs in zip(*seen, strict=True):
        if mine.is_floating_point():
            torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-4)
        else:
            assert torch.equal(theirs, mine)


@pytest.mark.slow
def test_a_training_whose_proxy_changes_each_round(vllm: str, tmp_path: Path) -> None:
    """Three rounds in one engine: the same responses, and the same weights to rounding, which Adam magnifies where a gradient is almost zero."""
    logs, weights = [], []
    for name in ("here", "there"):
        found = trainer(tmp_path / name, learning_rate=0.01)
        with torch.no_grad():
            found.model.query_out.weight.normal_(generator=torch.Generator().manual_seed(0))
        before = torch.cat([value.detach().flatten() for value in found.model.parameters()])
        if name == "there":
            found.rollouts.pool = in_vllm(found)
        found.train()
        logs.append(read_log(tmp_path / name))
        weights.append(torch.cat([value.detach().flatten() for value in found.model.parameters()]) - before)
    rewards = [[line.get("reward") for line in log] for log in logs]
    assert rewards[0] == rewards[1] and len(set(rewards[0])) > 2
    assert float((weights[0] - weights[1]).norm() / weights[0].norm()) < 0.01


@pytest.mark.slow
def test_a_reward_that_reads_states(vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM gives it none, so it reads the responses with the trainer's model: the same rewards."""
    base = load_model(two_layers(), device_map="cpu")
    config = RepresentationConfig(width=base.model.config.hidden_size, layers=[1, 2], mu=0.3, scale=0.7)
    config.base = fingerprint(base.model, base.tokenizer, name=two_layers()).to_dict()
    torch.manual_seed(0)
    probes = RepresentationModel(config)
    for parameter in probes.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    monkeypatch.setattr(rollout_worker, "open_pool", lambda *_: Travelling(None))
    rewards = []
    for name, options in {"here": {}, "there": {"ray": "local", "ray_engine": "vllm"}}.items():
        found = trainer_of_base(
            base, tmp_path / name, RepresentationReward(probes), max_steps=2, logging_steps=2, **options
        )
        if name == "there":
            found.rollouts.pool = in_vllm(found)
        found.train()
        rewards.append(next(line["reward"] for line in read_log(tmp_path / name) if "reward" in line))
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


@pytest.mark.slow
def test_the_command_with_workers_that_have_a_python_of_their_own(
    ray_here: str, vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the Python of the workers finds vLLM."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != vllm])
    python = tmp_path / "python"
    root = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([vllm, str(root), str(root / "src")])
    python.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ORDERS))
    words = f"proxy --model_name_or_path {two_layers()} --dataset_name prompts.jsonl --reward frugalign.sandbox:gold --use_cpu --max_steps 4"
    words += " --num_iterations 1 --num_generations 4 --per_device_train_batch_size 8 --max_new_tokens 8 --p_t 0.001 --logging_steps 2"
    there = (
        f"--output_dir there --ray {ray_here} --ray_workers 1 --ray_cpus 0.5 --ray_engine vllm --ray_python {python}"
    )
    assert main([*words.split(), "--output_dir", "here"]) == 0
    assert main([*words.split(), *there.split(), "--vllm_args", '{"max_num_seqs": 3}']) == 0
    logs = [read_log(Path(name)) for name in ("here", "there")]
    assert [line.get("reward") for line in logs[0]] == [line.get("reward") for line in logs[1]]
    tokens = [json.loads(Path(name, "costs.json").read_text())["generated_tokens"] for name in ("here", "there")]
    assert tokens[0] == tokens[1] > 0


@pytest.mark.slow
def test_records_of_a_base_in_bfloat16(vllm: str, tmp_path: Path) -> None:
    """States travel in two bytes, and training reads float32."""
    found = trainer_of_base(load_model(two_layers(), device_map="cpu", dtype="bfloat16"), tmp_path)
    found._base = replace(found._base, name=two_layers())
    found.rollouts.pool = in_vllm(found)
    answers, answer = list[Record](), found.rollouts.pool.worker.answer
    found.rollouts.pool.worker.answer = lambda piece: answers.append(answer(piece)) or answers[-1]
    made = rollout(found)
    assert made.positions.hidden.dtype == torch.float32 and made.positions.log_p.dtype == torch.float32
    assert answers[0].tensors["positions.hidden"].dtype == torch.bfloat16
    assert torch.equal(answers[0].tensors["positions.hidden"].float(), made.positions.hidden)
