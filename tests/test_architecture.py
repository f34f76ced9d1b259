"""The house rules, read from the source with `ast`: who may import whom, what stays light, what is never used."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tests.fresh import modules_after

from frugalign.base import files
from frugalign.runs import layout as run_layout
from frugalign.study import layout as study_layout

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "frugalign"
FILES = sorted(PACKAGE.rglob("*.py"))
RUNTIME = ROOT / "src" / "frugalign_runtime"
RUNTIME_FILES = sorted(RUNTIME.rglob("*.py"))
MAX_LINES = 400

# Imports go down only: a room may import rooms with a smaller number. Rooms with equal numbers do not know each other.
# Three storeys: use (engines … serving), train (runs … methods), judge (study … cli).
TIERS = {
    "cli": 12,
    "reports": 11,
    "study": 10,
    "methods": 9,
    "evaluation": 8,
    "runs": 7,
    "serving": 7,
    "policies": 6,
    "proxy": 5,
    "rewards": 5,
    "decoding": 4,
    "engines": 3,
    "workers": 3,
    "data": 2,
    "options": 2,
    "metrics": 1,
    "base": 0,
}
# Reached only as a string (`frugalign.sandbox:gold`), so that no method ever depends on it; it may itself use any room but the CLI.
SANDBOX = "sandbox"
# Distributions whose import name differs from the name that pyproject declares.
IMPORT_NAMES = {"scikit-learn": "sklearn", "pyyaml": "yaml", "jinja2": "jinja2"}


def room(path: Path) -> str:
    """`proxy` for proxy/network.py, `methods.psle` for methods/psle/loss.py, `` for the package's own __init__."""
    parts = path.relative_to(PACKAGE).parts
    if parts[0] == "methods" and len(parts) > 2:
        return f"methods.{parts[1]}"
    return "" if parts[0] == "__init__.py" else parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, at whatever depth; `from a import b` yields `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_shared_by_methods(name: str) -> bool:
    """Whether `methods/NAME.py` is a file directly in methods/, which every method may import and which imports none of them."""
    return (PACKAGE / "methods" / f"{name}.py").is_file()


def tier_violations(own: str, tree: ast.AST) -> list[str]:
    """What the rule forbids in one file of room `own`."""
    found, storey = [], own.split(".")[0]
    for line, name in imports(tree):
        parts = name.split(".")
        if parts[0] != "frugalign" or len(parts) < 2:
            continue
        other = parts[1]
        if storey == "methods" and other == "methods":
            if len(parts) > 2 and f"methods.{parts[2]}" != own and not is_shared_by_methods(parts[2]):
                found.append(f"line {line}: {own} imports {name}; methods never import each other")
            continue
        if other in {own, "__version__"} or (own == "" and other in TIERS):
            continue
        if other == SANDBOX:
            found.append(f"line {line}: {own} imports the sandbox; name it as a string")
        elif other not in TIERS:
            found.append(f"line {line}: {name} goes through the public front door; import from its room")
        elif own == SANDBOX:
            if other == "cli":
                found.append(f"line {line}: the sandbox imports the command line")
        elif TIERS[other] >= TIERS[storey]:
            found.append(f"line {line}: {own} (tier {TIERS[storey]}) imports {other} (tier {TIERS[other]})")
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down_the_tiers(path: Path) -> None:
    assert room(path).split(".")[0] in {"", SANDBOX, *TIERS}, (
        f"{room(path)} has no tier: give it one in this test and in docs/design.md"
    )
    assert tier_violations(room(path), parse(path)) == []


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("decoding", "from frugalign.proxy.network import ProxyModel"),
        ("proxy", "import frugalign.methods.proxy_rlhf.trainer"),
        ("methods.psle", "from frugalign.methods.rerank.groups import rank_groups"),
        ("methods", "from frugalign.methods.rerank.groups import rank_groups"),
        ("rewards", "from frugalign.proxy.network import ProxyModel"),
        ("proxy", "def f():\n    from frugalign.sandbox import gold"),
        ("proxy", "from frugalign import Ledger"),
    ],
)
def test_the_tier_rule_sees_what_it_should(own: str, source: str) -> None:
    assert tier_violations(own, ast.parse(source)) != []


@pytest.mark.parametrize("path", [*FILES, *RUNTIME_FILES], ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_no_pickle_and_no_foreign_code(path: Path) -> None:
    """Weights are safetensors only, and a model's repository never runs its own code here."""
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {n.split(".")[0] for n in names} & {"pickle", "cloudpickle", "dill", "joblib"}, (
                f"line {node.lineno}"
            )
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"torch.load", "torch.save"}, f"line {node.lineno}"
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "trust_remote_code" or allowed, f"line {node.lineno}"


def test_every_room_is_a_package() -> None:
    """A folder without it works here, and is unknown to type checkers and to the docs."""
    assert {path.parent for path in FILES} == {path.parent for path in FILES if path.name == "__init__.py"}


def test_files_of_tests_are_short() -> None:
    every = (ROOT / "tests").rglob("*.py")
    assert not [path for path in every if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES]


@pytest.mark.parametrize("path", [*FILES, *RUNTIME_FILES], ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_files_are_short_and_finished(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES, "split the file"
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    assert path.name not in {"utils.py", "helpers.py", "common.py"}, "name the file by what it holds"


def test_only_declared_dependencies_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=\[ ;]", entry)[0].lower() for entry in project["dependencies"]}
    optional = {
        "trl",
        "matplotlib",
        "jinja2",
        "fastapi",
        "uvicorn",
        "starlette",
        "prometheus_client",
        "bitsandbytes",
        "ray",
    }  # the peers, study, serve and ray extras, and 4-bit weights: imported where they are asked for
    brought = {"wandb", "mlflow", "trackio", "lm_eval", "inspect_ai", "anyio", "vllm"}  # by users, who name them
    arrive_with = {
        "numpy",
        "tokenizers",
        "huggingface_hub",
        "tqdm",
        "psutil",
        "pandas",
    }  # torch, transformers, accelerate and datasets need them
    known = (
        {IMPORT_NAMES.get(d, d) for d in declared}
        | optional
        | brought
        | arrive_with
        | {"frugalign", "frugalign_runtime"}
        | set(sys.stdlib_module_names)
    )
    used = {(name.split(".")[0], path.name) for path in FILES for _, name in imports(parse(path))}
    assert {(name, where) for name, where in used if name not in known} == set()


def test_the_runtime_needs_numpy_alone() -> None:
    """It runs beside whatever versions an engine pins. An engine's own library is imported in the module that is for that engine."""
    allowed = set(sys.stdlib_module_names) | {"numpy", "frugalign_runtime"}
    of_engines = {"arrays.py": {"torch"}, "llama_cpp.py": {"llama_cpp"}, "vllm.py": {"vllm", "torch"}}
    for path in RUNTIME_FILES:
        known = allowed | of_engines.get(path.name, set())
        assert {name for _, name in imports(parse(path)) if name.split(".")[0] not in known} == set(), path.name


def test_the_runtime_loads_no_other_library() -> None:
    """Not even torch, unless the engine has: `judge` on numpy arrays runs without it."""
    code = (
        "import numpy as np, frugalign_runtime as r\n"
        "s = r.bundle.Settings('marginal', 'token_bias', 'keep', 1.0, 0.1, 9, 2, 3, no_recovery='none')\n"
        "a = {'token_bias': np.ones(3, 'f4'), 'tail_bias': np.zeros(1, 'f4'), 'head.ids': np.arange(3), 'head.rows': np.ones((3, 2)), 'head.bias': np.zeros(3)}\n"
        "r.Proxies([r.Bundle(s, a)]).judge(np.zeros((1, 3), 'f4'), None, [0], 1.0)"
    )
    assert not {"torch", "transformers", "safetensors", "trl", "peft", "frugalign"} & modules_after(code)


def test_peers_alone_need_trl() -> None:
    importers = {path.parent.name for path in FILES for _, name in imports(parse(path)) if name.split(".")[0] == "trl"}
    assert importers == {"peers"}


def test_pages_alone_need_the_libraries_that_draw_them() -> None:
    """Using and training a model works without the study extra: matplotlib and Jinja2 are imported in reports/, inside functions."""
    drawn_with = {"matplotlib", "jinja2"}
    elsewhere = {
        (str(path), name)
        for path in FILES
        if room(path) != "reports"
        for _, name in imports(parse(path))
        if name.split(".")[0] in drawn_with
    }
    at_the_top = {
        (path.name, ast.unparse(node))
        for path in FILES
        for node in parse(path).body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and drawn_with & {n.split(".")[0] for _, n in imports(node)}
    }
    assert elsewhere == at_the_top == set()


def test_the_two_constraints_files_differ_in_torch_only() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==") for line in lines if line and line[0] not in "#-")

    everywhere, cpu = pins("constraints.txt"), pins("constraints-cpu.txt")
    assert cpu.pop("torch") == f"{everywhere.pop('torch')}+cpu"
    assert everywhere == cpu


def test_every_extra_is_in_all_and_every_requirement_has_a_pin() -> None:
    """`make resolve` lets pip resolve them together; this says early what it would miss."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == set(extras) - {"all"}
    pins = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    for entry in [*project["dependencies"], *(each for extra in extras.values() for each in extra)]:
        name = re.split(r"[<>=\[ ;]", entry)[0].lower()
        assert name == "frugalign" or name in pins, name


def test_importing_frugalign_is_light() -> None:
    """`import frugalign` and its option dataclasses load neither torch nor transformers."""
    assert not {"torch", "transformers", "datasets", "trl", "peft", "sklearn", "matplotlib"} & modules_after(
        "import frugalign, frugalign.methods.proxy_rlhf.options, frugalign.cli.main"
    )


@pytest.mark.slow
def test_guiding_a_model_loads_no_training_or_judging_library() -> None:
    """What a GuidedModel and the commands that answer a prompt need is torch, transformers and safetensors."""
    assert not {"datasets", "pandas", "trl", "peft", "sklearn", "matplotlib"} & modules_after(
        "import frugalign; frugalign.GuidedModel; import frugalign.policies.answer"
    )


def test_every_public_name_can_be_fetched() -> None:
    import frugalign

    for name in frugalign.__all__:
        assert getattr(frugalign, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = frugalign.nonsense


LAYOUTS = (files, run_layout, study_layout)
"""Where the names of files are written down: of an artefact, of a run, of a study."""


def names_of(kind: str, *layouts: ModuleType) -> set[str]:
    """What the layouts call `…_FILE`, `…_FOLDER` or `…_PREFIX`."""
    return {value for layout in layouts for name, value in vars(layout).items() if name.endswith(f"_{kind}")}


FILE_NAMES, PREFIXES = names_of("FILE", *LAYOUTS), names_of("PREFIX", *LAYOUTS)


def written_names(tree: ast.AST, own: str = "runs") -> Iterator[tuple[int, str]]:
    """Line and value of every literal that names a file of a run: alone, as the last part of a path, or as a folder that is joined to a path.

    Sentences may name a file: a literal with a space in it is left alone. So are a study's folders where no study is read: `prompts` is a common word.
    """
    folder_names = names_of("FOLDER", run_layout, *([study_layout] if own in ("study", "reports", "cli") else []))
    joined = {id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or " " in node.value:
            continue
        last = node.value.rsplit("/", 1)[-1]
        if last in FILE_NAMES or last.startswith(tuple(PREFIXES)) or (id(node) in joined and last in folder_names):
            yield node.lineno, node.value


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_spells_the_name_of_a_run_s_file(path: Path) -> None:
    if path not in {Path(str(layout.__file__)) for layout in LAYOUTS}:
        assert list(written_names(parse(path), room(path))) == [], (
            "name the file by its constant in runs/layout.py or study/layout.py"
        )


def test_each_name_is_written_once() -> None:
    """`.lock` and so on stand in one module; the log of a cell and the log of a run are two files."""
    for kind in ("FILE", "FOLDER", "PREFIX"):
        every = [
            (layout.__name__, node.value.value)
            for layout in LAYOUTS
            for node in ast.parse(Path(str(layout.__file__)).read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id.endswith(f"_{kind}")
            and isinstance(node.value, ast.Constant)
        ]
        values = [value for _, value in every]
        assert len(values) > 1 and {value for value in values if values.count(value) > 1} <= {run_layout.START_FOLDER}


@pytest.mark.parametrize(
    "source",
    [
        "open(folder / 'metrics.jsonl')",
        "open(f'{folder}/costs.json')",
        "folder / 'groups' / name",
        "list(folder.glob('*/metrics.json'))",
        "folder.glob('checkpoint-*')",
        "x = f'round-{number}'",
    ],
)
def test_the_name_rule_sees_what_it_should(source: str) -> None:
    assert list(written_names(ast.parse(source))) != []


@pytest.mark.parametrize("source", ["f('Where metrics.json goes.')", "{'start': 1}", "spec = 'round'"])
def test_the_name_rule_leaves_other_words_alone(source: str) -> None:
    assert list(written_names(ast.parse(source))) == []
