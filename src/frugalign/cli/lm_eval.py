"""`frugalign lm-eval`: run lm-eval's tasks on a policy. lm-eval itself is installed by the user."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.cli.evaluate import EvaluateOptions
from frugalign.cli.parser import Command, parse
from frugalign.options import groups
from frugalign.options.declare import REQUIRED, defaults, like, notes, option
from frugalign.options.kinds import COUNT_OR_ZERO, PATH, POSITIVE, TEXT
from frugalign.options.policy import PolicyOptions
from frugalign.runs.layout import COSTS_FILE, LM_EVAL_FILE

if TYPE_CHECKING:
    from frugalign.policies.spec import PolicySpec

_KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")


@dataclass(kw_only=True)
@defaults(output_dir="runs/lm-eval")
@notes(
    output_dir="It gets lm_eval.json and costs.json.",
    seed="Of few-shot examples, and of sampling where a task samples.",
)
class LmEvalOptions(groups.Seed, groups.OutputDir, PolicyOptions):
    """Options of `frugalign lm-eval`, with lm-eval's names for its own."""

    tasks: list[str] = option(REQUIRED, "Names of tasks or groups.")
    include_path: str | None = option(None, "Folder with further tasks.", PATH)
    num_fewshot: int | None = option(None, "Examples before every question. Default: the task's.", COUNT_OR_ZERO)
    limit: float | None = option(None, "Questions per task, or below 1 a share of them.", POSITIVE)
    batch_size: int = like(EvaluateOptions, "batch_size", 8, "For log-likelihoods, answers that are scored at once.")
    apply_chat_template: bool = option(False, "Put questions into the model's chat template.")
    system_instruction: str | None = option(None, "System message before every question.", TEXT)
    gen_kwargs: str | None = option(
        None, "Generation settings of tasks that generate, such as do_sample=true,temperature=0.8."
    )
    log_samples: bool = option(False, "Write every question with its answers as samples_TASK.jsonl.")


COMMAND = Command(
    "lm-eval",
    "Run the tasks of lm-eval (pip install lm-eval) on a policy. Log-likelihoods are exact under the guided distribution.",
    LmEvalOptions,
)


def run(argv: list[str]) -> int:
    """Evaluate, write lm_eval.json and costs.json, and print lm-eval's table."""
    options: LmEvalOptions = parse(COMMAND, argv)
    from frugalign.policies.spec import PolicySpec

    spec = PolicySpec.from_dict(options.policy_values())
    if importlib.util.find_spec("lm_eval") is None:
        raise FrugalignError(
            "lm-eval is not installed: pip install lm-eval. It needs an older python-dateutil than our constraints have, so leave them out."
        )
    print(_evaluate(spec, options))
    print(f"Written to {options.output_dir}: {LM_EVAL_FILE}, {COSTS_FILE}.")
    return 0


def _evaluate(spec: PolicySpec, options: LmEvalOptions) -> str:
    """lm-eval's table of results."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from frugalign.base.progress_display import showing
    from frugalign.evaluation.lm_eval_model import PolicyLM
    from frugalign.policies import loading

    manager = TaskManager(include_path=options.include_path)
    if unknown := [name for name in options.tasks if not manager.match_tasks([name])]:
        raise FrugalignError(
            f"lm-eval knows no task {unknown[0]!r}; `lm-eval ls tasks` lists them, and include_path adds a folder."
        )
    policy = loading.load(spec)
    model = PolicyLM(policy, batch_size=options.batch_size)
    model.ledger.set_parameters(trainable=policy.trainable_parameters, base=policy.base_parameters)
    with showing(), model.ledger.phase("evaluate"):
        found: Any = simple_evaluate(
            model,
            tasks=options.tasks,
            task_manager=manager,
            num_fewshot=options.num_fewshot,
            limit=options.limit if options.limit is None or options.limit < 1 else int(options.limit),
            apply_chat_template=options.apply_chat_template,
            system_instruction=options.system_instruction,
            gen_kwargs=options.gen_kwargs,
            log_samples=options.log_samples,
            random_seed=options.seed,
            numpy_random_seed=options.seed,
            torch_random_seed=options.seed,
            fewshot_random_seed=options.seed,
        )
    _write(Path(str(options.output_dir)), found, spec, options)
    model.ledger.save(Path(str(options.output_dir)) / COSTS_FILE)
    return str(make_table(found))


def _write(folder: Path, found: dict[str, Any], spec: PolicySpec, options: LmEvalOptions) -> None:
    from frugalign.base.files import write_atomic

    kept = {name: found[name] for name in _KEPT if name in found}
    settings = {
        "policy": spec.to_dict(),
        "num_fewshot": options.num_fewshot,
        "limit": options.limit,
        "seed": options.seed,
    }
    write_atomic(folder / LM_EVAL_FILE, json.dumps({"settings": settings} | kept, indent=2, default=str) + "\n")
    for task, rows in (found.get("samples") or {}).items():
        lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
        write_atomic(folder / f"samples_{Path(task).name}.jsonl", "".join(lines))
