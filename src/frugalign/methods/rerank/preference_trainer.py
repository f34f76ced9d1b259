"""`PreferenceTrainer`: DPO on `transformers.Trainer`, for any trained weights (`carriers.py`) and any confidence in the labels.

A batch of B pairs is one forward pass over 2B answers. The reference's log-probabilities come from a second pass, or are
precomputed. Left out on purpose: losses other than the confidence-weighted one, and a moving reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.data.stored_lists import InTurn, Twice, lists_of
from frugalign.engines.encode import SIDES
from frugalign.engines.sentences import sentence_ends
from frugalign.engines.transformers import base_parameters
from frugalign.methods.answer_features import Answers
from frugalign.methods.brake import Brake
from frugalign.methods.carriers import Carrier, prepare_policy
from frugalign.methods.confidence import prefer_given
from frugalign.methods.log_probs import Reading, Scored
from frugalign.methods.losses import confidence_loss, imitation_loss
from frugalign.methods.rerank.collator import REFERENCE, PairCollator, encode_pairs
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.reference import store_references
from frugalign.methods.rerank.running_means import RunningMeans, Share, mean_of

_BINS = 10


@dataclass
class Pairs:
    """Encoded pairs (`encode_pairs`) for training and evaluation. `vary`: the training pairs are replaced during training."""

    train: Any
    held_out: Dataset | None = None
    vary: bool = False


class PreferenceTrainer(Trainer):
    """Trains a carrier on pairs.

    Args:
        carrier: the weights to train.
        args: a `RerankConfig`.
        pairs: encoded pairs for training and evaluation.
        tokenizer: saved beside the policy.
        ledger: counts tokens and steps.
    """

    args: RerankConfig
    # The loss is a mean over a batch's pairs: Trainer averages the batches of an accumulated step.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        carrier: Carrier,
        args: RerankConfig,
        pairs: Pairs,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
        ledger: Ledger,
    ) -> None:
        self.carrier, self.ledger = carrier, ledger
        self.tokens_seen = 0
        self.brake = Brake(args.kl_weight or 0.0, args.target_kl, slope=args.beta)
        prepare_policy(carrier.policy, args, int(tokenizer.pad_token_id))
        super().__init__(
            model=carrier.policy,
            args=args,
            data_collator=PairCollator(int(tokenizer.pad_token_id), args.pad_to_multiple_of),
            train_dataset=pairs.train,
            eval_dataset=pairs.held_out,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        if args.n_gpu > 1:
            raise FrugalignError(
                "Several GPUs in one process are not supported: start one process for each (torchrun), or show one (CUDA_VISIBLE_DEVICES)."
            )
        self.means = RunningMeans(self.accelerator)
        self.pairs_vary = pairs.vary
        trained = [parameter.numel() for parameter in carrier.policy.parameters() if parameter.requires_grad]
        self.ledger.set_parameters(trainable=sum(trained), base=base_parameters(carrier.lm))
        self.read("train", pairs.train.pairs if pairs.vary else pairs.train)
        if pairs.held_out is not None:
            self.read("held-out", pairs.held_out)

    def read(self, name: str, pairs: Dataset) -> None:
        """Let the carrier read the answers of encoded pairs, in place of those of this `name`."""
        if self.carrier.passes:  # it reads them at every step
            return
        # Both answers of a pair together, since they share a prompt.
        ids, masks = (
            [lists_of(pairs, f"{side}_{kind}") for side in SIDES if f"{side}_{kind}" in pairs.column_names]
            for kind in ("ids", "mask")
        )
        answers = Answers(Twice(lists_of(pairs, "prompt_ids")), InTurn(*ids), InTurn(*masks) if masks else None)
        self.carrier.read(name, answers, self.ledger, self.probed_layers())

    # -- the reference -----------------------------------------------------------------------------------------------------

    @contextmanager
    def starting_model(self) -> Iterator[Any]:
        """The model before training."""
        with self.carrier.start() as model:
            yield model

    def score_reference(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities of the batch's answers `[2B]` under the model before training."""
        with self.accelerator.autocast():
            return self.carrier.score_before(batch)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Precompute the reference's log-probabilities if needed, while the policy is still the start. Then train."""
        store_references(self)
        self.carrier.begin()
        found: TrainOutput = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        return found

    # -- the loss ----------------------------------------------------------------------------------------------------------

    def probed_layers(self) -> list[int]:
        """The layers whose hidden states `label_confidence` reads."""
        return []

    def label_confidence(self, scored: Scored, given: Tensor | None) -> Tensor:
        """γ `[B]`: the row's own (`given`, NaN if missing), else the constant of the settings."""
        size = len(scored.log_probs) // 2
        gamma = torch.full((size,), self.args.constant_confidence, device=self.accelerator.device)
        return prefer_given(gamma, given)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the batch's pairs."""
        layers = self.probed_layers()
        tokenizer: Any = self.processing_class
        reading = Reading(layers, sentence_ends(tokenizer)) if layers else None
        scored = self.carrier.score(model, inputs, reading)
        ratios = self._log_ratios(scored, inputs)
        gamma = self.label_confidence(scored, inputs.get("confidence"))
        loss = confidence_loss(ratios[0] - ratios[1], gamma, self.args.beta)
        if self.args.sft_weight:
            lengths = inputs["completion_mask"].sum(1).clamp(min=1).chunk(2)
            chosen, rejected = scored.sums.chunk(2)
            imitation = imitation_loss(chosen / lengths[0], rejected / lengths[1], gamma)
            self.note({"imitation_loss": mean_of(imitation)})
            loss = loss + self.args.sft_weight * imitation
        if "weight" in inputs:
            loss = loss * inputs["weight"].to(loss)
        self._note_batch(inputs, scored, ratios, gamma)
        mean = loss.mean()
        if scored.kl is not None and self.carrier.policy.training:
            mean = self.brake.applied(mean, scored.kl.mean())
        return (mean, {"gamma": gamma}) if return_outputs else mean

    def _log_ratios(self, scored: Scored, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-ratios to the reference of the chosen and of the rejected answers, `[B]` each."""
        if scored.log_ratio is not None:
            found = scored.log_ratio
        elif REFERENCE[0] in inputs:
            found = scored.sums - torch.cat([inputs[name] for name in REFERENCE])
        else:
            found = scored.sums - self.score_reference(inputs)
        chosen, rejected = found.chunk(2)
        return chosen, rejected

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        before = self.tokens_seen
        passes = self.carrier.passes * (1 if REFERENCE[0] in args[1] else 2)
        with self.ledger.phase("optimise"):
            loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:  # the last micro-batch of a step
            self.brake.end_step()
        self.ledger.count(
            lm_forward_tokens=passes * (self.tokens_seen - before), optimizer_steps=int(self.accelerator.sync_gradients)
        )
        return loss

    # -- evaluation --------------------------------------------------------------------------------------------------------

    def encode(self, pairs: Dataset) -> Dataset:
        """Encode pairs of texts."""
        return encode_pairs(pairs, self.carrier.lm, self.processing_class, self.args)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As Trainer's. Pairs of texts are encoded first."""
        if isinstance(eval_dataset, Dataset):
            if "prompt_ids" not in eval_dataset.column_names:
                eval_dataset = self.encode(eval_dataset)
            self.read("others", eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss of a held-out batch, without logits or labels."""
        with torch.no_grad():
            loss: Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    # -- what is logged ----------------------------------------------------------------------------------------------------

    def note(self, found: Mapping[str, Share]) -> None:
        """Record numbers. The next log line has their means over processes and steps."""
        self.means.note("train" if self.carrier.policy.training else "eval", found)

    def _note_batch(
        self, inputs: dict[str, Tensor], scored: Scored, ratios: tuple[Tensor, Tensor], gamma: Tensor
    ) -> None:
        """Record the batch's statistics under TRL's names."""
        rewards = [self.args.beta * each.detach() for each in ratios]
        sums = scored.sums.detach().chunk(2)
        self.note(
            {
                **_of_distribution(scored),
                "rewards/chosen": mean_of(rewards[0]),
                "rewards/rejected": mean_of(rewards[1]),
                "rewards/accuracies": mean_of((rewards[0] > rewards[1]).float()),
                "rewards/margins": mean_of(rewards[0] - rewards[1]),
                "logps/chosen": mean_of(sums[0]),
                "logps/rejected": mean_of(sums[1]),
                **confidence_shares(gamma),
            }
        )
        if self.carrier.policy.training:
            self.tokens_seen += int(self.accelerator.reduce(inputs["attention_mask"].sum(), "sum"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log line."""
        mode = "train" if self.carrier.policy.training else "eval"
        prefix = "" if mode == "train" else "eval_"
        found = self.means.take(mode)
        if found:
            found["num_tokens"] = self.tokens_seen
        logs.update({f"{prefix}{name}": value for name, value in found.items()})
        super().log(logs, start_time)

    def log_separately(self, logs: dict[str, float]) -> None:
        """Log a separate line. The running means stay for the next regular line, which is still due if it was."""
        due = self.control.should_log
        super().log(logs)
        self.control.should_log = due  # logging a line takes it back


def _of_distribution(scored: Scored) -> dict[str, Share]:
    """What is known of the policy's distribution at the answers' tokens."""
    found = {} if scored.kl is None else {"kl": mean_of(scored.kl.detach())}
    if scored.statistics is None:
        return found
    chosen, rejected = (mask.sum() for mask in scored.mask.chunk(2))
    logits = scored.statistics.mean_logit.chunk(2)
    return found | {
        "entropy": (scored.statistics.entropy.sum(), scored.mask.sum()),
        "logits/chosen": (logits[0].sum(), chosen),
        "logits/rejected": (logits[1].sum(), rejected),
        "mean_token_accuracy": (scored.statistics.is_top1.chunk(2)[0].sum(), chosen),
    }


def confidence_shares(gamma: Tensor) -> dict[str, Share]:
    """Mean γ, the shares of doubtful and of flipped labels, and a histogram. Bin k covers [k/10, (k+1)/10), the last one also 1."""
    bins = (gamma * _BINS).long().clamp(max=_BINS - 1)
    return {
        "confidence/mean": mean_of(gamma),
        "confidence/doubtful_share": mean_of((gamma <= 0.5).float()),
        "confidence/flipped_share": mean_of((gamma < 0.5).float()),
        **{f"confidence/histogram_{place}": mean_of((bins == place).float()) for place in range(_BINS)},
    }
