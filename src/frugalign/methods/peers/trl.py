"""SFT, IPO, robust DPO, KTO, RLOO and GRPO with TRL's own trainers and losses.

We encode the data and call the rewards as for every other method, and the ledger counts tokens at the model itself. Left out
on purpose: any change to a loss. TRL no longer has PPO; RLOO and GRPO stand for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.base.files import WEIGHTS_FILE
from frugalign.base.ledger import Ledger
from frugalign.data.encode import answer_text
from frugalign.data.templating import Rendering, as_messages, is_chat
from frugalign.engines.adapters import record_adapter
from frugalign.engines.encode import tokenize_pairs
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel
from frugalign.engines.model_records import record_model
from frugalign.engines.transformers import base_parameters, causal_lm
from frugalign.methods.peers.configs import DPOConfig, GRPOConfig, KTOConfig, RLOOConfig, SFTConfig
from frugalign.rewards import CompletionBatch, NamedReward, score
from frugalign.runs.folder import RunFolder, saving
from frugalign.runs.progress import TrainingProgress
from frugalign.runs.save_policy import lora_of

# After the configs, which notice a missing TRL.
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer, SFTTrainer  # type: ignore[attr-defined]  # isort: skip

_PLAIN: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 10,
}


class _DPO(DPOTrainer):
    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        return dataset


class _KTO(KTOTrainer):
    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """The data is encoded already. TRL's KL estimate needs each batch's completions rotated by one."""
        size = args.per_device_train_batch_size
        every = dataset["completion_ids"][:]
        rotated = [ids for start in range(0, len(every), size) for ids in _rotated(every[start : start + size])]
        return dataset.add_column("KL_completion_ids", rotated)


class _SFT(SFTTrainer):
    def _send_telemetry(self) -> None:
        """Nothing is sent."""


class _RLOO(RLOOTrainer):
    def _send_telemetry(self) -> None:
        """Nothing is sent."""


class _GRPO(GRPOTrainer):
    def _send_telemetry(self) -> None:
        """Nothing is sent."""


def _rotated(rows: list[Any]) -> list[Any]:
    return rows[-1:] + rows[:-1]


@dataclass(frozen=True)
class PeerRun:
    """Where a peer's training runs, and how.

    Args:
        folder: receives the policy.
        ledger: counts tokens, steps and seconds.
        options: the TRL config's, and `train`, `lora_r`, `lora_alpha`, `prompt_format` and
            `chat_template_kwargs` as everywhere here.
        callbacks: for the trainer.
    """

    folder: Path
    ledger: Ledger
    options: dict[str, Any]
    callbacks: Sequence[TrainerCallback] = ()


# -- on stored pairs ----------------------------------------------------------------------------------------------------


def train_on_pairs(method: str, base: LoadedModel, pairs: Dataset, run: PeerRun) -> str:
    """SFT on the chosen answers, or IPO, robust DPO or KTO on pairs. Saves the policy and returns its kind (adapter or policy).

    Args:
        pairs: prompt, chosen, rejected and, for sampled answers, both answers' token ids.
    """
    given = dict(run.options)
    lora, rendering = _lora(given), _rendering(given)
    common = {**_PLAIN, "output_dir": str(run.folder), "max_length": None, **given}
    columns = tokenize_pairs(pairs, base.model, base.tokenizer, rendering=rendering)
    masks = columns.pop("chosen_mask", None) or [[1] * len(answer) for answer in columns["chosen_ids"]]
    if columns.pop("rejected_mask", None) is not None and method != "sft":
        raise FrugalignError(
            f"{method} would count the user's turns within an answer as the assistant's; put all turns but the last into the prompt."
        )
    base.model.requires_grad_(lora is None)
    shared: dict[str, Any] = {"model": base.model, "processing_class": base.tokenizer, "peft_config": lora}
    if method == "sft":
        rows = [
            {"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + mask}
            for prompt, answer, mask in zip(columns["prompt_ids"], columns["chosen_ids"], masks, strict=True)
        ]
        trainer: Any = _SFT(
            args=SFTConfig(completion_only_loss=True, **common), train_dataset=Dataset.from_list(rows), **shared
        )
    elif method == "kto":
        rows = [
            {"prompt_ids": prompt, "completion_ids": answer, "label": side == "chosen"}
            for side in ("chosen", "rejected")
            for prompt, answer in zip(columns["prompt_ids"], columns[f"{side}_ids"], strict=True)
        ]
        # TRL does not shuffle the rows.
        random.Random(int(common.get("seed", 0))).shuffle(rows)
        trainer = _KTO(args=KTOConfig(**common), train_dataset=Dataset.from_list(rows), **shared)
    else:
        loss: Any = {"ipo": "ipo", "robust_dpo": "robust"}[method]
        trainer = _DPO(args=DPOConfig(loss_type=loss, **common), train_dataset=Dataset.from_dict(columns), **shared)
    return _train(trainer, run, base, adapted=lora is not None)


# -- on rewards ---------------------------------------------------------------------------------------------------------


def train_on_rewards(
    method: str, base: LoadedModel, prompts: Dataset, rewards: Sequence[NamedReward], run: PeerRun
) -> str:
    """RLOO or GRPO, sampling from the whole distribution. Saves the policy and returns its kind (adapter or policy).

    Args:
        prompts: a column `prompt`; the other columns are passed to the rewards.
    """
    given = dict(run.options)
    lora, rendering = _lora(given), _rendering(given)
    weights = given.pop("reward_weights", None)
    config, trains = (RLOOConfig, _RLOO) if method == "rloo" else (GRPOConfig, _GRPO)
    given["chat_template_kwargs"] = dict(rendering.chat_template_kwargs)
    args: Any = config(**{**_PLAIN, "output_dir": str(run.folder), "top_k": 0, "top_p": 1.0, **given})
    if is_chat(prompts[0]["prompt"], base.tokenizer, rendering):
        prompts = prompts.map(lambda row: {"prompt": as_messages(row["prompt"])})
    base.model.requires_grad_(lora is None)
    trainer: Any = trains(
        model=base.model,
        reward_funcs=_reward(rewards, weights, run.ledger),
        args=args,
        train_dataset=prompts,
        processing_class=base.tokenizer,
        peft_config=lora,
    )
    return _train(trainer, run, base, adapted=lora is not None)


def _reward(rewards: Sequence[NamedReward], weights: list[float] | None, ledger: Ledger) -> Callable[..., list[Any]]:
    """The rewards as one TRL reward, which also counts sampled tokens. Text prompts stay text."""

    def total(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[Any]:
        # All tokens of a completion but the last are fed again. `counted` counts the prompts.
        tokens = sum(map(len, completion_ids))
        ledger.count(generated_tokens=tokens, lm_forward_tokens=tokens - len(completion_ids))
        own = {
            name: values for name, values in columns.items() if isinstance(values, list) and len(values) == len(prompts)
        }
        texts = [_text_of(prompt) for prompt in prompts]
        with ledger.phase("reward"):
            return score(
                rewards,
                CompletionBatch(texts, [answer_text(each) for each in completions], completion_ids, columns=own),
                weights=weights,
                ledger=ledger,
            ).total

    return total


def _text_of(prompt: Any) -> Any:
    """The text of a single user turn; longer conversations are unchanged."""
    if isinstance(prompt, list) and len(prompt) == 1 and prompt[0].get("role") == "user":
        return prompt[0]["content"]
    return prompt


# -- both ---------------------------------------------------------------------------------------------------------------


def _lora(options: dict[str, Any]) -> Any:
    """The LoRA that the options describe, or None for every weight. Removes these options."""
    from types import SimpleNamespace

    wanted = options.pop("train", "lora") == "lora"
    shape = SimpleNamespace(lora_r=options.pop("lora_r", 16), lora_alpha=options.pop("lora_alpha", 32))
    return lora_of(shape) if wanted else None


def _rendering(options: dict[str, Any]) -> Rendering:
    """How conversations become text by the options, which are removed."""
    return Rendering(options.pop("prompt_format", "auto"), options.pop("chat_template_kwargs", None) or {})


class _CountSteps(TrainerCallback):
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ledger.count(optimizer_steps=1)


@contextmanager
def counted(models: Sequence[Any], ledger: Ledger) -> Iterator[None]:
    """Count the tokens of every forward pass through these models, without padding and cached tokens.

    Single tokens after a cache are not counted. While sampling, `generate` feeds padding to rows that have ended, without
    masking it. Sampled tokens are counted from the completions instead.
    """

    def count(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or (ids.shape[1] == 1 and kwargs.get("past_key_values") is not None):
            return
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            ledger.count(lm_forward_tokens=int(mask[:, -ids.shape[1] :].sum()))
        else:
            ledger.count(lm_forward_tokens=ids.numel())

    hooks = [causal_lm(model).register_forward_pre_hook(count, with_kwargs=True) for model in models]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _train(trainer: Any, run: PeerRun, base: LoadedModel, *, adapted: bool) -> str:
    policy, ledger = trainer.model, run.ledger
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    ledger.set_parameters(trainable=trained, base=base_parameters(policy))
    trainer.add_callback(RunFolder(ledger, {"trainer": type(trainer).__mro__[1].__name__}))
    trainer.add_callback(_CountSteps(ledger))
    for callback in run.callbacks:
        trainer.add_callback(callback)
    TrainingProgress("training", ("loss", "reward")).replace_defaults(trainer)
    models = [policy, *([trainer.ref_model] if getattr(trainer, "ref_model", None) is not None else [])]
    with counted(models, ledger), ledger.phase("train"):
        trainer.train()
    with saving(run.folder / WEIGHTS_FILE):
        whole = trainer.accelerator.unwrap_model(trainer.model)
        whole.save_pretrained(run.folder)
        base.tokenizer.save_pretrained(run.folder)
        if adapted:
            record_adapter(run.folder, fingerprint(whole, base.tokenizer, name=base.name, without_adapter=True))
        else:
            record_model(run.folder)
    return "adapter" if adapted else "policy"
