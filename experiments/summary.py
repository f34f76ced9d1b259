"""A small summary of each experiment, in experiments/results: the command, the machine, and the rows that the documentation quotes.

    python -m experiments.summary runs/studies/sandbox-core

writes the summary of a finished study from its `study.json`. Scripts call `write_summary`. Numbers have five significant digits, and an
interval is [mean, low, high]. The pages of results and the README quote the rows, and a test compares them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from frugalign.base.files import write_atomic

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "transformers", "trl", "peft")


def script_options(doc: str | None, **more: dict[str, Any]) -> argparse.Namespace:
    """The command line of a script that writes a summary. `smoke`: its smallest setting.

    Args:
        more: arguments of the script's own, by name, as `add_argument` takes them.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "The smallest setting, which only shows that the script runs. No summary is written."
    parser.add_argument("--smoke", action="store_true", help=text)
    for name, settings in more.items():
        parser.add_argument(name if "nargs" in settings else f"--{name}", **settings)
    return parser.parse_args()


def write_summary(
    name: str,
    command: str,
    model: str,
    rows: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write `results/NAME.json`.

    Args:
        name: of the experiment and of the file.
        command: repeats the experiment.
        model: the measured model, with its size.
        rows: label of a table row → column → number, [mean, low, high], or None.
        facts: settings and notes on the numbers.
    """
    versions = {library: version(library) for library in _LIBRARIES}
    head = {"command": command, "model": model, "machine": f"{platform.machine()}, CPU", "versions": versions}
    head |= {"date": datetime.date.today().isoformat(), **(facts or {})}
    path = RESULTS / f"{name}.json"
    write_atomic(path, as_text(head, rows))
    return path


def as_text(head: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary as JSON with one line for each fact and each row."""
    lines = [f"  {json.dumps(key)}: {_json(value)}," for key, value in head.items()]
    body = [f"    {json.dumps(label, ensure_ascii=False)}: {_json(row)}" for label, row in rows.items()]
    return "\n".join(["{", *lines, '  "rows": {', ",\n".join(body), "  }", "}", ""])


def _json(value: Any) -> str:
    return json.dumps(_rounded(value), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def estimate(found: Mapping[str, float] | None, factor: float = 1.0) -> list[float] | None:
    """`[mean, low, high]` of an interval as evaluations and studies write it."""
    return None if found is None else [factor * found[key] for key in ("mean", "ci_low", "ci_high")]


def study_rows(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a `study.json`: every judge, the main judge's difference to the reference, and the costs."""
    rows = {}
    for line in study["lines"]:
        main = line["measures"].get(study["judge"], {})
        rows[line["label"]] = {
            **{name: estimate(each["value"]) for name, each in line["measures"].items()},
            "difference": estimate(main.get("difference")),
            "p (Holm)": main.get("p_holm"),
            "win rate": estimate(line["win_rate"]),
            "KL, nats": estimate(line["others"]["kl_per_sequence"]),
            "trained numbers": line["trainable_parameters"] or 0,
            "tokens sampled, thousands": line["costs"]["generated_tokens"] / 1000,
            "tokens fed, thousands": line["costs"]["lm_forward_tokens"] / 1000,
            "seconds": line["costs"]["wall_clock_seconds"],
            "memory, MB": line["costs"]["peak_memory_mb"],
            "ms a response": 1000 * line["decoding"].get("seconds", 0.0),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="A finished study's folder.")
    study = json.loads((parser.parse_args().study / "study.json").read_text(encoding="utf-8"))
    options = study["options"]
    facts = {key: options[key] for key in ("seeds", "budget") if key in options} | {"judge": study["judge"]}
    print(write_summary(study["name"], study["command"], options["model_name_or_path"], study_rows(study), facts))


if __name__ == "__main__":
    main()
