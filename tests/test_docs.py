"""What README, docs and recipes say is held against the code: snippets run or compile, flags and names exist, recipes parse."""

import ast
import importlib
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from frugalign.cli.parser import read_config
from frugalign.methods.proxy_rlhf.options import ProxyOptions
from frugalign.methods.proxy_stored.options import StoredProxyOptions
from frugalign.methods.psle.options import PSLEOptions
from frugalign.methods.rerank.options import RerankOptions
from frugalign.study.checks import check_lines
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Cell, cell_of, lines_of, swept

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "experiments" / "studies"
SUMMARIES = ROOT / "experiments" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"(<!-- runnable -->\n)?```python\n(.*?)```", re.S)
SNIPPETS = [(page, bool(mark), code) for page in PAGES for mark, code in PYTHON.findall(page.read_text("utf-8"))]
CONSOLE = re.compile(r"```console\n(.*?)```", re.S)
COMMANDS = [
    (page, line)
    for page in PAGES
    for block in CONSOLE.findall(page.read_text("utf-8"))
    for line in block.splitlines()
    if line.startswith("frugalign ")
]


def test_there_is_something_to_test() -> None:
    assert sum(runnable for _, runnable, _ in SNIPPETS) >= 2
    assert COMMANDS


@pytest.mark.parametrize(("page", "runnable", "code"), SNIPPETS, ids=lambda v: v.stem if isinstance(v, Path) else "")
def test_snippets_name_what_exists(page: Path, runnable: bool, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("frugalign"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ProxyConfig":
            config = importlib.import_module("frugalign.methods.proxy_rlhf.config").ProxyConfig
            assert {k.arg for k in node.keywords} <= {f.name for f in fields(config)}


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for _, runnable, code in SNIPPETS if runnable])
def test_runnable_snippets_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda v: v.stem if isinstance(v, Path) else "")
def test_commands_use_flags_that_exist(page: Path, line: str) -> None:
    verb = line.split()[1]
    done = subprocess.run(
        [sys.executable, "-m", "frugalign.cli", verb, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for flag in re.findall(r"--(\w+)", line.split("#")[0]):
        assert f"--{flag}" in done.stdout, f"{page.name}: {verb} has no --{flag}"


OPTIONS = {"proxy": (ProxyOptions, StoredProxyOptions), "psle": (PSLEOptions,), "rerank": (RerankOptions,)}


RECIPES = [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "examples").glob("*/recipe-*.yaml"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recipes_have_only_known_keys(path: Path) -> None:
    """A recipe is called after what it is for and the verb that it is a config of."""
    known = {field.name for options in OPTIONS[path.stem.rsplit("-", 1)[1]] for field in fields(options)}
    assert set(yaml.safe_load(path.read_text("utf-8"))) <= known


@pytest.mark.parametrize("path", sorted((STUDIES).glob("*.yaml")), ids=lambda p: p.stem)
def test_studies_can_be_planned(path: Path) -> None:
    """Every line is a method with options that its command has."""
    lines = [cell.line for cell in study_cells(path)]
    assert len(lines) > 1 and lines[0].method == "base"
    check_lines(lines)


def study_cells(path: Path) -> list[Cell]:
    """A cell of each line of a study's recipe, sweeps as lines of their own."""
    study = StudyOptions(**read_config(str(path), StudyOptions))
    return [cell_of(line, 1, "test", study) for each in lines_of(study) for line in swept(each)]


def test_the_greedy_study_trains_nothing_of_its_own() -> None:
    """Every line of it is one of the stories study, with what that study chose, and has its training."""
    ours, theirs = (study_cells(STUDIES / f"{name}.yaml") for name in ("stories-greedy", "stories"))
    recorded = json.loads((SUMMARIES / "stories.json").read_text("utf-8"))["chosen"]
    settings = {cell.line.label: cell.line.setting for cell in ours}
    assert {label for label in settings if label in recorded} == {"sft", "dpo"}
    assert all(settings[label] == recorded[label] for label in ("sft", "dpo"))
    folder = Path("trainings")
    assert {cell.training(folder) for cell in ours} <= {cell.training(folder) for cell in theirs}


NUMBERED = re.compile(r"<!-- numbers: ([\w+ -]+) -->\n((?:\|.*\n)+)")
RESULTS = [ROOT / "docs" / name for name in ("results-small.md", "results-proxy.md", "results.md")]
TABLES = [
    (page, name, table)
    for page in (
        ROOT / "README.md",
        *RESULTS,
        ROOT / "docs" / "scale.md",
        ROOT / "docs" / "methods" / "proxy.md",
        ROOT / "docs" / "methods" / "psle.md",
        ROOT / "docs" / "methods" / "representation-reward.md",
        ROOT / "docs" / "how-to" / "large-data.md",
        ROOT / "docs" / "how-to" / "ray.md",
        ROOT / "docs" / "how-to" / "serve.md",
        ROOT / "docs" / "how-to" / "serve-elsewhere.md",
    )
    for name, table in NUMBERED.findall(page.read_text("utf-8"))
]
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?")


def cells_of(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def numbers_in(value: object) -> list[float]:
    """The numbers of a summary's value: one, an interval, or none."""
    if isinstance(value, list):
        return [number for each in value for number in numbers_in(each)]
    return [float(value)] if isinstance(value, (int, float)) else []


def agrees(shown: str, known: float) -> bool:
    """Whether a number of a table is the known one, rounded to the table's decimals."""
    plain = shown.replace("−", "-").replace(",", "")
    decimals = len(plain.partition(".")[2])
    return abs(float(plain) - known) <= 0.5 * 10**-decimals * (1 + 1e-9)


def wrong_cells(table: str, rows: dict[str, dict[str, object]]) -> list[str]:
    """Cells of a table whose numbers are not those of the summary's row; a column that the row does not name may show any of its numbers."""
    head, _, *lines = table.splitlines()
    columns, wrong = cells_of(head)[1:], []
    for line in lines:
        label, *cells = cells_of(line)
        for column, cell in zip(columns, cells, strict=True):
            shown, row = NUMBER.findall(cell), rows[label]
            if column in row:
                known = numbers_in(row[column])
                if not shown and not known:
                    continue
                if not shown or not all(agrees(*pair) for pair in zip(shown, known, strict=False)):
                    wrong.append(f"{label}, {column}: {cell}")
                if len(shown) > len(known):
                    wrong.append(f"{label}, {column}: {cell} has more numbers than the summary")
            elif not all(any(agrees(each, known) for known in numbers_in(list(row.values()))) for each in shown):
                wrong.append(f"{label}, {column}: {cell}")
    return wrong


@pytest.mark.parametrize(("page", "name", "table"), TABLES, ids=lambda v: v.stem if isinstance(v, Path) else "")
def test_tables_show_what_was_measured(page: Path, name: str, table: str) -> None:
    assert wrong_cells(table, rows_of(name)) == []


def rows_of(names: str) -> dict[str, dict[str, object]]:
    """The rows of a summary; of `first + second`, the first one's rows with the second one's columns as `second: column`."""
    first, *more = (json.loads((SUMMARIES / f"{name}.json").read_text("utf-8"))["rows"] for name in names.split(" + "))
    for name, rows in zip(names.split(" + ")[1:], more, strict=True):
        for label in first:
            first[label] |= {f"{name}: {column}": value for column, value in rows.get(label, {}).items()}
    return first


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 1200


def test_a_changed_number_is_found() -> None:
    rows: dict[str, dict[str, object]] = {"a": {"x": [0.125, 0.1, 0.2], "y": 93.12, "z": None}}
    head = "| | x | y | z | other |\n|---|---|---|---|---|\n"
    assert wrong_cells(head + "| a | 0.12 [0.10, 0.20] | 93.1 | — | 93 |\n", rows) == []
    for row in ("| a | 0.12 [0.10, 0.21] | 93.1 | — | 93 |", "| a | 0.12 | 93.2 | — | 93 |", "| a | 0.12 | — | — | 93 |",
                "| a | 0.12 | 93.1 | 7 | 93 |", "| a | 0.12 | 93.1 | — | 94 |"):  # fmt: skip
        assert len(wrong_cells(head + row + "\n", rows)) == 1, row


@pytest.mark.parametrize("page", RESULTS, ids=lambda path: path.stem)
def test_a_page_of_results_is_short(page: Path) -> None:
    """One section a question: a command, and at most one table of at most six columns, held to its summary."""
    text = page.read_text("utf-8")
    assert len(text.encode()) <= 20 * 1024
    assert len(TABLES) >= 20
    for section in text.split("\n## ")[1:]:
        tables = re.findall(r"(?:^\|.*\n)+", section, re.M)
        assert len(tables) <= 1 and len(NUMBERED.findall(section)) == len(tables), section
        assert not tables or "```console" in section, section
        assert all(len(cells_of(line)) <= 6 for table in tables for line in table.splitlines())
    for image in re.findall(r"!\[[^]]*\]\((img/[^)]+)\)", text):
        assert (page.parent / image).is_file(), image


@pytest.mark.parametrize("path", sorted(SUMMARIES.iterdir()), ids=lambda p: p.stem)
def test_summaries_are_small_and_say_where_they_come_from(path: Path) -> None:
    text = path.read_text("utf-8")
    assert path.suffix == ".json" and text.count("\n") <= 200
    summary = json.loads(text)
    assert {"command", "model", "machine", "versions", "date", "rows"} <= set(summary)
    named = re.search(r"frugalign study (\S+)|python -m ([\w.]+)|make ([\w-]+)", summary["command"])
    assert named is not None
    if named[3]:
        assert f"\n{named[3]}: $(STAMP)\n" in (ROOT / "Makefile").read_text("utf-8"), summary["command"]
    else:
        assert (ROOT / (named[1] or named[2].replace(".", "/") + ".py")).is_file(), summary["command"]


def test_the_paper_map_names_functions_that_exist() -> None:
    rooms = "proxy|rewards|decoding|data|engines|metrics|policies|evaluation|methods|study"
    names = re.findall(rf"`((?:{rooms})\.[\w.]+)`", (ROOT / "docs" / "paper-map.md").read_text("utf-8"))
    assert len(names) > 30
    for name in names:
        module, attribute = name.rsplit(".", 1)
        assert hasattr(importlib.import_module(f"frugalign.{module}"), attribute), name


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as mkdocs and GitHub both make them from ASCII titles."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_docstrings_refer_to_sections_that_exist() -> None:
    referred = re.compile(r"docs/([\w/-]+\.md)#([\w-]+)")
    found = {match for path in (ROOT / "src").rglob("*.py") for match in referred.findall(path.read_text("utf-8"))}
    assert len(found) > 10
    for page, anchor in found:
        assert anchor in slugs(ROOT / "docs" / page), f"{page}#{anchor}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda p: p.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", page.read_text("utf-8")):
        other = (page.parent / target).resolve() if target else page
        assert other.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in slugs(other), f"{page.name}: {target}#{anchor}"


@pytest.mark.parametrize("page", ["docs/design.md", "docs/decisions.md", "CONTRIBUTING.md"])
def test_the_pages_for_developers_name_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    paths = set(re.findall(r"`([\w/*]+(?:\.py|/))`", text))
    package = ROOT / "src" / "frugalign"
    assert paths
    missing = [path for path in paths if not list(package.glob(path)) and not list(ROOT.glob(path))]
    assert missing == []


def test_contributing_names_what_the_files_hold() -> None:
    """`NAME` in `FILE`: the file has that name."""
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text("utf-8").split())
    named = re.findall(r"`([\w.]+)` in `([\w/]+\.py)`", text)
    assert len(named) >= 10
    for name, path in named:
        file = next(each for each in (ROOT / "src" / "frugalign" / path, ROOT / path) if each.is_file())
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", file.read_text("utf-8")), f"{name} in {path}"


def test_the_design_names_every_room_on_its_tier() -> None:
    """The table of packages is that of the rule that the imports are held to."""
    rule = (ROOT / "tests" / "test_architecture.py").read_text("utf-8")
    tiers = ast.literal_eval(re.search(r"^TIERS = (\{.*?^\})", rule, re.S | re.M)[1])  # type: ignore[index]
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    told = {room: int(tier) for tier, room in re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.M)}
    rooms = {path.parent.name for path in (ROOT / "src" / "frugalign").glob("*/__init__.py")} - {"sandbox"}
    assert told == {room: tiers[room] for room in rooms}


@pytest.mark.slow
def test_the_pages_build(tmp_path: Path) -> None:
    """With every docstring that the reference shows. A warning of mkdocs is an error."""
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site" / "reference" / "index.html").is_file()


def test_the_reference_names_what_exists() -> None:
    """The same without building: every `:::` of the reference can be imported."""
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text("utf-8"), re.M)
    assert len(names) > 20
    for name in names:
        module, attribute = name.rsplit(".", 1)
        if not hasattr(importlib.import_module(module), attribute):
            importlib.import_module(name)
