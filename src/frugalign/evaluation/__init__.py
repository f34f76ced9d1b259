"""Evaluate policies against their base: metrics with intervals, and costs. Importing loads no torch."""

from typing import TYPE_CHECKING

from frugalign.base.specs import lazy_exports

if TYPE_CHECKING:
    from frugalign.evaluation.measure import evaluate as evaluate
    from frugalign.evaluation.settings import EvaluationSettings as EvaluationSettings

_HOME = {"EvaluationSettings": "settings", "evaluate": "measure"}
__all__ = list(_HOME)


__getattr__ = lazy_exports(__name__, _HOME)
