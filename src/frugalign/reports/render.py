"""Our pages: templates of this package, filled in; no external resources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import counted


@contextmanager
def needs(library: str) -> Iterator[None]:
    """Turn a missing library, imported in the block, into one sentence.

    Raises:
        FrugalignError: naming the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise FrugalignError(f"A page needs {library}: pip install 'frugalign[study]'.") from error


def render(template: str, **values: Any) -> str:
    """The HTML of a template in `reports/templates`; values are escaped.

    Raises:
        FrugalignError: where Jinja2 is not installed.
    """
    with needs("Jinja2"):
        from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("frugalign.reports", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["counted"] = counted
    return environment.get_template(template).render(**values)
