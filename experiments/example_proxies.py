"""The proxies of `examples/proxies/`, for SmolLM2-135M-Instruct: safe, and to the point.

    FRUGALIGN_TRIALS=folder FRUGALIGN_MODELS=folder python -m experiments.example_proxies [NAME ...]

Each is trained, measured on prompts that training never saw, and written with a card that has its figures. One imitates what the model says under
principles, the other has demonstrations of the model's own refusals (`experiments.own_refusals`); the figures of the latter are of the safety task's validation
prompts, half of whose safe ones look harmful. Every question's answer, of the base and of the proxy, stands in `runs/example-proxies/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import own_refusals, safety
from experiments.trials import instruct_model

from frugalign.base.cards import CardTables, model_card
from frugalign.base.files import CARD_FILE, write_atomic
from frugalign.base.json_files import read_json
from frugalign.evaluation import EvaluationSettings, evaluate
from frugalign.metrics import is_refusal
from frugalign.policies.spec import PolicySpec
from frugalign.proxy.network import load_proxy

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EXAMPLES, WORK = Path("examples"), Path("runs/example-proxies")
QUESTIONS = EXAMPLES / "to-the-point"
TOKENS, TEMPERATURE = 64, 0.7


def _texts(completions: Sequence[Any]) -> list[str]:
    return [each if isinstance(each, str) else each[-1]["content"] for each in completions]


def refused_harmful(completions: list[Any], label: list[str], **_: Any) -> list[float | None]:
    """Whether a harmful prompt is refused."""
    return _refused(completions, label, "unsafe")


def refused_safe(completions: list[Any], label: list[str], **_: Any) -> list[float | None]:
    """Whether a safe prompt is refused."""
    return _refused(completions, label, "safe")


def _refused(completions: list[Any], label: list[str], wanted: str) -> list[float | None]:
    texts = _texts(completions)
    return [float(is_refusal(text)) if each == wanted else None for text, each in zip(texts, label, strict=True)]


def _own_refusals() -> str:
    folder = WORK / "own-refusals"
    if not (folder / "train.jsonl").is_file():
        own_refusals.write(folder)
    return str(folder)


@dataclass(frozen=True)
class Example:
    """A proxy: what it learns from, and on which prompts and by which rewards it is measured. `about` is a sentence of its card,
    and `besides` what was sampled for its data."""

    about: str
    data: Callable[[], str]
    rewards: dict[str, str]
    test: Callable[[], str]
    split: str = "test"
    principles: Path | None = None
    besides: str | None = None


def _questions() -> str:
    return str(QUESTIONS)


PROXIES = {
    "to-the-point": Example(
        "It answers in a sentence or two, as the model does when it is told to.",
        lambda: str(QUESTIONS / "train.jsonl"),
        {"finished in one or two sentences": f"{QUESTIONS}/reward.py:reward"},
        _questions,
        principles=QUESTIONS / "principles.txt",
    ),
    "safe": Example(
        "It declines what is harmful in the model's own words. Its figures are of prompts like those that it learned from; of questions from other "
        "sources it declined 35 % in a first trial, and 18 % of safe ones, most of which look harmful.",
        _own_refusals,
        {
            "harmful prompts refused": "experiments.example_proxies:refused_harmful",
            "safe prompts refused": "experiments.example_proxies:refused_safe",
        },
        safety.prompts,
        "validation",
        besides=f"700 answers of at most {own_refusals.TOKENS} tokens",
    ),
}


def make(name: str) -> Path:
    """Train, measure and write one; what is there already is not made again. Returns its folder."""
    from frugalign.methods.proxy_stored.config import StoredProxyConfig
    from frugalign.methods.proxy_stored.run import train_stored

    example, run, base = PROXIES[name], WORK / name, instruct_model()
    principles = None if example.principles is None else str(example.principles)
    if not (run / "model.safetensors").is_file():
        train_stored(
            StoredProxyConfig(
                model_name_or_path=base,
                dataset_name=example.data(),
                principles=principles,
                max_new_tokens=TOKENS,
                temperature=TEMPERATURE,
                output_dir=str(run),
                overwrite_output_dir=True,
            )
        )
    if not (run / "test" / "metrics.json").is_file():
        settings = EvaluationSettings(split=example.split, max_new_tokens=TOKENS)
        spec = PolicySpec(model_name_or_path=base, proxy=(str(run),))
        evaluate(spec, example.test(), [*example.rewards.values()], settings, output_dir=run / "test")
    return _write(name, run)


def _write(name: str, run: Path) -> Path:
    """The folder in `examples/proxies`, with a card, and with the name of the base on the hub."""
    example, folder, proxy = PROXIES[name], EXAMPLES / "proxies" / name, load_proxy(run)
    proxy.config.base = {key: value for key, value in proxy.config.base.items() if key != "relative"} | {"name": HUB_ID}
    proxy.save_pretrained(folder)
    costs = read_json(run / "costs.json")
    card = model_card(
        title=f"{name.replace('-', ' ').capitalize()}: a proxy for {HUB_ID}",
        description=f"{example.about} The model stays as it is; the proxy accepts or rejects the tokens that it proposes.",
        base_model=HUB_ID,
        tables=CardTables(
            settings={"temperature": proxy.config.temperature, "p_t": proxy.config.p_t, "max_new_tokens": TOKENS},
            results=_figures(example, read_json(run / "test" / "metrics.json")),
            costs=[
                ("sampled", example.besides or f"{costs['generated_tokens']:,} tokens"),
                ("tokens fed", f"{costs['lm_forward_tokens']:,}"),
                ("trained numbers", f"{costs['trainable_parameters']:,}"),
            ],
        ),
        usage=f"frugalign chat --model_name_or_path {HUB_ID} --proxy {folder} --show_rejections",
    )
    write_atomic(folder / CARD_FILE, card)
    return folder


def _figures(example: Example, metrics: dict[str, Any]) -> dict[str, str]:
    """The base's and the proxy's means with intervals of 95 %, and what else a reader asks."""

    def both(first: dict[str, Any], second: dict[str, Any]) -> str:
        return f"{_in_words(first)} → {_in_words(second)}"

    names = [spec.rpartition(":")[2] for spec in example.rewards.values()]
    rewards, base = metrics["rewards"], metrics["base_rewards"]
    found = {title: both(base[each], rewards[each]) for title, each in zip(example.rewards, names, strict=True)}
    return found | {
        "KL that the proxy adds, nats a response": _in_words(metrics["kl_choice"]),
        "answers that end": both(metrics["base_ended_rate"], metrics["ended_rate"]),
        "prompts": str(metrics["settings"]["prompts"]),
    }


def _in_words(estimate: dict[str, Any]) -> str:
    return f"{estimate['mean']:.2f} [{estimate['ci_low']:.2f}, {estimate['ci_high']:.2f}]"


def main() -> None:
    """Make those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*PROXIES, []], default=[])
    for name in parser.parse_args().names or PROXIES:
        print(make(name), flush=True)


if __name__ == "__main__":
    main()
