"""The card of an artefact, and what is changed in it for others."""

from __future__ import annotations

from pathlib import Path

import pytest

from frugalign.base.cards import CardTables, model_card, table, with_section, without_folders


def test_card(tmp_path: Path) -> None:
    card = model_card(
        title="A proxy",
        description="It oversees.",
        base_model="gpt2",
        datasets=["trl-lib/tldr", str(tmp_path)],
        tags=["proxy"],
        tables=CardTables(settings={"p_t": 0.01, "note": "a|b"}, costs=[("Optimizer steps", "4")]),
        usage="import frugalign",
    )
    assert card.startswith(
        "---\nlibrary_name: frugalign\nbase_model: gpt2\ndatasets:\n- trl-lib/tldr\n"
        "tags:\n- frugalign\n- proxy\n---\n\n# A proxy\n"
    )
    assert "| `p_t` | 0.01 |\n| `note` | a\\|b |" in card
    assert "## Results" not in card and "## What it cost" in card and str(tmp_path) not in card


def test_a_local_base_stays_out_of_the_metadata(tmp_path: Path) -> None:
    card = model_card(title="A proxy", description="It oversees.", base_model=str(tmp_path))
    assert "base_model:" not in card and f"Base model: `{tmp_path}`." in card


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("/home/me/models/llama", "llama"),
        ("a `/data/x/y.jsonl` b", "a `y.jsonl` b"),
        ("| `reward` | ['/home/me/rules.py:score'] |", "| `reward` | ['rules.py:score'] |"),
        ("~/models/llama", "llama"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("owner/model and 1/2, and/or", "owner/model and 1/2, and/or"),
        ("runs/mine/proxy", "runs/mine/proxy"),
    ],
)
def test_paths_of_this_machine_become_names(text: str, short: str) -> None:
    assert without_folders(text) == short


def test_a_section_is_replaced_or_put_before_the_use() -> None:
    card = model_card(title="A proxy", description="It oversees.", usage="frugalign chat --proxy here")
    with_results = with_section(card, "Results", table(("measure", "value"), [("reward", 0.5)]))
    assert with_results.index("| reward | 0.5 |") < with_results.index("## Use")
    again = with_section(with_results, "Results", ["none"])
    assert "0.5" not in again and "## Results\n\nnone\n\n## Use\n\n```console\nfrugalign chat" in again
    assert with_section("# Mine\n\nMy words.\n", "Use", ["so"]) == "# Mine\n\nMy words.\n\n## Use\n\nso\n"
