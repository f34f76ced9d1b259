"""`ProxyTrainer`: Proxy-RLHF on `transformers.Trainer`. The mathematics is in `proxy.overseer` and `loss`.

`Trainer` receives only the proxy. The frozen LM is a plain attribute and in no state dict. A round is one rollout, which feeds
`steps_per_rollout` optimiser steps. Round and prompts follow from `global_step`, and noise from (seed, epoch, prompt, sample,
position), so a resumed run repeats the interrupted one bit by bit. The data loader only counts steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import SAMPLED, SCORED, work
from frugalign.data.splits import rows_fingerprint
from frugalign.data.templating import Rendering
from frugalign.decoding import row_keys
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel
from frugalign.engines.sharding import replica
from frugalign.engines.transformers import causal_lm, device_of, embedding_rows
from frugalign.methods.proxies import load_base, prepare_proxy
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.evaluate_proxy import evaluate_proxy
from frugalign.methods.proxy_rlhf.experience import (
    Experience,
    ScoredRollout,
    check_first_rollout,
    score_rollout,
)
from frugalign.methods.proxy_rlhf.kl_control import AfterEachStep, KLController, RolloutUpdate, TrustRegion
from frugalign.methods.proxy_rlhf.loss import proxy_loss
from frugalign.methods.proxy_rlhf.prompts import Prompts, write_completions
from frugalign.methods.proxy_rlhf.rollout import Rollout, RolloutOptions
from frugalign.methods.proxy_rlhf.rollout_worker import rollouts_of
from frugalign.methods.proxy_rlhf.schedule import Schedule, sample_numbers
from frugalign.options.training_parts import refused_settings
from frugalign.policies.prompt_rows import PromptRows, Scoring
from frugalign.proxy.network import ProxyModel
from frugalign.rewards import load_rewards
from frugalign.rewards.content import reward_contents
from frugalign.rewards.representation.network import share_base, state_fingerprint
from frugalign.runs.checkpoints import WholeCheckpoints
from frugalign.runs.folder import RunFolder, open_run_folder
from frugalign.runs.processes import gather_all, sum_over_processes
from frugalign.runs.trackers import log_table

_log = logging.getLogger(__name__)


class ProxyTrainer(WholeCheckpoints, Trainer):
    """Trains a proxy for a frozen language model.

    Args:
        model: the frozen LM, loaded or as a hub id or folder.
        reward_funcs: one or several rewards. Each is a function with TRL's signature, or a string as on the command line.
        args: a `ProxyConfig`.
        train_dataset: a data set with a `prompt` column. Other columns are passed to the rewards.
        eval_dataset: held-out prompts in the same form.
        processing_class: the tokenizer; required if `model` is a bare module.
        proxy: a trained or untrained proxy to start from. Default: a new proxy of the default size.

    Raises:
        FrugalignError: a user error, in one sentence.
    """

    args: ProxyConfig
    processing_class: PreTrainedTokenizerBase
    _update: RolloutUpdate

    def __init__(
        self,
        model: PreTrainedModel | LoadedModel | str,
        reward_funcs: Any,
        args: ProxyConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        proxy: ProxyModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        loaded = load_base(model, processing_class, args)
        self.lm, tokenizer = loaded.model.eval().requires_grad_(False), loaded.tokenizer
        self.ledger, self._uncounted = Ledger(), Ledger()
        self.rewards = load_rewards(reward_funcs, device=str(device_of(self.lm)))
        self.kl = KLController(args.beta, args.target_kl)
        base = fingerprint(self.lm, tokenizer, name=loaded.name, revision=args.revision, adapter=args.adapter)
        proxy = prepare_proxy(proxy, loaded, base, args)
        self._base = replace(loaded, name=base.name, revision=base.revision)
        self._data_hashes = {
            "base": base.identity,
            "prompts": rows_fingerprint(train_dataset),
            "rewards": reward_contents(self.rewards),
        }
        rendering = Rendering.of(proxy.config)
        # A reward that reads this model's states gets those of the rollout, so the model is in memory once.
        layers = share_base(
            [reward.function for reward in self.rewards],
            self._base,
            state_fingerprint(base.to_dict()),
            rendering,
        )
        # vLLM gives no states of layers: such a reward then reads the responses itself.
        self._state_layers = [] if args.ray_engine == "vllm" else layers
        self._embeddings = embedding_rows(self.lm) if proxy.config.candidate_features == "embedding" else None
        self._train_prompts = Prompts.encode(train_dataset, self._base, args, rendering)
        if eval_dataset is not None:  # report a prompt that does not fit before training
            Prompts.encode(eval_dataset, self._base, args, rendering)
        self.rollouts = rollouts_of(self._base, base, args)
        self._round = -1
        self._logs: dict[str, list[float]] = {}
        self._sampled: list[dict[str, Any]] = []
        self._loss_sum = 0.0
        open_run_folder(str(args.output_dir))
        args.size_to(causal_lm(self.lm).num_parameters(), proxy.config)
        self.schedule = Schedule(len(train_dataset), args.prompts_per_device * replica().number, args.seed)
        args.round_steps(self.schedule.rounds_per_epoch)
        try:
            super().__init__(
                model=proxy,
                args=args,
                data_collator=_no_data,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                callbacks=[
                    AfterEachStep(self._end_step),
                    RunFolder(self.ledger, args.resolved()),
                    *(callbacks or []),
                ],
            )
        except (ValueError, ImportError) as error:
            raise refused_settings(error) from error
        trainable = sum(parameter.numel() for parameter in proxy.parameters())
        self.ledger.set_parameters(trainable=trainable, base=causal_lm(self.lm).num_parameters())

    # -- one round ---------------------------------------------------------------------------------------------------

    @property
    def prompt_ids(self) -> Sequence[list[int]]:
        """The token ids of the training prompts."""
        return self._train_prompts.ids

    def _roll_out(self, indices: list[int], epoch: int, numbers: list[int]) -> Rollout | None:
        args, prompts = self.args, self._train_prompts
        options = RolloutOptions(
            args.max_new_tokens,
            batch_size=args.per_device_train_batch_size,
            keep_all=args.advantage == "gae",
            state_layers=self._state_layers,
        )
        with self.ledger.phase("rollout"), work("rollout", len(indices) * args.max_new_tokens, SAMPLED):
            return self.rollouts.complete(
                self.accelerator.unwrap_model(self.model),
                [prompts.ids[index] for index in indices],
                row_keys(args.seed, epoch, indices, numbers),
                options,
                self._uncounted,
            )

    def _scoring(self) -> Scoring:
        args = self.args
        return Scoring(
            self.rewards,
            args.reward_weights,
            args.reward_on_error,
            trainer_state=self.state,
            state_layers=self._state_layers,
        )

    def _score(self, indices: list[int], rollout: Rollout) -> ScoredRollout:
        args = self.args
        with self.ledger.phase("reward"), work("reward", len(indices), SCORED):
            scored = score_rollout(
                self._scoring(),
                self._train_prompts,
                indices,
                rollout,
                missing_eos_penalty=args.missing_eos_penalty,
                batch_index=self.state.global_step // args.steps_per_rollout,
                ledger=self._uncounted,
            )
        if scored.n_skipped:
            self._note("reward_skipped", float(scored.n_skipped))
        if len(self.rewards) > 1:
            for name, value in scored.means.items():
                self._note(f"rewards/{name}/mean", value)
        for name, value in scored.metrics:
            self._note(name, value)
        return scored

    def _new_round(self, round_: int) -> RolloutUpdate:
        args = self.args
        epoch, chosen = self.schedule.prompts(round_)
        numbers = sample_numbers(chosen, args.num_generations)
        indices = [index for index in chosen for _ in range(args.num_generations)]
        size, share = args.per_device_train_batch_size, replica()
        mine = slice(share.index * size, (share.index + 1) * size)
        rollout = self._roll_out(indices[mine], epoch, numbers[mine])
        # Summed over processes: if one process raised alone, the others would wait for it forever.
        n_with_choice = self._sum(torch.tensor(float(rollout is not None)))
        if rollout is None or n_with_choice < share.number:
            raise FrugalignError(
                f"No position had two candidates at p_t = {args.p_t} and T = {args.temperature}, so there is nothing to learn: lower p_t."
            )
        restriction = rollout.statistics["kl_restriction"]
        if round_ == 0 and args.target_kl is not None and restriction > args.target_kl and self.is_world_process_zero():
            _log.warning(
                "Dropping the tail at p_t = %g costs %.1f nats a response, which target_kl = %g does not count: keep the tail, or lower p_t.",
                args.p_t,
                restriction,
                args.target_kl,
            )
        scored = self._score(indices[mine], rollout)
        rewards = scored.rewards
        if self._round == -1 and self.is_world_process_zero():
            check_first_rollout(self.rewards, rollout, scored, args)
        self._count()
        with self.ledger.phase("optimise"), torch.no_grad():
            experience = Experience.build(
                self.accelerator.unwrap_model(self.model),
                rollout,
                rewards,
                args,
                self.kl,
                self._embeddings,
                self._sum,
            )
        noted = {**rollout.statistics, **experience.statistics, "reward": experience.mean_reward}
        for name, value in noted.items():
            self._note(name, value)
        if args.log_completions:
            self._sampled = self._train_prompts.some_completions(
                self.state.global_step, indices[mine], rollout, rewards, scored.extra
            )
            write_completions(Path(str(args.output_dir)), self._sampled)
        kl = self._sum(torch.tensor([rollout.statistics["kl_choice"], 1.0], dtype=torch.float64))
        self.kl.observe(float(kl[0] / kl[1]))
        region = TrustRegion(experience.minibatches, args.objective, self._sum)
        # Of the positions that the region measures, which leave out responses without a reward.
        return RolloutUpdate(region, self.kl.limits(region.distances().from_base, args.max_update_kl))

    def _count(self) -> None:
        """Add the counts of all processes since the last call to the run's ledger."""
        mine = self._uncounted
        counts = torch.tensor([mine.lm_forward_tokens, mine.generated_tokens, mine.reward_calls], dtype=torch.float64)
        self.ledger.count(*map(int, self._sum(counts)))
        self._uncounted = Ledger()

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over processes, in float64 so that the result does not depend on the split."""
        return sum_over_processes(self.accelerator, values)

    # -- overridden methods of Trainer ---------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        steps = self.schedule.rounds_per_epoch * self.args.steps_per_rollout
        numbers: Any = range(steps * self.accelerator.num_processes)
        counter: DataLoader[Any] = DataLoader(numbers, batch_size=1, collate_fn=_no_data)
        prepared: DataLoader[Any] = self.accelerator.prepare(counter)
        return prepared

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        args = self.args
        round_, within = divmod(self.state.global_step, args.steps_per_rollout)
        if round_ != self._round:
            self._update = self._new_round(round_)
            self._round = round_
        minibatch = self._update.minibatch(within)
        if minibatch is None:
            # Without gradients the optimiser changes nothing, its moments included.
            return torch.zeros((), device=args.device)
        started = time.perf_counter()
        loss = super().training_step(model, {"minibatch": minibatch}, num_items_in_batch)
        self._update.begin(model)
        self.ledger.add_seconds("optimise", time.perf_counter() - started)
        self.ledger.count(optimizer_steps=1)
        self._note("loss", float(loss))
        self._loss_sum += float(loss)
        return loss

    def _end_step(self) -> None:
        """Keep as much of the optimiser step just made as the trust region allows, and note what a finished update did."""
        started = time.perf_counter()
        self._update.end(self.accelerator.unwrap_model(self.model))
        if self.state.global_step % self.args.steps_per_rollout == 0:
            for name, value in self._update.statistics().items():
                self._note(name, value)
        self.ledger.add_seconds("optimise", time.perf_counter() - started)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        args = self.args
        loss, logs = proxy_loss(model, inputs["minibatch"], args.objective, args.epsilon, args.vf_coef)
        for name, value in logs.items():
            self._note(name, value)
        return (loss, None) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the ledger counts LM tokens; Trainer's estimate is for language models

    def _note(self, name: str, value: float) -> None:
        self._logs.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Trainer drops an unlogged loss and the earlier part of a resumed run. These numbers are in the checkpoint.
        if "loss" in logs:
            logs = logs | self._means()
            self._logs.clear()
            if self.is_world_process_zero():
                log_table(self.callback_handler.callbacks, self._sampled, self.state.global_step)
            self._sampled = []
        if "train_loss" in logs:
            total = self._sum(torch.tensor([self._loss_sum, float(self.ledger.optimizer_steps)], dtype=torch.float64))
            logs = logs | {"train_loss": float(total[0] / total[1].clamp(min=1))}
        super().log(logs, start_time)

    def _means(self) -> dict[str, float]:
        """The means since the last log line, over all processes."""
        noted = gather_all([self._logs])
        together: dict[str, list[float]] = {}
        for part in noted:
            for name, values in part.items():
                together.setdefault(name, []).extend(values)
        return {name: sum(values) / len(values) for name, values in together.items()}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure one completion per held-out prompt, under fixed noise. Processes share the prompts."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        args = self.args
        if rows is None or not len(rows):
            raise FrugalignError("There is no eval_dataset to evaluate on.")
        proxy: ProxyModel = self.accelerator.unwrap_model(self.model)
        with self.ledger.phase("evaluate"):
            found = evaluate_proxy(self._base, proxy, PromptRows.of(rows), self._scoring(), args, self._uncounted)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self._count()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def reset_run_state(self) -> None:
        self._round, self._logs, self._sampled, self._loss_sum = -1, {}, [], 0.0
        self.kl = KLController(self.args.beta, self.args.target_kl)

    def run_settings(self) -> dict[str, Any]:
        return self.args.fixed_settings() | self._data_hashes

    def run_state(self) -> dict[str, Any]:
        return {"kl": asdict(self.kl), "logs": self._logs, "loss_sum": self._loss_sum}

    def load_run_state(self, state: dict[str, Any]) -> None:
        self.kl = KLController(**state["kl"])
        self._loss_sum = float(state["loss_sum"])
        if self.accelerator.is_main_process:  # only its numbers are saved
            self._logs = state["logs"]


def _no_data(batch: Any) -> dict[str, Any]:
    return {}
