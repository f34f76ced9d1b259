"""Policies against their base: metrics with intervals, costs, and the page that shows them. Importing loads no
torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frugalign.evaluation.measuring import evaluate as evaluate
    from frugalign.evaluation.report import write_report as write_report

_HOME = {"evaluate": "measuring", "write_report": "report"}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
