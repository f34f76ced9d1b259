"""Studies in docs/results.md and the table in the README, from the `study.json` files that `frugalign study` wrote.

cp runs/studies/sandbox-core/study.json benchmarks/results/study_sandbox-core.json && python -m benchmarks.page
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.page_rerank import interval, source, table
from benchmarks.trials import NAMED

from frugalign.reports.study_page import cost_note, cost_table, headline, wins_table
from frugalign.reports.study_page import table as quality_table

BLOCK = re.compile(r"(<!-- study: (?P<name>[\w-]+) -->\n).*?(<!-- end of study -->)", re.S)
_SHOWN = {
    "gold": ("gold reward", 1, 2),
    "forbidden_served": ("forbidden served, %", 100, 1),
    "over_refusal": ("lawful refused, %", 100, 1),
}

_NOTES = {
    "chat": "The reward sees safety alone, and answers to harmful prompts alone: what gains most refuses XSTest's safe prompts, too, and nothing here speaks against it. The judge also likes refusals in broken "
    "English, so read it beside the KL: at 29 nats online DPO writes little else. Online DPO's `missing_eos_penalty` was set after the test of its first seed had been read (0.27 without it): its probes, fitted on whole "
    "answers, gave responses that are cut at 96 tokens 3.3 and the others 0.3, and it had learned never to end. The other lines were as they are.",
    "chat-both-sides": "The same with a cost of 4 for every refused safe prompt, in the reward and in the main judge. On unseen prompts of the training's own kind the chosen proxy refuses 41 % of the harmful and 5 % of the safe ones; "
    "XSTest's safe prompts, written to look harmful, it still refuses in 21 %, where without the cost it was 37 %.",
}


def study(result: dict[str, Any]) -> str:
    """One study: headline, quality and cost."""
    missing = [f"Missing: {each['cell']}, {each['why']}." for each in result["missing"]]
    budget = ", ".join(
        f"{value:,} {name.replace('_', ' ')}" for name, value in result["options"].get("budget", {}).items()
    )
    # Those of real models read the trials' folder.
    needs = f"{NAMED} " if str(result["options"]["model_name_or_path"]).startswith("benchmarks.") else ""
    jobs = "" if any("jobs" in each for each in result["machines"]) else f" Jobs: {result['options']['jobs']}."
    return "\n".join(
        [
            f"## Study: {result['name']}\n",
            f"```console\n{needs}{result['command']}\n```\n",
            f"Machine: {'; '.join(', '.join(f'{name} {value}' for name, value in each.items()) for each in result['machines'])}. Seeds: "
            f"{', '.join(map(str, result['options']['seeds']))}.{jobs} Budget of each cell: {budget}. Intervals are t-intervals over seeds and prompts.\n",
            *(f"{sentence}\n" for sentence in [*headline(result), *missing]),
            *_chosen(result),
            *([f"{_NOTES[result['name']]}\n"] if result["name"] in _NOTES else []),
            table(*quality_table(result)),
            f"![Quality against cost: {result['name']}](img/study_{result['name']}.png)\n",
            table(*wins_table(result)),
            "Training, and one response; medians over the seeds:\n",
            table(*cost_table(result)),
            *([f"{cost_note(result)}\n"] if cost_note(result) else []),
        ]
    )


def excludes_zero(estimate: Mapping[str, float]) -> bool:
    """Whether an interval has zero outside."""
    return not estimate["ci_low"] <= 0 <= estimate["ci_high"]


def _chosen(result: dict[str, Any]) -> list[str]:
    """Of every sweep what was tried on the validation prompts, the best in bold; nothing where there was no choice."""
    said = []
    for label, what in result["chosen"].items():
        best = max(what["tried"].values(), default=None)
        tried = [
            f"{name.removeprefix(label).strip()} {'**' if value == best else ''}{value:.2f}{'**' if value == best else ''}"
            for name, value in what["tried"].items()
        ]
        tried += [f"{name.removeprefix(label).strip()} failed" for name in what["failed"]]
        said.append(f"{label}: {', '.join(tried)}")
    return [f"Chosen by {result['judge']} on validation prompts: {'; '.join(said)}.\n"] if said else []


def nulls(result: dict[str, Any]) -> str:
    """Studies in which there is nothing to be found."""
    shuffled = result["proxy_with_shuffled_advantages"]["difference"]
    rows = []
    for name, learned in result["with_the_exact_reward"].items():
        gaps = [each[name]["difference"] for each in result["studies"]]
        excluded = sum(map(excludes_zero, gaps))
        means = [gap["mean"] for gap in gaps]
        rows.append(
            [
                name,
                f"{sum(means) / len(means):+.3f}",
                f"{min(means):+.2f} … {max(means):+.2f}",
                f"{excluded} of {len(gaps)}",
                interval(learned["difference"]),
                f"{learned['p_holm']:.2g}",
            ]
        )
    learned_by = result["with_the_exact_reward"].values()
    found = sum(excludes_zero(line["difference"]) for line in learned_by)
    kept = sum(line["p_holm"] < 0.05 for line in learned_by)
    titles = ["mean difference", "lowest … highest", "intervals without zero", "with the exact reward", "p (Holm)"]
    return "\n".join(
        [
            "## Null controls: a reward that is noise\n",
            source(result),
            f"{len(result['studies'])} studies of three seeds each on the sandbox, the reward a random number for every response. Of {result['intervals']} intervals (95 %) of the difference to the base by gold "
            f"{100 * result['share_excluding_zero']:.0f} % exclude zero (at most 10 % should), and {result['below_0_05_after_holm']} p-values are below 0.05 after Holm's correction within a study. "
            f"A proxy whose advantages are other responses' (five seeds): {shuffled['mean']:+.3f} [{shuffled['ci_low']:+.3f}, {shuffled['ci_high']:+.3f}]. The last columns are a study of the same size, "
            f"a sixteenth of the core study's tokens and a quarter of its steps, with the exact reward: {found} of {len(rows)} intervals exclude zero, and {kept} of {len(rows)} p-values are below 0.05 after the correction. "
            "So small a study has little power, the more so corrected: read the two columns together.\n",
            table(["", *titles], rows),
        ]
    )


def readme_table(result: dict[str, Any]) -> str:
    """What the README shows of a study: the sandbox's measures, KL, and the training's cost."""
    rows = []
    for line in result["lines"]:
        kl, costs = line["others"]["kl_per_sequence"], line["costs"]
        bound = "≤ " if line["method"] == "best_of_n" else ""
        rows.append(
            [
                line["label"],
                *(
                    f"{factor * line['measures'][name]['value']['mean']:.{digits}f}"
                    for name, (_, factor, digits) in _SHOWN.items()
                ),
                "—" if kl is None else f"{bound}{kl['mean']:.2f}",
                f"{line['trainable_parameters'] or 0:,}",
                f"{costs['generated_tokens'] / 1000:,.0f}",
                f"{costs['lm_forward_tokens'] / 1000:,.0f}",
            ]
        )
    titles = [title for title, _, _ in _SHOWN.values()]
    return table(
        ["", *titles, "KL, nats", "trained numbers", "tokens sampled, thousands", "tokens fed, thousands"], rows
    )


def with_studies(text: str, results: dict[str, dict[str, Any]]) -> str:
    """The README with every study's block as its result says."""

    def block(found: re.Match[str]) -> str:
        result = results.get(found["name"])
        return found[0] if result is None else f"{found[1]}{readme_table(result)}{found[3]}"

    return BLOCK.sub(block, text)


def write_readme(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Bring the README up to the results."""
    text = path.read_text(encoding="utf-8")
    found = with_studies(text, results)
    if found != text:
        path.write_text(found, encoding="utf-8")
