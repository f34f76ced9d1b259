"""What reaches the terminal: characters that steer it are written out, wherever the text came from."""

from __future__ import annotations

import io
import logging
import sys
import types

import pytest

from frugalign.base.terminal import GuardedStream, console, guarded
from frugalign.base.wording import shown, visible

ATTACK = "a\x1b[31mb\x9b2J\rc\x07\u202ed\u2066\x7f\udc80"
SEEN = "a\\x1b[31mb\\x9b2J\\x0dc\\x07\\u202ed\\u2066\\x7f\\udc80"


def test_what_steers_is_written_out_and_the_rest_stays() -> None:
    assert visible(ATTACK) == SEEN
    assert visible("a\tb\nüñ日本🙂 é") == "a\tb\nüñ日本🙂 é"


def test_a_value_in_a_message() -> None:
    assert shown("a\x1b\nb") == r"'a\x1b\nb'"
    assert shown("a\x1b\nb", quoted=False) == r"a\x1b\nb"
    assert len(shown("x" * 1000)) == len(shown("x" * 1000, quoted=False)) == 80
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a list that cannot be written out"
    assert shown(10**5000) == "a int that cannot be written out"


def test_every_way_out_is_guarded(capsys: pytest.CaptureFixture[str]) -> None:
    outer = sys.stdout
    with guarded():
        print(ATTACK)
        print(ATTACK, file=sys.stderr)
        sys.stdout.writelines([ATTACK, "\n"])
        handler = logging.StreamHandler()
        handler.emit(logging.LogRecord("x", logging.WARNING, "", 0, "%s", (ATTACK,), None))
    assert sys.stdout is outer
    found = capsys.readouterr()
    assert found.out == f"{SEEN}\n{SEEN}\n"
    assert found.err == f"{SEEN}\n{SEEN}\n"


def test_rich_prints_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="[b]x[/c] :smile:")
    table.add_column("a column of some width")
    table.add_row("\x1b[31m[red]")
    with guarded():
        console().print(table)
        console().print(Text("\x1b]0;title\x07", style="red"))
    found = capsys.readouterr().out
    assert "[b]x[/c] :smile:" in found and "\\x1b[31m[red]" in found and "\\x1b]0;title" in found
    assert "\x1b" not in found


def test_our_own_colours_are_kept_in_a_terminal() -> None:
    from rich.text import Text

    class Terminal(io.StringIO):
        encoding = "utf-8"  # type: ignore[assignment]

        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    before, sys.stdout = sys.stdout, GuardedStream(terminal)  # type: ignore[assignment]
    try:
        screen = console()
        screen._color_system = None
        screen.print(Text("plain"))
        print("\x1b[1m")
    finally:
        sys.stdout = before
    assert terminal.getvalue() == "plain\n\\x1b[1m\n"


def test_progress_bars_of_other_libraries_pass_on_standard_error() -> None:
    raw = io.StringIO()
    stream = GuardedStream(raw, bars=True)
    for text in ("\r 10%", "\r\n", "\x1b[A", "\n\x1b[A\x1b[A", "x\r\x1b[A"):
        stream.write(text)
    assert raw.getvalue() == "\r 10%\r\n\x1b[A\n\x1b[A\x1b[Ax\\x0d\\x1b[A"
    assert GuardedStream(io.StringIO()).write("\r") == 1


def test_an_encoding_without_the_character() -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    GuardedStream(raw).write("1 β\x1b")
    raw.flush()
    assert raw.buffer.getvalue() == b"1 \\u03b2\\x1b"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["print", "user error", "bug"])
def test_a_verb(kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from frugalign.base.errors import FrugalignError
    from frugalign.base.terminal import print_traceback
    from frugalign.cli.main import main

    def run(argv: list[str]) -> int:
        if kind == "print":
            print(ATTACK)
            return 0
        raise (FrugalignError if kind == "user error" else ZeroDivisionError)(ATTACK)

    module = types.ModuleType("frugalign.cli.env")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frugalign.cli.env", module)
    if kind == "bug":
        with pytest.raises(ZeroDivisionError) as raised:
            main(["env"])
        print_traceback(raised.type, raised.value, raised.tb)
    else:
        assert main(["env"]) == (0 if kind == "print" else 2)
    found = capsys.readouterr()
    assert SEEN in found.out + found.err and "\x1b" not in found.out + found.err
