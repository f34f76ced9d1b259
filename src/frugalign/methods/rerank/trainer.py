"""`RerankTrainer`: DPO whose labels are weighed by the current policy's own states, on TRL's stable `DPOTrainer`.

TRL collates, runs policy and reference, and logs; this file gives it exchanges that end where the probes read, catches the states
and log-probabilities of its own forward passes by hooks, and replaces the loss. Nothing is run twice.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import use_adapter

from frugalign.base.errors import FrugalignError
from frugalign.base.files import hash_weights
from frugalign.base.ledger import Ledger
from frugalign.data.groups import Dropped, Groups, pair_groups
from frugalign.data.loading import pairs_fingerprint, rows_fingerprint
from frugalign.engines.encode import tokenised_pairs
from frugalign.engines.fingerprints import check_base, fingerprint
from frugalign.engines.loading import load_model, prepare_tokenizer
from frugalign.engines.transformers import base_parameters, causal_lm
from frugalign.methods.rerank.collator import COLUMNS, PairCollator, caught_passes
from frugalign.methods.rerank.config import RerankConfig, check_reward_of_groups
from frugalign.methods.rerank.groups import EpochPairs, EpochRanking, cut_share, rank_groups
from frugalign.methods.rerank.loss import (
    batch_confidence,
    confidence_loss,
    imitation_loss,
    pair_confidence,
    posterior_confidence,
)
from frugalign.methods.rerank.probe_tracking import FollowPolicy, ProbeFollower
from frugalign.options.loading import policy_arguments
from frugalign.rewards.representation.network import RepresentationModel, load_probes
from frugalign.runs.checkpoints import WholeCheckpoints
from frugalign.runs.folder import RunFolder
from frugalign.runs.save_policy import lora_of

_BINS = 10
_MANY_CUT = 0.1
_log = logging.getLogger(__name__)


class RerankTrainer(WholeCheckpoints, DPOTrainer):
    """DPO with moving confidence in its labels.

    Args:
        model: the policy to start from, or its hub id or folder.
        reward: a representation reward's folder, or its probes; not needed where `confidence="constant"`.
        args: a `RerankConfig`.
        train_dataset: prompt, chosen, rejected; a column `confidence` replaces γ of its row, a column `weight` weighs the row's loss. Or
            `Groups` of responses, which the reward ranks and pairs, at every epoch anew where `args.rerank_groups` (or `resample`) says so.
        eval_dataset: pairs to watch the training by.
        processing_class: the tokenizer; needed where `model` is a module.
        peft_config: default a LoRA on all linear layers, whose reference is the model without it; None trains every weight of a
            model that is named by a string.
        labelled_dataset: pairs that the probes follow the policy by (`args.reward_refresh_steps`); default: the training pairs.

    Raises:
        FrugalignError: whatever the user can mend, in one sentence.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward: str | RepresentationModel | None,
        args: RerankConfig,
        train_dataset: Dataset | Groups,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | Literal["default"] | None = "default",
        callbacks: list[TrainerCallback] | None = None,
        ledger: Ledger | None = None,
        labelled_dataset: Dataset | None = None,
    ) -> None:
        if isinstance(model, str):
            loaded = load_model(model, **policy_arguments(args, trains_every_weight=peft_config is None))
            model, processing_class = loaded.model, processing_class or loaded.tokenizer
            model.requires_grad_(True)
        if processing_class is None:
            raise FrugalignError("RerankTrainer needs processing_class (the tokenizer) where model is a module.")
        if reward is None and args.confidence != "constant":
            raise FrugalignError(
                f"confidence {args.confidence!r} needs a representation reward; give reward, or confidence constant."
            )
        prepare_tokenizer(processing_class)
        is_adapted = isinstance(model, PeftModel)
        # A copy: probes that follow the policy change.
        self.probes = load_probes(reward) if isinstance(reward, str) else copy.deepcopy(reward)
        if (
            self.probes is not None
            and self.probes.config.width != causal_lm(model).config.get_text_config().hidden_size
        ):
            raise FrugalignError("The representation reward was fitted on a model of another width.")
        if self.probes is not None and self.probes.config.base is not None:
            found = fingerprint(model, processing_class, name=str(args.model_name_or_path or ""))
            check_base(self.probes.config.base, found, "The representation reward")
        if self.probes is not None:
            _check_definition(self.probes, args, processing_class)
            args.max_length = args.max_length or self.probes.config.max_length
        self.reward = copy.deepcopy(self.probes)  # as it was fitted, whatever the probes follow
        self._ranking: dict[str, float] = {}
        if peft_config == "default":
            peft_config = lora_of(args)
        self._start = model
        self.ledger = ledger or Ledger()
        self._learns_from: dict[str, Any] = {
            "base": fingerprint(model, processing_class).identity,
            "probes": None if self.probes is None else hash_weights(self.probes),
        }
        callbacks = [RunFolder(self.ledger, args.resolved()), *(callbacks or [])]
        groups = train_dataset if isinstance(train_dataset, Groups) else None
        if groups is not None:
            self._check_groups(args)
            if groups.rewards is None and self.probes is not None:
                groups = rank_groups(
                    *(groups, model, processing_class, self.probes, args, self.ledger),
                    missing_eos_penalty=args.missing_eos_penalty,
                )
                _warn_of_cut_responses(cut_share(groups, model, processing_class), args)
            callbacks.append(EpochRanking(self, groups))
            train_dataset, dropped = pair_groups(groups)
        assert isinstance(train_dataset, Dataset)
        # Of groups the prompts: their responses may be sampled anew.
        self._learns_from |= (
            {"pairs": pairs_fingerprint(train_dataset)}
            if groups is None
            else {"prompts": rows_fingerprint(Dataset.from_dict({"prompt": groups.prompts}))}
        )
        multiple: Any = args.pad_to_multiple_of  # a number or None by now
        every_weight = peft_config is None and not is_adapted and not args.precompute_ref_log_probs
        super().__init__(
            model=model,
            # TRL would load it by the model's name: another revision perhaps, and not what is in memory.
            ref_model=copy.deepcopy(model).requires_grad_(False) if every_weight else None,
            args=args,
            data_collator=PairCollator(pad_token_id=int(processing_class.pad_token_id), pad_to_multiple_of=multiple),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=callbacks,
        )
        prepared: Any = self.train_dataset
        if groups is not None:
            self.train_dataset: Any = EpochPairs(prepared)
            self.note_ranking(groups, len(prepared), dropped, None)
        self.follower: ProbeFollower | None = None
        if args.reward_refresh_steps:
            self._follow(prepared, labelled_dataset, is_labelled=groups is None)
        policy: Any = self.model
        trained = [parameter.numel() for parameter in policy.parameters() if parameter.requires_grad]
        self.ledger.set_parameters(trainable=sum(trained), base=base_parameters(policy))

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    # -- data ------------------------------------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """Token ids by the one definition of an exchange that the probes were fitted on; a sampled answer keeps its own."""
        for row, gamma in enumerate(dataset["confidence"] if "confidence" in dataset.column_names else []):
            if gamma is not None and not (0 <= gamma <= 1 or math.isnan(gamma)):
                raise FrugalignError(f"Row {row + 1} has the confidence {gamma}; it lies in [0, 1].")
        columns = tokenised_pairs(
            dataset,
            self._start,
            processing_class,
            max_length=args.max_length,
            prompt_format=args.prompt_format,
        )
        columns |= {name: dataset[name] for name in COLUMNS if name in dataset.column_names}
        return Dataset.from_dict(columns)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        signature: list[str] = self._signature_columns or []
        columns: Any = signature + [name for name in COLUMNS if name not in signature]
        self._signature_columns = columns

    # -- what moves between steps ------------------------------------------------------------------------------------------

    def _check_groups(self, args: RerankConfig) -> None:
        check_reward_of_groups(args, has_reward=self.probes is not None)
        if args.dataloader_persistent_workers:
            raise FrugalignError(
                "dataloader_persistent_workers is not carried over to groups: workers would keep old pairs."
            )
        if args.precompute_ref_log_probs:
            raise FrugalignError("precompute_ref_log_probs is not carried over to groups: their pairs change.")

    def _follow(self, prepared: Dataset, labelled: Dataset | None, *, is_labelled: bool) -> None:
        if self.probes is None:
            raise FrugalignError("reward_refresh_steps needs a representation reward.")
        if labelled is None and not is_labelled:
            raise FrugalignError(
                "The pairs of sampled groups have no labels: reward_refresh_steps needs labelled pairs (reward_dataset_name)."
            )
        if labelled is not None:
            prepared = self._prepare_dataset(labelled, self.processing_class, self.args, "labelled")
        follow = FollowPolicy(self, prepared)
        self.follower = follow.follower
        self.add_callback(follow)

    @contextmanager
    def starting_model(self) -> Iterator[Any]:
        """The model as it was before the training: the policy without its adapter, or the reference."""
        policy: Any = self.accelerator.unwrap_model(self.model)
        if self.ref_model is not None:
            yield self.accelerator.unwrap_model(self.ref_model)
            return
        # TRL keeps the adapter that a policy came with under this name.
        with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
            yield policy

    def replace_pairs(self, pairs: Dataset) -> None:
        """Train on other pairs from now on."""
        every: Any = self.train_dataset
        every.pairs = self._prepare_dataset(pairs, self.processing_class, self.args, "train")

    def note_ranking(self, groups: Groups, size: int, dropped: Dropped, changed: float | None) -> None:
        """Pairs, what was left out, and the shares of cut responses and of groups with another best response: for the next log line."""
        policy: Any = self.accelerator.unwrap_model(self.model)
        tokenizer: Any = self.processing_class
        noted = {"pairs": size, **asdict(dropped), "cut_share": cut_share(groups, policy, tokenizer)}
        self._ranking = {f"ranking/{name}": float(value) for name, value in noted.items()}
        if changed is not None:
            self._ranking["ranking/best_changed_share"] = changed

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with what the last ranking gave on the first line after it."""
        if self._ranking and "loss" in logs:
            logs, self._ranking = logs | self._ranking, {}
        super().log(logs, start_time)

    def log_apart(self, logs: dict[str, float]) -> None:
        """A line of its own, which does not take up what is averaged for the next one."""
        super(DPOTrainer, self).log(logs)

    # -- the run ---------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        self._metrics["train"].clear()

    def run_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.args.settings_of_a_run() | self._learns_from
        return settings

    def run_state(self) -> dict[str, Any]:
        noted = dict(self._metrics["train"])
        found: dict[str, Any] = {"metrics": noted, "tokens": self._total_train_tokens, "ranking": self._ranking}
        if self.follower is not None:
            found["follower"] = self.follower.state()
        return found

    def load_run_state(self, state: dict[str, Any]) -> None:
        self._metrics["train"].update(state["metrics"])
        self._total_train_tokens, self._ranking = state["tokens"], state["ranking"]
        if self.follower is not None:
            self.follower.load_state(state["follower"])

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        before = self._total_train_tokens
        with self.ledger.phase("optimise"):
            loss: Tensor = super().training_step(*args, **kwargs)
        # Both models read what TRL counts, over all processes.
        passes = 1 if self.args.precompute_ref_log_probs else 2
        self.ledger.count(
            lm_forward_tokens=passes * int(self._total_train_tokens - before),
            optimizer_steps=int(self.accelerator.sync_gradients),
        )
        return loss

    # -- the loss --------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        given = {name: inputs.pop(name, None) for name in COLUMNS}
        moving = self.args.confidence != "constant"
        layers = self.probes.config.layers if self.probes is not None and moving else []
        policy = self.accelerator.unwrap_model(model)
        with caught_passes(policy, self.ref_model, inputs["completion_mask"], layers) as caught:
            found = super()._compute_loss(model, inputs, return_outputs)
        outputs = found[1] if return_outputs else None
        chosen, rejected = caught.log_probs[0].chunk(2)
        if len(caught.log_probs) > 1:
            ref_chosen, ref_rejected = caught.log_probs[1].detach().chunk(2)
        else:
            ref_chosen, ref_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        gamma = self._confidence(caught.states, given["confidence"], len(chosen))
        loss = confidence_loss((chosen - ref_chosen) - (rejected - ref_rejected), gamma, self.beta)
        if self.args.sft_weight:
            lengths = inputs["completion_mask"].sum(1).clamp(min=1).chunk(2)
            imitation = imitation_loss(chosen / lengths[0], rejected / lengths[1], gamma)
            self._note("imitation_loss", imitation.detach())
            loss = loss + self.args.sft_weight * imitation
        if given["weight"] is not None:
            loss = loss * given["weight"].to(loss)
        self._log_confidence(gamma)
        return (loss.mean(), outputs) if return_outputs else loss.mean()

    @torch.no_grad()
    def _confidence(self, states: Tensor | None, given: Tensor | None, size: int) -> Tensor:
        """γ `[B]`: the row's own where it has one (not NaN), else from the states."""
        args: Any = self.args
        device = self.accelerator.device
        if args.confidence == "constant" or states is None or self.probes is None:
            gamma = torch.full((size,), args.constant_confidence, device=device)
        else:
            probes = self.probes.to(device)
            if args.confidence == "pair":
                chosen, rejected = probes.calibrated(states).chunk(2)
                if args.label_noise is None:
                    gamma = pair_confidence(chosen, rejected, args.confidence_floor)
                else:
                    gamma = posterior_confidence(chosen, rejected, args.label_noise, args.confidence_floor)
            else:
                chosen, rejected = probes(states).chunk(2)
                gamma = batch_confidence(chosen, rejected, probes.config.mu, args.kappa)
            rewards = probes.calibrated(states)
            self._note("representation_reward/chosen", rewards[:size])
            self._note("representation_reward/rejected", rewards[size:])
            self._note("representation_reward/accuracy", (rewards[:size] > rewards[size:]).float())
        if given is not None:
            own = given.to(gamma)
            gamma = torch.where(own.isnan(), gamma, own)
        return gamma

    def _log_confidence(self, gamma: Tensor) -> None:
        self._note("confidence/mean", gamma)
        self._note("confidence/doubtful_share", (gamma <= 0.5).float())
        self._note("confidence/flipped_share", (gamma < 0.5).float())
        for place in range(_BINS):
            # A histogram in shares: bin k holds γ from k/10 on, the last one 1 too.
            within = (gamma * _BINS).long().clamp(max=_BINS - 1) == place
            self._note(f"confidence/histogram_{place}", within.float())

    def note(self, name: str, value: float) -> None:
        """A number for the next log line, where it is averaged with its namesakes."""
        self._metrics["train"][name].append(value)

    def _note(self, name: str, values: Tensor) -> None:
        policy: Any = self.model
        mode = "train" if policy.training else "eval"
        self._metrics[mode][name].append(float(self.accelerator.gather(values.float().mean()).mean()))


def _warn_of_cut_responses(share: float, args: RerankConfig) -> None:
    """Probes read a response's last token. Of whole answers that is an end; the middle of a sentence they never saw, and rank it anyhow."""
    if share > _MANY_CUT and args.missing_eos_penalty == 0:
        _log.warning(
            "%.0f %% of the sampled responses are cut at max_new_tokens (%s), where probes that were fitted on whole answers may give any reward: raise max_new_tokens, or give "
            "missing_eos_penalty (say -10).",
            100 * share,
            args.max_new_tokens,
        )


def _check_definition(probes: RepresentationModel, args: RerankConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Exchanges must be those that the probes were fitted on."""
    chat = getattr(tokenizer, "chat_template", None) is not None
    fitted, here = (
        {"auto": "chat" if chat else "raw"}.get(name, name)
        for name in (probes.config.prompt_format, args.prompt_format)
    )
    if fitted != here:
        raise FrugalignError(
            f"The representation reward was fitted with prompt_format {probes.config.prompt_format}, not {args.prompt_format}: "
            "its scores are of other texts; give the same."
        )
