"""`frugalign generate`: answer one prompt with a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from frugalign.cli.parser import Command, parse
from frugalign.options import groups
from frugalign.options.declare import REQUIRED, like, notes, option
from frugalign.options.kinds import TEXT
from frugalign.options.policy import PolicyOptions

if TYPE_CHECKING:
    from frugalign.policies.policy import Policy
    from frugalign.policies.spec import SamplingSettings


@dataclass(kw_only=True)
@notes(chat_template_kwargs="Default: the proxy's.")
class AnswerOptions(groups.Seed, groups.Decoding, groups.ChatTemplate, PolicyOptions):
    """Options that `generate` and `chat` share."""

    show_rejections: bool = option(False, "Show proposed, rejected and accepted tokens in colour.")
    max_new_tokens: int | None = like(groups.Sampling, "max_new_tokens", None, "Default: the proxy's, else 256.")
    temperature: float | None = like(
        groups.Sampling,
        "temperature",
        None,
        "A proxy allows only the one of its training. Default: that, else the model's own, else 1.",
    )


@dataclass(kw_only=True)
class GenerateOptions(groups.PromptLength, AnswerOptions):
    """Options of `frugalign generate`."""

    prompt: str = option(REQUIRED, "The prompt to answer or continue.", TEXT)
    prompt_format: Literal["auto", "raw", "chat"] | None = like(
        groups.PromptFormat, "prompt_format", None, "Default: the proxy's, else auto."
    )


COMMAND = Command(
    "generate",
    "Answer one prompt with a model: alone, under principles, guided by proxies, with an adapter, or by best-of-n.",
    GenerateOptions,
)


def run(argv: list[str]) -> int:
    """Print the answer. With --show_rejections, colours show what the proxy did."""
    options: GenerateOptions = parse(COMMAND, argv)
    policy, settings = load(options)
    from frugalign.base.terminal import console
    from frugalign.engines.sharding import is_first
    from frugalign.policies.answer import answer, colour_trace

    found = answer(policy, options.prompt, settings)
    if not is_first():
        return 0
    if options.show_rejections:
        console().print(colour_trace(found.trace, policy.base.tokenizer), soft_wrap=True)
        print(legend())
    else:
        print(found.text)
    return 0


def load(options: AnswerOptions) -> tuple[Policy, SamplingSettings]:
    """The policy that the flags describe, loaded, and its sampling settings.

    Raises:
        FrugalignError: contradictory flags, found before anything is loaded; a part that cannot be loaded.
    """
    from frugalign.policies.spec import PolicySpec, SamplingSettings

    spec = PolicySpec.from_dict(options.policy_values())
    names = (
        "max_new_tokens",
        "temperature",
        "do_sample",
        "prompt_format",
        "chat_template_kwargs",
        "max_prompt_length",
        "seed",
    )
    settings = SamplingSettings(**{name: getattr(options, name) for name in names if hasattr(options, name)})
    from frugalign.policies import loading

    return loading.load(spec), settings


def legend() -> str:
    """What marks and colours mean."""
    return "([-so-]: rejected, ×n: n times; green: accepted; yellow: accepted at a probability below ½; plain: no alternative)"
