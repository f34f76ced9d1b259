"""A method's interface to the rest of the library: one `Method` in the `entry.py` of its folder.

Studies, the command line and the pages read these fields and know no method by name. Importing an entry imports no torch:
heavy imports are inside its functions, or named as `package.module:attribute`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from frugalign.methods.job import Job

PolicyValues = dict[str, Any]
"""The trained policy, as fields of `PolicySpec.from_dict`. Empty means the base itself."""


@dataclass(frozen=True)
class Verb:
    """A method's command, `frugalign NAME`.

    Several methods may share one command. The first is its form, unless a further one `takes` the given options.

    Attributes:
        summary: its line in `frugalign --help`.
        description: the head of `frugalign NAME --help`.
        options: `package.module:dataclass` of its flags, light to import.
        config: `package.module:dataclass` that adds inherited fields to the options; None if there are none.
        train: `package.module:function`, called with the parsed options.
        closing: the lines to print at the end, from the options and the result of `train`. Only the first process prints any.
        writes_report: whether the run's page is written right after training.
        when: of a form of a verb, what it is given, in words.
        takes: `package.module:function` that says whether the given options, a mapping, ask for that form.
    """

    name: str
    summary: str
    description: str
    options: str
    train: str
    closing: Callable[[Any, Any], list[str]]
    config: str | None = None
    writes_report: bool = False
    reads: tuple[str, ...] = ()
    when: str = ""
    takes: str | None = None


@dataclass(frozen=True)
class Method:
    """A method: its requirements, how it runs in a study, and its command.

    Attributes:
        name: the method's name in a study's YAML.
        summary: one line.
        run: trains within a job's budget and returns the policy. None for a method that does not train a policy.
        needs: names of required study options. One name of a tuple is enough.
        reads: names of optional study options.
        config: `package.module:dataclass` whose fields a study's line may set.
        options: further names that a line may set.
        observers: options that only observe training. Their cost counts towards the line.
        reward_options: options whose value names a reward.
        problem: an error in a line's setting, phrased to complete "The line …"; else None.
        is_control: whether a line with this setting is a control that others should beat.
        draws: responses that the line samples for each one that it returns.
        is_trained: False for methods that only change the decoding.
        role: "base": the default reference of comparisons. "imitation": supervised learning, drawn in a sweep's background.
        note: a sentence for a study's page that has a line of this method.
        report: the figures that its run folder has data for: "probes", "shift", "rounds".
        fit: fits what the method provides (a study option of the same `name`) on preference pairs, into a folder. Used if a study names none.
        verb: the command, if there is one.
    """

    name: str
    summary: str
    run: Callable[[Job], PolicyValues] | None = None
    needs: tuple[str | tuple[str, ...], ...] = ()
    reads: tuple[str, ...] = ()
    config: str | None = None
    options: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    reward_options: tuple[str, ...] = ()
    problem: Callable[[Mapping[str, Any]], str | None] = field(default=lambda setting: None)
    is_control: Callable[[Mapping[str, Any]], bool] = field(default=lambda setting: False)
    draws: Callable[[Mapping[str, Any]], int] = field(default=lambda setting: 1)
    is_trained: bool = True
    role: Literal["base", "imitation"] | None = None
    note: str | None = None
    report: tuple[str, ...] = ()
    fit: Callable[[Job, str, Path], None] | None = None
    verb: Verb | None = None

    @property
    def study_options(self) -> set[str]:
        """All study options that the method needs or reads."""
        return {*self.reads, *(name for need in self.needs for name in _several(need))}

    def lacks(self, given: Callable[[str], Any]) -> str | None:
        """The first requirement that the given options do not meet, in words; else None."""
        return next((" or ".join(_several(need)) for need in self.needs if not any(map(given, _several(need)))), None)


def _several(need: str | tuple[str, ...]) -> tuple[str, ...]:
    return (need,) if isinstance(need, str) else need
