"""`frugalign chat`: a conversation with a policy in the terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.cli.generate import AnswerOptions, legend, load
from frugalign.cli.parser import Command, parse
from frugalign.options.declare import option
from frugalign.options.kinds import TEXT


@dataclass(kw_only=True)
class ChatOptions(AnswerOptions):
    """Options of `frugalign chat`."""

    system: str | None = option(None, "System message of the conversation.", TEXT)


COMMAND = Command(
    "chat",
    "Talk to a model: alone, under principles, guided by proxies, with an adapter, or by best-of-n. An empty line or Ctrl-D ends the "
    "conversation, /new starts a new one.",
    ChatOptions,
)


def run(argv: list[str]) -> int:
    """Read lines and answer each, until an empty line or the end of the input."""
    options: ChatOptions = parse(COMMAND, argv)
    if options.tp_size > 1 or options.fsdp_size > 1:
        raise FrugalignError("chat reads the terminal, which one process has: spread the model with device_map.")
    policy, settings = load(options)
    from frugalign.base.terminal import console
    from frugalign.policies.answer import answer, colour_trace, fitting

    tokenizer, screen = policy.base.tokenizer, console()
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
        # A model without a chat template continues the line itself, without the conversation.
        prompt: Any = messages if tokenizer.chat_template else line
        if isinstance(prompt, list):
            prompt = fitting(policy, prompt, len(start), settings)
            if len(prompt) < len(messages):
                print(
                    f"(The conversation exceeds the model's context, so its oldest {len(messages) - len(prompt)} messages are left out.)"
                )
        on_text = None if options.show_rejections else _show
        found = answer(policy, prompt, settings, turn=turn, on_text=on_text)
        if options.show_rejections:
            screen.print(colour_trace(found.trace, tokenizer), soft_wrap=True)
        else:
            print()
        messages.append({"role": "assistant", "content": found.text})
        turn += 1


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _show(piece: str) -> None:
    print(piece, end="", flush=True)
