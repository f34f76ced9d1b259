"""The commands of docs/how-to/cluster.md, with the same files and smaller values, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from frugalign.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes" / "cluster"
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "how-to" / "cluster.md").read_text("utf-8"), re.S)
    for line in block.splitlines()
]
NAMED = dict(zip(("one GPU", "eight GPUs", "one base", "Slurm", "Ray", "a proxy on Ray"), COMMANDS, strict=True))
TOY = {
    "model_name_or_path": "frugalign.sandbox:model",
    "dataset_name": "frugalign.sandbox:prompts",
    "reward": "frugalign.sandbox:gold",
    "dtype": "float32",
    "device_map": "cpu",
    "use_cpu": "true",
    "max_new_tokens": "4",
    "num_generations": "2",
    "per_device_train_batch_size": "8",
    "budget_tokens": "64",
    "report_to": "none",
}
"""What replaces the placeholders and shrinks the job."""


def toy(name: str, folder: Path, **more: str) -> tuple[list[str], list[str]]:
    """A command's words before `proxy`, and its arguments from there on, as a toy."""
    given = shlex.split(NAMED[name])
    place = given.index("proxy")
    pairs = dict(zip(given[place + 1 :: 2], given[place + 2 :: 2], strict=True))
    assert all(each.startswith("--") for each in pairs), "an option and its value, in turns"
    changed = {f"--{each}": value for each, value in {**TOY, "output_dir": str(folder), **more}.items()}
    return given[:place], ["proxy", *(part for pair in (pairs | changed).items() for part in pair)]


def sampled(folder: Path) -> int:
    """Tokens that a finished run sampled."""
    assert (folder / "model.safetensors").is_file()
    found: int = json.loads((folder / "costs.json").read_text("utf-8"))["generated_tokens"]
    return found


def rounds(folder: Path) -> int:
    """Rounds of a finished run."""
    return sum("kl_choice" in line for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines())


def launched(arguments: list[str], programs: Path, **environment: str) -> None:
    """Run at the repository's root, with the `programs` of a folder before others."""
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    before, arguments = toy("one GPU", tmp_path / "run")
    assert before == ["frugalign"] and main(arguments) == 0
    assert 8 < sampled(tmp_path / "run") <= 2 * 8 * 4


@pytest.mark.slow
def test_eight_gpus_as_two_processes(tmp_path: Path) -> None:
    """Two processes sample a round of 16 responses together."""
    before, arguments = toy("eight GPUs", tmp_path / "run")
    module = before.index("-m")
    command = [*before[:module], "--num_processes", "2", *before[module:], *arguments]
    launched(command, tmp_path, ACCELERATE_USE_CPU="1")
    assert yaml.safe_load((RECIPES / "accelerate.yaml").read_text("utf-8"))["num_processes"] == 8
    assert rounds(tmp_path / "run") == 1 and 16 < sampled(tmp_path / "run") <= 16 * 4


@pytest.mark.slow
def test_one_base_over_two_processes(tmp_path: Path) -> None:
    """One replica of two processes samples two rounds of 8 responses."""
    before, arguments = toy("one base", tmp_path / "run", tp_size="2", device_map="cpu")
    place = arguments.index("--device_map")
    del arguments[place : place + 2]
    size = before.index("--nproc_per_node") + 1
    assert (
        before[size] == "8" and yaml.safe_load((RECIPES.parent / "70b-proxy.yaml").read_text("utf-8"))["tp_size"] == 4
    )
    launched([*before[:size], "2", *before[size + 1 :], *arguments], tmp_path)
    assert rounds(tmp_path / "run") == 2 and 8 < sampled(tmp_path / "run") <= 2 * 8 * 4


@pytest.mark.slow
def test_the_slurm_script_under_bash(tmp_path: Path) -> None:
    """With Slurm's variables, and stand-ins for its two programs: one node, one process."""
    for name, does in {"srun": 'exec "$@"', "scontrol": "printf '127.0.0.1\\nother\\n'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n", "utf-8")
        (tmp_path / name).chmod(0o755)
    before, arguments = toy("Slurm", tmp_path / "run")
    assert before[0] == "sbatch"
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node[1-2]"}
    launched(["bash", *before[1:], *arguments], tmp_path, SLURM_GPUS_ON_NODE="1", **slurm)
    assert 8 < sampled(tmp_path / "run") <= 2 * 8 * 4


def test_rays_launcher_takes_the_file() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    util = importlib.import_module("ray.autoscaler._private.util")
    given = yaml.safe_load((RECIPES / "ray.yaml").read_text("utf-8"))
    util.validate_config(util.prepare_config(given))
    with pytest.raises(Exception, match="Additional properties"):
        util.validate_config(given | {"worker_count": 2})


@pytest.mark.slow
def test_a_proxy_on_ray(tmp_path: Path, ray_here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    few = {"ray": ray_here, "ray_workers": "1", "ray_cpus": "0.5", "ray_gpus": "0"}
    before, arguments = toy("a proxy on Ray", tmp_path / "run", **few)
    assert before == ["frugalign"] and main(arguments) == 0
    assert 8 < sampled(tmp_path / "run") <= 2 * 8 * 4


@pytest.mark.parametrize("name", NAMED)
def test_a_command_names_files_that_exist(name: str) -> None:
    files = [word for word in shlex.split(NAMED[name]) if word.startswith("recipes/")]
    assert files and all((ROOT / each).is_file() for each in files)
