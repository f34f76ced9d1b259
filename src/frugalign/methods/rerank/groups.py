"""Groups of responses during training: ranked by the policy's states in every epoch, or sampled again (online DPO), and paired.

Every ranking is a file in the run folder: `groups/epoch-000.jsonl` and so on. It can be inspected or used as a data set. A
resumed run reads it, since the policy has changed since the ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, work
from frugalign.data.groups import Groups, pair_groups, read_groups, save_groups
from frugalign.data.templating import Rendering
from frugalign.decoding.chooser import Chooser
from frugalign.engines.encode import encode_for_model
from frugalign.engines.states import endpoint_states, read_ids
from frugalign.engines.transformers import end_token_ids
from frugalign.methods.carriers import weights_digest
from frugalign.methods.proxies import settle_temperature
from frugalign.methods.rerank.options import RerankOptions
from frugalign.rewards.representation.network import RepresentationModel
from frugalign.runs.folder import saving
from frugalign.runs.layout import ranking_file, rankings_in
from frugalign.runs.processes import add_all_counts, gather_rows, local_rows
from frugalign.runs.shared_sampling import GroupRequest, sample_on_all_processes


def sample_for(
    prompts: Sequence[Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: Any,
    epoch: int,
    ledger: Ledger,
    guide: tuple[Chooser, str] | None = None,
) -> Groups:
    """Sample `options.sample` responses per prompt from the current model, at its own temperature if `options` has none. Processes share the prompts; a killed run resumes.

    `guide`: what chooses the tokens, if not the model itself, and what identifies it.
    """
    settle_temperature(options, model, None)
    kept = ranking_file(Path(options.output_dir), epoch)
    stem = kept.with_name(f".{kept.stem}")
    chooser, identity = guide or (None, "")
    request = GroupRequest(prompts, options.sample, epoch, stem, guide=chooser, guide_id=identity)
    return sample_on_all_processes(model, tokenizer, request, options, ledger)


def rank_groups(
    groups: Groups,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: RepresentationModel,
    options: RerankOptions,
    ledger: Ledger,
    *,
    missing_eos_penalty: float = 0.0,
) -> Groups:
    """The groups with calibrated rewards from the current model's states, by one forward pass over every response.

    `missing_eos_penalty` is added to the reward of a response without an end token.
    """
    prompts, texts, given_ids = groups.flat()
    mine = local_rows(len(texts))
    counted = Ledger()
    with ledger.phase("reward"):
        encoded = encode_for_model(
            model,
            tokenizer,
            [prompts[row] for row in mine],
            [texts[row] for row in mine],
            completion_ids=None if given_ids is None else [given_ids[row] for row in mine],
            max_length=options.max_length,
            rendering=Rendering.of(options),
        )
        ids = read_ids(encoded, tokenizer)
        with work("ranking", sum(map(len, ids)), FED):
            states = endpoint_states(model, ids, probes.config.layers, ledger=counted)
        rewards = probes.calibrated(states.to(probes.weight.device)).tolist()
    counted.count(reward_calls=len(mine))
    add_all_counts(ledger, counted)
    every = [reward for _, reward in gather_rows(list(zip(mine, rewards, strict=True)))]
    cut = are_cut(groups, model, tokenizer)
    return groups.ranked([reward + missing_eos_penalty * is_cut for reward, is_cut in zip(every, cut, strict=True)])


def are_cut(groups: Groups, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Whether each response was truncated before an end token, in the order of `Groups.flat`. False for texts without ids."""
    _, texts, ids = groups.flat()
    ends = end_token_ids(model, tokenizer)
    return [False] * len(texts) if ids is None else [not each or each[-1] not in ends for each in ids]


def cut_share(groups: Groups, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of responses that were truncated before an end token."""
    cut = are_cut(groups, model, tokenizer)
    return sum(cut) / max(1, len(cut))


class EpochPairs(TorchDataset[dict[str, Any]]):
    """The pairs of the current ranking. Every epoch has as many pairs as the first ranking.

    If a ranking has fewer pairs (more ties), some are repeated. If it has more, some are left out.
    """

    def __init__(self, pairs: Dataset) -> None:
        self.pairs, self.size = pairs, len(pairs)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.pairs[index % len(self.pairs)]
        return row


class EpochRanking(TrainerCallback):
    """Ranks the groups again before every epoch but the first, and replaces the pairs of `trainer`, a `RerankTrainer`."""

    def __init__(self, trainer: Any, groups: Groups) -> None:
        self.trainer, self.groups = trainer, groups

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch, part_way = _epoch_of(state)
        if state.global_step == 0:
            if state.is_world_process_zero:
                self._keep(self.groups, 0)
            return
        # Later rankings are from after the checkpoint, and are made again.
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            for path in rankings_in(folder):
                if path.stem > ranking_file(folder, epoch if part_way else epoch - 1).stem:
                    path.unlink()
        self.trainer.accelerator.wait_for_everyone()
        before = ranking_file(Path(args.output_dir), epoch - 1)
        if before.is_file():
            self.groups = read_groups(before)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch, part_way = _epoch_of(state)
        if epoch == 0 or not (args.resample or args.rerank_groups):
            return
        path = ranking_file(Path(args.output_dir), epoch)
        if part_way and not path.is_file():
            raise FrugalignError(f"{path} is missing: the interrupted epoch was trained on it.")
        if path.is_file():
            ranked = read_groups(path)
        else:
            ranked = self._rank(epoch)
            self.trainer.accelerator.wait_for_everyone()
            if state.is_world_process_zero:
                self._keep(ranked, epoch)
        pairs, dropped = pair_groups(ranked)
        counting = self.trainer.ledger.uncounted() if part_way else nullcontext()
        with counting:
            self.trainer.replace_pairs(pairs.shuffle(seed=args.seed + epoch))
        if not part_way:  # otherwise it was logged when the epoch began
            self.trainer.note_ranking(ranked, len(pairs), dropped, _changed(self.groups, ranked))
        self.groups = ranked

    def _rank(self, epoch: int) -> Groups:
        trainer = self.trainer
        carrier = trainer.carrier
        common, penalty = (trainer.args, trainer.ledger), trainer.args.missing_eos_penalty
        if not trainer.args.resample:
            return rank_groups(
                self.groups, carrier.lm, trainer.processing_class, trainer.probes, *common, missing_eos_penalty=penalty
            )
        guide = carrier.guide()
        fresh = sample_for(
            *(self.groups.prompts, carrier.lm, trainer.processing_class, trainer.args, epoch, trainer.ledger),
            guide=None if guide is None else (guide, weights_digest(carrier.policy)),
        )
        # The original probes on the starting model: the policy cannot influence its own reward.
        with trainer.starting_model() as start:
            return rank_groups(
                fresh, start, trainer.processing_class, trainer.reward, *common, missing_eos_penalty=penalty
            )

    def _keep(self, groups: Groups, epoch: int) -> None:
        path = ranking_file(Path(self.trainer.args.output_dir), epoch)
        with saving(path):
            save_groups(groups, path)
            for partial in path.parent.glob(".epoch-*.partial"):
                partial.unlink()


def _epoch_of(state: TrainerState) -> tuple[int, bool]:
    """The current or next epoch (from 0), and whether the run is in the middle of it."""
    epoch = int((state.epoch or 0.0) + 1e-6)
    return epoch, (state.epoch or 0.0) - epoch > 1e-6


def _changed(before: Groups, after: Groups) -> float | None:
    """The share of groups whose best response changed; None if the responses differ."""
    if before.completions != after.completions:
        return None
    old, new = (
        [max(range(len(rewards)), key=rewards.__getitem__) for rewards in groups.rewards or []]
        for groups in (before, after)
    )
    changed = sum(first != second for first, second in zip(old, new, strict=True))
    return changed / max(1, len(after))
