"""From finished cells to the rows of a table: measures with intervals over seeds and prompts, differences to the reference, and costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from frugalign.base.json_files import read_json
from frugalign.evaluation.schema import MEASURES
from frugalign.metrics import Estimate, holm, length_controlled_win_rate, preference
from frugalign.metrics.two_way import two_way_mean
from frugalign.runs.layout import Sample
from frugalign.study.layout import CellResult
from frugalign.study.plan import Line
from frugalign.study.responses import beside_reference, responses_of
from frugalign.study.runner import Outcome, StudyState
from frugalign.study.verdicts import judges_of, verdicts_of

COSTS = (
    "generated_tokens",
    "lm_forward_tokens",
    "reward_calls",
    "optimizer_steps",
    "wall_clock_seconds",
    "cpu_seconds",
    "peak_memory_mb",
)
_KEPT = (
    "kl_per_sequence",
    "perplexity_base",
    "mean_length",
    "ended_rate",
    "distinct_2",
    "refusal_rate",
    "over_refusal_rate",
)
"""Of `MEASURES`, what a row keeps beside the judges."""
Table = list[list[float | None]]
"""Values by seed and prompt."""


@dataclass(frozen=True)
class Measured:
    """A measure of a line: its mean, and its difference to the reference on the same prompts with a p-value.

    `p_holm`: the p-value after Holm's correction over the study's lines. Only the main judge has one.
    """

    value: Estimate
    difference: Estimate | None
    p_value: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class Preferred:
    """A pairwise judge's preference for a line over the reference. `contradictions`: share of pairs whose verdict changed with the order."""

    share: Estimate
    contradictions: float | None
    unanswered: int


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        judge: name of the main judge.
        prompts: test prompts.
        others: KL, length and so on, by their names in metrics.json.
        costs: of the training, medians over the seeds.
        decoding: costs of one response, medians over the seeds.
    """

    line: Line
    judge: str
    prompts: int
    outcomes: list[Outcome]
    measures: dict[str, Measured]
    win_rate: Estimate | None
    length_controlled: Estimate | None
    preferred: dict[str, Preferred]
    others: dict[str, Estimate | None]
    costs: dict[str, float]
    decoding: dict[str, float]
    trainable_parameters: int | None
    base_parameters: int | None

    @property
    def main(self) -> Measured | None:
        """The main judge's measure; None where it scores none of the line's responses."""
        return self.measures.get(self.judge)


def rows_of(found: StudyState) -> list[Row]:
    """A row for every line with at least one finished seed, in the study's order."""
    judges = judges_of(found.options)
    rows = [_row(line, done, judges, found) for line in found.lines if (done := _done(found.of(line)))]
    tested = {row.line.label: row.main.p_value for row in rows if row.main is not None and row.main.p_value is not None}
    corrected = holm(tested)
    return [_with_holm(row, corrected.get(row.line.label)) for row in rows]


def _done(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.result is not None]


def _with_holm(row: Row, p_holm: float | None) -> Row:
    main = row.main
    if main is None:
        return row
    return replace(row, measures=row.measures | {row.judge: replace(main, p_holm=p_holm)})


def _row(line: Line, done: list[Outcome], judges: list[tuple[str, dict[str, Any]]], found: StudyState) -> Row:
    size = int(_result(done[0])["request"]["eval_samples"])
    samples = [responses_of(outcome) for outcome in done]
    beside = [lines for outcome in done if (lines := beside_reference(outcome, found))]
    measures: dict[str, Measured] = {}
    for name in samples[0][0]["rewards"]:
        values = _table(_value, name, samples, size)
        value = two_way_mean(values, share=_is_share(values))
        if value is None:
            continue
        gap = two_way_mean(_table(_difference, name, beside, size)) if beside else None
        measures[name] = Measured(
            value.estimate, gap.estimate if gap is not None else None, gap.p_value if gap is not None else None
        )
    main = next(iter(samples[0][0]["rewards"]))
    wins = two_way_mean(_table(_win, main, beside, size), share=True) if beside else None
    costs: list[Mapping[str, Any]] = [_result(outcome)["costs"] for outcome in done]
    decoding = [_result(outcome)["metrics"].get("decoding", {}) for outcome in done]
    return Row(
        line,
        main,
        len(samples[0]) // size,
        done,
        measures,
        None if wins is None else wins.estimate,
        _length_controlled(beside, main, size) if beside else None,
        {name: said for name, settings in judges if (said := _preferred(done, size, settings, found)) is not None},
        {
            name: _over_seeds(
                [_result(outcome)["metrics"].get(name) for outcome in done], share=MEASURES[name].is_share
            )
            for name in _KEPT
        },
        {name: statistics.median(each.get(name, 0.0) for each in costs) for name in COSTS},
        {name: statistics.median(each[name] for each in decoding) for name in decoding[0]},
        costs[0].get("trainable_parameters"),
        costs[0].get("base_parameters"),
    )


def _table(
    value_of: Callable[[Sample, str], float | None],
    name: str,
    samples: Sequence[Sequence[Sample]],
    size: int,
) -> Table:
    return [by_prompt([value_of(sample, name) for sample in each], size) for each in samples]


def _is_share(values: Table) -> bool:
    """Whether a measure is yes or no for a response; means over a prompt's responses are then between 0 and 1."""
    known = {value for each in values for value in each if value is not None}
    return known <= {0.0, 1.0} or (min(known) >= 0 and max(known) <= 1)


def _result(outcome: Outcome) -> CellResult:
    assert outcome.result is not None
    return outcome.result


def by_prompt(values: Sequence[float | None], size: int) -> list[float | None]:
    """Means over the `size` consecutive samples of each prompt; None where no sample has a value."""
    found: list[float | None] = []
    for start in range(0, len(values), size):
        known = [value for value in values[start : start + size] if value is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def _value(sample: Sample, name: str) -> float | None:
    found: float | None = sample["rewards"].get(name)
    return found


def _difference(sample: Sample, name: str) -> float | None:
    after, before = sample["rewards"].get(name), sample["base_rewards"].get(name)
    return None if after is None or before is None else float(after - before)


def _win(sample: Sample, name: str) -> float | None:
    return preference(sample["rewards"].get(name), sample["base_rewards"].get(name))


def _length_controlled(samples: list[list[Sample]], name: str, size: int) -> Estimate | None:
    """The length-controlled win rate. Its bootstrap resamples prompts, each with all of its seeds and samples."""
    every = [(number // size, sample) for each in samples for number, sample in enumerate(each)]
    wins = [_win(sample, name) for _, sample in every]
    gaps = [float(len(sample["policy"]) - len(sample["base"])) for _, sample in every]
    return length_controlled_win_rate(wins, gaps, [number for number, _ in every])


def _preferred(done: list[Outcome], size: int, settings: dict[str, Any], found: StudyState) -> Preferred | None:
    """A judge's preference over the cells with verdicts; None where there are none, as for the reference."""
    verdicts = [said for outcome in done if (said := read_json(verdicts_of(outcome, settings, found)))]
    if not verdicts:
        return None
    share = two_way_mean([by_prompt(each["preferences"], size) for each in verdicts], share=True)
    if share is None:
        return None
    known = [each["contradictions"] for each in verdicts if each["contradictions"] is not None]
    return Preferred(
        share.estimate, sum(known) / len(known) if known else None, sum(each["unanswered"] for each in verdicts)
    )


def _over_seeds(estimates: list[dict[str, Any] | None], *, share: bool = False) -> Estimate | None:
    """The mean of the seeds' means with a t-interval. For one seed, or for equal shares in all seeds, the interval over prompts."""
    known = [each for each in estimates if each is not None]
    if not known:
        return None
    if len(known) == 1 or (share and len({each["mean"] for each in known}) == 1):
        only = known[0]
        return Estimate(only["mean"], only["ci_low"], only["ci_high"], only["n"])
    found = two_way_mean([[float(each["mean"])] for each in known], share=share)
    if found is None:
        return None
    # None of these can be negative. Only the sampling noise of a KL gives a negative mean, and then the interval shows it.
    estimate = found.estimate
    return replace(estimate, ci_low=max(0.0, estimate.ci_low)) if estimate.mean >= 0 else estimate
