"""The sections of docs/results.md about the representation reward and re-ranking; `benchmarks.page` puts them in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, numbers on the right."""
    heading = list(heading)
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "---:|" * (len(heading) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def source(result: Mapping[str, Any]) -> str:
    """Command and machine."""
    return f"```console\n{result['command']}\n```\n\nMachine: {result['machine']}.\n"


def spread(found: Mapping[str, float], digits: int = 3, sign: bool = False) -> str:
    """`mean [low, high]` of a t-interval over seeds."""
    plus = "+" if sign else ""
    return f"{found['mean']:{plus}.{digits}f} [{found['low']:{plus}.{digits}f}, {found['high']:{plus}.{digits}f}]"


def interval(estimate: Mapping[str, Any] | None, digits: int = 2, factor: float = 1.0) -> str:
    """`mean [low, high]` of a bootstrap estimate."""
    if estimate is None:
        return "—"
    mean, low, high = (f"{factor * estimate[key]:.{digits}f}" for key in ("mean", "ci_low", "ci_high"))
    return f"{mean} [{low}, {high}]"


def percent(estimate: Mapping[str, float]) -> str:
    """`mean [low, high]` of a share."""
    return interval(estimate, 1, 100)


def probes(result: dict[str, Any]) -> str:
    """Probes on two small models, with controls and a whole reward model."""
    names = {
        "held out": "PKU, unseen prompts",
        "hh": "hh, elsewhere",
        "xstest-unsafe": "XSTest, unsafe prompts",
        "xstest-safe": "XSTest, safe prompts",
    }
    rows, costs = [], []
    for base, found in result["bases"].items():
        for key, title in names.items():
            cell = found["sets"][key]
            rows.append([f"{base}: {title}", percent(cell["accuracy"]), f"{cell['auroc']:.3f}"])
        full, held_out = found["full_model"], found["sets"]["held out"]["accuracy"]["mean"]
        rows += [
            [f"{base}: a whole reward model (TRL), PKU", percent(full["accuracy"]), "—"],
            [
                f"{base}: shuffled labels, mean of {len(found['shuffled']['each'])}",
                f"{100 * found['shuffled']['mean']:.1f}",
                "—",
            ],
            [
                f"{base}: words alone",
                f"{100 * found['bag_of_words']:.1f}",
                f"gap {100 * (held_out - found['bag_of_words']):+.1f} points",
            ],
            [f"{base}: length alone", f"{100 * found['length_only']:.1f}", "—"],
        ]
        cost = found["cost"]
        costs.append(
            [
                base,
                f"{cost['seconds_extracting_per_1000']:.1f} + {cost['seconds_fitting_per_1000']:.1f}",
                f"{full['seconds_training_per_1000']:.1f}",
                f"{cost['flops_extracting_per_1000']:.2e}",
                f"{full['flops_training_per_1000']:.2e}",
                f"{found['ece']['before']:.3f} → {found['ece']['after']:.3f}",
            ]
        )
    return "\n".join(
        [
            "## The representation reward on two small models\n",
            source(result),
            "Labelled XSTest completions: on unsafe prompts the refusal is the better answer, on safe ones the compliance; the accuracy there is at the training's threshold, AUROC needs none.\n",
            table(["judge and data", "accuracy, %", "AUROC"], rows),
            "Per 1,000 pairs, reading the states and fitting (with every penalty tried) beside the training of a whole reward model:\n",
            table(
                [
                    "base",
                    "probes, s",
                    "whole model, s",
                    "probes, FLOPs",
                    "whole model, FLOPs",
                    "calibration error, before → after",
                ],
                costs,
            ),
        ]
    )


_NOISE_FINDING = """\
What this shows, and what it does not. At DPO's best point moving confidence does not earn the five points that were its goal: −5 [−22, +12], with the SFT term +6 [−22, +34]. The only
difference to DPO that is clear of zero is that of relabelling once by the initial probes, which loses 13 [3, 23]. The marks lie between 0.1 and 2.7 nats, because in two of five seeds DPO on
noisy labels loses the replies' form before its best point by noisy accuracy, which does not see it.

At 0.1 nats, which all but conservative DPO pass while still steady, intervals are narrow and the methods level: re-ranking +2 [−6, +9], with the SFT term +3 [−3, +8], online DPO −1 [−6, +4];
robust DPO, IPO and relabelling are behind by 6 to 9. The likely reason: flips at random shorten the expected gradient by 1 − 2ε and do not turn it, so they cost steps, not direction.

What the confidence does give is steadiness. It ends at 0.08 to 0.13 nats with every reply well-formed in all five seeds; DPO, robust DPO, relabelled and online DPO end with broken replies in two
seeds each. It also moves less, and conservative DPO, told the true ε, is as steady for nothing. To online DPO it is +5 [−5, +15] without sampling a token. With clean labels re-ranking is DPO to within 0.6 points at 0.1 nats, and both break later on. Over-refusal is within two points
of the base everywhere.

Tried before, in a faster regime (600 pairs, learning rates up to 1e-3; `benchmarks/results/label_noise_first.json`): the same verdict with wider intervals, re-ranking +6 [−22, +33]. Single seeds there of
a confidence floor of 0, the posterior under known noise, probes that follow and sampled groups did not change it.
"""


def _at_fixed(method: str, found: dict[str, Any]) -> str:
    if method == "DPO":
        return ""
    reached = found["seeds_that_reach_it"]
    return spread(found["difference_to_DPO"], sign=True) if reached == 5 else f"not reached in {5 - reached} of 5"


def label_noise(result: dict[str, Any]) -> str:
    """The comparison under label noise, and with clean labels."""
    parts = [
        "## Label noise: does moving confidence help?\n",
        source(result),
        f"A thousand pairs of the sandbox ordered by the exact reward, {100 * result['noise']:.0f} % flipped; the same noisy pairs fit and calibrate the probes "
        f"(right on {100 * sum(result['probe_accuracy_on_noisy_pairs']) / len(result['probe_accuracy_on_noisy_pairs']):.1f} % of noisy held-out pairs, where {100 * (1 - result['noise']):.0f} % is perfect), "
        "train, and choose among six settings. Gold score on 500 unseen prompts at the KL of DPO's best validation point; five seeds (pairs, flips, training), "
        "95 % t-intervals over them, paired differences. One point is 0.01.\n",
    ]
    for title, name in (("A quarter of the labels flipped", "noisy"), ("Clean labels", "clean")):
        found = result[name]
        rows = []
        for method, cell in found.items():
            if method in ("kl", "base"):
                continue
            online = cell.get("difference_to_online_DPO")
            rows.append(
                [
                    f"{method} (lr {cell['setting'][0]:g}, β {cell['setting'][1]:g})",
                    spread(cell["gold"]),
                    "" if method == "DPO" else spread(cell["difference_to_DPO"], sign=True),
                    _at_fixed(method, cell["at_fixed_kl"]),
                    "" if online is None or method == "online DPO" else spread(online, sign=True),
                    f"{100 * cell['forbidden_served']['mean']:.1f}",
                    f"{100 * cell['over_refusal']['mean']:.1f}",
                    f"{100 * cell['well_formed']['mean']:.1f}",
                    f"{100 * min(cell['well_formed_at_the_end']):.0f}",
                    f"{cell['seeds_that_reach_the_kl']}/5",
                    f"{cell['own_best_point']['gold']:.3f} at {cell['own_best_point']['kl']:.1f}",
                    f"{cell['seconds']:.0f}",
                    f"{cell['generated_tokens']:,.0f}",
                ]
            )
        kl = ", ".join(f"{value:.2f}" for value in found["kl"])
        base = found["base"]
        parts += [
            f"### {title}\n",
            f"The marks: {kl} nats. The base: gold {base['gold']:.3f}, forbidden served {100 * base['forbidden_served']:.1f} %, over-refusal {100 * base['over_refusal']:.1f} %.\n",
            table(
                [
                    "method",
                    "gold at the mark",
                    "to DPO",
                    "to DPO at 0.1 nats",
                    "to online DPO",
                    "forbidden, %",
                    "over-refusal, %",
                    "well-formed, %",
                    "well-formed at the end, worst seed, %",
                    "reach the mark",
                    "gold at its own best point, KL",
                    "s",
                    "tokens sampled",
                ],
                rows,
            ),
        ]
    return "\n".join([*parts, _NOISE_FINDING])


_CHAT_NOTE = """\
One seed. DPO and `rerank` ran while other work took half of the machine, the other two did not: compare seconds within these pairs, steps and tokens across all. The judge learned
from the same preference data as the probes (another network, by another route); the refusal detector learned from none. On this model an answer that both judges like is still
mostly nonsense: it has three million parameters.
"""


def chat_rerank(result: dict[str, Any]) -> str:
    """Three ways to a safer chat model, two judges."""
    rows = []
    for name, found in result["methods"].items():
        last, first = found["points"][-1], found["points"][0]
        if not rows:
            rows.append(["chat-3m", *_judged(first), "0", "0", "0"])
        rows.append(
            [
                name,
                *_judged(last),
                f"{last['harmful/kl']:.1f}",
                f"{last['seconds']:.0f}",
                f"{last['generated_tokens']:,}",
            ]
        )
    marks = [
        f"{name}: {cost['step']:.0f} steps, {cost['seconds']:.0f} s and {cost['generated_tokens']:,.0f} sampled tokens"
        for name, cost in result["cost_at_mark"].items()
        if cost is not None
    ]
    return "\n".join(
        [
            "## A chat model made safer by re-ranking\n",
            source(result),
            f"`chat-3m`, pairs of PKU-SafeRLHF; probes right on {percent(result['probes'])} % of held-out pairs. Judged by a whole reward model and by the refusal detector, neither used in training, "
            "on harmful prompts and on XSTest's safe ones, none of which training saw; one setting for all, fixed before.\n",
            table(
                [
                    "after 75 steps",
                    "judge, harmful",
                    "refused, harmful, %",
                    "judge, safe",
                    "refused, safe, %",
                    "KL, harmful",
                    "s",
                    "tokens sampled",
                ],
                rows,
            ),
            f"Cost until the judge's mean on harmful prompts is {result['mark']:.2f}: {'; '.join(marks) or 'reached by none'}.\n",
            _CHAT_NOTE,
        ]
    )


def _judged(point: Mapping[str, Any]) -> list[str]:
    return [
        f"{point['harmful/judge']['mean']:.2f}",
        percent(point["harmful/refused"]),
        f"{point['safe/judge']['mean']:.2f}",
        percent(point["safe/refused"]),
    ]


def rerank_cost(result: dict[str, Any]) -> str:
    """Ratios (a) and (b), and the added time of a step."""
    rows = []
    for name, found in result["ratios"].items():
        for length, cell in found.items():
            if length == "parameters":
                continue
            rows.append(
                [
                    f"{name} ({found['parameters'] / 1e6:.3g} M), {length} tokens",
                    f"{cell['sampling_seconds']:.2f}",
                    f"{1000 * cell['confidence_seconds']:.2f}",
                    f"{cell['pass_seconds']:.2f}",
                    f"{cell['a']:,.0f}",
                    f"{cell['b']:.1f}",
                ]
            )
    step = result["step"]
    return "\n".join(
        [
            "## What re-ranking costs\n",
            source(result),
            f"{result['responses']} responses: sampled; their rewards and confidences on states that the loss computed anyway (a); and by a pass of their own (b).\n",
            table(["model, length", "sampling, s", "confidence, ms", "a pass, s", "(a) ratio", "(b) ratio"], rows),
            f"A training step on the sandbox's model: stock TRL {step['stock_seconds']:.3f} s, our loss with a constant confidence {step['constant_seconds']:.3f} s, with moving confidence "
            f"{step['pair_seconds']:.3f} s: {100 * step['added_to_ours']:+.1f} % to our own step, {100 * step['added_to_stock']:+.1f} % to TRL's.\n",
        ]
    )
