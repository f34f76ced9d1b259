"""Grammar for messages, and the names that a typo is matched with."""

import pytest

from frugalign.base.wording import did_you_mean, pluralize

FLAGS = (
    *("model_name_or_path", "output_dir", "max_prompt_length", "max_new_tokens", "max_steps", "eval_steps", "use_cpu"),
    *("learning_rate", "target_kl", "gae_lambda", "num_iterations", "per_device_train_batch_size"),
)


@pytest.mark.parametrize(("number", "said"), [(0, "0 rounds"), (1, "1 round"), (2, "2 rounds"), (1000, "1,000 rounds")])
def test_one_is_singular(number: int, said: str) -> None:
    assert pluralize(number, "round") == said


def test_an_irregular_plural_is_given() -> None:
    assert [pluralize(number, "reply", "replies") for number in (1, 2)] == ["1 reply", "2 replies"]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("lerning_rate", "learning_rate"),
        ("target_lk", "target_kl"),
        ("outputdir", "output_dir"),
        ("max_step", "max_steps"),
        ("model_name", "model_name_or_path"),
    ],
)
def test_a_typo_is_matched(typo: str, meant: str) -> None:
    assert did_you_mean(typo, FLAGS) == f"; did you mean {meant}?"
    assert did_you_mean(f"--{typo}", [f"--{name}" for name in FLAGS]) == f"; did you mean --{meant}?"


@pytest.mark.parametrize(
    "other",
    [
        *("max_output_length", "max_output_steps", "min_new_tokens", "eval_prompts", "use_cuda", "gae_gamma"),
        *("num_epochs", "per_device_eval_batch_size", "zzz"),
    ],
)
def test_another_word_is_no_typo(other: str) -> None:
    """Option names of other libraries that only look alike: a wrong hint is worse than none."""
    assert did_you_mean(other, FLAGS) == ""


@pytest.mark.parametrize(
    ("other", "ours"),
    [
        ("max_completion_length", "max_new_tokens"),
        ("max-completion-length", "max_new_tokens"),
        ("response_length", "max_new_tokens"),
        ("lr", "learning_rate"),
        ("batch_size", "per_device_train_batch_size"),
        ("num_steps", "max_steps"),
        ("output", "output_dir"),
    ],
)
def test_the_name_of_another_library_is_translated(other: str, ours: str) -> None:
    assert did_you_mean(f"--{other}", [f"--{name}" for name in FLAGS]) == f"; did you mean --{ours}?"


def test_an_absurdly_long_name_is_not_compared() -> None:
    assert did_you_mean("max_" * 20_000, FLAGS) == ""
