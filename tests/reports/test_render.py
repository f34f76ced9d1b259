"""Templates and the libraries that draw: a missing one is one sentence, and a reward is trained without it."""

import sys

import pytest

from frugalign.reports import figures
from frugalign.reports.render import MissingLibrary, check_libraries, render


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    for module in [each for each in sys.modules if each.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    return name


@pytest.mark.parametrize("without", ["jinja2"], indirect=True)
def test_a_page_without_jinja(without: str) -> None:
    for draw in (lambda: render("page.html", title="x"), check_libraries):
        with pytest.raises(MissingLibrary, match=r"^A page needs Jinja2: pip install 'frugalign\[study\]'\.$"):
            draw()


@pytest.mark.parametrize("without", ["matplotlib"], indirect=True)
def test_a_figure_without_matplotlib(without: str) -> None:
    for draw in (lambda: figures.curve([("loss", [1.0, 2.0], [3.0, 4.0])], "loss"), check_libraries):
        with pytest.raises(MissingLibrary, match=r"^A page needs matplotlib: pip install 'frugalign\[study\]'\.$"):
            draw()


def test_values_are_escaped() -> None:
    assert "<title>&lt;b&gt; · frugalign</title>" in render("page.html", title="<b>")
