"""Our pages: templates of this package, filled in; no external resources."""

from __future__ import annotations

from typing import Any


def render(template: str, **values: Any) -> str:
    """The HTML of a template in `evaluation/templates`; values are escaped."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("frugalign.reports", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
