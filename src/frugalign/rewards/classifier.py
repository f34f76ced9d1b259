"""A sequence-classification model as a reward: reward models, sentiment and toxicity classifiers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.files import MODEL_CONFIG_FILE
from frugalign.data.chat_template import ChatTemplate
from frugalign.data.encode import answer_text
from frugalign.data.templating import conversation
from frugalign.engines.base_settings import config_values, tokenizer_values
from frugalign.engines.fingerprints import weights_hash

_log = logging.getLogger(__name__)


class ClassifierReward:
    """`reward(prompts, completions)`: the logit of a one-label model, the log-odds of label 1 of a two-label model.

    The text is the conversation under the tokenizer's chat template; a string prompt is one user turn. Without a
    template, prompt and completion are joined as they are. Text beyond the model's context is cut on the left and
    reported once. A score does not depend on the other rows of its batch.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 32) -> None:
        if model.config.num_labels not in (1, 2):
            raise FrugalignError(
                f"A reward model has {model.config.num_labels} labels; a reward needs one or two (log-odds of label 1)."
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.__name__ = Path(str(model.config._name_or_path or "classifier")).name
        self._cut_reported = False
        # A decoder without a pad token was trained without padding: it reads the row's last token.
        self._pads = model.config.get_text_config().pad_token_id is not None

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, device: str = "cpu", batch_size: int = 32) -> ClassifierReward:
        """Load from a folder or the hub: safetensors only, no code of the repository, float32 on the CPU.

        Raises:
            FrugalignError: the model is missing, has no trained classification head, or has more than two labels.
        """
        if Path(name_or_path).is_dir() and not (Path(name_or_path) / MODEL_CONFIG_FILE).is_file():
            raise FrugalignError(f"No reward model in {name_or_path}: the folder has no {MODEL_CONFIG_FILE}.")
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name_or_path,
                dtype=torch.float32 if device == "cpu" else "auto",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        except Exception as error:  # transformers, the hub and safetensors each raise their own
            text = " ".join(str(error).split())
            raise FrugalignError(f"Cannot load the reward model {name_or_path!r}: {text[:300].rstrip('.')}.") from error
        missing = sorted(info["missing_keys"])
        if missing:
            raise FrugalignError(
                f"{name_or_path} is not a sequence-classification model: its file lacks {', '.join(missing[:3])}."
            )
        return cls(model.to(device), tokenizer, batch_size=batch_size)

    def content_hash(self) -> str:
        """A hash of the weights, the config and the tokenizer."""
        parts = [weights_hash(self.model), config_values(self.model.config), tokenizer_values(self.tokenizer)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """One number per completion; everything else of TRL's call is ignored."""
        texts = [self.text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        rows = self._encode(texts)
        # Sort by length for little padding; the order does not affect the scores.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            for row, value in zip(members, self._scores([rows[row] for row in members]).tolist(), strict=True):
                scores[row] = value
        return scores

    def text(self, prompt: Any, completion: Any) -> str:
        """The text that the model reads for one prompt and completion."""
        if isinstance(prompt, str) and not self.tokenizer.chat_template:
            return prompt + answer_text(completion)
        return ChatTemplate(self.tokenizer).render(conversation(prompt, completion))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        # The smaller of the two: position tables can be longer than the context (RoBERTa's are).
        limit = min(limit or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        self.tokenizer.truncation_side = "left"
        special = not self.tokenizer.chat_template
        rows: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        if any(len(row) > limit for row in rows):
            if not self._cut_reported:
                _log.warning(
                    "The reward model %s reads %d tokens; longer texts are cut on the left.", self.__name__, limit
                )
                self._cut_reported = True
            rows = self.tokenizer(texts, add_special_tokens=special, truncation=True, max_length=limit)["input_ids"]
        for row, text in zip(rows, texts, strict=True):
            if not row:
                raise FrugalignError(f"The reward model {self.__name__} gets no tokens from {text!r}.")
        return rows

    @torch.no_grad()
    def _scores(self, rows: list[list[int]]) -> Tensor:
        """`[B]` in float32. Padding is on the right, where a causal model does not see it."""
        config = self.model.config.get_text_config()
        if not self._pads:
            # Pad with any id that no row ends with, so that the model finds each row's own last token.
            config.pad_token_id = next(
                token for token in range(len(rows) + 1) if token not in {row[-1] for row in rows}
            )
        pad, width = config.pad_token_id, max(len(row) for row in rows)
        device = self.model.device
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits.float()
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
