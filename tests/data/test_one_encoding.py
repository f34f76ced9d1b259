"""Every place that renders or encodes prompts does it by the one encoding, with the settings of its caller."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import frugalign

SOURCE = Path(frugalign.__file__).parent
RENDERING = {
    *("encode_prompts", "encode_completions", "encode_for_model", "tokenize_pairs", "render_prompt", "is_chat"),
    *("under_principles", "GroupOptions", "couples_of", "PromptEncoder", "pairs_table"),
}
OWN_MODEL = {"evaluation/judges/pairwise.py"}
"""A judge is another model than the policy, with a template of its own."""


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, name of the function, and the call itself."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield str(path.relative_to(SOURCE)), name, node


def test_every_encoding_is_told_how_prompts_are_rendered() -> None:
    """An argument of the template that one place forgets would train on one text and sample from another."""
    without, found = [], set()
    for file, name, call in calls():
        if name in RENDERING and file not in OWN_MODEL and (call.args or call.keywords):
            found.add(name)
            given = [ast.unparse(value) for value in (*call.args, *(each.value for each in call.keywords))]
            if not any("rendering" in text.lower() for text in given):
                without.append(f"{file}:{call.lineno} {name}")
    assert not without
    assert found >= RENDERING - {"render_prompt"}


def test_the_template_is_applied_in_one_place() -> None:
    """The sandbox builds its models' training texts itself."""
    users = {file for file, name, _ in calls() if name == "apply_chat_template" and not file.startswith("sandbox/")}
    assert users == {"data/chat_template.py"}
