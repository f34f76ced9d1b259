"""`write_report`: one page about a run, without external resources. It names what the folder lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic
from frugalign.base.ledger import Costs, Ledger
from frugalign.evaluation.schema import few_prompts
from frugalign.methods.psle.report_data import Rounds, read_rounds, side_by_side
from frugalign.reports import figures
from frugalign.reports.in_words import precise_interval, prompt_in_words, scores_in_words
from frugalign.reports.psle_section import section
from frugalign.reports.render import drawing, render
from frugalign.reports.rerank_section import shift_of
from frugalign.reports.reward_page import write_reward_report
from frugalign.runs.layout import (
    CONFIG_FILE,
    COSTS_FILE,
    LOG_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    REPORT_FILE,
    ROUND_PREFIX,
    SAMPLES_FILE,
    PairsReport,
    Sample,
    ShiftStart,
    evaluation_of,
    has_evaluation,
    read_costs,
    read_evaluation_costs,
    read_log,
    read_metrics,
    read_pairs_report,
    read_reward_report,
    read_samples,
    read_settings,
    read_shift,
    rounds_in,
)

S = TypeVar("S")
_SAMPLES = 6
_TABLE = (
    ("Reward", "reward", "base_reward"),
    ("Win rate against the base (ties count half)", "win_rate", None),
    ("KL to the base, nats per sequence", "kl_per_sequence", None),
    ("… of it from the temperature", "kl_temperature", None),
    ("… of it from restricting the candidates", "kl_restriction", None),
    ("… of it from choosing among them", "kl_choice", None),
    ("KL, nats per token", "kl_per_token", None),
    ("Perplexity under the base", "perplexity_base", None),
    ("Refusals", "refusal_rate", "base_refusal_rate"),
    ("Over-refusals (safe prompts)", "over_refusal_rate", "base_over_refusal_rate"),
    ("Completions that ended", "ended_rate", "base_ended_rate"),
    ("Length, tokens", "mean_length", "base_mean_length"),
    ("Distinct bigrams", "distinct_2", "base_distinct_2"),
)
_CURVES = (
    ("reward", (("training", "reward"), ("held-out", "eval_reward"))),
    (
        "nats per sequence",
        (
            ("KL", "kl"),
            ("temperature", "kl_temperature"),
            ("restriction", "kl_restriction"),
            ("held-out KL", "eval_kl_per_sequence"),
            ("held-out answers", "eval_kl"),
        ),
    ),
    ("nats per token, KL from the teacher", (("training", "kl_from_teacher"), ("held-out", "eval_kl_from_teacher"))),
    ("acceptance", (("training", "acceptance"), ("held-out", "eval_acceptance"))),
    ("tokens per completion", (("training", "completion_length"), ("held-out", "eval_mean_length"))),
    ("loss", (("training", "loss"), ("held-out", "eval_loss"))),
    ("weight of the KL", (("training", "kl_weight"),)),
    ("pairs in order, implicit reward", (("training", "rewards/accuracies"), ("held-out", "eval_rewards/accuracies"))),
    (
        "pairs in order, probes",
        (
            ("training", "representation_reward/accuracy"),
            ("held-out", "eval_representation_reward/accuracy"),
            ("labelled, before each step", "probe/accuracy"),
        ),
    ),
    (
        "representation reward",
        (("chosen", "representation_reward/chosen"), ("rejected", "representation_reward/rejected")),
    ),
    (
        "confidence",
        (
            ("mean", "confidence/mean"),
            ("share at most ½", "confidence/doubtful_share"),
            ("share flipped", "confidence/flipped_share"),
        ),
    ),
)
_BINS = 10
_ORDERED_BY = {
    "implicit_reward": "The proxy's implicit reward",
    "probes": "The probes",
    "bag_of_words": "Words alone",
    "length_only": "Length alone",
}


@dataclass(frozen=True)
class _Run:
    """The content of a run folder; empty where a file is missing."""

    settings: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    shift: ShiftStart | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    costs: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    rounds: Rounds | None = None
    pairs: PairsReport | None = None


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into a run folder: settings, learning curve, quality before and after, cost and samples.

    It may be a training's folder, with a log or at least one complete `round-*` folder, or an evaluation's. A training's evaluation is looked
    for in the same folder and directly below it. A representation reward gets a different page.

    Raises:
        FrugalignError: any other folder, or damaged files.
    """
    folder = Path(run_folder).expanduser()
    with drawing(folder):
        return _write(folder)


def _write(folder: Path) -> Path:
    if read_reward_report(folder) is not None:
        return write_reward_report(folder)
    run = _read(folder)
    after, pairs = side_by_side(run.rounds) if run.rounds else (0, [])
    page = render(
        "run.html",
        title=folder.resolve().name,
        settings={key: value for key, value in run.settings.items() if value is not None and value != []},
        curves=_curves(run.log) + _confidence(run.log),
        shift=shift_of(run.log, run.shift),
        rounds=section(run.rounds) if run.rounds else None,
        round_samples=[_shown(pair) for pair in evenly_spread(pairs)],
        n_round_samples=len(pairs),
        rounds_before_samples=after,
        distributions=_distributions(run.samples),
        rows=_rows(run.metrics),
        pairs=run.pairs,
        pairs_rows=[(_ORDERED_BY[name], precise_interval(each)) for name, each in run.pairs["accuracy"].items()]
        if run.pairs
        else [],
        metrics=run.metrics,
        few=few_prompts(run.metrics["settings"]["prompts"]) if run.metrics.get("settings") else None,
        costs=run.costs,
        samples=[_shown(sample) for sample in evenly_spread(run.samples)],
        n_samples=len(run.samples),
        missing=run.missing,
    )
    target = folder / REPORT_FILE
    write_atomic(target, page)
    return target


def _read(folder: Path) -> _Run:
    """The content of a run folder.

    Raises:
        FrugalignError: a folder that is not a run's.
    """
    if not folder.is_dir():
        raise FrugalignError(f"There is no run folder {folder}.")
    evaluated, rounds, log = evaluation_of(folder), read_rounds(folder), read_log(folder)
    if not (folder / LOG_FILE).is_file() and not has_evaluation(evaluated) and rounds is None:
        if rounds_in(folder):
            raise FrugalignError(
                f"{folder} has no complete round: none of its {ROUND_PREFIX}* folders has a {MANIFEST_FILE} yet."
            )
        raise FrugalignError(f"{folder} is not a run folder: it has neither {LOG_FILE} nor {METRICS_FILE}.")
    metrics, samples, settings = read_metrics(evaluated), read_samples(evaluated), read_settings(folder)
    trained = bool(log) or rounds is not None
    apart = evaluated != folder or not trained
    costs = (
        ("Training", read_costs(folder) if trained else Costs()),
        ("Evaluation", read_costs(evaluated) if apart else read_evaluation_costs(folder)),
    )
    run = _Run(
        settings=settings | {f"evaluation: {key}": value for key, value in metrics.get("settings", {}).items()},
        log=log,
        shift=read_shift(folder),
        metrics=metrics,
        samples=samples,
        costs=[(title, _cost_rows(found, of_training=title == "Training")) for title, found in costs if found],
        rounds=rounds,
        pairs=read_pairs_report(folder),
    )
    return replace(run, missing=_missing(run))


def _missing(run: _Run) -> list[str]:
    """What the page cannot show, because the folder lacks it, in words."""
    found: dict[str, Any] = {f"the settings ({CONFIG_FILE})": run.settings}
    if run.rounds is None:  # else each round has its own
        found |= {
            f"the learning curve ({LOG_FILE})": run.log,
            f"the evaluation ({METRICS_FILE})": run.metrics,
            f"samples and reward distributions ({SAMPLES_FILE})": run.samples,
        }
    found[f"the costs ({COSTS_FILE})"] = run.costs
    return [name for name, content in found.items() if not content] + (run.rounds.missing if run.rounds else [])


def _cost_rows(costs: Costs, *, of_training: bool) -> list[tuple[str, str]]:
    """The ledger's own table, from saved costs. An evaluation takes no steps and trains no parameters."""
    ledger = Ledger()
    ledger.load_dict(costs)
    if not of_training:
        ledger.trainable_parameters = None
    measured = {
        "Seconds, all": f"{costs.get('wall_clock_seconds', 0.0):,.1f}",
        "Peak memory": f"{costs.get('peak_memory_mb', 0.0):,.0f} MB",
    }
    rows = [(name, measured.get(name, value)) for name, value in ledger.table()]
    return [(name, value) for name, value in rows if of_training or name != "Optimizer steps"]


def _rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(measure, base, policy): the rows of the quality table, with a dash where a number does not apply."""
    if not metrics:
        return []
    num_samples = metrics.get("settings", {}).get("num_samples", 1)

    def cell(estimate: Any) -> str:
        return precise_interval(estimate, num_samples)

    rows = [(name, cell(metrics.get(base)) if base else "—", cell(metrics.get(own))) for name, own, base in _TABLE]
    named = metrics.get("rewards", {})
    if len(named) > 1:  # the first of them is the main one
        before = metrics.get("base_rewards", {})
        rows[:1] = [(f"Reward {name}", cell(before.get(name)), cell(value)) for name, value in named.items()]
    return rows


def _curves(log: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(alternative text, data URI) of every curve in the log."""
    found = []
    for ylabel, lines in _CURVES:
        series = []
        for label, key in lines:
            points = [
                (line["step"], line[key]) for line in log if isinstance(line.get(key), (int, float)) and "step" in line
            ]
            if points:
                series.append((label, [float(step) for step, _ in points], [float(value) for _, value in points]))
        if series:
            found.append((f"{ylabel} over training steps", figures.curve(series, ylabel)))
    return found


def _confidence(log: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The histogram of confidences on the first and the last log line with one."""
    keys = [f"confidence/histogram_{place}" for place in range(_BINS)]
    found = [line for line in log if all(key in line for key in keys)]
    if len(found) < 2 or max(found[0][key] for key in keys) == max(found[-1][key] for key in keys) == 1.0:
        return []
    series = [(f"step {line['step']}", [line[key] for key in keys]) for line in (found[0], found[-1])]
    labels = [f"{place / _BINS:.1f}" for place in range(_BINS)]
    return [
        (
            "confidence of the labels, first and last",
            figures.shares(series, labels, "confidence from", "share of pairs"),
        )
    ]


def _distributions(samples: list[Sample]) -> list[tuple[str, str]]:
    found = []
    for name in samples[0].get("rewards", {}) if samples else {}:
        before = [value for sample in samples if (value := sample["base_rewards"].get(name)) is not None]
        after = [value for sample in samples if (value := sample["rewards"].get(name)) is not None]
        if before and after:
            text = f"distribution of the reward {name}, base and policy"
            found.append((text, figures.distributions(before, after, name)))
    return found


def evenly_spread(samples: list[S], n: int = _SAMPLES) -> list[S]:
    """`n` samples, evenly spread from the first on and so not chosen by their reward."""
    step = max(1, len(samples) // n)
    return samples[::step][:n]


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": prompt_in_words(sample["prompt"]),
        "base": sample["base"],
        "policy": sample["policy"],
        "base_rewards": scores_in_words(sample.get("base_rewards", {})),
        "rewards": scores_in_words(sample.get("rewards", {})),
    }
