"""A policy as a model of inspect-ai, which must be installed: `inspect eval task.py --model frugalign/MODEL -M proxy=DIR@0.7`.

The entry point `inspect_ai` of this package names this module, so inspect-ai finds it. After `-M` come the fields of `PolicySpec`.
Answers are those of `frugalign generate`: a function of the seed, the prompt, and how often it was asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from typing import Any

from anyio import to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)

from frugalign.base.errors import FrugalignError

_NOT_SUPPORTED = (
    "top_p",
    "top_k",
    "logprobs",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "response_schema",
)
_EPOCHS = 1 << 31


class PolicyAPI(ModelAPI):  # type: ignore[misc]
    """Answers one conversation at a time.

    Args:
        model_name: the base, as a hub id or folder.
        model_args: fields of `PolicySpec`, such as `proxy`, `adapter` or `principles`.

    Raises:
        FrugalignError: a policy that cannot be loaded.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        from frugalign.policies.loading import load
        from frugalign.policies.spec import PolicySpec

        self.policy = load(PolicySpec.from_dict({"model_name_or_path": model_name} | model_args))
        self._lock, self._asked = threading.Lock(), Counter[str]()

    def max_connections(self) -> int:
        """One conversation at a time, since all use one model."""
        return 1

    async def generate(
        self, input: list[Any], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation `num_choices` times.

        Raises:
            FrugalignError: tools, or a setting that would change the policy.
        """
        given = [name for name in _NOT_SUPPORTED if getattr(config, name, None) is not None]
        if tools or given:
            raise FrugalignError(f"A policy answers without {'tools' if tools else given[0]}: leave that out.")
        return await to_thread.run_sync(self._answer, input, config)

    def _answer(self, messages: list[Any], config: GenerateConfig) -> ModelOutput:
        from frugalign.policies.answer import answer
        from frugalign.policies.prompt_rows import PromptRows
        from frugalign.policies.spec import SamplingSettings

        prompt = self._prompt(messages)
        settings = SamplingSettings(
            max_new_tokens=config.max_tokens,
            temperature=config.temperature or None,
            do_sample=config.temperature != 0,
            seed=config.seed or 0,
        )
        choices, new = [], 0
        with self._lock:
            for _ in range(config.num_choices or 1):
                found = answer(self.policy, prompt, settings, turn=self._epoch(prompt))
                text, stopped = _cut(found.text, config.stop_seqs or ())
                message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
                reason: Any = "stop" if found.ended or stopped else "max_tokens"
                choices.append(ChatCompletionChoice(message=message, stop_reason=reason))
                new += len(found.ids)
            fitted = self.policy.with_defaults(settings, 1)
            read = len(self.policy.encode(PromptRows([prompt]), fitted).ids[0])
        usage = ModelUsage(input_tokens=read, output_tokens=new, total_tokens=read + new)
        return ModelOutput(model=self.model_name, choices=choices, usage=usage)

    def _prompt(self, messages: list[Any]) -> Any:
        """The conversation, or its text for a model without a chat template."""
        if self.policy.base.tokenizer.chat_template:
            return [{"role": message.role, "content": message.text} for message in messages]
        return "\n\n".join(message.text for message in messages)

    def _epoch(self, prompt: Any) -> int:
        """Selects the noise: another one for every prompt, and for every time that it is asked."""
        text = json.dumps(prompt, ensure_ascii=False)
        self._asked[text] += 1
        start = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())
        return (start + self._asked[text]) % _EPOCHS


def _cut(text: str, stops: Any) -> tuple[str, bool]:
    """The text up to the first of these sequences, and whether there is one."""
    places = [place for place in map(text.find, stops) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


@modelapi(name="frugalign")  # type: ignore[untyped-decorator]
def frugalign() -> type[PolicyAPI]:
    """The provider, by the name before the slash in `frugalign/MODEL`."""
    return PolicyAPI
