"""Types of JSON values: TypedDicts, nested containers, unions; a bool is no number, a whole number is a number."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import pytest

from frugalign.base.json_types import mismatch


class Point(TypedDict):
    x: float
    label: str | None


class Line(TypedDict, total=False):
    points: list[Point]
    widths: dict[str, int]
    style: Literal["solid", "dotted"]


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ({"points": [{"x": 1, "label": None}], "widths": {"a": 1}, "style": "solid", "more": []}, Line, None),
        ({}, Line, None),
        ([], Line, "it is not an object"),
        ({"points": {}}, Line, "points is not a list"),
        ({"points": [{"x": 1.5, "label": "a"}, {"x": 1.5}]}, Line, "points.1.label is missing"),
        ({"points": [{"x": "1", "label": "a"}]}, Line, "points.0.x is not a number"),
        ({"points": [{"x": True, "label": "a"}]}, Line, "points.0.x is not a number"),
        ({"points": [{"x": 1, "label": 2}]}, Line, "points.0.label is not a text"),
        ({"widths": {"a": 1, "b": 2.0}}, Line, "widths.b is not a whole number"),
        ({"style": "dashed"}, Line, "style is 'dashed'"),
        (10**400, float, "it is too large a number"),
        (None, dict[str, Any], "it is not an object"),
        (True, bool, None),
        (1, bool, "it is not true or false"),
    ],
)
def test_the_first_place_that_does_not_fit_is_named(value: Any, kind: Any, problem: str | None) -> None:
    assert mismatch(value, kind) == problem
