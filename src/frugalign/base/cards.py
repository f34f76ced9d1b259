"""The card of an artefact, its README.md: the base, the method, settings, figures, costs, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frugalign.base.specs import local_path

_PATH = re.compile(r"(?<![\w.:/~-])~?/(?:[\w.@+-]+/)+([\w.@+-]+)")
"""An absolute path. The part after the last slash is its name."""


@dataclass(frozen=True)
class CardTables:
    """The tables of a card; an empty one is left out. `costs` is a `Ledger.table()`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    costs: Sequence[tuple[str, str]] = ()


def model_card(
    *,
    title: str,
    description: str,
    base_model: str = "",
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    tables: CardTables | None = None,
    usage: str = "",
) -> str:
    """The README.md of an artefact. Missing parts are left out.

    The hub rejects metadata that names a local folder, so a local base model is named in the text instead.
    """
    is_hub_id, tables = local_path(base_model) is None, tables or CardTables()
    if base_model and not is_hub_id:
        description = f"{description.rstrip()}\n\nBase model: `{base_model}`."
    names = [name for name in datasets if local_path(name) is None]
    parts = [
        "---",
        "library_name: frugalign",
        *([f"base_model: {base_model}"] if is_hub_id else []),
        *(["datasets:", *(f"- {name}" for name in names)] if names else []),
        *("tags:", *(f"- {tag}" for tag in ["frugalign", *tags])),
        "---",
        "",
        f"# {title}",
        "",
        description.strip(),
        *_section("Settings", ("setting", "value"), [(f"`{key}`", value) for key, value in tables.settings.items()]),
        *_section("Results", ("measure", "value"), list(tables.results.items())),
        *_section("What it cost", ("what", "value"), tables.costs),
        *(["", "## Use", "", *code_block(usage)] if usage.strip() else []),
    ]
    return "\n".join(parts) + "\n"


def code_block(code: str) -> list[str]:
    """The lines of a fenced block: Python, or commands of this package."""
    return [f"```{'console' if code.startswith('frugalign ') else 'python'}", code.strip(), "```"]


def with_section(card: str, title: str, lines: Sequence[str]) -> str:
    """The card with these lines under `## title`, in place of what stood there. A new section goes before `## Use`, else to the end."""
    head, *sections = re.split(r"^(?=## )", card, flags=re.MULTILINE)
    new = "\n".join([f"## {title}", "", *lines]) + "\n"
    names = [section.split("\n", 1)[0].removeprefix("## ") for section in sections]
    if title in names:
        place = names.index(title)
        sections[place : place + 1] = [new]
    else:
        sections.insert(names.index("Use") if "Use" in names else len(sections), new)
    return "\n\n".join(part.strip("\n") for part in (head, *sections)) + "\n"


def without_folders(text: str) -> str:
    """The text with every absolute path shortened to its last part. A card for others does not say where files lie on this machine."""
    return _PATH.sub(r"\1", text)


def table(head: tuple[str, str], rows: Sequence[tuple[str, Any]]) -> list[str]:
    """The lines of a Markdown table of two columns."""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *lines]


def _section(title: str, head: tuple[str, str], rows: Sequence[tuple[str, Any]]) -> list[str]:
    """The lines of a section with a Markdown table. Empty without rows."""
    return ["", f"## {title}", "", *table(head, rows)] if rows else []


def _cell(value: Any) -> str:
    """A value in a Markdown table: one line, pipes escaped, floats short."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
