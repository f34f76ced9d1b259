"""What a study's YAML says, without torch: `frugalign study --help` reads this file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from frugalign.options import cluster, groups
from frugalign.options.check import check_options
from frugalign.options.declare import like, notes, option
from frugalign.options.kinds import COUNT, PATH, SEED, Kind

_PROCESSES = Kind("at least 1", lambda x: x >= 1, whole=True, largest=1024)


@dataclass
@notes(
    model_name_or_path="It is the base of every method.",
    dataset_name="It has prompts in the splits train, test and, for --choose, validation. With a `label` column (safe or unsafe), "
    "over-refusal is measured.",
    reward="The methods train on these.",
    principles="Required by psle and context_distillation.",
    max_new_tokens="The same limit applies in training and in the test.",
    ray="Every machine must see output_dir and the files that the study names, at the same paths.",
)
class StudyOptions(
    groups.Sampling,
    groups.Principles,
    groups.RewardWeights,
    groups.Rewards,
    groups.Data,
    groups.Device,
    groups.ModelName,
    cluster.Cluster,
):
    """Options of `frugalign study`: one base, one set of prompts, one reward and one budget for every method.

    Raises:
        FrugalignError: a value that breaks its rule.
    """

    temperature: float = like(
        groups.Sampling,
        "temperature",
        1.0,
        "It is that of every line, so that the table compares policies at one temperature whatever their base's own.",
    )
    judges: list[str] = option([], "Rewards for the test, the main one first. The training rewards are measured too.")
    preferences: str | None = option(
        None,
        "Stored preference pairs for methods that learn from pairs or demonstrations. Default: responses of the base, ranked by the reward.",
    )
    representation_reward: str | None = option(
        None,
        "A representation reward of the base, from `frugalign reward`, for rerank and online_dpo. Default: each of them fits one on its pairs, "
        "and pays for it.",
    )

    methods: dict[str, Any] | None = option(
        None,
        "The lines of the table: label → options of its method. `method` names the method (default: the label). A list of values is a sweep. "
        "`in_context` names what precedes every prompt in the test: a shipped set of principles or a file.",
    )
    seeds: list[int] = option([1, 2, 3], "Every line runs once per seed.", SEED)
    choose: dict[str, Any] | None = option(
        None,
        "Choose each sweep's setting by the main judge on validation prompts, before any test prompt is read. {seed, prompts}: the seed for "
        "choosing, and how many prompts. Default: every setting is a separate line.",
    )
    budget: dict[str, Any] | None = option(
        None, "What each method may spend: generated_tokens, optimizer_steps, wall_clock_seconds, or several of them."
    )
    eval_split: str = option("test", "The split to test on.")
    eval_prompts: int | None = like(groups.EvalPrompts, "eval_prompts", None, "Default: all of eval_split.", COUNT)
    eval_do_sample: bool = option(
        True,
        "Sample the test responses. --no_eval_do_sample decodes greedily; best-of-n still samples.",
    )
    reference: str | None = option(
        None,
        "Label of the line that differences, win rates and pairwise judges compare with. Default: the base.",
    )
    eval_samples: int = option(1, "Responses to each test prompt.", COUNT)
    eval_batch_size: int = option(64, "Responses sampled at once in the test. No result depends on it.", COUNT)
    llm_judge: dict[str, Any] | None = option(
        None,
        "A pairwise judge behind an OpenAI-compatible server: base_url, model, api_key_env, max_cost and more. It compares each response with "
        "the reference's.",
    )
    model_judge: str | None = option(
        None, "A causal language model on this machine as a pairwise judge: hub id or folder."
    )

    output_dir: str = like(
        groups.OutputDir, "output_dir", "runs/study", "It gets the page, chosen.json and a folder for each cell."
    )
    trainings_dir: str | None = option(
        None,
        "Folder of the trainings. Name another study's to reuse its trainings. Default: in output_dir.",
        PATH,
    )
    jobs: int = option(
        1, "Cells to run at once, each in its own process. On Ray, as many run as it has room for.", _PROCESSES
    )
    only: list[str] = option(
        [], "Run only these: LABEL, or LABEL:SEED for one cell. The page shows every finished cell."
    )

    def __post_init__(self) -> None:
        check_options(self)
