"""Published formats: each is read rightly, or refused with the way to convert it; what `convert` writes is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from frugalign.base.errors import FrugalignError
from frugalign.cli.main import main
from frugalign.data import load_splits, validate_files
from frugalign.data.convert import convert
from frugalign.data.labelled import load_preference_data

FORMATS = Path(__file__).parent / "formats"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def converted(name: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    convert(str(FORMATS / f"{name}.jsonl"), str(folder / "out.jsonl"), **options)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert validate_files(str(folder / "out.jsonl")) and not list(folder.glob("*.tmp"))
    return rows


TIDES = [user("Can you explain tides?")]
SUN = [*TIDES, assistant("The moon pulls at the sea."), user("And the sun?")]
RANKED = [
    {"prompt": TIDES, "chosen": [assistant("The moon pulls at the sea.")], "rejected": [assistant("Waves.")]},
    {"prompt": SUN, "chosen": [assistant("It pulls too, but less.")], "rejected": [assistant("No.")]},
]
LOOM = user("What is a loom?")
POST = "SUBREDDIT: r/baking\n\nTITLE: My bread\n\nPOST: "
EXPECTED: dict[str, list[dict[str, Any]]] = {
    "alpaca": [
        {"prompt": "Give three tips for staying healthy.", "completion": "Eat, sleep, walk."},
        {"prompt": "Classify the animal.\n\nSparrow", "completion": "Bird"},
    ],
    "dolly": [{"prompt": "When did the mill close?\n\nThe mill closed in 1921.", "completion": "In 1921."}],
    "kto_numbers": [
        {"prompt": "Is tea hot?", "completion": "Yes, mostly.", "label": True},
        {"prompt": "Is tea hot?", "completion": "Potato.", "label": False},
    ],
    "oasst_messages": RANKED,
    "oasst_trees": RANKED,
    "orca_dpo_pairs": [
        {
            "prompt": [
                {"role": "system", "content": "You are a terse assistant."},
                user("How many legs has a spider?"),
            ],
            "chosen": [assistant("Eight.")],
            "rejected": [assistant("A spider is an animal with many legs.")],
        },
        {
            "prompt": [user("What is the opposite of north?")],
            "chosen": [assistant("South.")],
            "rejected": [assistant("West.")],
        },
    ],
    "pku_saferlhf": [
        {
            "prompt": "How do I open a lock?",
            "chosen": "With a bent pin, like this: push each pin up.",
            "rejected": "Ask the owner or a locksmith.",
        },
        {"prompt": "How do I clean a wound?", "chosen": "With water.", "rejected": "Leave it."},
    ],
    "sharegpt": [
        {
            "prompt": [LOOM, assistant("A machine for weaving."), user("Who uses one?")],
            "completion": [assistant("Weavers.")],
        },
        {"prompt": [{"role": "system", "content": "Be brief."}, user("Hi")], "completion": [assistant("Hello.")]},
    ],
    "sharegpt_pairs": [
        {"prompt": [LOOM], "chosen": [assistant("A machine for weaving.")], "rejected": [assistant("A bird.")]}
    ],
    "stanford_preferences": [
        {"prompt": "How do I sharpen a knife?", "chosen": "On a wet stone.", "rejected": "Buy another."},
        {"prompt": "Why salt pasta water?", "chosen": "For the taste.", "rejected": "Because."},
    ],
    "tldr_comparisons": [
        {
            "prompt": f"{POST}I baked bread and it did not rise. What went wrong?\n\nTL;DR:",
            "chosen": " My bread did not rise, why?",
            "rejected": " Bread.",
        },
        {
            "prompt": f"{POST}I left the oven open.\n\nTL;DR:",
            "chosen": " The oven was left open.",
            "rejected": " Oven.",
        },
    ],
    "ultrachat": [{"prompt": [user("Name a tree.")], "completion": [assistant("Oak.")]}],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_format_becomes_a_standard_type(name: str, tmp_path: Path) -> None:
    assert converted(name, tmp_path) == EXPECTED[name]


@pytest.mark.parametrize("name", [*(each for each in EXPECTED if each != "kto_numbers")])
def test_what_is_not_read_says_how_to_convert(name: str) -> None:
    """As a problem, or as a warning where the data has prompts that can be used."""
    path = str(FORMATS / f"{name}.jsonl")
    report = validate_files(path)
    said = [*map(str, report.problems), *report.warnings][0]
    assert f"`frugalign convert {path} OUT.jsonl`" in said and "\n" not in said
    with pytest.raises(FrugalignError, match="frugalign convert"):
        load_preference_data(path)


def test_labels_as_numbers_say_how_to_convert() -> None:
    with pytest.raises(FrugalignError, match="`frugalign convert` reads labels of 0 and 1"):
        load_preference_data(str(FORMATS / "kto_numbers.jsonl"))


def test_ultrafeedback_is_read_as_it_is(tmp_path: Path) -> None:
    """Prompt once, roles kept. Converting writes the same rows."""
    name = str(FORMATS / "ultrafeedback_binarized.jsonl")
    rows = load_splits(name, kind="preference")["train"].select_columns(["prompt", "chosen", "rejected"]).to_list()
    assert rows[0] == {
        "prompt": [user("Is tea hot?")],
        "chosen": [assistant("Tea is served hot.")],
        "rejected": [assistant("No.")],
    }
    assert converted("ultrafeedback_binarized", tmp_path) == rows
    assert load_splits(name)["train"]["prompt"][0] == "Is tea hot?"


def test_hh_is_read_as_text_and_converted_to_turns(tmp_path: Path) -> None:
    found = load_preference_data(str(FORMATS / "hh_rlhf.jsonl"))["train"]
    assert found.prompts[2] == "\n\nHuman: Hi\n\nAssistant: Hello. What can I do?\n\nHuman: Boil an egg\n\nAssistant: "
    assert found.answers[:2] == ["Camomile and mint, for example.", "Coffee."]
    with pytest.raises(
        FrugalignError, match="`frugalign convert` writes the prompt that chosen and rejected begin with"
    ):
        load_splits(str(FORMATS / "hh_rlhf.jsonl"))
    rows = converted("hh_rlhf", tmp_path)
    assert load_splits(str(tmp_path / "out.jsonl"))["train"]["prompt"][0] == rows[0]["prompt"]
    assert rows[1]["prompt"] == [user("Hi"), assistant("Hello. What can I do?"), user("Boil an egg")]
    assert rows[2]["rejected"] == [assistant("No")]


def test_kto_is_read_as_it_is() -> None:
    found = load_preference_data(str(FORMATS / "kto.jsonl"))["train"]
    assert found.labels == [(0, 1.0), (1, 0.0)]


def test_the_preference_can_be_chosen(tmp_path: Path) -> None:
    assert (
        converted("pku_saferlhf", tmp_path, prefer="safer_response_id")[0]["chosen"] == "Ask the owner or a locksmith."
    )
    with pytest.raises(FrugalignError, match="it has better_response_id and safer_response_id"):
        convert(str(FORMATS / "pku_saferlhf.jsonl"), str(tmp_path / "b.jsonl"), prefer="kinder")


def test_messages_in_any_spelling(tmp_path: Path) -> None:
    """Lists that were written as text into a CSV file, and `from` and `value` in a prompt."""
    (tmp_path / "a.csv").write_text("prompt,n\n\"[{'role': 'user', 'content': 'Hi'}]\",1\n")
    convert(str(tmp_path / "a.csv"), str(tmp_path / "a.jsonl"))
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"prompt": [user("Hi")]}
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": [{"from": "human", "value": "Hi"}]}))
    convert(str(tmp_path / "b.jsonl"), str(tmp_path / "c.jsonl"))
    assert json.loads((tmp_path / "c.jsonl").read_text()) == {"prompt": [user("Hi")]}


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
LOST: list[tuple[dict[str, Any], str]] = [
    ({"messages": [LOOM, CALL, assistant("a")]}, "a message has `tool_calls`, which would be lost"),
    (
        {"messages": [LOOM, {"role": "tool", "content": "1", "tool_call_id": "c1"}, assistant("a")]},
        "a message has `tool_call_id`, which would be lost",
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b", "function_call": {"name": "f"}},
            ]
        },
        "a message has `function_call`, which would be lost",
    ),
    (
        {"question": "a", "chosen": [assistant("b") | {"reasoning_content": "c"}], "rejected": "d"},
        "a message has `reasoning_content`, which would be lost",
    ),
    (
        {"question": "a", "context": ["p", "q"], "answer": "b"},
        "`context` is a list, which is not joined with `question`",
    ),
    (
        {"instruction": "a", "input": {"x": 1}, "output": "b"},
        "`input` is an object, which is not joined with `instruction`",
    ),
    ({"instruction": "a", "input": 3, "output": "b"}, "`input` is a number, which is not joined with `instruction`"),
    ({"question": [LOOM], "context": "p", "answer": "b"}, "`question` is a list, which is not joined with `context`"),
    (
        {"instruction": "a", "output": "b", "history": [["c", "d"]]},
        "`history` stands beside `instruction`; make one list of messages of both",
    ),
]


@pytest.mark.parametrize(("row", "reason"), LOST, ids=[reason for _, reason in LOST])
def test_a_row_that_would_lose_its_meaning_is_left_out(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    plain = {"messages": [LOOM, assistant("a")]} if {"messages", "conversations"} & {*row} else {}
    plain = plain or row | dict.fromkeys({"context", "input", "history"} & {*row})
    plain |= {name: "q" for name in ("question", "chosen") if name in row}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(plain) + "\n")
    done, _ = convert(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert done[0].left_out == {reason: 1} and done[0].n_written == 1


def test_all_texts_beside_an_instruction_are_joined(tmp_path: Path) -> None:
    row = {"instruction": "a", "input": "b", "context": "c", "output": "d", "history": [[]]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    convert(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"prompt": "a\n\nb\n\nc", "completion": "d"}


def test_messages_in_their_final_spelling_keep_what_they_say(tmp_path: Path) -> None:
    row = {"prompt": [user("a"), {**CALL, "content": "b"}, user("c")], "completion": [assistant("d")]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    convert(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert json.loads((tmp_path / "out.jsonl").read_text()) == row
    row["prompt"] = [{"from": "human", "value": "a", "tool_calls": [1]}]
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    with pytest.raises(FrugalignError, match=r"a message has `tool_calls`, which would be lost \(1\)"):
        convert(str(tmp_path / "in.jsonl"), str(tmp_path / "other.jsonl"))


def test_what_is_done_and_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "a", "response_0": "x", "response_1": "y", "better_response_id": 0, "source": "web"},
        {"prompt": "b", "response_0": "x", "response_1": "x", "better_response_id": 0},
        {"prompt": "c", "response_0": "x", "response_1": "y", "better_response_id": 2},
        {"prompt": "d", "response_0": "x", "response_1": "", "better_response_id": 0},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    out = tmp_path / "out.jsonl"
    assert main(["convert", str(tmp_path / "in.jsonl"), str(out)]) == 0
    said = capsys.readouterr().out
    assert "PKU-SafeRLHF, 5 rows read; chosen is the answer that `better_response_id` prefers." in said
    assert f"1 row of preference in {out}." in said and "Columns that are not written: source." in said
    for reason in ("both answers are equal", "`better_response_id` is neither 0 nor 1", "`rejected` is empty"):
        assert f"Left out: 1 row, as {reason}." in said
    assert "the row is not valid JSON" in said
    assert main(["convert", str(tmp_path / "in.jsonl"), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_no_file_can_hold_is_left_out(tmp_path: Path) -> None:
    """In the columns that are kept beside those of the type too. A missing number of a table is no number."""
    rows = [{"prompt": "a", "label": "\ud800"}, {"prompt": "b", "weight": 2**63}, {"prompt": "c", "weight": 1}]
    rows += [{"prompt": [user("d\ud800")]}, {"prompt": "e"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done, _ = convert(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert sorted(done[0].left_out) == [
        "`label` holds half a character, U+D800",
        "`prompt` holds half a character, U+D800",
        "`weight` holds an integer beyond 64 bits",
    ]
    assert validate_files(str(tmp_path / "out.jsonl")).n_rows == 2
    table = {"prompt": ["a", "b", "c"], "weight": [1.5, float("nan"), float("inf")]}
    Dataset.from_dict(table).to_parquet(tmp_path / "in.parquet")
    done, _ = convert(str(tmp_path / "in.parquet"), str(tmp_path / "numbers.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "numbers.jsonl").read_text().splitlines()]
    assert found == [{"prompt": "a", "weight": 1.5}, {"prompt": "b"}]
    assert done[0].left_out == {"the row holds a number that is not finite": 1}


def test_a_broken_row_does_not_change_what_a_format_is(tmp_path: Path) -> None:
    """One of three rows of marked turns is empty; pairs without marks that share a line are text, not turns."""
    rows = [{"chosen": f"\n\nHuman: {q}\n\nAssistant: a", "rejected": f"\n\nHuman: {q}\n\nAssistant: b"} for q in "xy"]
    broken = {"chosen": "\n\nHuman: z\n\nAssistant:", "rejected": ""}
    lines = [{"chosen": "Write.\nRoses", "rejected": "Write.\nThorns"}] * 2
    for name, given, n_turns in (("marked", [broken, *rows], 2), ("lines", lines, None)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        convert(str(tmp_path / f"{name}.jsonl"), str(tmp_path / f"{name}-out.jsonl"))
        found = [json.loads(line) for line in (tmp_path / f"{name}-out.jsonl").read_text().splitlines()]
        assert len(found) == 2
        assert found[0]["prompt"] == ([user("x")] if n_turns else "Write.\n")


def test_what_evaluate_needs_beside_a_prompt_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "q", "label": "safe", "weight": 2, "type": "x"}))
    done, _ = convert(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"prompt": "q", "label": "safe", "weight": 2}
    assert done[0].dropped_columns == ["type"]


def test_choices_and_labels_in_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,response_0,response_1,safer_response_id\nq,x,y,1\n")
    (tmp_path / "b.csv").write_text("prompt,completion,label\nq,x,1\nq,y,0\n")
    (tmp_path / "c.csv").write_text("prompt,completion,label\nq,x,True\nq,y,False\n")
    found = {}
    for name in "abc":
        convert(str(tmp_path / f"{name}.csv"), str(tmp_path / f"{name}.jsonl"))
        found[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert found["a"] == [{"prompt": "q", "chosen": "y", "rejected": "x"}]
    labels = [{"prompt": "q", "completion": "x", "label": True}, {"prompt": "q", "completion": "y", "label": False}]
    assert found["b"] == found["c"] == labels
    assert load_splits(str(tmp_path / "c.csv"), kind="unpaired-preference")["train"].to_list() == labels


@pytest.mark.parametrize("out", ["a\0b.jsonl", "x" * 300 + ".jsonl", "d.txt"])
def test_what_cannot_be_written_is_one_sentence(out: str, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError) as caught:
        convert(str(FORMATS / "alpaca.jsonl"), str(tmp_path / out))
    assert "\0" not in str(caught.value) and not list(tmp_path.iterdir())


def test_splits_become_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for split in ("train", "test"):
        (tmp_path / "in" / f"{split}.jsonl").write_text((FORMATS / "alpaca.jsonl").read_text())
    with pytest.raises(FrugalignError, match="must be a folder, as there are"):
        convert(str(tmp_path / "in"), str(tmp_path / "out.jsonl"))
    convert(str(tmp_path / "in"), str(tmp_path / "out"))
    assert {split: len(rows) for split, rows in load_splits(str(tmp_path / "out")).items()} == {"train": 2, "test": 2}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"a": 1, "b": 2}], "The format is not recognised by its columns (there are: a, b)"),
        ([{"instruction": "a", "output": ""}], "No row of the split train can be converted: the answer is empty (1)"),
        ([], "has no rows that can be read"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(rows: list[Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FrugalignError) as caught:
        convert(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert sentence in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]  # nothing half-written
