"""`StoredProxyTrainer`: a proxy from pairs, demonstrations or a teacher, on `transformers.Trainer`.

The frozen base reads every answer once, before training (`methods/answer_features`). From then on a step runs the proxy alone.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.data.splits import pairs_fingerprint, rows_fingerprint
from frugalign.engines.artefacts import content_hash
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import causal_lm, embedding_rows
from frugalign.methods.answer_features import Proposals
from frugalign.methods.answer_scores import ScoredAnswers, score_stored
from frugalign.methods.brake import KL_WEIGHT, Brake
from frugalign.methods.confidence import check_probes
from frugalign.methods.feature_worker import feature_pool
from frugalign.methods.proxies import load_base, prepare_proxy
from frugalign.methods.proxy_stored.best import Best
from frugalign.methods.proxy_stored.config import StoredProxyConfig
from frugalign.methods.proxy_stored.losses import demonstration_loss, pair_loss, teacher_loss
from frugalign.methods.proxy_stored.reading import Batch, Reader, Stored
from frugalign.methods.proxy_stored.teacher import teacher_model
from frugalign.methods.signals import signal_of
from frugalign.policies.principles import load_principles
from frugalign.proxy.network import ProxyModel
from frugalign.proxy.overseer import Objective
from frugalign.rewards.representation.network import PROBES, load_probes
from frugalign.runs.checkpoints import WholeCheckpoints
from frugalign.runs.folder import RunFolder
from frugalign.runs.processes import local_rows, mean_over_processes


class StoredProxyTrainer(WholeCheckpoints, Trainer):
    """Trains a proxy for a frozen language model from stored answers.

    Args:
        model: the frozen LM, loaded or as a hub id or folder.
        args: a `StoredProxyConfig`.
        train_dataset: pairs (prompt, chosen, rejected), or demonstrations (prompt, completion); with a teacher, prompts and the completions
            on which to imitate it. A column `weight` weights an example, `confidence` replaces a pair's label by a probability.
        eval_dataset: validation data in the same form, which stops the training.
        processing_class: the tokenizer; required if `model` is a bare module.
        proxy: a proxy to start from. Default: a new one of the default size.
        teacher: the model that `args` names as the teacher, if it is loaded already.

    Raises:
        FrugalignError: a user error, in one sentence.
    """

    args: StoredProxyConfig

    def __init__(
        self,
        model: PreTrainedModel | LoadedModel | str,
        args: StoredProxyConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        proxy: ProxyModel | None = None,
        teacher: LoadedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        base = load_base(model, processing_class, args)
        lm = base.model.eval().requires_grad_(False)
        self.ledger = Ledger()
        about = fingerprint(lm, base.tokenizer, name=base.name, revision=args.revision, adapter=args.adapter)
        proxy = prepare_proxy(proxy, base, about, args)
        self.objective: Objective = proxy.config.objective
        self.signal = signal_of(train_dataset.column_names, has_teacher=args.has_teacher)
        if args.kl_weight is None:
            args.kl_weight = KL_WEIGHT if self.signal == "pairs" else 0.0
        self._embeddings = embedding_rows(lm) if proxy.config.candidate_features == "embedding" else None
        self._data_hashes: dict[str, Any] = {
            "base": about.identity,
            "data": _content(train_dataset),
            "validation": _content(eval_dataset),
        }
        taught_by = (teacher or teacher_model(base, args)) if args.has_teacher else None
        probes = None if args.reward is None else load_probes(args.reward)
        if taught_by is not None:
            self._data_hashes["teacher"] = fingerprint(taught_by.model, taught_by.tokenizer).identity
            if args.principles is not None:
                self._data_hashes["principles"] = load_principles(args.principles).fingerprint()
        if probes is not None:
            if self.signal != "pairs":
                raise FrugalignError("reward gives the confidence in the labels of pairs, and this data has none.")
            check_probes(probes, lm, base.tokenizer, args)
            args.max_length = args.max_length or probes.config.max_length
            self._data_hashes["probes"] = content_hash(PROBES, probes)
        proposals = Proposals(proxy.config.temperature, proxy.limits)
        pool = feature_pool(args, base, about, taught_by)
        self.reader = Reader(base, self.signal, proposals, args, self.ledger, taught_by, probes, pool)
        with self.ledger.phase("read"):
            self.stored = self.reader(train_dataset)
            self.validation = None if eval_dataset is None else self.reader(eval_dataset)
        args.eval_strategy = IntervalStrategy.NO if eval_dataset is None else IntervalStrategy.STEPS
        super().__init__(
            model=proxy,
            args=args,
            data_collator=self.stored,
            train_dataset=range(len(self.stored.examples)),  # numbers of examples
            eval_dataset=None if self.validation is None else range(len(self.validation.examples)),
            processing_class=base.tokenizer,
            callbacks=[_StopsWhereItIsBest(self), RunFolder(self.ledger, args.resolved()), *(callbacks or [])],
        )
        # The loss is a mean over examples, so Trainer must average the micro-batches of an accumulated step.
        self.model_accepts_loss_kwargs = False
        self.reset_run_state()
        trainable = sum(parameter.numel() for parameter in proxy.parameters())
        self.ledger.set_parameters(trainable=trainable, base=causal_lm(lm).num_parameters())

    # -- the loss --------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the batch's examples, with the brake."""
        batch: Batch = inputs["batch"]
        scored = score_stored(model, batch.features, self.objective, self._embeddings)
        each, noted = self._losses(scored, batch)
        loss = self.brake.applied((batch.weights * each).mean(), scored.kl.mean())
        for name, value in noted.items():
            self._noted[name].append(value)
        return (loss, noted) if return_outputs else loss

    def _losses(self, scored: ScoredAnswers, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of every example without the brake `[B]`, and what to log, under TRL's names."""
        noted = {"kl": float(scored.kl.detach().mean())}
        if self.signal == "teacher":
            assert scored.from_teacher is not None
            noted["kl_from_teacher"] = float((scored.from_teacher / scored.lengths).detach().mean())
            return teacher_loss(scored), noted
        if self.signal == "demonstrations":
            noted["logps"] = float(scored.log_prob.detach().mean())
            return demonstration_loss(scored), noted
        rewards = self.args.beta * scored.log_ratio.detach()
        chosen, rejected = rewards.chunk(2)
        log_probs = scored.log_prob.detach().chunk(2)
        noted |= {
            "rewards/chosen": float(chosen.mean()),
            "rewards/rejected": float(rejected.mean()),
            "rewards/accuracies": float((chosen > rejected).float().mean()),
            "rewards/margins": float((chosen - rejected).mean()),
            "logps/chosen": float(log_probs[0].mean()),
            "logps/rejected": float(log_probs[1].mean()),
        }
        confidence = batch.confidence
        if confidence is not None:
            confidence = torch.where(confidence.isnan(), 1.0, confidence)
            noted["confidence/mean"] = float(confidence.mean())
        return pair_loss(scored, self.args, confidence), noted

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.ledger.phase("optimise"):
            loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:  # the last micro-batch of a step
            self.brake.end_step()
            self.ledger.count(optimizer_steps=1)
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"batch": inputs["batch"].to(self.accelerator.device)}

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the ledger counts LM tokens; Trainer's estimate is for language models

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log line."""
        if "loss" in logs:
            means = {name: sum(values) / len(values) for name, values in self._noted.items()}
            logs = logs | mean_over_processes(means, 1)
            self._noted.clear()
        super().log(logs, start_time)

    # -- evaluation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss and the logged measures on the validation data. Processes share the examples."""
        if self.validation is None:
            raise FrugalignError("There is no eval_dataset to evaluate on.")
        proxy = self.accelerator.unwrap_model(self.model)
        with self.ledger.phase("evaluate"):
            found = self.measure(self.validation, proxy)
        self.best.observe(found["loss"], self.state.global_step, proxy)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def measure(self, stored: Stored, proxy: nn.Module) -> dict[str, float]:
        """Means over examples: `loss`, with the brake, and what training logs."""
        mine, sums, size = local_rows(len(stored.examples)), defaultdict[str, float](float), self.args.eval_batch_size
        for start in range(0, len(mine), size):
            numbers = mine[start : start + size]
            batch = self._prepare_inputs(stored(numbers))["batch"]
            scored = score_stored(proxy, batch.features, self.objective, self._embeddings)
            each, noted = self._losses(scored, batch)
            loss = (batch.weights * each).mean() + self.brake.weight * scored.kl.mean()
            for name, value in (noted | {"loss": float(loss)}).items():
                sums[name] += len(numbers) * value
        return mean_over_processes(sums, len(mine))

    @torch.no_grad()
    def log_ratios(self, stored: Stored) -> Tensor:
        """`log π(y) − log p(y)` of every answer of stored examples, in the order of `Examples.rows`."""
        proxy, size, numbers = (
            self.accelerator.unwrap_model(self.model),
            self.args.eval_batch_size,
            len(stored.examples),
        )
        found = torch.empty(len(stored.features))
        for start in range(0, numbers, size):
            part = range(start, min(start + size, numbers))
            features = self._prepare_inputs(stored(part))["batch"].features
            scored = score_stored(proxy, features, self.objective, self._embeddings)
            found[stored.examples.rows(part)] = scored.log_ratio.cpu()
        return found

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's. Afterwards the proxy is the one of the best evaluation, unless `patience` is 0."""
        found = super().train(*args, **kwargs)
        self.best.restore(self.accelerator.unwrap_model(self.model))
        return found

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self._staging:
            self.best.save(Path(str(output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.best.load(Path(resume_from_checkpoint))

    def reset_run_state(self) -> None:
        self._noted: dict[str, list[float]] = defaultdict(list)
        slope = self.args.beta if self.signal == "pairs" else 1.0
        self.brake = Brake(self.args.kl_weight or 0.0, self.args.target_kl, slope)
        self.best = Best(self.args.patience)

    def run_settings(self) -> dict[str, Any]:
        return self.args.fixed_settings() | self._data_hashes

    def run_state(self) -> dict[str, Any]:
        return {"noted": dict(self._noted), "last_kl": self.brake.last, "best": self.best.state()}

    def load_run_state(self, state: dict[str, Any]) -> None:
        self._noted.update(state["noted"])
        self.brake.last = state["last_kl"]
        self.best.load_state(state["best"])


class _StopsWhereItIsBest(TrainerCallback):
    """Ends a training whose validation loss has not fallen for `patience` evaluations."""

    def __init__(self, trainer: StoredProxyTrainer) -> None:
        self._trainer = trainer

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._trainer.best.is_over:
            control.should_training_stop = True


def _content(data: Dataset | None) -> str | None:
    if data is None:
        return None
    return pairs_fingerprint(data) if "chosen" in data.column_names else rows_fingerprint(data)
