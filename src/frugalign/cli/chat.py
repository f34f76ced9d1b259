"""`frugalign chat`: a conversation in the terminal, with or without a proxy."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from frugalign.cli.generate import AnswerOptions, legend, load_completer
from frugalign.cli.parser import Command, parse


@dataclass(kw_only=True)
class ChatOptions(AnswerOptions):
    """Options of `frugalign chat`."""

    system: str | None = field(default=None, metadata={"help": "A system message to begin with."})


COMMAND = Command(
    "chat",
    "Talk to a model, guided by a proxy where one is given. An empty line or Ctrl-D ends it; /new starts over.",
    ChatOptions,
)


def run(argv: list[str]) -> int:
    """Read a line, answer it, until there are no more lines."""
    options: ChatOptions = parse(COMMAND, argv)
    completer = load_completer(options)
    from rich.console import Console

    from frugalign.policies.answer import colour_trace

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
        if isinstance(prompt, list):
            prompt = completer.fitting(prompt, keep=len(start))
            if len(prompt) < len(messages):
                print(f"(The model's context is full: {len(messages) - len(prompt)} older messages are left out.)")
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
