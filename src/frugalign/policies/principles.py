"""Written principles: read them from a file, and put them before a prompt.

YAML has `preamble` (a text), `principles` (a list of texts) and `demonstrations` (a list of {prompt, response}). At least one
is needed. In Markdown the text before the first list is the preamble, and the list items are the principles. Under a
heading `Demonstrations`, lines that begin with `Prompt:` and `Response:` alternate. A `.txt` file is used verbatim, and so is
a text that is a module's attribute.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.parsing import MAX_BYTES, read_yaml
from frugalign.base.specs import is_attribute, load_attribute, resolve_name
from frugalign.base.wording import shown
from frugalign.data.chat_template import ChatTemplate
from frugalign.data.templating import AUTO, Prompt, Rendering, as_messages, is_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SETS = Path(__file__).parent / "sets"
_ITEM = re.compile(r"(?:[-*+]|\d+[.)])\s+(.*)")
_HEADING = re.compile(r"#+\s+(.*)")
_RULE = re.compile(r"([-*_] ?){3,}")
_TURN = re.compile(r"(?:\*\*)?(Prompt|Response):(?:\*\*)?\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Principles:
    """A preamble, the principles in order, and demonstrations as (prompt, response)."""

    preamble: str = ""
    principles: tuple[str, ...] = ()
    demonstrations: tuple[tuple[str, str], ...] = ()

    def text(self) -> str:
        """Preamble and numbered principles."""
        numbered = "\n".join(f"{number}. {text}" for number, text in enumerate(self.principles, start=1))
        return "\n\n".join(part for part in (self.preamble, numbered) if part)

    def fingerprint(self) -> str:
        """A hash of the whole content."""
        content = [self.preamble, self.principles, self.demonstrations]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def shipped() -> list[str]:
    """The names of the sets that come with the package."""
    return sorted(path.stem for path in _SETS.glob("*.yaml"))


def load_principles(name: str) -> Principles:
    """Load principles by name.

    Args:
        name: a shipped set, a .yaml, .yml, .md or .txt file, or `package.module:attribute` (a text, such a path, or a function
            that returns one).

    Raises:
        FrugalignError: an unknown name, a file without principles, or a file in another format.
    """
    if name in shipped():
        return _from_yaml(_SETS / f"{name}.yaml")
    if is_attribute(name):
        found = load_attribute(name)
        if isinstance(found, Principles):
            return found
        if callable(found):
            return load_principles(resolve_name(name))
        if not isinstance(found, (str, Path)):
            raise FrugalignError(f"The principles {name} must be a text or a path, not a {type(found).__name__}.")
        if isinstance(found, Path) or Path(found).suffix in (".yaml", ".yml", ".md", ".txt"):
            return load_principles(str(found))
        return _something(Principles(preamble=found.strip()), name)
    path = Path(name).expanduser()
    if not os.path.isfile(path):  # not is_file, which raises where the name is too long, as of a text in its place
        raise FrugalignError(
            f"There are no principles {shown(name, quoted=False)}: neither a file nor one of {', '.join(shipped())}."
        )
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path)
    text = _read(path)
    return _something(_from_markdown(text, name) if path.suffix == ".md" else Principles(preamble=text.strip()), name)


def under_principles(
    principles: Principles, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, rendering: Rendering = AUTO
) -> list[Prompt]:
    """Put the principles before every prompt: as messages if there is a chat template, else as text.

    In messages the principles open the system message, and the demonstrations are earlier turns. If the template has no
    system role, the principles open the first user turn. Raw text has the principles, the demonstrations, then the prompt.

    Raises:
        FrugalignError: messages that begin with neither the system nor the user.
    """
    text, shown = principles.text(), principles.demonstrations
    system: bool | None = None
    found: list[Prompt] = []
    for row, prompt in enumerate(prompts):
        if not is_chat(prompt, tokenizer, rendering):
            parts = [text] * bool(text) + [f"{question}\n{answer}" for question, answer in shown] + [str(prompt)]
            found.append("\n\n".join(parts))
            continue
        if system is None:
            system = ChatTemplate(tokenizer, rendering.chat_template_kwargs).has_system_role
        own = as_messages(prompt)
        instructions = text
        if not all(isinstance(turn["content"], str) for turn in own):
            raise FrugalignError(
                f"Prompt {row + 1} has contents that are not text; principles can stand only before text."
            )
        if own and own[0]["role"] in ("system", "developer"):
            instructions = "\n\n".join(part for part in (text, own.pop(0)["content"]) if part)
        if not own or own[0]["role"] != "user":
            raise FrugalignError(
                f"Prompt {row + 1} does not begin with the user, so principles cannot stand before it."
            )
        turns: list[dict[str, Any]] = []
        for question, answer in shown:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns += own
        if instructions and system:
            turns.insert(0, {"role": "system", "content": instructions})
        elif instructions:
            turns[0] = turns[0] | {"content": f"{instructions}\n\n{turns[0]['content']}"}
        found.append(turns)
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FrugalignError(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise FrugalignError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(content) > MAX_BYTES:
        raise FrugalignError(f"{path} is larger than {MAX_BYTES // 1024} KiB, which no model reads as principles.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _something(found: Principles, name: str) -> Principles:
    if not (found.text() or found.demonstrations):
        raise FrugalignError(f"{name} holds no principles.")
    return found


def _from_yaml(path: Path) -> Principles:
    content = read_yaml(path, "principles")
    if isinstance(content, list):
        content = {"principles": content}
    if not isinstance(content, dict):
        raise FrugalignError(f"{path} holds no principles.")
    if unknown := sorted(set(map(str, content)) - {"preamble", "principles", "demonstrations"}):
        raise FrugalignError(f"{path} has {shown(unknown[0])}; it takes preamble, principles and demonstrations.")
    preamble, items, examples = (content.get(key) for key in ("preamble", "principles", "demonstrations"))
    if not isinstance(preamble or "", str):
        raise FrugalignError(f"{path}: `preamble` must be text.")
    for number, item in enumerate(_list(items, path, "principles"), start=1):
        if not isinstance(item, str) or not item.strip():
            raise FrugalignError(f"{path}: principle {number} must be text.")
    pairs = []
    for number, item in enumerate(_list(examples, path, "demonstrations"), start=1):
        pair = [item.get(key) for key in ("prompt", "response")] if isinstance(item, dict) else []
        texts = [each.strip() for each in pair if isinstance(each, str) and each.strip()]
        if len(texts) < 2:
            raise FrugalignError(f"{path}: demonstration {number} needs the texts `prompt` and `response`.")
        pairs.append((texts[0], texts[1]))
    lines = tuple(" ".join(item.split()) for item in items or [])
    return _something(Principles((preamble or "").strip(), lines, tuple(pairs)), str(path))


def _list(value: Any, path: Path, name: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise FrugalignError(f"{path}: `{name}` must be a list.")
    return value or []


def _from_markdown(text: str, name: str) -> Principles:
    preamble: list[str] = []
    items: list[str] = []
    turns: list[tuple[str, str]] = []
    part, follows = "principles", False
    for line in text.splitlines():
        line = line.strip()
        in_item, follows = follows, False
        if _RULE.fullmatch(line):
            continue
        if heading := _HEADING.fullmatch(line):
            part = "demonstrations" if heading[1].lower().startswith("demonstration") else "principles"
        elif part == "demonstrations":
            if turn := _TURN.fullmatch(line):
                turns.append((turn[1].lower(), turn[2]))
            elif line:
                role, said = turns.pop() if turns else ("", "")
                turns.append((role, f"{said}\n{line}".strip()))
        elif item := _ITEM.fullmatch(line):
            items.append(item[1])
            follows = True
        elif in_item and line:
            items[-1] += f" {line}"
            follows = True
        elif not items:
            preamble.append(line)
        elif line:
            raise FrugalignError(
                f"{name}: {line[:40]!r} stands after the list, outside every principle; put it before the list, or make it an item."
            )
    if [role if said else None for role, said in turns] != ["prompt", "response"] * (len(turns) // 2):
        raise FrugalignError(f"{name}: a demonstration is a line `Prompt: …` and then a line `Response: …`.")
    pairs = tuple((question, answer) for (_, question), (_, answer) in zip(turns[::2], turns[1::2], strict=True))
    return Principles("\n".join(preamble).strip(), tuple(items), pairs)
