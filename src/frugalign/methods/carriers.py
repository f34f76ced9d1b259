"""The trained weights and their starting model: a new LoRA, a given adapter, or every weight. A proxy is `proxy_carrier.py`.

A carrier scores answers under the policy and under its start, samples from it, saves it and loads it.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.engines.adapters import record_adapter
from frugalign.engines.fingerprints import BaseFingerprint
from frugalign.engines.loading import load_model
from frugalign.engines.model_records import record_model
from frugalign.engines.transformers import evaluating
from frugalign.methods.answer_features import Answers
from frugalign.methods.log_probs import Reading, Scored, disable_dropout, score_answers
from frugalign.proxy.guide import ProxyGuide
from frugalign.runs.save_policy import lora_of


@dataclass(frozen=True)
class StartingModel:
    """The model before training. Inside `context`, `model` behaves as it."""

    model: Any
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


class Carrier(ABC):
    """A policy in training.

    `policy`: the module that Trainer optimises and saves. `copies_start`: whether keeping the starting model needs a copy.
    `passes`: of a language model, for every score.
    """

    policy: Any
    copies_start = False
    passes = 1

    @property
    def lm(self) -> Any:
        """The language model that samples, and whose states are read."""
        return self.policy

    def score(self, model: nn.Module, batch: dict[str, Tensor], reading: Reading | None = None) -> Scored:
        """Score the answers under the current policy. `model`: the policy as wrapped by Trainer."""
        return score_answers(model, self.policy, batch, reading)

    def guide(self) -> ProxyGuide | None:
        """What guides `lm` to the current policy; None if it is the policy itself."""
        return None

    def read(self, name: str, answers: Answers, ledger: Ledger, layers: list[int] | None = None) -> None:  # noqa: B027
        """Called before answers are scored, with all of them. They replace those of the same `name`.

        Args:
            ledger: counts the tokens that are fed.
            layers: whose states probes will read.
        """

    def log_probs(
        self, prompt_ids: Sequence[Sequence[int]], answer_ids: Sequence[Sequence[int]], batch_size: int, ledger: Ledger
    ) -> Tensor:
        """Log-probabilities of answers under the policy as it is now, `[n]`."""
        found = sequence_log_probs(self.policy, prompt_ids, answer_ids, batch_size=batch_size, ledger=ledger)
        return torch.tensor([float(each.sum()) for each in found])

    @abstractmethod
    def before(self) -> StartingModel:
        """The model before training.

        Raises:
            FrugalignError: it is lost.
        """

    @contextmanager
    def start(self) -> Iterator[Any]:
        """A context with the model before training."""
        found = self.before()
        with found.context():
            yield found.model

    def begin(self) -> None:  # noqa: B027 — most carriers have nothing to do
        """Called when training begins. From now on the policy differs from its start."""

    @torch.no_grad()
    def score_before(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities of the answers `[M]` under the model before training."""
        with self.start() as model, evaluating(model):
            return score_answers(model, model, batch).sums

    @abstractmethod
    def save(self, folder: Path, tokenizer: Any, base: BaseFingerprint) -> None:
        """Write the policy of a round, with the record that loading checks."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Load what `save` wrote."""


class Lora(Carrier):
    """A new LoRA. The start is the model without it."""

    def __init__(self, model: Any, args: Any) -> None:
        self.policy = get_peft_model(model, lora_of(args))

    def before(self) -> StartingModel:
        """The policy with its adapter disabled."""
        return StartingModel(self.policy, self.policy.disable_adapter)

    def save(self, folder: Path, tokenizer: Any, base: BaseFingerprint) -> None:
        self.policy.save_pretrained(folder)
        record_adapter(folder, base)

    def load(self, folder: Path) -> None:
        set_peft_model_state_dict(self.policy, load_peft_weights(str(folder), device="cpu"))


class GivenAdapter(Lora):
    """An adapter that the model already had. The start is the model with the adapter's initial weights."""

    def __init__(self, model: Any) -> None:
        self.policy = model
        self._before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def before(self) -> StartingModel:
        """The policy with the adapter's initial weights."""
        return StartingModel(self.policy, self._as_before)

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        trained = {name: p for name, p in self.policy.named_parameters() if name in self._before}
        now = {name: p.data for name, p in trained.items()}
        try:
            for name, p in trained.items():
                p.data = self._before[name].to(p.device)
            yield
        finally:
            for name, p in trained.items():
                p.data = now[name]


class EveryWeight(Carrier):
    """Every weight. The start is a frozen copy; without one, it is lost after the first step."""

    copies_start = True

    def __init__(self, model: Any, *, keeps_start: bool) -> None:
        self.policy = model
        # Copy the model in memory, since loading it by name might give another revision.
        self.copy = copy.deepcopy(model).requires_grad_(False).eval() if keeps_start else None
        self.has_moved = False

    def begin(self) -> None:
        """Until then, the policy itself is the start."""
        self.has_moved = True

    def before(self) -> StartingModel:
        """The copy, or the policy itself before the first step."""
        if self.copy is not None:
            device = next(self.policy.parameters()).device
            if getattr(self.copy, "hf_device_map", None) is None and next(self.copy.parameters()).device != device:
                self.copy.to(device)
            return StartingModel(self.copy)
        if self.has_moved:
            raise FrugalignError(
                "The weights before training are gone: give precompute_ref_log_probs false, which keeps a copy of them."
            )
        return StartingModel(self.policy)

    def save(self, folder: Path, tokenizer: Any, base: BaseFingerprint) -> None:
        self.policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        record_model(folder)

    def load(self, folder: Path) -> None:
        whole = load_model(str(folder), dtype="float32", device_map="cpu").model
        self.policy.load_state_dict(whole.state_dict())


def prepare_policy(policy: Any, args: Any, pad_token_id: int) -> None:
    """Prepare the policy of any carrier for training."""
    if args.disable_dropout:
        disable_dropout(policy)
    # Saved with the model, for whoever loads it.
    policy.config.get_text_config().pad_token_id = pad_token_id
    if getattr(policy, "generation_config", None) is not None:
        policy.generation_config.pad_token_id = pad_token_id
    adapted = isinstance(policy, PeftModel)
    if adapted and args.gradient_checkpointing:
        # The embeddings are frozen. Without this, the checkpointed layers get no input with a gradient.
        policy.enable_input_require_grads()
    if getattr(policy, "is_loaded_in_4bit", False) or getattr(policy, "is_loaded_in_8bit", False):
        # As in QLoRA (Dettmers et al. 2023). DoRA's magnitudes change by less than bfloat16 resolves.
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)


def weights_digest(model: nn.Module) -> str:
    """A hash of all trained weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
