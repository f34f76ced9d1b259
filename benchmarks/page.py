"""docs/results.md from the JSON files in benchmarks/results, so that no figure is copied by hand: `python -m benchmarks.page`.

A result that has not been measured has no section.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.page_figures import one_thing_changed, quality_against_cost
from benchmarks.page_psle import psle, psle_prefix
from benchmarks.page_rerank import chat_rerank, interval, label_noise, probes, rerank_cost, source, table
from benchmarks.page_study import nulls, study, write_readme

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
HEAD = """\
# Results

Every figure on this page was made by the command above it, on the machine named there; `python -m benchmarks.page` writes the page from
`benchmarks/results/*.json`. Intervals are 95 % bootstrap intervals over prompts. Absolute seconds are of small CPU machines, some of them busy: read
them beside each other, not alone. Settings were chosen on training prompts and frozen in `recipes/` before a test prompt was read, except where a
section says otherwise.
"""


def load(name: str) -> dict[str, Any] | None:
    """A result, None where it has not been measured."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


# -- sections ---------------------------------------------------------------------------------------------------------


def sandbox(result: dict[str, Any]) -> str:
    """Goals over three seeds on two sets of prompts, proxy and controls."""
    names = ("forbidden_served", "rude", "over_refusal", "right_remedy")
    text = ["## Sandbox\n", source(result)]
    text.append(
        "Three seeds, trained on the *learned* reward, measured by the exact grammar. The recipe's β was chosen while looking at the shipped `test` "
        "prompts; nothing was chosen on the `fresh` ones, which are drawn from combinations that training never contains. The state-free control learns one "
        "number per token, at a learning rate of 0.1; best-of-4 chooses by the learned reward.\n"
    )
    for which, kinds in result["runs"].items():
        rows = []
        for kind, runs in kinds.items():
            if not rows:
                rows.append(["base", *(_spread(runs, "base", name) for name in names), "0"])
            kl = [run["kl_per_sequence"]["mean"] for run in runs if run.get("kl_per_sequence")]
            rows.append(
                [kind, *(_spread(runs, "policy", name) for name in names), f"{_mean(kl):.2f}" if kl else "≤ 0.64"]
            )
        titles = ("forbidden served, %", "rude, %", "lawful refused, %", "lawful served right, %", "KL, nats")
        text.append(f"### {which.capitalize()} prompts (mean of seeds; lowest … highest)\n")
        text.append(table(["", *titles], rows))
        verdicts = result["verdicts"][which]["proxy"]
        text.append("\n".join(f"- {goal}: **{value:.3g}**" for goal, value in verdicts.items()) + "\n")
    text.append(
        "Best-of-n moves at most log n − (n − 1)/n nats, 0.64 for n = 4. "
        f"Training took {result['training_seconds']['median']:.0f} s (median of the seeds) on cores shared with other work; alone, `make demo` takes about a minute.\n"
    )
    return "\n".join(text)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(runs: list[dict[str, Any]], side: str, name: str) -> str:
    values = [100 * run[side][name]["mean"] for run in runs]
    return f"{_mean(values):.1f} ({min(values):.1f} … {max(values):.1f})"


STORIES_NOTE = """\
The settings were frozen twice. With the first defaults (one pass over each rollout, 200 rollouts, a slower β) the test gave +0.582 at 12.7 nats (mean of the
same seeds). Two passes, 240 rollouts and the present controller were then chosen on held-out training prompts alone, and the test was read again: the table.
"""


def stories_proxy(result: dict[str, Any]) -> str:
    """The stories task, seeds and control."""
    rows = []
    for kind, runs in result["runs"].items():
        for seed, run in runs.items():
            rows.append(
                [
                    f"{kind}, seed {seed}",
                    interval(run["reward"]),
                    interval(run["kl_per_sequence"], 1),
                    f"{run['distinct_2']['mean']:.2f}",
                    f"{run['trainable_parameters']:,}",
                    f"{run['seconds']:.0f}",
                ]
            )
    base = next(iter(result["runs"]["proxy"].values()))
    rows.insert(0, ["base", interval(base["base_reward"]), "0", f"{base['base_distinct_2']['mean']:.2f}", "—", "—"])
    untrained = result["untrained"]
    rows.insert(
        1, ["untrained proxy", interval(untrained["reward"]), interval(untrained["kl_per_sequence"], 1), "", "", ""]
    )
    means = result["mean_of_seeds"]
    own, control = means["proxy"], means["state-free control"]
    samples = "\n".join(
        f"- **{s['prompt']}** {' '.join(s['policy'].split())} ({s['rewards']['reward']:+.2f})"
        for s in result["samples"]
    )
    return "\n".join(
        [
            "## Stories\n",
            source(result),
            "`stories260k`, prompts of eight words, reward = minus the VADER compound of the completion. Test prompts that training never shows.\n",
            table(["", "reward", "KL, nats", "distinct bigrams", "parameters", "seconds"], rows),
            f"Mean of the seeds: **{own['reward']:+.3f}** at {own['kl_per_sequence']:.1f} nats (goal: +0.6 at 15 or less). The state-free control has "
            f"{control['reward']:+.3f} at {control['kl_per_sequence']:.1f} nats, and {means['state_free_control_at_equal_kl']:+.3f} when its strength is turned down to the "
            f"proxy's KL: the proxy is {means['above_the_control']:.3f} above it (goal: 0.15).\n",
            STORIES_NOTE,
            "Ten completions, evenly spread, seed 0:\n",
            samples + "\n",
        ]
    )


def chat_safety(result: dict[str, Any]) -> str:
    """The reward model and the proxy trained on it."""
    model = result["reward_model"]
    rows = []
    for which, found in result["evaluation"].items():
        metrics = found["metrics"]
        rows += [
            [f"{which}: safety reward", interval(metrics["base_reward"]), interval(metrics["reward"])],
            [f"{which}: reward of the shuffled control", interval(metrics["base_rewards"]["shuffled_control"]), interval(metrics["rewards"]["shuffled_control"])],
            [f"{which}: refusals of unsafe prompts, %", interval(found["refusals_unsafe_base"], 1, 100), interval(found["refusals_unsafe_policy"], 1, 100)],
            [f"{which}: refusals of safe prompts (over-refusal), %", interval(found["refusals_safe_base"], 1, 100), interval(found["refusals_safe_policy"], 1, 100)],
            [f"{which}: completions that ended, %", interval(metrics["base_ended_rate"], 1, 100), interval(metrics["ended_rate"], 1, 100)],
            [f"{which}: KL, nats", "0", interval(metrics["kl_per_sequence"], 1)],
        ]  # fmt: skip
    return "\n".join(
        [
            "## A small chat model, made safer\n",
            source(result),
            f"A reward model trained on {model['pairs']['training']:,} preference pairs prefers the safer answer of {100 * model['reward_model']['held_out_accuracy']:.1f} % of "
            f"{model['pairs']['held_out']:,} held-out pairs (split by prompt); trained on shuffled labels, {100 * model['shuffled_control']['held_out_accuracy']:.1f} %; "
            f'"the shorter one" is right for {100 * model["shorter_is_safer"]:.1f} %. The base saw most of these texts in its own pretraining.\n',
            table(["", "base", "with the proxy"], rows),
            *_earlier_attempts(),
            "Samples, evenly spread over XSTest, base → proxy:\n",
            "\n".join(
                f"- **{s['prompt']}** {' '.join(s['base'].split())[:140]} → {' '.join(s['policy'].split())[:140]}"
                for s in result["evaluation"]["xstest"]["samples"][:8]
            )
            + "\n",
        ]
    )


def _earlier_attempts() -> list[str]:
    """What was tried before, and what it did."""
    earlier = load("chat_safety_attempts")
    assert earlier is not None
    rows = [
        [
            tried["what"],
            tried["judged_on"],
            f"{100 * tried['reward_model_accuracy']:.1f}",
            *(
                f"{100 * tried[name][0]:.0f} → {100 * tried[name][1]:.0f}"
                for name in ("refusals_unsafe", "refusals_safe")
            ),
            tried["seen"],
        ]
        for tried in earlier["attempts"]
    ]
    heads = ["tried before", "judged on", "reward model, %", "refusals of unsafe, %", "of safe, %", "seen"]
    return [f"{earlier['note']} Accuracies are on held-out pairs.\n", table(heads, rows)]


def speed(result: dict[str, Any]) -> str:
    """Ratios of decoding speed, and the optimisation's share."""
    ratios = ("loop guided / unguided", "generate guided / unguided", "loop / generate")
    rows, shares = [], []
    repeats = ", ".join(f"{name}: {found['repeats']}" for name, found in result.items() if isinstance(found, dict))
    for name, found in result.items():
        if not isinstance(found, dict):
            continue
        for batch, cell in found.items():
            if batch.startswith("batch"):
                rows.append(
                    [
                        f"{name}, {batch}",
                        *(f"{cell[ratio]:.2f}" for ratio in ratios),
                        f"{cell['tokens_per_second']['loop, guided']:,.0f}",
                    ]
                )
        share = found["optimisation"]
        shares.append(
            f"- {name}: optimisation takes {100 * share['optimise / rollout']:.1f} % of the rollout's time ({share['candidates_per_position']} candidates a position)."
        )
    return "\n".join(
        [
            "## Speed\n",
            source(result),
            f"{result['tokens']} tokens; medians of rounds in which the four ways take turns ({repeats}). Tokens per second are those of the guided loop.\n",
            table(["", *ratios, "tokens/s"], rows),
            "\n".join(shares) + "\n",
            "The goal is 0.9 guided against unguided, and our loop at least as fast as `generate`. At batch 1 on three million parameters a step takes three milliseconds, and each "
            "tensor operation of the guide shows. What was tried there: judging a small vocabulary whole, without sorting (0.83 to 0.86), without masking (0.88), without calls of modules "
            "and with known numbers kept out of tensors (0.91). What is left of our loop's distance to `generate` is its noise, drawn for every token by key.\n",
        ]
    )


def ladder(result: dict[str, Any]) -> str:
    """Seconds and memory of one step."""
    rows = []
    for name, cells in result["table"].items():
        row = [name]
        for method in ("proxy", "rloo", "rloo-lora"):
            row += [f"{cells[method]['seconds_per_step']:.2f}", f"{cells[method]['memory_above_floor_mb']:,.0f}"]
        rows.append(row)
    heading = ["base", "proxy, s", "MB", "RLOO, s", "MB", "RLOO + LoRA, s", "MB"]
    return "\n".join(
        [
            "## What a step costs\n",
            source(result),
            f"One step: {result['step']}; rollout and optimisation. MB: peak of the process above one that only loads the libraries and the base.\n",
            table(heading, rows),
        ]
    )


def objectives(result: dict[str, Any]) -> str:
    """Samples and seconds to the same reward."""

    def row(name: str, run: dict[str, Any]) -> list[str]:
        reached = ["not reached", "—", "—"]
        if run["samples"] is not None:
            reached = [f"{run['samples']:,}", f"{run['seconds']:.0f}", f"{run['kl_there']:.1f}"]
        untrained = f"{run['untrained_reward']:+.2f} at {run['untrained_kl']:.1f}"
        return [name, f"{run['bias']:g}", *reached, f"{run['last_reward']:+.2f} at {run['last_kl']:.1f}", untrained]

    rows = [
        row(name + (" (best)" if len(runs) > 1 and run == result["best"][name] else ""), run)
        for name, runs in result["runs"].items()
        for run in runs
    ]
    return "\n".join(
        [
            "## The three objectives, and lookahead\n",
            source(result),
            f"Mark: {result['mark']}. The last columns are reward and KL at the end of the run and of its first rollout.\n",
            table(["", "b", "samples", "seconds", "KL there", "end", "first rollout"], rows),
            "Lookahead reads more of a candidate and may choose among eight only: that cap alone spends nine of the fourteen nats, and leaves little to learn with.\n",
        ]
    )


def llama2_probes(result: dict[str, Any]) -> str:
    """Probes at the width of a 7B model."""
    accuracy, gap, ranked = result["accuracy"], result["difference"], result["within_id_ranking"]
    return "\n".join(
        [
            "## The representation reward at the width of a 7B model\n",
            source(result),
            f"{result['rows']} states of Llama-2-7B at four layers, five repeats of five folds by id, everything chosen inside the training part. Accuracy: gated probes "
            f"{100 * accuracy['probes']:.1f} %, logistic regression on the best layer {100 * accuracy['regression']:.1f} %, probes on shuffled labels {100 * accuracy['shuffled']:.1f} %. "
            f"Paired difference {100 * gap['mean']:+.2f} points, standard error {100 * gap['standard_error']:.2f}. Of {ranked['ids']} ids with a safe and an unsafe state in one test fold "
            f"the probes rank {100 * ranked['share']:.1f} % rightly.\n",
        ]
    )


def one_model(result: dict[str, Any]) -> str:
    """A reward on the policy's own states beside a separate reward model."""
    columns = ("gold_gain", "kl", "forbidden_served", "rude", "over_refusal", "right_remedy", "reward_seconds", "rollout_seconds", "peak_memory_mb")  # fmt: skip
    rows = [
        [name, *(f"{sum(run[column] for run in runs) / len(runs):.3g}" for column in columns)]
        for name, runs in result["runs"].items()
    ]
    accuracy = result["held_out_accuracy"]
    return "\n".join(
        [
            "## One model in memory: a proxy trained by a reward on its own base's states\n",
            source(result),
            f"Probes on the sandbox's model order {100 * accuracy['mean']:.1f} % [{100 * accuracy['ci_low']:.1f}, {100 * accuracy['ci_high']:.1f}] of the annotator's held-out pairs rightly "
            f"(shuffled labels {100 * result['shuffled']:.1f} %, words alone {100 * result['bag_of_words']:.1f} %, length alone {100 * result['length_only']:.1f} %; about every sixth label is wrong). "
            f"Proxies trained by them reach {100 * result['share_of_gain']:.0f} % of the gold gain of those trained by the separate reward model, means of three seeds:\n",
            table(
                [
                    "reward",
                    "gold gain",
                    "KL",
                    "forbidden",
                    "rude",
                    "over-refusal",
                    "right remedies",
                    "reward s",
                    "rollout s",
                    "peak MB",
                ],
                rows,
            ),
        ]
    )


def refusals(result: dict[str, Any]) -> str:
    """The refusal detector against people."""
    rows = []
    for reading, title in (
        ("partial_left_out", "partial refusals left out"),
        ("partial_as_refusal", "counted as refusals"),
        ("partial_as_answer", "counted as answers"),
    ):
        cell = result["held_out"]["rules"][reading]
        rows.append(
            [
                title,
                f"{cell['kappa']:.3f}",
                *(f"{cell[key]:,}" for key in ("true_positive", "false_positive", "false_negative", "true_negative")),
            ]
        )
    return "\n".join(
        [
            "## The refusal detector\n",
            "```console\nFRUGALIGN_TRIALS=folder python -m benchmarks.refusal_agreement\n```\n",
            "Against the labels that people gave to XSTest's completions, on the half of the prompts that was not read while the rules were written.\n",
            table(["", "κ", "both refuse", "only the rules", "only people", "neither"], rows),
        ]
    )


def frontier(result: dict[str, Any]) -> str:
    """The frontier's own section is written by its figure's module, which knows its shape."""
    from benchmarks.frontier_figure import section

    return section(result)


STUDIES = ("sandbox-core", "sandbox-full", "stories", "stories-greedy", "chat", "chat-both-sides")
SECTIONS = {
    "sandbox": sandbox,
    "stories_proxy": stories_proxy,
    "frontier": frontier,
    "chat_safety": chat_safety,
    "objectives": objectives,
    "llama2_probes": llama2_probes,
    "probes": probes,
    "one_model": one_model,
    "label_noise": label_noise,
    "chat_rerank": chat_rerank,
    "rerank_cost": rerank_cost,
    **{f"study_{name}": study for name in STUDIES},
    "null_studies": nulls,
    "psle_prefix": psle_prefix,
    "psle_sandbox": partial(psle, "sandbox"),
    "psle_chat": partial(psle, "chat"),
    "psle_stories": partial(psle, "stories"),
    "speed": speed,
    "ladder": ladder,
    "refusal_agreement": refusals,
}


def text() -> str:
    """The page."""
    return "\n".join(
        [HEAD, *(section(found) for name, section in SECTIONS.items() if (found := load(name)) is not None)]
    )


def main() -> None:
    """Write the page, its pictures and the README's tables."""
    PAGE.write_text(text())
    images = PAGE.parent / "img"
    images.mkdir(exist_ok=True)
    if (RESULTS / "frontier.png").is_file():
        shutil.copyfile(RESULTS / "frontier.png", images / "frontier.png")
    studies = {name: found for name in STUDIES if (found := load(f"study_{name}")) is not None}
    for name, found in studies.items():
        quality_against_cost(found, images / f"study_{name}.png")
    tasks = {task: found for task in ("sandbox", "chat", "stories") if (found := load(f"psle_{task}")) is not None}
    if tasks:
        one_thing_changed(tasks, images / "psle.png")
    write_readme(ROOT / "README.md", studies)
    print(f"Written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
