"""The trainings that `experiments.pairs` compares, all with the same callback, steps and batch."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from experiments.pairs_curve import NEW_TOKENS, Curve, Measure, load_sandbox
from experiments.pairs_data import read_rows

from frugalign import sandbox
from frugalign.base.ledger import Ledger
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer
from frugalign.methods.proxy_stored.config import StoredProxyConfig
from frugalign.methods.proxy_stored.trainer import StoredProxyTrainer
from frugalign.methods.representation_reward.options import RewardOptions
from frugalign.methods.representation_reward.run import train_reward
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.run import train_reranked
from frugalign.runs.layout import read_costs

BATCH, PROXY_BATCH = 8, 16
"""Pairs a step. The proxy makes several passes over stored features."""
_FIXED: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 50,
}
Setting = Mapping[str, Any]


@dataclass
class Run:
    """One training.

    Args:
        data: a folder of pairs.
        folder: for the run's files.
        probes: gives the folder of the probes fitted on the same pairs. Their costs are added.
        measure: at `steps` of the training.
        steps: optimiser steps of methods that feed the pairs at every step.
        seed: of weights and order.
        setting: the options of the line.
        strengths: at which a finished proxy is measured too.
    """

    data: Path
    folder: Path
    probes: Callable[[], Path]
    measure: Measure
    steps: int
    marks: tuple[int, ...]
    seed: int
    setting: Setting
    strengths: tuple[float, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    extra_seconds: float = 0.0

    def curve(self, uncounted: Any) -> Curve:
        """The callback."""
        return Curve(self.measure.of, self.marks, uncounted)

    def fitted(self) -> str:
        """Probes of the same pairs, at the run's cost."""
        folder = self.probes()
        costs = read_costs(folder)
        self.ledger.count(lm_forward_tokens=costs["lm_forward_tokens"])
        self.extra_seconds += sum(costs["seconds"].get(phase, 0.0) for phase in ("read", "optimise"))
        return str(folder)

    def common(self) -> dict[str, Any]:
        """Options of all our methods."""
        return {
            **_FIXED,
            "output_dir": str(self.folder),
            "overwrite_output_dir": True,
            "seed": self.seed,
            "model_name_or_path": sandbox.model,
            "max_new_tokens": NEW_TOKENS,
        }

    def done(self, ledger: Ledger, curve: Curve, started: float, kept: dict[str, Any] | None = None) -> dict[str, Any]:
        """The points of the curve with the costs. `kept`: the policy that the method itself keeps, if it chooses one."""
        seconds = time.process_time() - started - curve.seconds + self.extra_seconds
        tokens = ledger.lm_forward_tokens + (0 if ledger is self.ledger else self.ledger.lm_forward_tokens)
        costs = {"seconds": seconds, "tokens fed": tokens, "tokens sampled": ledger.generated_tokens}
        return {"points": curve.points, "kept": kept, "costs": costs, "trained": ledger.trainable_parameters}


def fit_probes(data: Path, folder: Path, seed: int) -> Path:
    """Probes of the base on these pairs. A finished fit is used again."""
    if not (folder / "costs.json").is_file():
        train_reward(
            RewardOptions(
                model_name_or_path=sandbox.model,
                dataset_name=str(data),
                output_dir=str(folder),
                overwrite_output_dir=True,
                use_cpu=True,
                n_shuffles=1,
                cache_dir=str(folder / "states"),
                seed=seed,
            )
        )
    return folder


def proxy_from_pairs(run: Run) -> dict[str, Any]:
    """Our proxy on stored pairs. It keeps the evaluation with the lowest validation loss."""
    setting = dict(run.setting)
    given = {"reward": run.fitted()} if setting.pop("with_confidence", False) else {}
    shuffled = random.Random(run.seed) if setting.pop("shuffled", False) else None
    started = time.process_time()
    config = StoredProxyConfig(
        **run.common(), cache_dir=str(run.folder.parent / "features"), per_device_train_batch_size=PROXY_BATCH, **given, **setting
    )  # fmt: skip
    train, validation = (Dataset.from_list(read_rows(run.data / f"{split}.jsonl")) for split in ("train", "validation"))
    if shuffled is not None:
        train, validation = (_shuffled(rows, shuffled) for rows in (train, validation))
    curve = run.curve(run.ledger.uncounted)
    trainer = StoredProxyTrainer(load_sandbox(), config, train, validation, callbacks=[curve])
    trainer.train()
    spent = time.process_time() - curve.seconds
    curve.take(trainer.accelerator.unwrap_model(trainer.model), trainer.best.step)
    kept = curve.points.pop()
    curve.seconds = 0.0
    run.ledger.set_parameters(trainable=trainer.ledger.trainable_parameters)
    run.ledger.count(lm_forward_tokens=trainer.ledger.lm_forward_tokens)
    found = run.done(run.ledger, curve, started, kept)
    found["costs"]["seconds"] = spent - started + run.extra_seconds
    found["strengths"] = {f"{each:g}": run.measure.of(trainer.model, each) for each in run.strengths}
    return found


def _shuffled(rows: Dataset, rng: random.Random) -> Dataset:
    """Pairs whose labels say nothing."""
    swap = {"chosen": "rejected", "rejected": "chosen"}
    return Dataset.from_list(
        [{swap.get(k, k): v for k, v in row.items()} if rng.random() < 0.5 else row for row in rows]
    )


def dpo(run: Run) -> dict[str, Any]:
    """DPO with constant confidence, or re-ranking, on an adapter or every weight; online DPO with `sample`."""
    setting = dict(run.setting)
    sampled = setting.get("resample", False)
    given: dict[str, Any] = {"confidence": "constant"}
    if setting.pop("with_confidence", False):
        given = {"reward": run.fitted(), "confidence": "pair"}
    elif sampled:
        given["reward"] = run.fitted()
    started = time.process_time()
    sizes = {"num_train_epochs": 4} if sampled else {"max_steps": run.steps}
    curve = run.curve(run.ledger.uncounted)
    config = RerankConfig(
        **run.common(), dataset_name=str(run.data), per_device_train_batch_size=BATCH, **sizes, **given, **setting
    )
    trainer = train_reranked(config, callbacks=[curve])
    trainer.ledger.count(lm_forward_tokens=run.ledger.lm_forward_tokens)
    return run.done(trainer.ledger, curve, started)


def peer(run: Run) -> dict[str, Any]:
    """TRL's IPO, robust DPO and SFT."""
    from frugalign.methods.peers.trl import PeerRun, train_on_pairs

    setting = dict(run.setting)
    method = setting.pop("method")
    options = {"seed": run.seed, "use_cpu": True, "max_steps": run.steps, "per_device_train_batch_size": BATCH}
    started, curve = time.process_time(), run.curve(run.ledger.uncounted)
    rows = Dataset.from_list(read_rows(run.data / "train.jsonl"))
    train_on_pairs(method, load_sandbox(), rows, PeerRun(run.folder, run.ledger, options | setting, [curve]))
    return run.done(run.ledger, curve, started)


def proxy_by_reward(run: Run) -> dict[str, Any]:
    """Our proxy by the probes of the same pairs as its reward, on samples."""
    setting = dict(run.setting)
    reward = run.fitted()
    started = time.process_time()
    config = ProxyConfig(**run.common(), **setting)
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in read_rows(run.data / "train.jsonl")])
    curve = run.curve(run.ledger.uncounted)
    trainer = ProxyTrainer(load_sandbox(), reward, config, prompts, callbacks=[curve])
    trainer.train()
    trainer.ledger.count(lm_forward_tokens=run.ledger.lm_forward_tokens)
    return run.done(trainer.ledger, curve, started)


@dataclass(frozen=True)
class Line:
    """A row of the table: how it trains, and the settings that it chooses from.

    `family`: whether it counts as one of the DPO family. `noisy_only`: without wrong labels it is DPO. `is_cheap`: a step runs no language model.
    `as_proxy`: the setting is added to the one that the proxy has chosen.
    """

    train: Callable[[Run], dict[str, Any]]
    settings: tuple[Setting, ...]
    family: bool = False
    noisy_only: bool = False
    is_cheap: bool = False
    as_proxy: bool = False


def _of_proxy(**fixed: Any) -> tuple[Setting, ...]:
    return tuple({**fixed, "beta": beta, "kl_weight": weight} for beta in (0.03, 0.1, 0.3) for weight in (0.005, 0.02))


def lines(noise: float) -> dict[str, Line]:
    """The lines for a share of wrong labels, which robust and conservative DPO are told.

    The DPO family has the settings that gold on validation prompts chose among six of each line in an earlier run on such pairs, with as many
    updates (learning rates 2e-4, 4e-4, β 0.03, 0.1, 0.3). SFT has that of `studies/sandbox-core.yaml`.
    """
    told = noise or 0.1  # without wrong labels the two are left out
    by_gold = {"learning_rate": 4e-4, "beta": 0.3}
    return {
        "proxy": Line(proxy_from_pairs, _of_proxy(), is_cheap=True),
        "DPO": Line(dpo, (by_gold,), family=True),
        "conservative DPO": Line(dpo, ({**by_gold, "constant_confidence": 1 - told},), family=True, noisy_only=True),
        "IPO": Line(peer, ({**by_gold, "beta": 0.03, "method": "ipo"},), family=True),
        "robust DPO": Line(
            peer, ({**by_gold, "method": "robust_dpo", "label_smoothing": told},), family=True, noisy_only=True
        ),
        "SFT": Line(peer, ({"method": "sft", "learning_rate": 3e-3},)),
        "rerank": Line(dpo, ({**by_gold, "with_confidence": True},), family=True),
        "proxy, confidence": Line(proxy_from_pairs, ({"with_confidence": True},), is_cheap=True, as_proxy=True),
        "proxy, IPO": Line(proxy_from_pairs, _of_proxy(loss="ipo"), is_cheap=True),
        "DPO, every weight": Line(
            dpo, tuple({"train": "full", "learning_rate": r, "beta": 0.3} for r in (4e-5, 1.2e-4)), family=True
        ),
        "online DPO": Line(dpo, ({**by_gold, "resample": True, "sample": 8},), family=True),
        # What it may sample takes about as many CPU seconds as DPO's steps.
        "proxy by reward": Line(proxy_by_reward, ({"target_kl": 1.5, "budget_tokens": 100_000},), is_cheap=True),
        "token bias": Line(proxy_from_pairs, _of_proxy(candidate_features="token_bias"), is_cheap=True),
        "proxy, shuffled labels": Line(proxy_from_pairs, ({"shuffled": True},), is_cheap=True, as_proxy=True),
    }
