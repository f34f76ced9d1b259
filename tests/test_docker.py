"""What can be checked of the Dockerfile without docker: what it copies, installs and runs as."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), with continued lines joined and comments left out."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


def test_it_copies_what_is_there_and_what_reaches_docker() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    copied = [
        word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    ]
    assert set(copied) == allowed and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied), "the build reads them"


def test_it_installs_under_constraints_and_runs_without_root() -> None:
    every = instructions()
    defaults = dict(rest.split("=") for name, rest in every if name == "ARG")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert defaults["TORCH"] == "cpu" and defaults["EXTRAS"] in extras
    (install,) = (rest for name, rest in every if name == "RUN" and "pip install" in rest)
    files = re.findall(r"(\w+)\) constraints=([\w.-]+)", install)
    assert {name for name, _ in files} == {"cpu", "cuda"} and all((ROOT / file).is_file() for _, file in files)
    last = len(every) - 1 - [name for name, _ in reversed(every)].index("FROM")
    users = [rest for name, rest in every[last:] if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert ("ENTRYPOINT", '["frugalign"]') in every


def test_it_holds_no_secret() -> None:
    for name, rest in instructions():
        assert name not in ("ENV", "ARG") or not re.search(r"token|secret|password|key", rest, re.IGNORECASE)
