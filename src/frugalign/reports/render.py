"""Render this package's templates as pages without external resources. Only this package imports Jinja2 and matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import pluralize
from frugalign.reports.in_words import setting_in_words


class MissingLibrary(FrugalignError):
    """A page cannot be drawn, because the extra with its libraries is not installed."""


@contextmanager
def needs(library: str) -> Iterator[None]:
    """Turn a failed import of `library` into one sentence.

    Raises:
        MissingLibrary: with the extra to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingLibrary(f"A page needs {library}: pip install 'frugalign[study]'.") from error


@contextmanager
def drawing(folder: Path) -> Iterator[None]:
    """Turn what fails while a page is drawn into one sentence. A page depends on files only, so its files are damaged.

    Raises:
        FrugalignError: with what failed, and `FRUGALIGN_DEBUG=1` shows where.
    """
    try:
        yield
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        _template_error(),
    ) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise FrugalignError(f"A file in {folder} is damaged, so no page can be drawn from it ({said}).") from error


def _template_error() -> type[Exception]:
    with needs("Jinja2"):
        from jinja2 import TemplateError
    found: type[Exception] = TemplateError
    return found


def check_libraries() -> None:
    """Check that a page can be drawn, before hours of work.

    Raises:
        MissingLibrary: if it cannot.
    """
    with needs("Jinja2"):
        import jinja2  # noqa: F401
    with needs("matplotlib"):
        import matplotlib  # noqa: F401


def render(template: str, **values: Any) -> str:
    """The HTML of a template in `reports/templates`. Values are escaped.

    Raises:
        MissingLibrary: without Jinja2.
    """
    with needs("Jinja2"):
        from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("frugalign.reports", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"pluralize": pluralize, "in_words": setting_in_words}
    return environment.get_template(template).render(**values)
