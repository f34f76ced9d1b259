"""What a method is to the rest of the library: one `Method` in the `entry.py` of its folder.

Everything above the methods (a study, the command line, the pages) reads these fields and knows no method by name. An entry is light: what needs
torch is imported inside its functions, or named as `package.module:attribute`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from frugalign.methods.job import Job

PolicyValues = dict[str, Any]
"""What a run leaves to be measured, as `PolicySpec.from_dict` reads it; empty: the base itself."""


@dataclass(frozen=True)
class Verb:
    """A method's command, `frugalign NAME`.

    Attributes:
        summary: its line in `frugalign --help`.
        description: the head of `frugalign NAME --help`.
        options: `package.module:dataclass` of its flags, light to import.
        config: `package.module:dataclass` of the same and everything inherited; None where the options are all.
        train: `package.module:function`, called with the parsed options.
        closing: the lines to print at the end, from the options and what `train` returned; none on any process but the first.
        writes_report: whether the run's page is written at once.
    """

    name: str
    summary: str
    description: str
    options: str
    train: str
    closing: Callable[[Any, Any], list[str]]
    config: str | None = None
    writes_report: bool = False


@dataclass(frozen=True)
class Method:
    """A method: what it is, what it needs, how it runs in a study, and how it is run by hand.

    Attributes:
        name: what a study's YAML calls it.
        summary: what it is, in one line.
        run: trains within a job's budget and returns the policy; None for a method that trains something else than a policy.
        needs: names of study options; of a tuple, one is enough.
        reads: study options that it uses where they are given, and does without.
        config: `package.module:dataclass` whose fields a study's line may set.
        options: further names that a line may set.
        observers: options that only observe a training. What they cost is in the line's costs.
        reward_options: options whose value names a reward.
        problem: what is wrong with a line's setting, to complete "The line …"; None where nothing is.
        is_control: whether a line with this setting is a control, there to be beaten.
        is_trained: False for what only decodes in another way.
        role: "base": what others are compared with by default; "imitation": supervised learning, drawn behind the distributions of a sweep.
        note: a sentence that a study's page says where the method has a line.
        report: what its run folder holds for figures of its own: "probes", "shift", "rounds".
        fit: fits what the method provides (its `name`, a study option) on a data set of preference pairs, into a folder, where a study names none.
        verb: its command, if it has one.
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
    is_trained: bool = True
    role: Literal["base", "imitation"] | None = None
    note: str | None = None
    report: tuple[str, ...] = ()
    fit: Callable[[Job, str, Path], None] | None = None
    verb: Verb | None = None

    @property
    def study_options(self) -> set[str]:
        """Every option of a study that it needs or reads."""
        return {*self.reads, *(name for need in self.needs for name in _several(need))}

    def lacks(self, given: Callable[[str], Any]) -> str | None:
        """The first need that the given options do not meet, in words; None where all are met."""
        return next((" or ".join(_several(need)) for need in self.needs if not any(map(given, _several(need)))), None)


def _several(need: str | tuple[str, ...]) -> tuple[str, ...]:
    return (need,) if isinstance(need, str) else need
