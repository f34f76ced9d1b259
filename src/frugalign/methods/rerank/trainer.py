"""`RerankTrainer`: DPO with labels weighted by the current policy's own states.

`PreferenceTrainer` runs the passes and the loss. This file adds the probes that give the confidence in a label, the groups
that are ranked again during training, and their state in checkpoints.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.data.groups import Dropped, Groups, pair_groups
from frugalign.data.splits import pairs_fingerprint, rows_fingerprint
from frugalign.engines.artefacts import content_hash
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model, prepare_tokenizer
from frugalign.methods.confidence import (
    batch_confidence,
    check_probes,
    confidence_by_settings,
    prefer_given,
)
from frugalign.methods.log_probs import Scored
from frugalign.methods.proxy_carrier import carrier_of
from frugalign.methods.rerank.collator import encode_pairs
from frugalign.methods.rerank.config import RerankConfig, check_reward_of_groups
from frugalign.methods.rerank.groups import EpochPairs, EpochRanking, cut_share, rank_groups
from frugalign.methods.rerank.preference_trainer import Pairs, PreferenceTrainer
from frugalign.methods.rerank.probe_tracking import ProbeTracker, ProbeTracking
from frugalign.methods.rerank.running_means import mean_of
from frugalign.options.loading import policy_arguments
from frugalign.rewards.check_scores import warn_of_cut_responses
from frugalign.rewards.representation.network import PROBES, RepresentationModel, load_probes
from frugalign.runs.checkpoints import WholeCheckpoints
from frugalign.runs.folder import RunFolder


@dataclass
class TrackedReward:
    """A representation reward that is updated on separate labelled pairs during training (`args.reward_refresh_steps`)."""

    reward: str | RepresentationModel
    labelled: Dataset


class RerankTrainer(WholeCheckpoints, PreferenceTrainer):
    """DPO with a confidence in each label that changes with the policy.

    Args:
        model: the policy to start from, loaded or as a hub id or folder. It gets a new LoRA, unless it already has an adapter (which is
            then trained), or `args.train` says otherwise: every weight (full), or a proxy while the model stays as it is (proxy).
        reward: a representation reward's folder, or its probes. None with `confidence="constant"`. A `TrackedReward` has its own labelled
            pairs for updates; otherwise updates use the training pairs.
        args: a `RerankConfig`.
        train_dataset: prompt, chosen, rejected. A column `confidence` replaces the row's γ, and a column `weight` weights its loss.
            Alternatively `Groups` of responses, which the reward ranks and pairs. `args.rerank_groups` or `resample` repeats this in
            every epoch.
        eval_dataset: held-out pairs.
        processing_class: the tokenizer; required if `model` is a module.

    Raises:
        FrugalignError: a user error, in one sentence.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward: str | RepresentationModel | TrackedReward | None,
        args: RerankConfig,
        train_dataset: Dataset | Groups,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        labelled = reward.labelled if isinstance(reward, TrackedReward) else None
        reward = reward.reward if isinstance(reward, TrackedReward) else reward
        if reward is None and args.confidence != "constant":
            raise FrugalignError(
                f"confidence {args.confidence!r} needs a representation reward; give reward, or confidence constant."
            )
        policy, tokenizer = _loaded(model, args, processing_class)
        # A copy, since tracking changes the probes.
        self.probes = load_probes(reward) if isinstance(reward, str) else copy.deepcopy(reward)
        if self.probes is not None:
            check_probes(self.probes, policy, tokenizer, args)
            args.max_length = args.max_length or self.probes.config.max_length
        self.reward = copy.deepcopy(self.probes)  # as fitted, without tracking
        self._ranking: dict[str, float] = {}
        self.ledger = Ledger()
        groups, dropped, given = None, None, train_dataset
        if isinstance(train_dataset, Groups):
            groups = self._ranked(train_dataset, policy, tokenizer, args)
            train_dataset, dropped = pair_groups(groups)
        self._data_hashes = _data_hashes(self.probes, given, is_sampled=bool(args.sample))
        self._data_hashes["base"] = fingerprint(policy, tokenizer).identity
        self._data_hashes["labelled pairs"] = None if labelled is None else pairs_fingerprint(labelled)
        train, held_out = (
            None if pairs is None else encode_pairs(pairs, policy, tokenizer, args)
            for pairs in (train_dataset, eval_dataset)
        )
        assert train is not None
        varies = groups is not None and (args.rerank_groups or args.resample)
        keeps_start = varies or args.shift_reward is not None or args.precompute_ref_log_probs is False
        set_seed(args.seed)  # of a new LoRA's weights
        carrier = carrier_of(policy, tokenizer, args, keeps_start=keeps_start)
        every = [RunFolder(self.ledger, args.resolved()), *(callbacks or [])]
        if groups is not None:
            every.append(EpochRanking(self, groups))
        super().__init__(
            carrier,
            args,
            Pairs(EpochPairs(train) if varies else train, held_out, vary=varies),
            tokenizer,
            every,
            self.ledger,
        )
        if groups is not None and dropped is not None:
            self.note_ranking(groups, len(train), dropped, None)
        self.tracker: ProbeTracker | None = None
        if args.reward_refresh_steps:
            self._track_probes(train, labelled, is_labelled=groups is None)

    # -- groups and probes ---------------------------------------------------------------------------------------------------

    def _ranked(self, groups: Groups, model: Any, tokenizer: Any, args: RerankConfig) -> Groups:
        """The groups with rewards, after checking that the settings allow groups."""
        check_reward_of_groups(args, has_reward=self.probes is not None)
        if args.dataloader_persistent_workers:
            raise FrugalignError(
                "dataloader_persistent_workers is not carried over to groups: workers would keep old pairs."
            )
        if args.precompute_ref_log_probs and (args.rerank_groups or args.resample):
            raise FrugalignError("precompute_ref_log_probs is not carried over to groups: their pairs change.")
        if groups.rewards is not None or self.probes is None:
            return groups
        ranked = rank_groups(
            *(groups, model, tokenizer, self.probes, args, self.ledger), missing_eos_penalty=args.missing_eos_penalty
        )
        if not args.missing_eos_penalty:
            warn_of_cut_responses(cut_share(ranked, model, tokenizer), args.max_new_tokens, may_penalise=True)
        return ranked

    def _track_probes(self, train: Dataset, labelled: Dataset | None, *, is_labelled: bool) -> None:
        if self.probes is None:
            raise FrugalignError("reward_refresh_steps needs a representation reward.")
        if labelled is None and not is_labelled:
            raise FrugalignError(
                "The pairs of sampled groups have no labels: reward_refresh_steps needs labelled pairs (reward_dataset_name)."
            )
        tracking = ProbeTracking(self, train if labelled is None else self.encode(labelled))
        self.tracker = tracking.tracker
        self.add_callback(tracking)

    def replace_pairs(self, pairs: Dataset) -> None:
        """Train on other pairs from now on."""
        every: Any = self.train_dataset
        every.pairs = self.encode(pairs)
        self.read("train", every.pairs)

    def note_ranking(self, groups: Groups, size: int, dropped: Dropped, changed: float | None) -> None:
        """Record a ranking for the next log line.

        It has the pairs, the dropped groups, and the shares of truncated responses and of groups whose best response changed.
        """
        tokenizer: Any = self.processing_class
        noted = {"pairs": size, **asdict(dropped), "cut_share": cut_share(groups, self.carrier.lm, tokenizer)}
        self._ranking = {f"ranking/{name}": float(value) for name, value in noted.items()}
        if changed is not None:
            self._ranking["ranking/best_changed_share"] = changed

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the last ranking's numbers to the first log line after it."""
        if self._ranking and "loss" in logs:
            logs, self._ranking = logs | self._ranking, {}
        super().log(logs, start_time)

    # -- confidence ----------------------------------------------------------------------------------------------------------

    def probed_layers(self) -> list[int]:
        """The probes' layers, if the confidence comes from the states."""
        moving = self.probes is not None and self.args.confidence != "constant"
        return list(self.probes.config.layers) if self.probes is not None and moving else []

    @torch.no_grad()
    def label_confidence(self, scored: Scored, given: Tensor | None) -> Tensor:
        """γ `[B]` from the policy's states if the settings say so. A row's own confidence takes precedence."""
        args, states = self.args, scored.states
        if states is None or self.probes is None:
            return super().label_confidence(scored, given)
        probes = self.probes.to(self.accelerator.device)
        chosen, rejected = probes.calibrated(states).chunk(2)
        if args.confidence == "batch":
            raw = probes(states)
            gamma = batch_confidence(raw[: len(chosen)], raw[len(chosen) :], probes.config.mu, args.kappa)
        else:
            gamma = confidence_by_settings(chosen, rejected, args)
        self.note(
            {
                "representation_reward/chosen": mean_of(chosen),
                "representation_reward/rejected": mean_of(rejected),
                "representation_reward/accuracy": mean_of((chosen > rejected).float()),
            }
        )
        return prefer_given(gamma, given)

    # -- checkpoints ---------------------------------------------------------------------------------------------------------

    def reset_run_state(self) -> None:
        self.means.take("train")
        self.brake.reset()

    def run_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.args.fixed_settings() | self._data_hashes
        return settings

    def run_state(self) -> dict[str, Any]:
        noted = dict(self.means.steps["train"])
        found: dict[str, Any] = {
            "metrics": noted,
            "tokens": self.tokens_seen,
            "ranking": self._ranking,
            "last_kl": self.brake.last,
        }
        if self.tracker is not None:
            found["follower"] = self.tracker.state()
        return found

    def load_run_state(self, state: dict[str, Any]) -> None:
        self.means.steps["train"].update(state["metrics"])
        self.tokens_seen, self._ranking = int(state["tokens"]), state["ranking"]
        self.brake.last = state["last_kl"]
        if self.tracker is not None:
            self.tracker.load_state(state["follower"])


def _loaded(model: Any, args: RerankConfig, tokenizer: Any) -> tuple[Any, Any]:
    """The model, loaded if it is a name, and a tokenizer that is ready for batches."""
    if isinstance(model, str):
        loaded = load_model(model, **policy_arguments(args, trains_every_weight=args.train == "full"))
        model, tokenizer = loaded.model, tokenizer or loaded.tokenizer
        model.requires_grad_(True)
    if tokenizer is None:
        raise FrugalignError("RerankTrainer needs processing_class (the tokenizer) where model is a module.")
    prepare_tokenizer(tokenizer)
    return model, tokenizer


def _data_hashes(probes: RepresentationModel | None, data: Dataset | Groups, *, is_sampled: bool) -> dict[str, Any]:
    """Hashes of what a resumed run must find unchanged.

    `is_sampled`: the responses of groups are sampled again by the resumed run, so only their prompts are compared.
    """
    found: dict[str, Any] = {"probes": None if probes is None else content_hash(PROBES, probes)}
    if not isinstance(data, Groups):
        return found | {"pairs": pairs_fingerprint(data)}
    columns: dict[str, Any] = {"prompt": data.prompts}
    if not is_sampled:
        columns |= {"completions": data.completions, "rewards": data.rewards or [[]] * len(data.prompts)}
    return found | {"prompts" if is_sampled else "groups": rows_fingerprint(Dataset.from_dict(columns))}
