"""Grammar for messages, values in them, and the known name that a mistyped one is closest to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """`1 round`, `2 rounds`, `1,000 rounds`; `plural`: an irregular plural."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shown(value: object, *, quoted: bool = True, longest: int = 80) -> str:
    """A value in a message: on one line, printable, and at most `longest` characters long.

    `quoted`: with the quotes of a text. A value whose `repr` fails is named by its type.
    """
    try:
        text = repr(value) if quoted or not isinstance(value, str) else visible(value).replace("\n", "\\n")
    except Exception:  # a foreign `__repr__`, an integer of too many digits, or nesting too deep
        text = f"a {type(value).__name__} that cannot be written out"
    text = visible(" ".join(text.split()))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def shown_path(path: object) -> str:
    """A path in a message: on one line, printable, and whole unless a name in it is absurdly long."""
    return shown("/".join(shown(name, quoted=False) for name in str(path).split("/")), quoted=False, longest=500)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean learning_rate?` after a mistyped name, or nothing.

    Names that other libraries give to the same thing come first. A typo changes letters. A name with another word in it
    (`max_completion_length` beside `max_prompt_length`) means something else.
    """
    dashes = "--" if given.startswith("--") else ""
    bare, names = given.removeprefix("--").replace("-", "_"), [name.removeprefix("--") for name in known]
    same = next((group for group in _SAME if bare.lower() in group), ())
    found = [name for name in same if name in names]
    if not same and len(bare) <= _LONGEST_NAME:
        found = difflib.get_close_matches(bare, [name for name in names if _is_typo(bare, name)], n=1)
    return f"; did you mean {dashes}{found[0]}?" if found else ""


def _is_typo(given: str, name: str) -> bool:
    """Whether each word of `given` resembles one of `name`, or both are alike but for underscores."""
    words = name.split("_")
    if difflib.SequenceMatcher(None, given.replace("_", ""), name.replace("_", "")).ratio() > 0.9:
        return True
    return all(_resembles_one(word, words) for word in given.split("_"))


def _resembles_one(word: str, words: Sequence[str]) -> bool:
    return bool(difflib.get_close_matches(word, words, n=1)) or sorted(word) in map(sorted, words)


_SAME = (
    ("max_new_tokens", "max_completion_length", "max_response_length", "max_generation_length", "max_tokens"),
    (
        "max_new_tokens",
        "max_output_tokens",
        "max_gen_length",
        "response_length",
        "completion_length",
        "generation_length",
    ),
    ("model_name_or_path", "model", "model_name", "model_path", "base_model", "base", "pretrained_model_name_or_path"),
    ("dataset_name", "dataset", "data", "data_path", "dataset_path", "train_file", "prompts", "dataset_name_or_path"),
    ("reward", "reward_model", "reward_model_path", "reward_funcs", "reward_function", "rewards", "reward_fn"),
    ("learning_rate", "lr"),
    ("num_train_epochs", "rounds", "epochs", "num_epochs", "n_epochs", "epoch"),
    ("per_device_train_batch_size", "batch_size", "sampling_batch_size", "train_batch_size", "bs"),
    ("max_steps", "steps", "num_steps", "train_steps", "total_steps", "iterations"),
    ("num_generations", "num_samples", "num_return_sequences", "n", "num_completions", "best_of_n"),
    ("beta", "kl_coef", "kl_coefficient", "init_kl_coef", "kl_penalty", "kl_weight"),
    ("output_dir", "output", "out", "out_dir", "output_path", "save_dir", "run", "run_dir"),
    ("use_cpu", "no_cuda", "cpu"),
    ("device_map", "device", "use_gpu", "gpu", "use_cuda", "cuda"),
    ("epsilon", "cliprange", "clip_range", "clip_eps", "clip"),
    ("lora_r", "lora_rank", "rank", "r"),
    ("train", "use_peft", "use_lora", "lora", "peft"),
    ("gae_lambda", "lam", "gae_lam"),
    ("best_of_n", "bon", "best_of"),
    ("seed", "random_seed", "random_state"),
    ("do_sample", "greedy", "sample"),
    ("dtype", "torch_dtype", "precision"),
    ("load_in_4bit", "load_in_8bit", "quantize", "use_4bit"),
    ("temperature", "temp"),
    ("report_to", "use_wandb", "wandb", "tracker"),
    ("target_kl", "kl_target"),
)
"""Names of one thing in other libraries. The first that a command has is suggested."""


def visible(text: str) -> str:
    """The text with every character that steers a terminal written out, such as `\\x1b`. Newlines and tabs stay.

    Written out are the control characters, the marks that reverse the reading direction, the two Unicode line
    separators, and surrogates, which no terminal can print.
    """
    return _STEERING.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_LONGEST_NAME = 100
"""Comparing longer names takes seconds, and no option is as long."""
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
