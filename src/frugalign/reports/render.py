"""Our pages: templates of this package, filled in, without external resources. Jinja2 and matplotlib are imported in this room only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import pluralize


class MissingLibrary(FrugalignError):
    """A page cannot be drawn, since the extra that brings its libraries is not installed."""


@contextmanager
def needs(library: str) -> Iterator[None]:
    """Turn the failed import of a library into one sentence.

    Raises:
        MissingLibrary: naming the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingLibrary(f"A page needs {library}: pip install 'frugalign[study]'.") from error


def check_libraries() -> None:
    """Fail now rather than after hours of work.

    Raises:
        MissingLibrary: where a page could not be drawn at the end.
    """
    with needs("Jinja2"):
        import jinja2  # noqa: F401
    with needs("matplotlib"):
        import matplotlib  # noqa: F401


def render(template: str, **values: Any) -> str:
    """The HTML of a template in `reports/templates`; values are escaped.

    Raises:
        MissingLibrary: without Jinja2.
    """
    with needs("Jinja2"):
        from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("frugalign.reports", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["pluralize"] = pluralize
    return environment.get_template(template).render(**values)
