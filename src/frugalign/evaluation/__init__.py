"""Policies against their base: metrics with intervals, costs, and the page that shows them. Importing loads no
torch."""

from typing import TYPE_CHECKING

from frugalign.names import fetched_on_use

if TYPE_CHECKING:
    from frugalign.evaluation.measuring import evaluate as evaluate
    from frugalign.evaluation.report import write_report as write_report

_HOME = {"evaluate": "measuring", "write_report": "report"}
__all__ = list(_HOME)


__getattr__ = fetched_on_use(__name__, _HOME)
