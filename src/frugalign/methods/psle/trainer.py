"""`PSLETrainer`: rounds of sampling, scoring and training. Every round is a folder, and a killed run resumes where it stopped.

`OUTPUT/round-000` holds `responses.jsonl` (all responses with rewards, branches and weights), `metrics.jsonl`, the policy and
`evaluation.json`. `manifest.json` is written last, so a round without it is incomplete.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState, set_seed

from frugalign.base.errors import FrugalignError
from frugalign.base.files import CARD_FILE, write_atomic, write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.base.parsing import dump_yaml
from frugalign.base.progress_display import showing
from frugalign.data.splits import dataset_fingerprint, rows_fingerprint
from frugalign.data.templating import Rendering
from frugalign.data.weights import weights_in
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.transformers import base_parameters, device_of
from frugalign.methods.carriers import weights_digest
from frugalign.methods.proxy_carrier import carrier_of
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.folders import (
    check_resumable,
    clear_folder,
    describe_responses,
    ledger_of,
    manifest_of,
    reset_round,
    tidy_round,
)
from frugalign.methods.psle.inputs import load_policy, principles_of, restore_policy
from frugalign.methods.psle.responses import Round, ScoredResponses, assign_branches, read_round, save_round
from frugalign.methods.psle.round_eval import RoundEvaluation
from frugalign.methods.psle.round_trainer import RoundTrainer, answers_of, couples_of, with_reference
from frugalign.methods.psle.rules import reward_scale, threshold
from frugalign.methods.psle.sampling import Sampler
from frugalign.methods.psle.sampling_summary import describe_sampling, say_rounds, warn_of_few
from frugalign.methods.psle.tracking import evaluation_values, sampled_values, some_responses
from frugalign.options.resuming import is_resuming
from frugalign.policies.principles import Principles
from frugalign.rewards.content import reward_contents
from frugalign.rewards.loading import RewardSpec, load_rewards
from frugalign.runs.folder import open_run_folder, publish
from frugalign.runs.layout import (
    CONFIG_FILE,
    COSTS_FILE,
    MANIFEST_FILE,
    RESPONSES_COSTS_FILE,
    RESPONSES_FILE,
    ROUND_METRICS_COSTS_FILE,
    ROUND_METRICS_FILE,
    RUN_FILE,
    START_FOLDER,
    Manifest,
    checkpoints_in,
    read_costs,
    read_run_state,
    round_folder,
)
from frugalign.runs.lock import in_use
from frugalign.runs.progress import Pace, TrainingProgress
from frugalign.runs.trackers import PartOfARun, Trackers

_SHOWN = ("loss", "ranked_in_order", "log_likelihood/ranked_guided", "log_likelihood/ranked_plain")
_log = logging.getLogger(__name__)


class PSLETrainer:
    """Principle-guided self-enhancement (`docs/methods/psle.md#a-round`) of a causal language model.

    Args:
        model: the policy to start from, loaded or as a hub id or folder.
        reward_funcs: the rewards to learn from: strings, functions, or a list of either.
        args: a `PSLEConfig`.
        train_dataset: a column `prompt` (strings or messages). `weight` weighs a row's couples; other columns are passed to the rewards.
        principles: what `load_principles` returns, or its name. Default: `args.principles`.
        eval_dataset: held-out prompts, on which every round is evaluated.
        eval_reward_funcs: further rewards that are only measured, on the held-out prompts.
        processing_class: the tokenizer; required if `model` is a module.

    Raises:
        FrugalignError: a user error, in one sentence.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward_funcs: RewardSpec | Sequence[RewardSpec],
        args: PSLEConfig,
        train_dataset: Dataset,
        principles: Principles | str | None = None,
        eval_dataset: Dataset | None = None,
        eval_reward_funcs: RewardSpec | Sequence[RewardSpec] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.args, self.ledger, self.callbacks = args, Ledger(), callbacks or []
        model, tokenizer = load_policy(model, processing_class, args)
        self.processing_class = tokenizer
        if len(train_dataset) == 0:
            raise FrugalignError("There are no prompts to train on.")
        self._row_weights = weights_in(train_dataset, "weight")
        self.principles = principles_of(principles, args)
        self.rewards = load_rewards(reward_funcs, device=str(device_of(model)))
        self.sampler = Sampler(train_dataset, tokenizer, self.principles, args, reward_contents(self.rewards))
        self.fitting = self.sampler.fitting(model)
        if len(self.fitting) < len(train_dataset):
            _log.warning("Left out %d prompts that exceed the context.", len(train_dataset) - len(self.fitting))
        self.base = fingerprint(model, tokenizer, name=str(args.model_name_or_path or ""))
        self.round_evaluation = self._round_evaluation(model, eval_dataset, eval_reward_funcs)
        set_seed(args.seed)
        model.requires_grad_(args.train == "full")
        keeps_start = args.has_brake or self.round_evaluation is not None
        self.carrier = carrier_of(model, tokenizer, args, keeps_start=keeps_start)
        self.model: Any = self.carrier.policy
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        self._initial_weights, self._counted = weights_digest(self.model), set[Path]()
        self.ledger.set_parameters(trainable=trained, base=base_parameters(self.carrier.lm))

    def _round_evaluation(
        self, model: PreTrainedModel, prompts: Dataset | None, rewards: RewardSpec | Sequence[RewardSpec] | None
    ) -> RoundEvaluation | None:
        """The evaluation of every round; None without held-out prompts."""
        args, tokenizer = self.args, self.processing_class
        if prompts is None or not len(prompts) or not args.eval_prompts:
            return None
        extra_rewards = load_rewards(rewards, device=str(device_of(model))) if rewards else []
        load_rewards([*self.rewards, *extra_rewards])  # refuses two rewards of the same name
        rows = Sampler(prompts, tokenizer, None, args).fitting(model)[: args.eval_prompts]
        warn_of_few(len(rows), args.eval_prompts)
        return RoundEvaluation(prompts.select(rows), tokenizer, self.rewards, extra_rewards, args)

    def _principles_hash(self) -> str | None:
        return None if self.principles is None else self.principles.fingerprint()

    # -- the run ---------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> list[Manifest]:
        """Run the rounds that are not finished yet, and return every round's manifest.

        A callback whose `ran_out` is true ends the run after the current round.

        Raises:
            FrugalignError: a run folder that another command is using, or that holds an earlier run (unless resumed or
                `overwrite_output_dir`); settings other than the resumed run's; or an error in sampling, scoring or training.
        """
        with in_use(str(self.args.output_dir), main_process=self._is_main), showing(self._is_main):
            return self._run(resume_from_checkpoint)

    def _run(self, resume_from_checkpoint: str | bool | None) -> list[Manifest]:
        folder = open_run_folder(str(self.args.output_dir))
        resuming = is_resuming(resume_from_checkpoint)
        if self._is_main:
            if resuming:
                check_resumable(folder, self._run_settings(), self.args.from_round, self.args.rounds)
                if self.args.from_round is not None:
                    reset_round(folder, self.args.from_round)
            else:
                clear_folder(folder, overwrite=self.args.overwrite_output_dir)
                write_json_atomic(folder / RUN_FILE, self._run_settings())
            write_atomic(folder / CONFIG_FILE, dump_yaml(self.args.resolved()))
        self._wait()
        self.trackers = Trackers(self.args)
        self.trackers.begin(self.model)
        try:
            return self._rounds(folder)
        finally:
            self.trackers.end()

    def _rounds(self, folder: Path) -> list[Manifest]:
        self._evaluate_start(folder / START_FOLDER)
        manifests: list[Manifest] = []
        say_rounds(self.sampler, self.fitting, self.round_evaluation)
        pace = Pace("round")
        for number in range(self.args.rounds):
            there = round_folder(folder, number)
            manifest = manifest_of(there)
            if manifest is None:
                if number:
                    restore_policy(self.carrier, round_folder(folder, number - 1), manifests[-1])
                manifest = self._round(number, there, manifests)
                pace.finished(f"Round {number}", self.args.rounds - number - 1)
            else:
                if self._is_main:
                    tidy_round(there)
                self._count(there, ledger_of(there), from_the_disk=True)
            manifests.append(manifest)
            if any(getattr(callback, "ran_out", False) for callback in self.callbacks):
                break
        restore_policy(self.carrier, round_folder(folder, len(manifests) - 1), manifests[-1])
        return manifests

    def _run_settings(self) -> dict[str, Any]:
        """The settings that must stay the same within a run."""
        held_out = self.round_evaluation and dataset_fingerprint(self.round_evaluation.dataset)
        return {
            **self.args.fixed_settings(),
            "base": self.base.identity,
            "prompts": rows_fingerprint(self.sampler.dataset),
            "held-out prompts": held_out,
            "principles": self._principles_hash(),
            "rewards": self.sampler.reward_contents,
        }

    # -- one round -------------------------------------------------------------------------------------------------------

    def _round(self, number: int, folder: Path, before: list[Manifest]) -> Manifest:
        args = self.args
        self._make(folder)
        initial = weights_digest(self.model)
        if number == 0 and initial != self._initial_weights:
            raise FrugalignError(
                "This trainer has trained already, and round 0 starts from the initial model: make a new one."
            )
        ledger, began = Ledger(), time.perf_counter()
        tau = threshold(args.tau, args.tau_decay, number)
        done = self._responses(number, folder, tau, before, ledger)
        scale = self._scale(done.scored, folder.parent)
        if self._is_main:
            describe_sampling(done, self.rewards, args, number, tau * scale)
        earlier = sum(each["optimizer_steps"] for each in before)
        self._track(done, number, earlier)
        steps = self._train(number, folder, done, ledger, earlier)
        self._evaluate(folder, folder.parent / START_FOLDER, ledger, ROUND_METRICS_COSTS_FILE)
        self.trackers.log(evaluation_values(folder), earlier + steps)
        manifest: Manifest = {
            "round": number,
            "start": {"base": asdict(self.base), "weights": initial},
            "end": {"weights": weights_digest(self.model)},
            "prompts": {
                "name": args.dataset_name,
                "fingerprint": dataset_fingerprint(self.sampler.dataset),
                "too_long": len(self.sampler.dataset) - len(self.fitting),
            },
            "principles": self._principles_hash(),
            **describe_responses(done, args, tau, scale),
            "reward_calls": done.scored.rewards.numel() * len(self.rewards),
            "optimizer_steps": steps,
            "settings": args.fixed_settings(),
        }
        if self._is_main:
            ledger.save(folder / COSTS_FILE)
            write_json_atomic(folder / MANIFEST_FILE, manifest)
            tidy_round(folder)
        self._count(folder, ledger, wall_clock=ledger.wall_clock_seconds - (time.perf_counter() - began))
        self._wait()
        return manifest

    def _track(self, done: Round, number: int, step: int) -> None:
        """Tell the trackers what the round has sampled."""
        kinds = {"under_principles": self.args.needs_principles}
        self.trackers.log(sampled_values(done, number, **kinds), step)
        if self.args.log_completions:
            self.trackers.log_table(some_responses(done, number, **kinds), step)

    def _evaluate_start(self, folder: Path) -> None:
        """Evaluate the starting model on the held-out prompts, once per run."""
        if self.round_evaluation is None:
            return
        ledger, began = Ledger(), time.perf_counter()
        self._evaluate(folder, None, ledger, COSTS_FILE)
        self.trackers.log(evaluation_values(folder), 0)
        self._count(folder, ledger, wall_clock=ledger.wall_clock_seconds - (time.perf_counter() - began))

    def _count(self, folder: Path, ledger: Ledger, *, wall_clock: float = 0.0, from_the_disk: bool = False) -> None:
        """Add the costs of a folder to the run's and save them. Each folder is added once."""
        if folder not in self._counted:
            self._counted.add(folder)
            self.ledger.add(ledger, wall_clock=ledger.wall_clock_seconds if from_the_disk else wall_clock)
        if self._is_main:
            self.ledger.save(folder.parent / COSTS_FILE)

    def _responses(self, number: int, folder: Path, tau: float, before: list[Manifest], ledger: Ledger) -> Round:
        """The round's stored responses, or else new ones, which are stored before training."""
        path = folder / RESPONSES_FILE
        if path.is_file():
            ledger.load_dict(read_costs(folder, RESPONSES_COSTS_FILE))
        else:
            rows = self._rows(number)
            groups = self.sampler.sample(self.carrier, rows, number, folder, ledger)
            state = TrainerState(epoch=float(number), global_step=sum(each["optimizer_steps"] for each in before))
            scored = self.sampler.score(self.rewards, groups, rows, folder, ledger, state)
            scale = self._scale(scored, folder.parent)
            found = assign_branches(scored, self.args, tau, scale)
            if self._is_main:
                # σ_0 stays that of round 0, even if its responses are edited later.
                write_json_atomic(folder.parent / RUN_FILE, self._run_settings() | {"reward_scale": scale})
                ledger.save(folder / RESPONSES_COSTS_FILE)
                save_round(found, path)
            self._wait()
        return read_round(path)

    def _scale(self, scored: ScoredResponses, folder: Path) -> float:
        """`σ_0`, or 1 for `tau_scale` raw."""
        known = read_run_state(folder).get("reward_scale")
        if known is not None:
            return float(known)
        mine = scored.is_scored
        return reward_scale(scored.plain[mine], scored.guided[mine]) if self.args.tau_scale == "std" else 1.0

    def _rows(self, number: int) -> list[int]:
        """The rows of a round: all of them, or the next ones in an order that follows from the seed."""
        size = self.args.prompts_per_round
        if size is None or size >= len(self.fitting):
            return self.fitting
        order = torch.randperm(len(self.fitting), generator=torch.Generator().manual_seed(self.args.seed)).tolist()
        return sorted({self.fitting[order[(number * size + place) % len(order)]] for place in range(size)})

    def _train(self, number: int, folder: Path, done: Round, ledger: Ledger, earlier: int) -> int:
        rendering = Rendering.of(self.args)
        couples = couples_of(done, self.processing_class, row_weights=self._row_weights, rendering=rendering)
        if not len(couples):
            _log.warning("Round %d has nothing to learn from, so the policy stays as it is.", number)
            self._save(folder)
            return 0
        self.carrier.read("couples", answers_of(couples), ledger)
        if self.args.method == "dpo":
            size = self.args.per_device_train_batch_size
            couples = with_reference(couples, self.carrier, ledger, batch_size=size)
        args = copy.copy(self.args)
        args.output_dir, args.overwrite_output_dir, args.report_to = str(folder), True, []
        callbacks = [*self.callbacks, PartOfARun(self.trackers, earlier)]
        trainer = RoundTrainer(self.carrier, args, couples, self.processing_class, ledger, callbacks)
        TrainingProgress(f"round {number}", _SHOWN, unit=None).replace_defaults(trainer)
        found = checkpoints_in(folder)
        trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)
        trainer.release(self.model)
        self._save(folder)
        return int(trainer.state.global_step)

    def _evaluate(self, folder: Path, first: Path | None, ledger: Ledger, costs_file: str) -> None:
        """Evaluate once. `costs_file` keeps what it cost, for a resumed run."""
        if self.round_evaluation is None:
            return
        if (folder / ROUND_METRICS_FILE).is_file():
            spent = ledger_of(folder, costs_file)
            ledger.add(spent, wall_clock=spent.wall_clock_seconds)
            return
        self._make(folder)
        spent = Ledger()
        self.round_evaluation.run(self.carrier, folder / costs_file, spent, first)
        ledger.add(spent)
        self._wait()

    # -- small things ------------------------------------------------------------------------------------------------------

    @property
    def _is_main(self) -> bool:
        return bool(self.args.process_index == 0)

    def _wait(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _make(self, folder: Path) -> None:
        if self._is_main:
            open_run_folder(folder)
        self._wait()

    def _save(self, folder: Path) -> None:
        def save(staged: Path) -> None:
            self.carrier.save(staged, self.processing_class, self.base)
            (staged / CARD_FILE).unlink(missing_ok=True)  # PEFT's empty template; the run folder has the card

        if self._is_main:
            publish(folder, save)
        self._wait()
