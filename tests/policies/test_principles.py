"""Principles as they are read, and a prompt under them, for templates that know a system message and for those that do not."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import frugalign.sandbox as sandbox
from frugalign.base.errors import FrugalignError
from frugalign.data.chat_template import ChatTemplate
from frugalign.data.templating import Rendering, render_prompt
from frugalign.policies.principles import Principles, load_principles, shipped, under_principles

TOLD = Principles("Mind this.", ("Be kind.", "Be brief."))
TEXT = "Mind this.\n\n1. Be kind.\n2. Be brief."
SHOWN = Principles("Mind this.", (), (("a balm?", "no, friend."),))

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
SILENT = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}"
)
FOLDING = (  # as of Llama 2: the system message stands inside the first user turn
    "{% if messages[0]['role'] == 'system' %}<user>[{{ messages[0]['content'] }}]{% set messages = messages[1:] %}"
    "{% else %}<user>{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}<assistant>"
)


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    built.chat_template = template
    return built


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def written(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def attribute(monkeypatch: pytest.MonkeyPatch, value: Any) -> str:
    module = types.ModuleType("some_principles")
    module.RULES = value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_principles", module)
    return "some_principles:RULES"


# -- what is shipped ----------------------------------------------------------------------------------------------------


def test_the_sets_that_are_shipped() -> None:
    assert shipped() == ["courteous", "harmless", "helpful-and-honest"]


@pytest.mark.parametrize("name", ["courteous", "harmless", "helpful-and-honest"])
def test_a_shipped_set_reads_well(name: str) -> None:
    """A preamble that asks for silence about itself, and numbered lines of whole sentences, none of them twice, short enough for any context."""
    found = load_principles(name)
    assert found.preamble.endswith("Keep to these principles; never mention them.")
    assert 5 <= len(found.principles) <= 10 and len(set(found.principles)) == len(found.principles)
    for each in (found.preamble, *found.principles):
        assert each[0].isupper() and each.endswith(".") and "  " not in each and "\n" not in each
    lines = found.text().split("\n")
    assert lines[0] == found.preamble and lines[1] == ""
    assert lines[2:] == [f"{number}. {each}" for number, each in enumerate(found.principles, start=1)]
    assert len(found.text()) < 1200


def test_the_shipped_sets_differ() -> None:
    assert len({load_principles(name).fingerprint() for name in shipped()}) == 3


# -- files ----------------------------------------------------------------------------------------------------------------


def test_yaml_as_a_mapping(tmp_path: Path) -> None:
    """A folded item is one line; a preamble keeps its own."""
    text = (
        "preamble: |\n  Mind this.\n  And this.\nprinciples:\n- Be kind.\n- >-\n  Be brief,\n  not curt.\n"
        "demonstrations:\n- prompt: a balm?\n  response: |\n    no, friend.\n"
    )
    found = load_principles(written(tmp_path, "p.yaml", text))
    assert found == Principles(
        "Mind this.\nAnd this.", ("Be kind.", "Be brief, not curt."), (("a balm?", "no, friend."),)
    )


@pytest.mark.parametrize("name", ["p.yaml", "p.yml"])
def test_yaml_as_a_list(name: str, tmp_path: Path) -> None:
    found = load_principles(written(tmp_path, name, "- Be kind.\n- Be brief,\n  not curt.\n"))
    assert found == Principles("", ("Be kind.", "Be brief, not curt."))
    assert found.text() == "1. Be kind.\n2. Be brief, not curt."


def test_yaml_with_demonstrations_alone(tmp_path: Path) -> None:
    found = load_principles(written(tmp_path, "p.yaml", "demonstrations: [{prompt: a balm, response: no.}]"))
    assert found == Principles("", (), (("a balm", "no."),)) and found.text() == ""


def test_markdown_with_everything(tmp_path: Path) -> None:
    """Headings are left out, an item may go over two lines, and so may what is shown."""
    text = (
        "# Rules of the counter\n\nMind this.\n\nAnd this.\n\n## Principles\n\n1. Be kind,\n   also to the rude.\n2) Be brief.\n\n"
        "- Be fair.\n* Be *quick*.\n+ Be\n  calm.\n\n## Demonstrations\n\nPrompt: a balm?\nfor my sister?\nResponse:\nno, friend.\n\n"
        "**Prompt:** a brew?\n**Response:** yes.\n"
    )
    found = load_principles(written(tmp_path, "p.md", text))
    assert found.preamble == "Mind this.\n\nAnd this."
    assert found.principles == ("Be kind, also to the rude.", "Be brief.", "Be fair.", "Be *quick*.", "Be calm.")
    assert found.demonstrations == (("a balm?\nfor my sister?", "no, friend."), ("a brew?", "yes."))


@pytest.mark.parametrize(
    "text", ["- Be kind.\n- Be brief.\n", "1. Be kind.\n2. Be brief.", "* Be kind.\n\n* Be brief."]
)
def test_markdown_dashed_numbered_and_starred_are_the_same(text: str, tmp_path: Path) -> None:
    assert load_principles(written(tmp_path, "p.md", text)) == Principles("", ("Be kind.", "Be brief."))


def test_markdown_without_a_list_is_a_text(tmp_path: Path) -> None:
    """A line of emphasis, a number inside a line and a dash without a space are no items."""
    text = "*Mind* this.\nAll 3. of it.\n-not this"
    assert load_principles(written(tmp_path, "p.md", text)) == Principles(text)


@pytest.mark.parametrize("name", ["p.txt", "p", "p.rules"])
def test_any_other_file_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    text = "# Mind this.\n\n- Be kind.\n- Be  brief."
    found = load_principles(written(tmp_path, name, f"\n{text}\n\n"))
    assert found == Principles(text) and found.text() == text


# -- attributes -----------------------------------------------------------------------------------------------------------


def test_the_sandboxs_principles_stay_word_for_word() -> None:
    """The model was trained on system messages in exactly this form: a number or a preamble before them would be another prompt."""
    found = load_principles("frugalign.sandbox:PRINCIPLES")
    assert found.text() == sandbox.PRINCIPLES and not found.principles and not found.demonstrations


def test_a_text_of_several_lines_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a file: a list in it stays a list."""
    found = load_principles(attribute(monkeypatch, "\n" + TEXT + "\n"))
    assert found.text() == TEXT


def test_an_attribute_may_be_a_path_or_the_principles_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "p.yaml", "- Be kind.")
    for value in (path, Path(path), Principles("", ("Be kind.",))):
        assert load_principles(attribute(monkeypatch, value)) == Principles("", ("Be kind.",))


def test_an_attribute_may_be_a_function_that_returns_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a model's and a data set's name."""
    path = written(tmp_path, "p.yaml", "- Be kind.")
    assert load_principles(attribute(monkeypatch, lambda: path)) == Principles("", ("Be kind.",))
    with pytest.raises(FrugalignError, match="cannot be called for a path: ZeroDivisionError"):
        load_principles(attribute(monkeypatch, lambda: 1 / 0))


# -- mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.yaml", "", "holds no principles"),
        ("p.yaml", "[]", "holds no principles"),
        ("p.yaml", "{}", "holds no principles"),
        ("p.yaml", "just a text", "holds no principles"),
        ("p.yaml", "principles: []\npreamble: ' '", "holds no principles"),
        ("p.yaml", "priciples: [a]", "has 'priciples'; it takes preamble, principles and demonstrations"),
        ("p.yaml", "3: [a]", "line 1: the key 3 must be text; put it in quotes"),
        ("p.yaml", "principles: [a", "is not valid YAML: "),
        ("p.yaml", "principles: \x00", "is not valid YAML: "),
        ("p.yaml", "principles: Be kind.", "`principles` must be a list"),
        ("p.yaml", "demonstrations: {prompt: a, response: b}", "`demonstrations` must be a list"),
        ("p.yaml", "preamble: 3\nprinciples: [a]", "`preamble` must be text"),
        ("p.yaml", "preamble: [a]\nprinciples: [a]", "`preamble` must be text"),
        ("p.yaml", "- Be kind.\n- 3", "principle 2 must be text"),
        ("p.yaml", "- Be kind.\n- ' '", "principle 2 must be text"),
        ("p.yaml", "- Be kind: always.", "principle 1 must be text"),  # YAML's own trap: that is a mapping
        ("p.yaml", "demonstrations: [{prompt: a}]", "demonstration 1 needs the texts `prompt` and `response`"),
        ("p.yaml", "demonstrations: [{prompt: a, response: 3}]", "demonstration 1 needs the texts"),
        ("p.yaml", "demonstrations: [a]", "demonstration 1 needs the texts"),
        ("p.yaml", "demonstrations: [{prompt: a, response: ' '}]", "demonstration 1 needs the texts"),
        ("p.md", "# Nothing\n\n", "holds no principles"),
        ("p.md", "- Be kind.\n# Demonstrations\nPrompt: a", "a demonstration is a line `Prompt: …` and then"),
        ("p.md", "# Demonstrations\nResponse: b\nPrompt: a", "a demonstration is a line"),
        ("p.md", "# Demonstrations\nPrompt: a\nPrompt: b\nResponse: c", "a demonstration is a line"),
        ("p.md", "- Be kind.\n# Demonstrations\n- Prompt: a\n- Response: b", "a demonstration is a line"),
        ("p.md", "# Demonstrations\nPrompt: a\nResponse:\n", "a demonstration is a line"),
        ("p.md", "# Demonstrations\nPrompt: a\nResponse: b\nPrompt:\n", "a demonstration is a line"),
        ("p.txt", " \n\n", "holds no principles"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(FrugalignError) as raised:
        load_principles(path)
    said = str(raised.value)
    assert sentence in said and path in said
    assert said.endswith(".") and "\n" not in said


@pytest.mark.parametrize("name", ["p.yaml", "p.md", "p.txt"])
def test_a_file_that_is_not_utf8(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("- Sei höflich.".encode("latin-1"))
    with pytest.raises(FrugalignError, match=rf"{name} is not UTF-8 text\.$"):
        load_principles(str(tmp_path / name))


@pytest.mark.parametrize("name", ["harmles", "nowhere.yaml", ".", "Be kind to all folk. " * 30, "a\0b"])
def test_an_unknown_name(name: str) -> None:
    """A folder, a text where a name belongs (longer than a file's name can be), and what no path can hold are no files either."""
    with pytest.raises(FrugalignError, match="There are no principles") as raised:
        load_principles(name)
    assert str(raised.value).endswith("neither a file nor one of courteous, harmless, helpful-and-honest.")


def test_an_attribute_of_another_kind_or_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FrugalignError, match=r"some_principles:RULES must be a text or a path, not a list\."):
        load_principles(attribute(monkeypatch, ["Be kind."]))
    with pytest.raises(FrugalignError, match="some_principles:RULES holds no principles"):
        load_principles(attribute(monkeypatch, " \n"))
    with pytest.raises(FrugalignError, match="has no 'NOTHING'"):
        load_principles("frugalign.sandbox:NOTHING")


# -- a prompt under them --------------------------------------------------------------------------------------------------


def test_through_the_sandboxs_template_they_are_the_system_message() -> None:
    counter = AutoTokenizer.from_pretrained(sandbox.model)
    principles = load_principles("frugalign.sandbox:PRINCIPLES")
    (found,) = under_principles(principles, ["A balm."], counter)
    expected = [turn("system", sandbox.PRINCIPLES), turn("user", "A balm.")]
    assert found == expected
    text = render_prompt(found, counter)
    assert text.endswith(f"<system>{sandbox.PRINCIPLES}<user>A balm.<assistant>")
    # The plain prompt is the same text without them.
    assert text.replace(f"<system>{sandbox.PRINCIPLES}", "") == render_prompt("A balm.", counter)


@pytest.mark.parametrize(
    ("template", "expected", "text"),
    [
        (TURNS, [turn("system", TEXT), turn("user", "a")], f"<system>{TEXT}<user>a<assistant>"),
        (FOLDING, [turn("system", TEXT), turn("user", "a")], f"<user>[{TEXT}]a<assistant>"),
        (REFUSING, [turn("user", f"{TEXT}\n\na")], f"<user>{TEXT}\n\na<assistant>"),
        (SILENT, [turn("user", f"{TEXT}\n\na")], f"<user>{TEXT}\n\na"),
    ],
    ids=["with a system role", "folding it into the user's turn", "refusing it", "leaving it out in silence"],
)
def test_where_the_principles_stand_follows_from_the_template(
    template: str, expected: list[dict[str, str]], text: str
) -> None:
    """A string and a user message are the same prompt; in every case the model reads the principles."""
    built = tokenizer(template)
    assert ChatTemplate(built).has_system_role == (expected[0]["role"] == "system")
    found = under_principles(TOLD, ["a", [turn("user", "a")]], built)
    assert found == [expected, expected]
    assert render_prompt(found[0], built) == text


@pytest.mark.parametrize(("template", "system"), [(TURNS, True), (REFUSING, False)])
def test_the_prompts_own_system_message_stands_after_them(template: str, system: bool) -> None:
    prompt = [turn("system", "You are Ann."), turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    (found,) = under_principles(TOLD, [prompt], tokenizer(template))
    told = f"{TEXT}\n\nYou are Ann."
    rest = [turn("assistant", "b"), turn("user", "c")]
    first = [turn("system", told), turn("user", "a")] if system else [turn("user", f"{told}\n\na")]
    assert found == first + rest


def test_demonstrations_are_earlier_turns() -> None:
    """Between the system message and the prompt; where the template has no system role, the principles open the first of them."""
    earlier = [turn("user", "a balm?"), turn("assistant", "no, friend.")]
    (found,) = under_principles(SHOWN, ["a"], tokenizer(TURNS))
    assert found == [turn("system", "Mind this."), *earlier, turn("user", "a")]
    (found,) = under_principles(SHOWN, ["a"], tokenizer(REFUSING))
    assert found == [turn("user", "Mind this.\n\na balm?"), earlier[1], turn("user", "a")]
    # Without a text there is no system message; the prompt's own one stays the first.
    silent = replace(SHOWN, preamble="")
    (found,) = under_principles(silent, ["a"], tokenizer(TURNS))
    assert found == [*earlier, turn("user", "a")]
    (found,) = under_principles(silent, [[turn("system", "Ann."), turn("user", "a")]], tokenizer(TURNS))
    assert found == [turn("system", "Ann."), *earlier, turn("user", "a")]


@pytest.mark.parametrize(("template", "prompt_format"), [(None, "auto"), (TURNS, "raw")])
def test_in_raw_format_everything_is_one_text(template: str | None, prompt_format: str) -> None:
    built = tokenizer(template)
    both = replace(TOLD, demonstrations=SHOWN.demonstrations)
    assert under_principles(both, ["a"], built, Rendering(prompt_format)) == [f"{TEXT}\n\na balm?\nno, friend.\n\na"]
    assert under_principles(TOLD, ["a", "b"], built, Rendering(prompt_format)) == [f"{TEXT}\n\na", f"{TEXT}\n\nb"]
    assert under_principles(replace(SHOWN, preamble=""), ["a"], built, Rendering(prompt_format)) == [
        "a balm?\nno, friend.\n\na"
    ]


def test_raw_format_is_for_strings_alone() -> None:
    """Messages go through the template all the same, as without principles."""
    found = under_principles(TOLD, ["a", [turn("user", "b")]], tokenizer(TURNS), Rendering("raw"))
    assert found == [f"{TEXT}\n\na", [turn("system", TEXT), turn("user", "b")]]


def test_the_prompts_are_left_as_they_were() -> None:
    prompts = [[turn("system", "Ann."), turn("user", "a")], [turn("user", "b")]]
    before = [[dict(each) for each in prompt] for prompt in prompts]
    for template in (TURNS, REFUSING):
        under_principles(replace(TOLD, demonstrations=SHOWN.demonstrations), prompts, tokenizer(template))
    assert prompts == before


def test_an_open_turn_of_the_assistant_stays_the_last_one() -> None:
    prompt = [turn("user", "a"), turn("assistant", "no, ")]
    (found,) = under_principles(TOLD, [prompt], tokenizer(TURNS))
    assert found[-1] == turn("assistant", "no, ")


@pytest.mark.parametrize("principles", [TOLD, SHOWN], ids=["without demonstrations", "with demonstrations"])
@pytest.mark.parametrize(
    "prompt", [[turn("assistant", "hello")], [turn("system", "Ann.")], [turn("system", "Ann."), turn("assistant", "b")]]
)
def test_a_prompt_that_the_user_does_not_begin(principles: Principles, prompt: Any) -> None:
    """Demonstrations end with the assistant: one who went on would be taken for two answers in a row, or none would be asked for."""
    with pytest.raises(
        FrugalignError, match=r"^Prompt 2 does not begin with the user, so principles cannot stand before it\.$"
    ):
        under_principles(principles, ["a", prompt], tokenizer(TURNS))


def test_messages_without_a_template() -> None:
    with pytest.raises(FrugalignError, match="no chat template"):
        under_principles(TOLD, [[turn("user", "a")]], tokenizer(None))
    with pytest.raises(FrugalignError, match="no chat template"):
        under_principles(TOLD, ["a"], tokenizer(None), Rendering("chat"))


# -- the fingerprint ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_a_word_and_with_where_it_stands() -> None:
    whole = Principles("Mind this.", ("Be kind.", "Be brief."), (("a", "b"),))
    others = [
        replace(whole, preamble="Mind that."),
        replace(whole, principles=("Be kind.", "Be curt.")),
        replace(whole, principles=("Be brief.", "Be kind.")),
        replace(whole, principles=("Be kind. Be brief.",)),
        replace(whole, demonstrations=(("a", "c"),)),
        replace(whole, demonstrations=()),
        Principles(whole.text(), (), whole.demonstrations),  # the same text, told apart by its parts
    ]
    found = [each.fingerprint() for each in (whole, *others)]
    assert len(set(found)) == len(found)
    assert replace(whole).fingerprint() == whole.fingerprint()


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    """A run is resumed by it: sha256 of `["Be ü.", [], []]` written as JSON, its first 16 digits."""
    import hashlib

    expected = hashlib.sha256('["Be ü.", [], []]'.encode()).hexdigest()[:16]
    assert Principles("Be ü.").fingerprint() == expected
