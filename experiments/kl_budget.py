"""What a KL budget for each response costs in reward, and whether any response passes it.

    FRUGALIGN_TRIALS=folder python -m experiments.kl_budget [--smoke] [--responses N] PROXY=TASK ...

PROXY is a trained proxy's folder, such as `runs/proxy-on-bases/stories260k-stories-0`, which `experiments.proxy_on_bases` trains. TASK is one of its
tasks. Responses are sampled as the server samples them, with `max_kl` at several shares of the task's target, at 0 and without a budget.
Test prompts alone are answered. What a response spent is compared with its budget one by one. Proxies that are not named keep their rows.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.proxy_on_bases import TASKS, Task
from experiments.summary import RESULTS, estimate, script_options, write_summary

from frugalign.base.json_files import read_json

SHARES = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, math.inf)
BATCH = 64


@dataclass
class Response:
    """One response: the place of its prompt, its text and tokens, and the nats that it spent."""

    place: int
    text: str
    ids: list[int]
    nats: float


def responses(served: Any, prompts: Sequence[Any], task: Task, budget: float, n: int) -> list[Response]:
    """`n` responses under a budget, the prompts in turn."""
    from frugalign.decoding.continuous import ContinuousBatch, Row
    from frugalign.decoding.noise import row_keys
    from frugalign.proxy.mixed import RowSettings

    own = served.strengths
    encoded = [served.encode(prompt, own, None) for prompt in prompts]
    places = [number % len(prompts) for number in range(n)]
    keys = row_keys(0, 0, places, [number // len(prompts) for number in range(n)]).tolist()
    most = None if math.isinf(budget) else budget
    rows = [
        Row(encoded[place], key, task.max_new_tokens, RowSettings(tuple(own), tuple(own.values()), max_kl=most))
        for place, key in zip(places, keys, strict=True)
    ]
    waiting, batch = list(rows), ContinuousBatch(served.engine, served.guide)
    while waiting or batch.rows:
        room = BATCH - len(batch.rows)
        batch.add(waiting[:room])
        del waiting[:room]
        batch.step()
    decode = served.base.tokenizer.decode
    return [
        Response(place, decode(row.ids, skip_special_tokens=True), row.ids, row.settings.kl)
        for place, row in zip(places, rows, strict=True)
    ]


def asked(prompts: Sequence[Any], tokenizer: Any, proxy: Any) -> list[Any]:
    """Prompts as a client sends them: a text is one user turn where the proxy learned from such, for a server continues a text as it is."""
    from frugalign.data.templating import Rendering, is_chat

    rendering = Rendering.of(proxy)
    return [
        [{"role": "user", "content": prompt}]
        if isinstance(prompt, str) and is_chat(prompt, tokenizer, rendering)
        else prompt
        for prompt in prompts
    ]


def scores(prompts: Sequence[Any], found: Sequence[Response], task: Task) -> list[float | None]:
    """The task's reward of each response."""
    from frugalign.rewards import load_rewards
    from frugalign.rewards.scoring import CompletionBatch, score

    given = [prompts[each.place] for each in found]
    said = [
        each.text if isinstance(prompt, str) else [{"role": "assistant", "content": each.text}]
        for prompt, each in zip(given, found, strict=True)
    ]
    return score(load_rewards(task.reward), CompletionBatch(given, said, [each.ids for each in found])).total


def measured(proxy: str, task: Task, shares: Sequence[float], n: int) -> dict[str, dict[str, Any]]:
    """A row of the table for each budget."""
    from frugalign.data.loading import load_prompts
    from frugalign.metrics.intervals import mean_interval
    from frugalign.proxy.network import load_proxy
    from frugalign.serving.models import load_served

    config, rows = load_proxy(proxy).config, {}
    served = load_served(config.base["name"], [f"it={proxy}"])
    prompts = asked(load_prompts(task.prompts(), split="test")["prompt"], served.base.tokenizer, config)
    for share in shares:
        budget = share * task.target
        found = responses(served, prompts, task, budget, n)
        reward = mean_interval(scores(prompts, found, task), [each.place for each in found])
        spent = [each.nats for each in found]
        rows["no budget" if math.isinf(budget) else f"{budget:g} nats"] = {
            "responses": n,
            "reward": estimate(None if reward is None else reward.to_dict()),
            "nats": statistics.mean(spent),
            "most nats": max(spent),
            "over budget": sum(nats > budget for nats in spent),
        }
    return rows


def main() -> None:
    """Measure every proxy, print each row and write them."""
    given = script_options(
        __doc__,
        proxies={"nargs": "+", "metavar": "PROXY=TASK"},
        responses={"type": int, "default": 850, "help": "Of each budget and proxy."},
    )
    rows: dict[str, dict[str, Any]] = read_json(RESULTS / "kl-budget.json").get("rows", {})
    for entry in given.proxies:
        proxy, _, task = entry.rpartition("=")
        shares, n = (SHARES[::3], 4) if given.smoke else (SHARES, given.responses)
        for budget, row in measured(proxy, TASKS[task], shares, n).items():
            rows[f"{task}, {budget}"] = row
            print(json.dumps({f"{task}, {budget}": row}), flush=True)
    if not given.smoke:
        command = "FRUGALIGN_TRIALS=folder python -m experiments.kl_budget PROXY=TASK ..."
        print(write_summary("kl-budget", command, "the sandbox's model and stories260k", rows))


if __name__ == "__main__":
    main()
