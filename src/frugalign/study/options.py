"""What a study's YAML says, without torch: `frugalign study --help` reads this file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from frugalign.options import groups
from frugalign.options.check import check_options
from frugalign.options.declare import like, notes, option
from frugalign.options.kinds import COUNT, PATH, SEED


@dataclass
@notes(
    model_name_or_path="It is the base of every method.",
    dataset_name="It holds prompts with the splits train, test and, for choose, validation. A `label` column of safe/unsafe gives over-refusal.",
    reward="Every method that learns from a reward learns from these.",
    principles="The methods psle and context_distillation need them.",
    max_new_tokens="The limit holds in training and in the test.",
)
class StudyOptions(
    groups.Sampling,
    groups.Principles,
    groups.RewardWeights,
    groups.Rewards,
    groups.Data,
    groups.Device,
    groups.ModelName,
):
    """Options of `frugalign study`: one base, prompts, reward and budget for every method; a line of a table for each.

    Raises:
        FrugalignError: a value that breaks its rule.
    """

    judges: list[str] = option(
        [], "Rewards to test by, the main one first; the training rewards are measured beside them."
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
    seeds: list[int] = option([1, 2, 3], "One cell per line and seed.", SEED)
    choose: dict[str, Any] | None = option(
        None,
        "How sweeps are decided: by the main judge on the validation split, with a seed of its own, before a test prompt is read: "
        "{seed, prompts}. Default: every setting is a line of its own.",
    )
    budget: dict[str, Any] | None = option(
        None, "The same for all: generated_tokens, optimizer_steps, wall_clock_seconds, or several of them."
    )
    eval_split: str = option("test", "The split that every cell is tested on.")
    eval_prompts: int | None = like(groups.EvalPrompts, "eval_prompts", None, "Default: all of eval_split.", COUNT)
    eval_do_sample: bool = option(
        True,
        "Sample the responses that are tested; --no_eval_do_sample decodes greedily, except for best-of-n, which cannot.",
    )
    reference: str | None = option(
        None,
        "The label of the line that differences, win rates and pairwise judges compare with. Default: the base.",
    )
    eval_samples: int = option(1, "Responses to each test prompt.", COUNT)
    eval_batch_size: int = option(64, "Responses sampled at once in the test; no result depends on it.", COUNT)
    llm_judge: dict[str, Any] | None = option(
        None,
        "An OpenAI-compatible server that compares the responses with the base's: base_url, model, api_key_env, max_cost and more.",
    )
    model_judge: str | None = option(
        None, "A causal language model on this machine as such a judge, read at one token: hub id or folder."
    )

    output_dir: str = like(
        groups.OutputDir, "output_dir", "runs/study", "It holds a folder per cell, chosen.json, and the page."
    )
    trainings_dir: str | None = option(
        None,
        "Where trainings lie; that of another study, whose trainings are not run again. Default: in output_dir.",
        PATH,
    )
    jobs: int = option(1, "Cells that run at once, a process each.", COUNT)
    only: list[str] = option([], "Run these alone: a label, or label:seed for one cell; the page shows what is there.")

    def __post_init__(self) -> None:
        check_options(self)
