"""Studies whose cells are written by hand, as if they had been run."""

import json
from pathlib import Path
from typing import Any

from frugalign.study.options import StudyOptions
from frugalign.study.plan import cells_of, lines_of, swept

COSTS = {"generated_tokens": 10, "lm_forward_tokens": 100, "wall_clock_seconds": 2.0}
DECODING = {"generated_tokens": 5.0, "lm_forward_tokens": 9.0, "reward_calls": 0.0, "seconds": 0.01}


def study(folder: Path, methods: dict[str, Any], **options: Any) -> StudyOptions:
    given: dict[str, Any] = {
        "model_name_or_path": "model",
        "dataset_name": "prompts",
        "reward": ["learned"],
        "judges": ["gold"],
        "seeds": [1, 2],
        "methods": methods,
        "output_dir": str(folder),
    }
    return StudyOptions(**given | options)


def finish(options: StudyOptions, gold: dict[str, list[list[float]]], *, costs: dict[str, float] | None = None) -> None:
    """Cells as if they had been run: `gold[label][seed]`, a value per prompt; the base's are 0."""
    for cell in cells_of([each for line in lines_of(options) for each in swept(line)], options):
        values = gold[cell.line.label][options.seeds.index(cell.seed)]
        folder = cell.folder(Path(options.output_dir))
        (folder / "evaluation").mkdir(parents=True)
        lines = [
            {
                "prompt": f"p{number}",
                "policy": "a" * (3 + number),
                "base": "aaa",
                "rewards": {"gold": value, "learned": 1.0},
                "base_rewards": {"gold": 0.0, "learned": 0.5},
            }
            for number, value in enumerate(values)
        ]
        (folder / "evaluation" / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        kl = {"mean": 1.0, "ci_low": 0.5, "ci_high": 1.5, "n": 4}
        spent = COSTS | {"lm_forward_tokens": (costs or {}).get(cell.line.label, 100.0)}
        result = {
            "request": cell.request,
            "metrics": {"reward": kl, "decoding": DECODING, "kl_per_sequence": kl},
            "costs": spent | {"trainable_parameters": 10, "base_parameters": 1000},
            "machine": {"device": "some"},
        }
        (folder / "cell.json").write_text(json.dumps(result))


GOLD = {
    "base": [[0.0, 0.0, 0.0, 0.0]] * 2,
    "sft": [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]],
    "dpo": [[2.0, 2.0, 1.0, -1.0], [2.0, 2.0, 1.0, 1.0]],
}
METHODS: dict[str, Any] = {"base": None, "sft": {}, "dpo": {"beta": 0.1}}
