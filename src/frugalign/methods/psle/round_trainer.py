"""Train one round: one forward pass and one loss over a mixed batch of couples, given the plain prompt.

`RoundTrainer` is a `transformers.Trainer`. `psle/trainer.py` makes a new one per round, with a fresh optimiser.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from frugalign.base.ledger import Ledger
from frugalign.data.templating import Rendering, encode_prompts
from frugalign.methods.answer_features import Answers
from frugalign.methods.brake import Brake
from frugalign.methods.carriers import Carrier
from frugalign.methods.losses import dpo_loss
from frugalign.methods.psle import loss as losses
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.responses import Round
from frugalign.methods.psle.rules import IMITATED, RANKED
from frugalign.runs.checkpoints import WholeCheckpoints
from frugalign.runs.folder import RunFolder
from frugalign.runs.processes import add_all_counts, gather_rows, local_rows

SIDES = ("plain", "guided")


def couples_of(
    done: Round, tokenizer: PreTrainedTokenizerBase, *, row_weights: Sequence[float] | None, rendering: Rendering
) -> Dataset:
    """The couples to train on, one per row: prompt and response ids, `is_ranked`, the responses' weights, and the row's weight.

    Args:
        row_weights: weights of the rows of the prompts' data set. None: 1 each.
    """
    scored = done.scored
    # The *plain* prompt: the model learns to answer without seeing the principles.
    prompts = encode_prompts(scored.prompts, tokenizer, max_new_tokens=0, rendering=rendering).ids
    rows: list[dict[str, Any]] = []
    for place, branches in enumerate(done.branches):
        k = len(branches)
        for j, branch in enumerate(branches):
            if branch not in (RANKED, IMITATED):
                continue
            ids, weights = scored.completion_ids[place], done.weights[place].tolist()
            rows.append(
                {
                    "prompt_ids": prompts[place],
                    "plain_ids": ids[j],
                    "guided_ids": ids[k + j],
                    "is_ranked": branch == RANKED,
                    "plain_weight": weights[j],
                    "guided_weight": weights[k + j],
                    "weight": 1.0 if row_weights is None else float(row_weights[scored.rows[place]]),
                }
            )
    return Dataset.from_list(rows)


def answers_of(couples: Dataset) -> Answers:
    """The responses that a batch of `CoupleCollator` may hold, one or two per couple."""
    prompts, answers = [], []
    for couple in couples:
        sides = [side for side in SIDES if couple["is_ranked"] or couple[f"{side}_weight"] > 0]
        for side in sides or SIDES[:1]:
            prompts.append(couple["prompt_ids"])
            answers.append(couple[f"{side}_ids"])
    return Answers(prompts, answers)


def with_reference(couples: Dataset, carrier: Carrier, ledger: Ledger, *, batch_size: int) -> Dataset:
    """Add `ref_plain` and `ref_guided`, the log-likelihoods under the current policy. Processes share the couples."""
    mine, counted = local_rows(len(couples)), Ledger()
    share = couples[mine]
    for side in SIDES:
        with ledger.phase("read"):
            found = carrier.log_probs(share["prompt_ids"], share[f"{side}_ids"], batch_size, counted)
        every = gather_rows(list(zip(mine, found.tolist(), strict=True)))
        couples = couples.add_column(f"ref_{side}", [value for _, value in every])
    add_all_counts(ledger, counted)
    return couples


class CoupleCollator:
    """Batch the responses that enter the loss, one per row, padded on the right. Responses of weight 0 are left out.

    `input_ids`, `attention_mask`, `completion_mask` `[M, T]`. `couple`, `side` `[M]`: a row's entry in `[2, B]`; side 0 is plain.
    `is_ranked`, `weight` `[B]`, `weights` `[2, B]` and, for DPO, `reference` `[2, B]`.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, couples: list[dict[str, Any]]) -> dict[str, Tensor]:
        sides = [
            (number, place)
            for place, side in enumerate(SIDES)
            for number, couple in enumerate(couples)
            if couple["is_ranked"] or couple[f"{side}_weight"] > 0
        ]
        texts = [
            (couples[number]["prompt_ids"], couples[number][f"{SIDES[place]}_ids"]) for number, place in sides
        ] or [(couples[0]["prompt_ids"], couples[0]["plain_ids"])]
        width = max(len(prompt) + len(answer) for prompt, answer in texts)
        rest = [width - len(prompt) - len(answer) for prompt, answer in texts]
        batch = {
            "input_ids": torch.tensor(
                [prompt + answer + [self.pad_id] * pad for (prompt, answer), pad in zip(texts, rest, strict=True)]
            ),
            "attention_mask": torch.tensor([[1] * (width - pad) + [0] * pad for pad in rest]),
            "completion_mask": torch.tensor(
                [
                    [0] * len(prompt) + [1] * len(answer) + [0] * pad
                    for (prompt, answer), pad in zip(texts, rest, strict=True)
                ]
            ),
            "couple": torch.tensor([number for number, _ in sides] or [0]),
            "side": torch.tensor([place for _, place in sides] or [0]),
            "is_ranked": torch.tensor([bool(couple["is_ranked"]) for couple in couples]),
            "weight": torch.tensor([float(couple["weight"]) for couple in couples]),
            "weights": torch.tensor([[float(couple[f"{side}_weight"]) for couple in couples] for side in SIDES]),
        }
        if "ref_plain" in couples[0]:
            batch["reference"] = torch.tensor([[float(couple[f"ref_{side}"]) for couple in couples] for side in SIDES])
        return batch


class LogLastStep(TrainerCallback):
    """Logs the last step of a round, which may be shorter than `logging_steps`."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class RoundTrainer(WholeCheckpoints, Trainer):
    """Trains the policy on one round's couples.

    Args:
        carrier: the policy and the model before the first round.
        args: the run's, with the round's folder as `output_dir`.
        couples: the result of `couples_of`; for method dpo, of `with_reference`.
    """

    args: PSLEConfig

    def __init__(
        self,
        carrier: Carrier,
        args: PSLEConfig,
        couples: Dataset,
        processing_class: PreTrainedTokenizerBase,
        ledger: Ledger,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.carrier, self.ledger = carrier, ledger
        self._noted: dict[str, list[float]] = defaultdict(list)
        self.brake = Brake(args.kl_weight, args.target_kl)
        super().__init__(
            model=carrier.policy,
            args=args,
            data_collator=CoupleCollator(int(processing_class.pad_token_id or 0)),
            train_dataset=couples,
            callbacks=[RunFolder(ledger, args.resolved()), LogLastStep(), *(callbacks or [])],
        )
        # The loss is a mean over couples, so Trainer must average the micro-batches of an accumulated step.
        self.model_accepts_loss_kwargs = False

    # -- the loss --------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the batch's couples of all branches."""
        args = self.args
        sums, kl = self._scores(model, inputs)
        lengths = inputs["completion_mask"].sum(1)
        place = (inputs["side"], inputs["couple"])
        size = inputs["is_ranked"].shape[0]
        if args.method == "dpo":
            ratio = sums.new_zeros(2, size).index_put(place, sums) - inputs["reference"]
            losses_of = dpo_loss(ratio[1] - ratio[0], args.beta)
        per_token = sums.new_zeros(2, size).index_put(place, sums / lengths)
        plain, guided = per_token
        if args.method != "dpo":
            weights = inputs["weights"]
            losses_of = losses.couple_loss(
                losses.ranking_loss(guided, plain, args.ranking_temperature),
                losses.imitation_loss(guided, plain, weights[1], weights[0]),
                inputs["is_ranked"],
                args.sft_weight,
            )
        loss = (inputs["weight"] * losses_of).mean()
        if kl is not None:
            self._note("kl", kl)
            loss = self.brake.applied(loss, kl, float(lengths.float().mean()))
        self._log_couples(plain.detach(), guided.detach(), inputs, losses_of.detach())
        return (loss, {"per_token": per_token.detach()}) if return_outputs else loss

    def _scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Log-likelihoods of the batch's responses `[M]`. With a brake, the mean KL to the start over their tokens."""
        wants_kl = self.args.has_brake
        if not self.carrier.passes:
            scored = self.carrier.score(model, inputs)
            assert scored.kl is not None
            return scored.sums, scored.kl.sum() / scored.mask.sum() if wants_kl else None
        logits, of_row = self._logits(model, inputs)
        targets = inputs["input_ids"][:, 1:][inputs["completion_mask"][:, 1:].bool()]
        log_probs = -cross_entropy(logits.float(), targets, reduction="none")
        sums = log_probs.new_zeros(len(inputs["side"])).index_add(0, of_row, log_probs)
        return sums, self._kl_to_start(inputs, logits) if wants_kl else None

    @staticmethod
    def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits `[C, V]` that predict the batch's C completion tokens, and the row `[C]` of each."""
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        keep = inputs["completion_mask"][:, 1:].bool()
        return output.logits[:, :-1][keep], keep.nonzero()[:, 0]

    def _kl_to_start(self, inputs: dict[str, Tensor], logits: Tensor) -> Tensor:
        """Mean over completion tokens of `KL(π‖π_start)` over the whole vocabulary."""
        with torch.no_grad(), self.carrier.start() as start:
            before, _ = self._logits(start, inputs)
        log_pi, log_start = log_softmax(logits.float(), -1), log_softmax(before.float(), -1)
        self.ledger.count(lm_forward_tokens=self._over_processes(inputs["attention_mask"].sum()))
        return (log_pi.exp() * (log_pi - log_start)).sum(-1).mean()

    # -- what is logged ----------------------------------------------------------------------------------------------------

    def _log_couples(self, plain: Tensor, guided: Tensor, inputs: dict[str, Tensor], each: Tensor) -> None:
        ranked = inputs["is_ranked"]
        self._note("ranked_share", ranked.float().mean())
        if ranked.any():
            # Logged separately: both may fall while their difference grows.
            self._note("log_likelihood/ranked_guided", guided[ranked].mean())
            self._note("log_likelihood/ranked_plain", plain[ranked].mean())
            self._note("ranked_in_order", (guided > plain)[ranked].float().mean())
            self._note("ranking_loss", each[ranked].mean())
        if not ranked.all():
            self._note("imitation_loss", each[~ranked].mean())

    def _note(self, name: str, value: Tensor) -> None:
        self._noted[name].append(float(value.detach()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add this process's means since the last log line."""
        if "loss" in logs:
            logs = logs | {name: sum(values) / len(values) for name, values in self._noted.items()}
            self._noted.clear()
        super().log(logs, start_time)

    def _over_processes(self, count: Tensor) -> int:
        return int(self.accelerator.reduce(count, "sum"))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        inputs = args[1]
        with self.ledger.phase("optimise"):
            loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:  # the last micro-batch of a step
            self.brake.end_step()
        tokens = inputs["attention_mask"].sum().to(self.accelerator.device)
        self.ledger.count(
            lm_forward_tokens=self.carrier.passes * self._over_processes(tokens),
            optimizer_steps=int(self.accelerator.sync_gradients),
        )
        return loss

    # -- checkpoints -------------------------------------------------------------------------------------------------------

    def release(self, model: nn.Module) -> None:
        """Undo accelerate's mixed-precision wrapping, so that the next round samples as a new process would."""
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            model.__dict__.pop(name, None)

    def reset_run_state(self) -> None:
        self._noted.clear()
        self.brake.reset()

    def run_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.args.fixed_settings()
        return settings

    def run_state(self) -> dict[str, Any]:
        return {"noted": dict(self._noted), "last_kl": self.brake.last}

    def load_run_state(self, state: dict[str, Any]) -> None:
        self._noted.update(state["noted"])
        self.brake.last = state["last_kl"]
