"""A conventional reward model as baseline, on the same base, pairs and tokens (`docs/methods/representation-reward.md#read-the-report`)."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from frugalign.data.labelled import PreferenceData
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import causal_lm, evaluating
from frugalign.methods.log_probs import disable_dropout
from frugalign.methods.representation_reward.examples import Split, encode_answers
from frugalign.methods.representation_reward.options import RewardOptions
from frugalign.metrics import mean_interval
from frugalign.runs.progress import TrainingProgress

_BATCH = 16


def train_full_model(
    preferences: PreferenceData, base: LoadedModel, split: Split, options: RewardOptions
) -> dict[str, Any]:
    """Train every weight of a copy of the base with a scalar head on the training pairs.

    The epoch with the highest validation accuracy is kept and measured on the test pairs.

    Returns:
        Test accuracy with its interval, validation accuracy per epoch, and the training's seconds and FLOPs (6 per parameter and
        token) per 1,000 pairs, over all epochs.
    """
    ids = encode_answers(preferences, base, options).ids
    model = classifier_of(base)
    rows = [
        {"chosen_ids": ids[better], "rejected_ids": ids[worse]}
        for better, worse in (preferences.pairs[number] for number in split.train)
    ]
    keep = _BestEpoch(preferences, ids, split.validation)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PairRewardTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=options.full_model_epochs,
                per_device_train_batch_size=_BATCH,
                learning_rate=options.full_model_learning_rate,
                seed=options.seed,
                remove_unused_columns=False,
                use_cpu=base.model.device.type == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            data_collator=SideCollator(int(model.config.pad_token_id)),
            callbacks=[keep],
        )
        TrainingProgress("whole reward model", ()).replace_defaults(trainer)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started - keep.seconds
    model.load_state_dict(keep.best)
    right = _right(model, preferences, ids, split.test)
    accuracy = mean_interval(right, [preferences.prompt_of(number) for number in split.test])
    assert accuracy is not None
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows) * options.full_model_epochs
    thousands = len(rows) / 1000
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "accuracy": accuracy.to_dict(),
        "validation_accuracy": keep.accuracies,
        "epochs": options.full_model_epochs,
        "learning_rate": options.full_model_learning_rate,
        "parameters": parameters,
        "seconds_training_per_1000": seconds / thousands,
        "flops_training_per_1000": 6.0 * parameters * tokens / thousands,
    }


def classifier_of(base: LoadedModel) -> PreTrainedModel:
    """A float32 copy of the base with a new scalar head instead of its LM head."""
    lm = causal_lm(base.model)
    config = copy.deepcopy(lm.config)
    config.num_labels, config.pad_token_id = 1, base.tokenizer.pad_token_id
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).float().to(lm.device)
    getattr(model, model.base_model_prefix).load_state_dict(getattr(lm, lm.base_model_prefix).state_dict())
    return model


@dataclass
class SideCollator:
    """B pairs to `input_ids` and `attention_mask` `[2B, T]`, padded on the right: chosen texts first, then rejected ones."""

    pad_token_id: int

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [pair[side] for side in ("chosen_ids", "rejected_ids") for pair in pairs]
        width = max(map(len, texts))
        return {
            "input_ids": torch.tensor([[*text, *[self.pad_token_id] * (width - len(text))] for text in texts]),
            "attention_mask": torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts]),
        }


class PairRewardTrainer(Trainer):
    """Bradley–Terry on the scores of both texts: `−log σ(r_c − r_r)`, without dropout."""

    # A mean over pairs: Trainer averages the batches of an accumulated step.
    loss_is_scaled_for_ga = False

    def __init__(self, model: nn.Module, **arguments: Any) -> None:
        disable_dropout(model)
        super().__init__(model=model, **arguments)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the batch's pairs."""
        output = model(**inputs, use_cache=False)
        chosen, rejected = output.logits[:, 0].chunk(2)
        loss = -logsigmoid(chosen - rejected).mean()
        return (loss, output) if return_outputs else loss


class _BestEpoch(TrainerCallback):
    """Measures validation accuracy after every epoch, and keeps the weights of the best one."""

    def __init__(self, preferences: PreferenceData, ids: Sequence[Sequence[int]], numbers: Sequence[int]) -> None:
        self.preferences, self.ids, self.numbers = preferences, ids, list(numbers)
        self.accuracies: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.seconds = 0.0

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        started = time.perf_counter()
        right = _right(model, self.preferences, self.ids, self.numbers)
        self.accuracies.append(sum(right) / len(right))
        if self.accuracies[-1] == max(self.accuracies):
            self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.seconds += time.perf_counter() - started


@torch.no_grad()
def _right(
    model: Any, preferences: PreferenceData, ids: Sequence[Sequence[int]], numbers: Sequence[int]
) -> list[float]:
    """1 if the model prefers the better answer, 0 if not, ½ for a tie."""
    rows = sorted({row for number in numbers for row in preferences.pairs[number]}, key=lambda row: len(ids[row]))
    scores: dict[int, float] = {}
    pad = model.config.pad_token_id
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        longest = max(len(ids[row]) for row in part)
        tokens = torch.full((len(part), longest), pad, device=model.device)
        mask = torch.zeros_like(tokens)
        for place, row in enumerate(part):
            tokens[place, : len(ids[row])], mask[place, : len(ids[row])] = torch.tensor(list(ids[row])), 1
        with evaluating(model):
            found = model(input_ids=tokens, attention_mask=mask).logits[:, 0].tolist()
        scores |= dict(zip(part, found, strict=True))
    gaps = [scores[better] - scores[worse] for better, worse in (preferences.pairs[number] for number in numbers)]
    return [0.5 if gap == 0 else float(gap > 0) for gap in gaps]
