"""`frugalign generate`: answer one prompt, with or without a proxy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from frugalign.base.errors import FrugalignError
from frugalign.cli.parser import Command, parse

if TYPE_CHECKING:
    from frugalign.policies.answer import Completer


@dataclass(kw_only=True)
class AnswerOptions:
    """What `generate` and `chat` have in common."""

    model_name_or_path: str = field(metadata={"help": "The base: hub id, folder, or package.module:attribute."})
    proxy: str | None = field(default=None, metadata={"help": "Folder or hub id of a proxy that guides the base."})
    adapter: str | None = field(default=None, metadata={"help": "A PEFT adapter of the base."})
    strength: float = field(default=1.0, metadata={"help": "Strength λ of the proxy: 0 is the restricted base."})
    show_rejections: bool = field(
        default=False, metadata={"help": "Show proposed, rejected and accepted tokens in colour."}
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Most tokens of an answer. Default: the proxy's, else 256."}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "Sampling temperature of the base; a proxy brings its own. Default: 1."}
    )
    do_sample: bool = field(default=True, metadata={"help": "Sample, or decode greedily (--no_do_sample)."})
    seed: int = field(default=0, metadata={"help": "Seed of all noise."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the base on the hub."})
    dtype: str | None = field(default=None, metadata={"help": "Dtype of the base: float32, bfloat16, float16, auto."})
    device_map: str | None = field(default=None, metadata={"help": "Device map of the base, as in transformers."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the base in 4-bit NF4 (needs bitsandbytes)."})


@dataclass(kw_only=True)
class GenerateOptions(AnswerOptions):
    """Options of `frugalign generate`."""

    prompt: str = field(metadata={"help": "What to answer or continue."})
    prompt_format: Literal["auto", "raw", "chat"] | None = field(
        default=None,
        metadata={"help": "One user turn where there is a chat template (auto, chat), or the string as it is (raw)."},
    )
    principles: str | None = field(
        default=None,
        metadata={"help": "Answer under these principles: a set that ships, a file, or package.module:attribute."},
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Cut a longer prompt on the left. Default: the proxy's, else no cut."}
    )


COMMAND = Command("generate", "Answer one prompt with a model, guided by a proxy where one is given.", GenerateOptions)


def run(argv: list[str]) -> int:
    """Print the answer, coloured by what the proxy did where asked."""
    options: GenerateOptions = parse(COMMAND, argv)
    completer = load_completer(options)
    from rich.console import Console

    from frugalign.policies.answer import colour_trace

    prompt: Any = options.prompt
    if options.principles is not None:
        from frugalign.policies.principles import load_principles, under_principles

        told = load_principles(options.principles)
        prompt = under_principles(told, [prompt], completer.tokenizer, options.prompt_format or "auto")[0]
    answer = completer.answer(
        prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        do_sample=options.do_sample,
        seed=options.seed,
        prompt_format=options.prompt_format,
        max_prompt_length=options.max_prompt_length,
    )
    if options.show_rejections:
        Console(highlight=False).print(colour_trace(answer.trace, completer.tokenizer), soft_wrap=True)
        print(legend())
    else:
        print(answer.text)
    return 0


def load_completer(options: AnswerOptions) -> Completer:
    """The model and what guides it.

    Raises:
        FrugalignError: a temperature where a proxy, which has learned at its own, is given; whatever cannot be loaded.
    """
    if options.temperature is not None and options.proxy is not None:
        raise FrugalignError("A proxy brings the temperature it was trained at; leave --temperature out.")
    if options.temperature is not None and options.temperature <= 0:
        raise FrugalignError("temperature must be above 0; use --no_do_sample for greedy decoding.")
    from frugalign.policies.answer import Completer

    return Completer(
        options.model_name_or_path,
        proxy=options.proxy,
        adapter=options.adapter,
        strength=options.strength,
        revision=options.revision,
        dtype=options.dtype,
        device_map=options.device_map,
        load_in_4bit=options.load_in_4bit,
    )


def legend() -> str:
    """What the colours mean, for terminals with and without them."""
    return "(struck through: proposed and rejected, ×n: n times; green: accepted; yellow: accepted reluctantly; plain: no choice to make)"
