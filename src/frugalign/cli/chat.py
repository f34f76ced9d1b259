"""`frugalign chat`: a conversation in the terminal, with or without a proxy."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from frugalign.cli.generate import check_temperature, legend
from frugalign.cli.parser import Command, parse


@dataclass
class ChatOptions:
    """Options of `frugalign chat`."""

    model_name_or_path: str = field(metadata={"help": "The base: hub id, folder, or package.module:attribute."})
    proxy: str | None = field(default=None, metadata={"help": "Folder or hub id of a proxy that guides the base."})
    adapter: str | None = field(default=None, metadata={"help": "A PEFT adapter of the base."})
    strength: float = field(default=1.0, metadata={"help": "Strength λ of the proxy: 0 is the restricted base."})
    system: str | None = field(default=None, metadata={"help": "A system message to begin with."})
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


COMMAND = Command(
    "chat",
    "Talk to a model, guided by a proxy where one is given. An empty line or Ctrl-D ends it; /new starts over.",
    ChatOptions,
)


def run(argv: list[str]) -> int:
    """Read a line, answer it, until there are no more lines."""
    options: ChatOptions = parse(COMMAND, argv)
    check_temperature(options.temperature, options.proxy)
    from rich.console import Console

    from frugalign.evaluation.completing import Completer, colour_trace

    completer = Completer(
        options.model_name_or_path,
        proxy=options.proxy,
        adapter=options.adapter,
        strength=options.strength,
        revision=options.revision,
        dtype=options.dtype,
    )
    console = Console(highlight=False)
    if options.show_rejections:
        print(legend())
    start: list[dict[str, Any]] = [{"role": "system", "content": options.system}] if options.system else []
    messages, turn = list(start), 0
    while True:
        line = _ask()
        if not line:
            return 0
        if line == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        # Models without a chat template continue the text of the line alone.
        prompt: Any = messages if completer.tokenizer.chat_template else line
        answer = completer.answer(
            prompt,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            do_sample=options.do_sample,
            seed=options.seed,
            turn=turn,
            on_text=None if options.show_rejections else _show,
        )
        if options.show_rejections:
            console.print(colour_trace(answer.trace, completer.tokenizer), soft_wrap=True)
        else:
            print()
        messages.append({"role": "assistant", "content": answer.text})
        turn += 1


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _show(piece: str) -> None:
    print(piece, end="", flush=True)
