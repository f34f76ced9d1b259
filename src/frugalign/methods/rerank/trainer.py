"""`RerankTrainer`: DPO whose labels are weighed by the current policy's own states.

`PreferenceTrainer` runs the passes and the loss. This file adds the probes that say how sure a label is, the groups of responses that are
ranked anew while training goes on, and checkpoints that hold all of it.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from frugalign.base.errors import FrugalignError
from frugalign.base.files import hash_weights
from frugalign.base.ledger import Ledger
from frugalign.data.groups import Dropped, Groups, pair_groups
from frugalign.data.loading import pairs_fingerprint, rows_fingerprint
from frugalign.engines.fingerprints import check_base, fingerprint
from frugalign.engines.loading import load_model, prepare_tokenizer
from frugalign.engines.transformers import causal_lm
from frugalign.methods.log_probs import Scored
from frugalign.methods.rerank.carriers import carrier_of
from frugalign.methods.rerank.collator import encode_pairs
from frugalign.methods.rerank.confidence import batch_confidence, pair_confidence, posterior_confidence
from frugalign.methods.rerank.config import RerankConfig, check_reward_of_groups
from frugalign.methods.rerank.groups import EpochPairs, EpochRanking, cut_share, rank_groups
from frugalign.methods.rerank.preference_trainer import Pairs, PreferenceTrainer, with_own
from frugalign.methods.rerank.probe_tracking import FollowPolicy, ProbeFollower
from frugalign.methods.rerank.running_means import mean_of
from frugalign.options.loading import policy_arguments
from frugalign.rewards.representation.network import RepresentationModel, load_probes
from frugalign.runs.checkpoints import WholeCheckpoints
from frugalign.runs.folder import RunFolder

_MANY_CUT = 0.1
_log = logging.getLogger(__name__)


@dataclass
class TrackedReward:
    """A representation reward that follows the policy on labelled pairs of its own (`args.reward_refresh_steps`)."""

    reward: str | RepresentationModel
    labelled: Dataset


class RerankTrainer(WholeCheckpoints, PreferenceTrainer):
    """DPO with moving confidence in its labels.

    Args:
        model: the policy to start from, or its hub id or folder. A new LoRA is put on it unless `args.use_peft` is false (every weight is
            trained) or it has an adapter already (that one is trained).
        reward: a representation reward's folder, or its probes; None where `confidence="constant"`. With labelled pairs of its own it is
            a `TrackedReward`; otherwise probes that follow the policy do so on the training pairs.
        args: a `RerankConfig`.
        train_dataset: prompt, chosen, rejected; a column `confidence` replaces γ of its row, a column `weight` weighs the row's loss. Or
            `Groups` of responses, which the reward ranks and pairs, at every epoch anew where `args.rerank_groups` (or `resample`) says so.
        eval_dataset: held-out pairs.
        processing_class: the tokenizer; needed where `model` is a module.

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
        # A copy: probes that follow the policy change.
        self.probes = load_probes(reward) if isinstance(reward, str) else copy.deepcopy(reward)
        if self.probes is not None:
            _check_probes(self.probes, policy, tokenizer, args)
            args.max_length = args.max_length or self.probes.config.max_length
        self.reward = copy.deepcopy(self.probes)  # as it was fitted, whatever the probes follow
        self._ranking: dict[str, float] = {}
        self.ledger = Ledger()
        every = [RunFolder(self.ledger, args.resolved()), *(callbacks or [])]
        groups, dropped = None, None
        if isinstance(train_dataset, Groups):
            groups = self._ranked(train_dataset, policy, tokenizer, args)
            every.append(EpochRanking(self, groups))
            train_dataset, dropped = pair_groups(groups)
        self._learns_from = _learns_from(self.probes, groups or train_dataset, fingerprint(policy, tokenizer).identity)
        train, held_out = (
            None if pairs is None else encode_pairs(pairs, policy, tokenizer, args)
            for pairs in (train_dataset, eval_dataset)
        )
        assert train is not None
        varies = groups is not None and (args.rerank_groups or args.resample)
        keeps_start = varies or args.shift_reward is not None or args.precompute_ref_log_probs is False
        set_seed(args.seed)  # of a new LoRA's weights
        super().__init__(
            carrier_of(policy, args, keeps_start=keeps_start),
            args,
            Pairs(EpochPairs(train) if varies else train, held_out, vary=varies),
            tokenizer,
            every,
            self.ledger,
        )
        if groups is not None and dropped is not None:
            self.note_ranking(groups, len(train), dropped, None)
        self.follower: ProbeFollower | None = None
        if args.reward_refresh_steps:
            self._follow(train, labelled, is_labelled=groups is None)

    # -- groups and probes ---------------------------------------------------------------------------------------------------

    def _ranked(self, groups: Groups, model: Any, tokenizer: Any, args: RerankConfig) -> Groups:
        """The groups with rewards, and whether settings allow for pairs that change."""
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
        _warn_of_cut_responses(cut_share(ranked, model, tokenizer), args)
        return ranked

    def _follow(self, train: Dataset, labelled: Dataset | None, *, is_labelled: bool) -> None:
        if self.probes is None:
            raise FrugalignError("reward_refresh_steps needs a representation reward.")
        if labelled is None and not is_labelled:
            raise FrugalignError(
                "The pairs of sampled groups have no labels: reward_refresh_steps needs labelled pairs (reward_dataset_name)."
            )
        follow = FollowPolicy(self, train if labelled is None else self.encode(labelled))
        self.follower = follow.follower
        self.add_callback(follow)

    def replace_pairs(self, pairs: Dataset) -> None:
        """Train on other pairs from now on."""
        every: Any = self.train_dataset
        every.pairs = self.encode(pairs)

    def note_ranking(self, groups: Groups, size: int, dropped: Dropped, changed: float | None) -> None:
        """Pairs, what was left out, and the shares of cut responses and of groups with another best response: for the next log line."""
        tokenizer: Any = self.processing_class
        noted = {"pairs": size, **asdict(dropped), "cut_share": cut_share(groups, self.carrier.policy, tokenizer)}
        self._ranking = {f"ranking/{name}": float(value) for name, value in noted.items()}
        if changed is not None:
            self._ranking["ranking/best_changed_share"] = changed

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with what the last ranking gave on the first line after it."""
        if self._ranking and "loss" in logs:
            logs, self._ranking = logs | self._ranking, {}
        super().log(logs, start_time)

    # -- confidence ----------------------------------------------------------------------------------------------------------

    def probed_layers(self) -> list[int]:
        """The probes' layers, where the confidence moves."""
        moving = self.probes is not None and self.args.confidence != "constant"
        return list(self.probes.config.layers) if self.probes is not None and moving else []

    @torch.no_grad()
    def label_confidence(self, scored: Scored, given: Tensor | None) -> Tensor:
        """γ `[B]` from the policy's states where the settings say so; a row's own takes its place."""
        args, states = self.args, scored.states
        if states is None or self.probes is None:
            return super().label_confidence(scored, given)
        probes = self.probes.to(self.accelerator.device)
        chosen, rejected = probes.calibrated(states).chunk(2)
        if args.confidence == "batch":
            raw = probes(states)
            gamma = batch_confidence(raw[: len(chosen)], raw[len(chosen) :], probes.config.mu, args.kappa)
        elif args.label_noise is None:
            gamma = pair_confidence(chosen, rejected, args.confidence_floor)
        else:
            gamma = posterior_confidence(chosen, rejected, args.label_noise, args.confidence_floor)
        self.note(
            {
                "representation_reward/chosen": mean_of(chosen),
                "representation_reward/rejected": mean_of(rejected),
                "representation_reward/accuracy": mean_of((chosen > rejected).float()),
            }
        )
        return with_own(gamma, given)

    # -- checkpoints ---------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        self.means.take("train")

    def run_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.args.fixed_settings() | self._learns_from
        return settings

    def run_state(self) -> dict[str, Any]:
        noted = dict(self.means.steps["train"])
        found: dict[str, Any] = {"metrics": noted, "tokens": self.tokens_seen, "ranking": self._ranking}
        if self.follower is not None:
            found["follower"] = self.follower.state()
        return found

    def load_run_state(self, state: dict[str, Any]) -> None:
        self.means.steps["train"].update(state["metrics"])
        self.tokens_seen, self._ranking = int(state["tokens"]), state["ranking"]
        if self.follower is not None:
            self.follower.load_state(state["follower"])


def _loaded(model: Any, args: RerankConfig, tokenizer: Any) -> tuple[Any, Any]:
    """The model, loaded where it is a name, and its tokenizer, ready for batches."""
    if isinstance(model, str):
        loaded = load_model(model, **policy_arguments(args, trains_every_weight=not args.use_peft))
        model, tokenizer = loaded.model, tokenizer or loaded.tokenizer
        model.requires_grad_(True)
    if tokenizer is None:
        raise FrugalignError("RerankTrainer needs processing_class (the tokenizer) where model is a module.")
    prepare_tokenizer(tokenizer)
    return model, tokenizer


def _learns_from(
    probes: RepresentationModel | None, data: Dataset | Groups, base: str | dict[str, Any]
) -> dict[str, Any]:
    """Hashes of what a resumed run must find again. Of groups the prompts: their responses may be sampled anew."""
    found = {"base": base, "probes": None if probes is None else hash_weights(probes)}
    if isinstance(data, Groups):
        return found | {"prompts": rows_fingerprint(Dataset.from_dict({"prompt": data.prompts}))}
    return found | {"pairs": pairs_fingerprint(data)}


def _warn_of_cut_responses(share: float, args: RerankConfig) -> None:
    """Probes read a response's last token. Of whole answers that is an end; the middle of a sentence they never saw, and rank it anyhow."""
    if share > _MANY_CUT and args.missing_eos_penalty == 0:
        _log.warning(
            "%.0f %% of the sampled responses are cut at max_new_tokens (%s), where probes that were fitted on whole answers may give any reward: raise max_new_tokens, or give "
            "missing_eos_penalty (say -10).",
            100 * share,
            args.max_new_tokens,
        )


def _check_probes(
    probes: RepresentationModel, model: Any, tokenizer: PreTrainedTokenizerBase, args: RerankConfig
) -> None:
    """Probes of another model, or of other texts, say nothing here."""
    if probes.config.width != causal_lm(model).config.get_text_config().hidden_size:
        raise FrugalignError("The representation reward was fitted on a model of another width.")
    if probes.config.base is not None:
        found = fingerprint(model, tokenizer, name=str(args.model_name_or_path or ""))
        check_base(probes.config.base, found, "The representation reward")
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
