"""From a study's options to its cells: one method, one setting and one seed each. A hash of all that a cell depends on names its folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import is_attribute, module_file
from frugalign.base.wording import shown
from frugalign.methods import registry
from frugalign.methods.method import Method
from frugalign.options.check import check_value
from frugalign.options.cluster import RAY_OPTIONS
from frugalign.options.kinds import COUNT, POSITIVE, SEED
from frugalign.study.layout import CELLS_FOLDER, SAMPLES_FOLDER
from frugalign.study.options import StudyOptions

BUDGETS = ("generated_tokens", "optimizer_steps", "wall_clock_seconds")
_LARGE = 1 << 26
_MOST_SETTINGS = 1000
_MOST_FILES = 10_000
_LONGEST_LABEL = 100
"""It names a folder, with a hash, and a sweep adds its values."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+,=-]*")

_WITHOUT_EFFECT = {
    "output_dir",
    "trainings_dir",
    "jobs",
    "only",
    "methods",
    "seeds",
    "choose",
    "eval_batch_size",
    "llm_judge",
    "model_judge",
    "reference",
    *RAY_OPTIONS,
}

METHOD_INPUTS = ("principles", "preferences", "representation_reward")
"""Options that matter only to methods that read them."""
IN_CONTEXT = "in_context"
"""The option that every line may set: what precedes every prompt in the test. A training does not depend on it."""
_TEST_OPTIONS = {"judges", "eval_prompts", "eval_do_sample", "eval_samples", "kind", IN_CONTEXT}
"""Options that a training does not depend on."""
_METHOD_OPTIONS = {"method", "setting", "principles", "preferences", "representation_reward"}
"""Options that samples of the base do not depend on."""


@dataclass(frozen=True)
class Line:
    """A line of the table: a method with one setting, or with a sweep before its setting is chosen."""

    label: str
    method: str
    setting: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run. `request`: everything that its result depends on; `kind`: whether it is tested on validation prompts (to choose) or test prompts."""

    line: Line
    seed: int
    kind: Literal["choosing", "test"]
    request: dict[str, Any]

    @property
    def name(self) -> str:
        """The cell's name on pages and in logs: label and seed."""
        return f"{self.line.label}, seed {self.seed}" + (", choosing" if self.kind == "choosing" else "")

    def folder(self, study: Path) -> Path:
        """The cell's folder. It changes with every option, and with the content of every file that the study names."""
        return study / CELLS_FOLDER / f"{_folder_name(self.line.label)}-{_digest_of(self.request)}"

    def training(self, trainings: Path) -> Path:
        """The folder of its training."""
        return training_folder(self.request, trainings)


def training_folder(request: dict[str, Any], trainings: Path) -> Path:
    """The folder of a cell's training. Cells that train the same share it, whatever their labels and tests."""
    return trainings / f"{_folder_name(request['method'])}-{_digest_of(_without(request, _TEST_OPTIONS))}"


def samples_folder(request: dict[str, Any], size: int, trainings: Path) -> Path:
    """The folder of the base's samples, `size` to a prompt. All methods that learn from them share it."""
    return (
        trainings
        / f"{SAMPLES_FOLDER}-{_digest_of(_without(request, _TEST_OPTIONS | _METHOD_OPTIONS) | {'size': size})}"
    )


def _without(request: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The request without these options, and without the hashes of files that only they name."""
    rest = {name: value for name, value in request.items() if name not in names | {"contents"}}
    values = [*rest.values(), *rest.get("setting", {}).values()]
    said = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return rest | {"contents": {name: digest for name, digest in request.get("contents", {}).items() if name in said}}


def _digest_of(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]


def is_base(method: str, setting: Mapping[str, Any]) -> bool:
    """Whether a line is the plain base, with nothing before its prompts."""
    return registry.get(method).role == "base" and setting.get(IN_CONTEXT) is None


def lines_of(options: StudyOptions) -> list[Line]:
    """The lines as in the YAML, with sweeps as lists.

    Raises:
        FrugalignError: a missing, unknown or contradictory option.
    """
    _check(options)
    lines = []
    for label, given in (options.methods or {}).items():
        setting = dict(given or {})
        method = setting.pop("method", label)
        if not isinstance(method, str):
            raise FrugalignError(f"The study's line {label!r} must name its method as text, not {shown(method)}.")
        lacking = _method_of(label, method).lacks(lambda name: getattr(options, name))
        if lacking is not None:
            raise FrugalignError(f"The study's line {label!r} needs {lacking}, and the study names none.")
        lines.append(Line(label, method, setting))
    every = [each.label for line in lines for each in swept(line)]
    folders = [_folder_name(label) for label in every]
    twice = next((label for label, name in zip(every, folders, strict=True) if folders.count(name) > 1), None)
    if twice is not None:
        raise FrugalignError(f"Two lines of the study would share the folder of {twice!r}. Give one another label.")
    given = {line.label for line in lines}
    in_table, labels = given if options.choose is not None else set(every), given | set(every)
    if options.reference is not None and options.reference not in in_table:
        raise FrugalignError(
            f"reference names {options.reference!r}, which is not a line of the table; there are {', '.join(sorted(in_table))}."
        )
    seeds = [*options.seeds, *([] if options.choose is None else [options.choose.get("seed", 0)])]
    for name in options.only:
        label, _, seed = name.partition(":")
        if label not in labels or (seed and int(seed) not in seeds if seed.isdecimal() else seed):
            raise FrugalignError(
                f"only names {name!r}, which is not a line of the study; there are {', '.join(options.methods or {})}."
            )
    return lines


def _method_of(label: str, name: str) -> Method:
    try:
        method = registry.get(name)
    except FrugalignError as error:
        raise FrugalignError(f"The study's line {label!r} names the method {name!r}. {error}") from error
    if method.run is None:
        raise FrugalignError(f"The study's line {label!r} names the method {name!r}, which does not give a policy.")
    return method


def swept(line: Line) -> list[Line]:
    """One line per combination of a sweep's values, which its label names. Without a sweep, the line itself."""
    names = [name for name, value in line.setting.items() if isinstance(value, list)]
    if not names:
        return [line]
    if (n := math.prod(len(line.setting[name]) for name in names)) > _MOST_SETTINGS:
        raise FrugalignError(
            f"The study's line {line.label!r} sweeps over {n:,} settings, more than {_MOST_SETTINGS:,}."
        )
    found = []
    for values in itertools.product(*(line.setting[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        words = " ".join(f"{name}={_short(value)}" for name, value in chosen.items())
        found.append(Line(f"{line.label} {words}", line.method, line.setting | chosen))
    return found


def cells_of(lines: Sequence[Line], options: StudyOptions) -> list[Cell]:
    """Every line with every seed, seed by seed: a study that is stopped early then has all methods."""
    return [cell_of(line, seed, "test", options) for seed in options.seeds for line in lines]


def choosing_cells(line: Line, options: StudyOptions) -> list[Cell]:
    """A sweep's settings with the choosing seed."""
    seed = int((options.choose or {}).get("seed", 0))
    return [cell_of(each, seed, "choosing", options) for each in swept(line)]


def is_wanted(line: Line, given: Line, seed: int, options: StudyOptions) -> bool:
    """Whether `only` selects the cell of a line and seed. `given`: the line as in the YAML, whose label selects its whole sweep."""
    names = {line.label, given.label, f"{line.label}:{seed}", f"{given.label}:{seed}"}
    return not options.only or not names.isdisjoint(options.only)


def cell_of(line: Line, seed: int, kind: Literal["choosing", "test"], options: StudyOptions) -> Cell:
    """The cell of a line, a seed and a kind."""
    request = {
        name: value
        for name, value in vars(options).items()
        if name not in _WITHOUT_EFFECT and value not in (None, []) and _is_read(name, line)
    }
    request["contents"] = contents_of(options, line)
    setting = dict(line.setting)
    in_context = setting.pop(IN_CONTEXT, None)
    request |= {"method": line.method, "setting": setting, "seed": seed, "kind": kind}
    if in_context is not None:
        request[IN_CONTEXT] = in_context
    if options.choose is not None:
        request["holds_out"] = True  # validation prompts, which no method trains on
    if kind == "choosing":
        request |= {"eval_prompts": (options.choose or {}).get("prompts")}
    return Cell(line, seed, kind, request)


def contents_of(options: StudyOptions, line: Line) -> dict[str, str]:
    """Hashes of the files that the study names for a line, see `hashes_of`."""
    named = [options.model_name_or_path, options.dataset_name, *options.reward, *options.judges]
    named += [getattr(options, name) for name in METHOD_INPUTS if _is_read(name, line)]
    named += [line.setting.get(name) for name in (*registry.get(line.method).reward_options, IN_CONTEXT)]
    named += [line.method] if is_attribute(line.method) else []
    return hashes_of([str(name) for name in named if name])


def _is_read(name: str, line: Line) -> bool:
    return name not in METHOD_INPUTS or name in registry.get(line.method).study_options


def hashes_of(names: Iterable[str]) -> dict[str, str]:
    """Hashes of the local files and folders among these names, by name. For `package.module:attribute` it is the module's file.

    Files of frugalign itself are not hashed: the page shows its version.
    """
    found = {}
    for name in names:
        path = _source_of(name)
        if path.exists():
            try:
                found[name] = _digest(_states_of(path, name))
            except OSError as error:  # a file that vanishes meanwhile, or may not be read
                raise FrugalignError(f"Cannot read {shown(name)}, which the study names: {error.strerror}.") from error
    return found


def _states_of(path: Path, name: str) -> tuple[tuple[str, int, int], ...]:
    """(path, size, time) of a file, or of every file in a folder."""
    files = [path]
    if path.is_dir():
        files = sorted(itertools.islice((each for each in path.rglob("*") if each.is_file()), _MOST_FILES + 1))
    if len(files) > _MOST_FILES:
        raise FrugalignError(f"{shown(name)}, which the study names, is a folder of over {_MOST_FILES:,} files.")
    return tuple((str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in files)


def _source_of(name: str) -> Path:
    """The path at the start of a name, or the file of the module that it names."""
    spec = re.sub(r"^[\w.-]+=", "", name)
    if is_attribute(spec):
        module = spec.split(":")[0]
        file = None if module.split(".")[0] == "frugalign" else module_file(module)
        if file is not None:
            return file
    return Path(re.sub(r":\w+$", "", spec)).expanduser()


@cache
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """The hash of files given as (path, size, time): of their contents, and of large ones by size alone."""
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{Path(name).name}\t{size}\n".encode())
        if size <= _LARGE:
            digest.update(Path(name).read_bytes())
    return digest.hexdigest()[:16]


def _check(options: StudyOptions) -> None:
    for name in ("model_name_or_path", "dataset_name", "judges", "methods", "seeds"):
        if not getattr(options, name):
            raise FrugalignError(f"The study names no {name}.")
    if len(set(options.seeds)) < len(options.seeds):
        raise FrugalignError("The study names a seed twice.")
    labels = list(options.methods or {})
    for label in labels:
        given = (options.methods or {})[label]
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            raise FrugalignError(
                f"The study's label {shown(label)} must be letters, digits, spaces and . _ + , = - only."
            )
        if len(label) > _LONGEST_LABEL:
            raise FrugalignError(f"The study's label {shown(label)} must be at most {_LONGEST_LABEL} characters long.")
        if given is not None and not isinstance(given, dict):
            raise FrugalignError(f"The study's line {label!r} must be a mapping of options, not {shown(given)}.")
    budget: Mapping[str, Any] = options.budget or {}
    for name, value in budget.items():
        if name not in BUDGETS:
            raise FrugalignError(f"The budget takes {', '.join(BUDGETS)}, not {shown(name)}.")
        check_value(f"The budget's {name}", _scalar(f"The budget's {name}", value), POSITIVE)
    choose = options.choose or {}
    for name in choose:
        if name not in ("seed", "prompts"):
            raise FrugalignError(f"choose takes seed and prompts, not {shown(name)}.")
    for name, kind in (("prompts", COUNT), ("seed", SEED)):
        if choose.get(name) is not None:
            check_value(f"choose's {name}", _scalar(f"choose's {name}", choose[name]), kind)
    if options.reward_weights is not None and len(options.reward_weights) != len(options.reward):
        raise FrugalignError(
            f"There are {len(options.reward)} rewards, but {len(options.reward_weights)} reward_weights."
        )
    if options.choose is not None and choose.get("seed", 0) in options.seeds:
        raise FrugalignError("The seed of choose is one of the test seeds. Give choose another seed.")
    if options.choose is not None and options.eval_split == "validation":
        raise FrugalignError("choose reads the validation split, so the study cannot be tested on it.")
    for label in labels:
        empty = [name for name, value in ((options.methods or {})[label] or {}).items() if value == []]
        if empty:
            raise FrugalignError(f"The study's line {label!r} sweeps {empty[0]} over an empty list.")


def _scalar(name: str, value: Any) -> Any:
    if isinstance(value, list):
        raise FrugalignError(f"{name} is {shown(value)}; it must be one number.")
    return value


def _folder_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", label)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
