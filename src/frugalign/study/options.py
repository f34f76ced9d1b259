"""What a study's YAML says, without torch: `frugalign study --help` reads this file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from frugalign.options.run import option


@dataclass
class StudyOptions:
    """Options of `frugalign study`: one base, prompts, reward and budget for every method; a line of a table for each."""

    model_name_or_path: str | None = option(
        None, "The base of every method: hub id, folder, or package.module:attribute."
    )
    dataset_name: str | None = option(
        None,
        "Prompts with the splits train, test and, for choose, validation; a `label` column of safe/unsafe gives over-refusal.",
    )
    reward: list[str] = option([], "What trains: the rewards of every method that learns from one.")
    judges: list[str] = option([], "What tests, the main judge first; the training rewards are measured beside them.")
    reward_weights: list[float] | None = option(None, "Weights of several rewards. Default: 1 each.")
    principles: str | None = option(
        None, "Principles for psle and context_distillation, as `frugalign psle` takes them."
    )
    preferences: str | None = option(
        None,
        "Stored preference pairs for sft, dpo and its kin. Default: responses sampled from the base and ranked by the reward.",
    )
    representation_reward: str | None = option(
        None,
        "Probes of the base for rerank and online_dpo (`frugalign reward`). Default: fitted on the preferences, at their cost.",
    )

    methods: dict[str, Any] | None = option(
        None,
        "A line of the table each: label → method (default: the label) and its options; a list of values is a sweep.",
    )
    seeds: list[int] = option([1, 2, 3], "One cell per line and seed.")
    choose: dict[str, Any] | None = option(
        None,
        "Sweeps are decided by the main judge on the validation split, with a seed of its own, before a test prompt is read: "
        "{seed, prompts}. Default: every setting is a line of its own.",
    )
    budget: dict[str, Any] | None = option(
        None, "The same for all: generated_tokens, optimizer_steps, wall_clock_seconds, or several of them."
    )
    max_new_tokens: int = option(128, "Most tokens of a response, in training and test.")
    temperature: float = option(1.0, "Temperature of sampling.")
    prompt_format: Literal["auto", "raw", "chat"] = option(
        "auto",
        "String prompts: one user turn where the tokenizer has a chat template (auto, chat), or as they are (raw).",
    )
    eval_split: str = option("test", "The split that every cell is tested on.")
    eval_prompts: int | None = option(None, "Prompts to test on. Default: all of them.")
    eval_do_sample: bool = option(
        True,
        "Sample the responses that are tested; --no_eval_do_sample decodes greedily, best-of-n excepted, which cannot.",
    )
    reference: str | None = option(
        None, "The label of the line that differences, win rates and pairwise judges are against. Default: the base."
    )
    eval_samples: int = option(1, "Responses to each of them.")
    eval_batch_size: int = option(64, "Responses sampled at once in the test; no result depends on it.")
    llm_judge: dict[str, Any] | None = option(
        None,
        "An OpenAI-compatible judge of the responses against the base's: base_url, model, api_key_env, max_cost, …",
    )
    model_judge: str | None = option(
        None, "A causal language model on this machine as such a judge, read at one token: hub id or folder."
    )

    output_dir: str = option("runs/study", "The study's folder: a folder per cell, chosen.json, and the page.")
    trainings_dir: str | None = option(
        None, "Where trainings lie; that of another study, whose trainings are not run again. Default: in output_dir."
    )
    jobs: int = option(1, "Cells that run at once, a process each.")
    only: list[str] = option([], "Run these alone: a label, or label:seed for one cell; the page shows what is there.")
    use_cpu: bool = option(False, "Stay on the CPU where there is a GPU.")
