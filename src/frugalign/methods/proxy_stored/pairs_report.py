"""How often a proxy from pairs orders pairs of unseen prompts as they are labelled, beside what does so without it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor

from frugalign.base.files import write_json_atomic
from frugalign.base.wording import pluralize
from frugalign.data.labelled import paired
from frugalign.data.splits import column, prompt_key
from frugalign.metrics import mean_interval
from frugalign.runs.layout import PAIRS_REPORT_FILE, PairsReport

_FEW = 50
_log = logging.getLogger(__name__)


def pairs_report(trainer: Any, train: Dataset, validation: Dataset, test: Dataset | None) -> PairsReport:
    """The accuracy of the implicit reward, of the probes if labels have their confidence, of words and of length.

    Args:
        trainer: a `StoredProxyTrainer` that has learned from the pairs `train`.
        test: pairs of unseen prompts. Without them, the validation pairs serve.
    """
    from frugalign.methods import text_baselines  # scikit-learn takes a second

    held_out, stored = (validation, trainer.validation) if test is None else (test, None)
    with trainer.ledger.phase("evaluate"):
        stored = stored or trainer.reader(held_out)
        right = {"implicit_reward": _outcomes(*trainer.log_ratios(stored).reshape(-1, 2).unbind(1))}
        if trainer.reader.probes is not None:
            right["probes"] = _outcomes(*trainer.reader.rewards(stored.features))
        data = paired([train, held_out])
        trained, rest = range(len(train)), range(len(train), len(data))
        for name, score in (
            ("bag_of_words", text_baselines.word_scores),
            ("length_only", text_baselines.length_scores),
        ):
            right[name] = text_baselines.outcomes(data, score(data, trained), rest)
    prompts = [prompt_key(prompt) for prompt in column(held_out, "prompt")]
    found: PairsReport = {
        "split": "validation" if test is None else "test",
        "pairs": len(held_out),
        "prompts": len(set(prompts)),
        "accuracy": {},
    }
    for name, outcomes in right.items():
        estimate = mean_interval(outcomes, prompts)
        assert estimate is not None
        found["accuracy"][name] = estimate.to_dict()
    return found


def write_report(report: PairsReport, folder: Path) -> None:
    """Write the report into the run folder, and warn if it rests on few pairs."""
    if report["pairs"] < _FEW:
        _log.warning("The accuracy rests on %s, which says little.", pluralize(report["pairs"], "held-out pair"))
    write_json_atomic(folder / PAIRS_REPORT_FILE, report)


def in_words(report: PairsReport) -> str:
    """The report in a sentence."""
    others = {"probes": "the probes", "bag_of_words": "words alone", "length_only": "length alone"}
    said = {name: f"{100 * each['mean']:.1f} %" for name, each in report["accuracy"].items()}
    own = report["accuracy"]["implicit_reward"]
    beside = ", ".join(f"{words} {said[name]}" for name, words in others.items() if name in said)
    return (
        f"It orders {said['implicit_reward']} [{100 * own['ci_low']:.1f}, {100 * own['ci_high']:.1f}] of {pluralize(report['pairs'], report['split'] + ' pair')} "
        f"as labelled; {beside}."
    )


def _outcomes(better: Tensor, worse: Tensor) -> list[float]:
    """1 for every pair in its order, ½ for a tie."""
    found: list[float] = ((better > worse).double() + 0.5 * (better == worse).double()).tolist()
    return found
