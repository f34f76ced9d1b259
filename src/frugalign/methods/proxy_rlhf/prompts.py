"""The prompts of a training by reward: encoded once, and written beside some of their completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.json_files import append_lines
from frugalign.base.quantities import KL_PARTS
from frugalign.data import encode_prompts
from frugalign.data.on_disk import ROWS
from frugalign.data.row_parts import kept_key
from frugalign.data.templating import Rendering
from frugalign.engines.base_settings import tokenizer_values
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import context_length
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.rollout import Rollout
from frugalign.runs.layout import COMPLETIONS_FILE

_LOGGED_COMPLETIONS = 4


@dataclass(frozen=True)
class Prompts:
    """Prompts with their token ids."""

    dataset: Dataset
    ids: Sequence[list[int]]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def encode(cls, dataset: Dataset, base: LoadedModel, args: ProxyConfig, rendering: Rendering) -> Prompts:
        """The prompts as the base reads them.

        Raises:
            FrugalignError: there are none, or one exceeds the context.
        """
        if len(dataset) == 0:
            raise FrugalignError("The data set holds no prompts.")
        context = context_length(base.model)
        key = None
        if len(dataset) > ROWS:
            limits = [args.max_prompt_length, context, args.max_new_tokens]
            how = [tokenizer_values(base.tokenizer), rendering.prompt_format, dict(rendering.chat_template_kwargs)]
            key = kept_key(dataset, "prompt ids", limits, how)
        encoded = encode_prompts(
            dataset["prompt"],
            base.tokenizer,
            max_prompt_length=args.max_prompt_length,
            max_context=context,
            max_new_tokens=args.max_new_tokens,
            rendering=rendering,
            key=key,
        )
        return cls(dataset, encoded.ids, base.tokenizer)

    def texts(self, rollout: Rollout) -> list[str]:
        """Completions as text, without special tokens."""
        texts: list[str] = self.tokenizer.batch_decode(rollout.generation.completion_ids, skip_special_tokens=True)
        return texts

    def some_completions(
        self, step: int, indices: list[int], rollout: Rollout, rewards: Tensor, extra: dict[str, list[Any]]
    ) -> list[dict[str, Any]]:
        """Some completions of a rollout: prompt, completion, reward, `kl` to the base in nats, and the columns that rewards logged (`extra`)."""
        texts = self.texts(rollout)
        kl = sum(getattr(rollout.generation, name) for name in KL_PARTS)
        return [
            {
                "step": step,
                "prompt": self.dataset[indices[row]]["prompt"],
                "completion": texts[row],
                "reward": None if rewards[row].isnan() else float(rewards[row]),
                "kl": float(kl[row]),
            }
            | {name: values[row] for name, values in extra.items() if len(values) == len(indices)}
            for row in range(0, len(indices), max(1, len(indices) // _LOGGED_COMPLETIONS))
        ]


def write_completions(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append them to `completions.jsonl`."""
    append_lines(folder / COMPLETIONS_FILE, [json.dumps(row, ensure_ascii=False, default=str) for row in rows])
