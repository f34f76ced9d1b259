"""The classes of fuzzed input. A case ends well or in one sentence. What ends well means what was written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

from hypothesis import strategies as st
from tests.fuzz.damaged_folders import (
    artefacts,
    check_artefact,
    check_run_folder,
    damaged_artefacts,
    report_on,
    right_outputs,
    run_files,
    run_folders,
)
from tests.fuzz.mutations import REFUSED, absurd, outcome, room, spoilt_bytes, spoilt_json, spoilt_value, written
from tests.fuzz.odd_data import check_odd_file, odd_files
from tests.options.every_option import NEEDED, VERBS, command_of, config_of, fields_of, hints_of

from frugalign.base.parsing import dump_yaml

# -- data files ---------------------------------------------------------------------------------------------------------

_TURNS = [{"role": "user", "content": "What is 2 and 2?"}, {"role": "assistant", "content": "4"}]
_ROWS: dict[str, list[dict[str, Any]]] = {
    "prompt-only": [{"prompt": "Say hello."}, {"prompt": "Wie geht’s, 日本?", "label": "safe"}],
    "preference": [{"prompt": "a?", "chosen": "yes.", "rejected": "no."}, {"prompt": "b?", "chosen": "one.", "rejected": "two."}],
    "prompt-completion": [{"prompt": "a?", "completion": "b."}, {"prompt": "c?", "completion": "d."}],
    "unpaired": [{"prompt": "a?", "completion": "b.", "label": True}, {"prompt": "c?", "completion": "d.", "label": False}],
    "turns": [{"chosen": _TURNS, "rejected": [*_TURNS[:1], {"role": "assistant", "content": "5"}]}],
}  # fmt: skip


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes, str]:
    """A file's name, its bytes, and the kind of data that it is read as."""
    kind = draw(st.sampled_from(sorted(_ROWS)))
    rows = _ROWS[kind]
    wanted = "preference" if kind == "turns" else kind
    form = draw(st.sampled_from(["jsonl", "jsonl", "json", "csv"]))
    if form == "csv":
        columns = sorted({name for row in rows for name in row})
        lines = [",".join(columns), *(",".join(json.dumps(str(row.get(name, ""))) for name in columns) for row in rows)]
        return "data.csv", draw(spoilt_bytes("\n".join(lines).encode())), wanted
    if form == "json":
        return "data.json", draw(spoilt_json(rows)), wanted
    if draw(st.booleans()):
        found = draw(spoilt_value(rows))
        lines = [json.dumps(row) for row in (found if isinstance(found, list) else [found])]
        return "data.jsonl", "\n".join(lines).encode("utf-8", "surrogatepass"), wanted
    return "data.jsonl", draw(spoilt_bytes("\n".join(map(json.dumps, rows)).encode())), wanted


def check_data(case: tuple[str, bytes, str]) -> None:
    """`validate` and loading agree, and no prompt is changed or lost."""
    from frugalign.data import load_splits
    from frugalign.data.validate import validate_files

    name, content, kind = case
    path = written(room(), name, content)
    report = outcome(lambda: validate_files(path, kind))
    loaded = outcome(lambda: load_splits(path, kind="unpaired-preference" if kind == "unpaired" else kind))
    sound = report is not REFUSED and bool(report)
    assert sound == (loaded is not REFUSED), "validate and loading disagree"
    if not sound:
        return
    rows = [row for split in loaded.values() for row in split]
    assert len(rows) == report.n_rows
    if name == "data.jsonl" and kind in ("prompt-only", "prompt-completion"):
        given = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
        assert len(given) == len(rows)
        for before, after in zip(given, rows, strict=True):
            if isinstance(before["prompt"], str) and not isinstance(before.get("system"), str):
                assert after["prompt"] == before["prompt"], "a prompt was changed"


# -- YAML and flags -------------------------------------------------------------------------------------------------------


@st.composite
def settings_given(draw: st.DrawFn) -> tuple[str, str, Any, bytes | None]:
    """A verb, one of its options, a value for it, and the config file that holds it; without one it is a flag."""
    verb = draw(st.sampled_from(VERBS))
    name = draw(st.sampled_from([each.name for each in fields_of(verb)]))
    value = draw(absurd())
    form = draw(st.sampled_from(["flag", "yaml", "spoilt", "many"]))
    if form == "flag":
        return verb, name, value, None
    needed = {key: item for key, item in NEEDED.get(verb, {}).items() if key != name}
    if form == "many":
        others = draw(st.lists(st.sampled_from([each.name for each in fields_of(verb)]), max_size=4))
        needed |= {other: draw(absurd()) for other in others if other != name}
    try:
        content = dump_yaml(needed | {name: value}, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")
    except Exception:  # not YAML's to write
        content = f"{name}: x".encode()
    return verb, name, value, draw(spoilt_bytes(content)) if form == "spoilt" else content


def check_settings(case: tuple[str, str, Any, bytes | None]) -> None:
    """What is accepted is the value that was given, finite and of the option's type."""
    from frugalign.cli.parser import parse
    from frugalign.options.hints import fits

    verb, name, value, content = case
    if name in ("push_to_hub", "deepspeed", "fsdp", "fsdp_config", "parallelism_config", "torch_compile", "local_rank"):
        return  # they change this process, or need others
    if content is None:
        text = value if isinstance(value, str) else json.dumps(value)
        words = [word for key, item in NEEDED.get(verb, {}).items() if key != name for word in _words(key, item)]
        words += [f"--{name}={text}"]
    else:
        words = ["--config", written(room(), "config.yaml", content)]
    found = outcome(lambda: parse(command_of(verb), words))
    if found is REFUSED:
        return
    own = {each.name for each in fields_of(verb) if "kind" in each.metadata}
    for each in own:
        given = getattr(found, each)
        assert given is None or fits(given, hints_of(verb)[each]), (each, given)
        for item in given if isinstance(given, list) else [given]:
            assert not isinstance(item, float) or math.isfinite(item), (each, item)
    if content is None and isinstance(value, float) and name in own and isinstance(getattr(found, name), float):
        assert getattr(found, name) == value, "a number was changed"


def _words(name: str, value: Any) -> list[str]:
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


# -- plans ----------------------------------------------------------------------------------------------------------------

_PLAN: dict[str, Any] = {
    "model_name_or_path": "model",
    "dataset_name": "prompts",
    "reward": ["reward"],
    "judges": ["gold"],
    "seeds": [1, 2],
    "budget": {"generated_tokens": 1000, "optimizer_steps": 10},
    "choose": {"seed": 0, "prompts": 5},
    "eval_prompts": 8,
    "llm_judge": {"base_url": "http://localhost/v1", "model": "m", "max_tokens": 9, "timeout": 1.5},
    "methods": {
        "base": None,
        "four": {"method": "best_of_n", "n": 4},
        "proxy": {"beta": [0.1, 0.5], "hidden": 8, "objective": "marginal"},
        "dpo": {"learning_rate": 1e-4, "train": "lora"},
        "sft": {"num_train_epochs": 2, "lora_r": 4},
    },
}


@st.composite
def plans(draw: st.DrawFn) -> bytes:
    """The bytes of a study's YAML."""
    value = draw(spoilt_value(_PLAN)) if draw(st.booleans()) else _PLAN
    try:
        content = dump_yaml(value).encode("utf-8", "surrogatepass")
    except Exception:  # not YAML's to write
        content = dump_yaml(_PLAN).encode()
    return draw(spoilt_bytes(content)) if value is _PLAN or draw(st.booleans()) else content


def check_plan(content: bytes) -> None:
    """A plan that passes has cells whose folders have short, safe names."""
    from frugalign.cli.parser import parse
    from frugalign.cli.study import COMMAND
    from frugalign.study.checks import check_lines
    from frugalign.study.plan import cells_of, lines_of
    from frugalign.study.verdicts import judges_of

    path = written(room(), "plan.yaml", content)

    def read() -> Any:
        options = parse(COMMAND, [path])
        lines = lines_of(options)
        check_lines(lines, options.budget)
        judges_of(options)
        return options, lines, cells_of(lines, options)

    found = outcome(read)
    if found is not REFUSED:
        options, lines, cells = found
        assert len(cells) == len(lines) * len(options.seeds) > 0
        for cell in cells:
            folder = cell.folder(Path("study"))
            assert folder.parent == Path("study/cells") and len(folder.name.encode()) < 255


# -- principles -----------------------------------------------------------------------------------------------------------

_PRINCIPLES = {
    "principles.yaml": b"preamble: You are kind.\nprinciples:\n- Be honest.\n- Be brief.\ndemonstrations:\n- prompt: Hi\n  response: Hello\n",
    "principles.md": b"# Kind\n\nYou are kind.\n\n- Be honest.\n- Be brief.\n\n# Demonstrations\nPrompt: Hi\nResponse: Hello\n",
    "principles.txt": b"Be honest.\nBe brief.\n",
}


@st.composite
def principles(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name and the bytes of a file of principles."""
    name = draw(st.sampled_from(sorted(_PRINCIPLES)))
    return name, draw(spoilt_bytes(_PRINCIPLES[name]))


def check_principles(case: tuple[str, bytes]) -> None:
    """What is read says something, and a text file is read word for word."""
    from frugalign.policies.principles import load_principles

    name, content = case
    found = outcome(lambda: load_principles(written(room(), name, content)))
    if found is not REFUSED:
        assert found.text() or found.demonstrations
        assert len(found.fingerprint()) == 16
        if name.endswith(".txt"):
            assert found.text() == content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").strip()


# -- judge answers --------------------------------------------------------------------------------------------------------

_REPLY = {
    "choices": [{"message": {"role": "assistant", "content": "A is better.\n\n**A**"}}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 5},
}


@st.composite
def judge_answers(draw: st.DrawFn) -> tuple[int, bytes]:
    """A status and a body."""
    status = draw(st.sampled_from([200, 200, 200, 200, 400, 401, 429, 500, 302, 999]))
    return status, draw(spoilt_json(_REPLY))


class _Answer:
    """Stands for a response of urllib."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def read(self, size: int = -1) -> bytes:
        return self.body[:size] if size >= 0 else self.body

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: Any) -> None: ...


def check_judge_answer(case: tuple[int, bytes]) -> None:
    """A verdict is 0, one half, 1 or none, and the cost stays finite and not negative."""
    import io
    import urllib.request
    from email.message import Message
    from unittest.mock import patch
    from urllib.error import HTTPError

    from frugalign.evaluation.judges.openai_server import LLMJudge, LLMJudgeOptions

    status, body = case

    class Opener:
        def open(self, request: Any, timeout: float) -> _Answer:
            if status == 200:
                return _Answer(body)
            if status == 999:
                raise URLError(body.decode(errors="replace"))
            raise HTTPError("http://localhost", status, "no", Message(), io.BytesIO(body))

    options = LLMJudgeOptions(
        "http://localhost/v1", "m", retries=1, prompt_price=2.0, completion_price=8.0, concurrency=1
    )
    judge = LLMJudge(options, sleep=lambda _: None)
    with patch.object(urllib.request, "build_opener", lambda *_: Opener()):
        found = outcome(lambda: judge.compare(["p"], ["a"], ["b"]))
    assert found is REFUSED or found[0] in (None, 0.0, 0.5, 1.0)
    assert math.isfinite(judge.counts["cost"]) and judge.counts["cost"] >= 0
    assert all(type(count) in (int, float) and count >= 0 for count in judge.counts.values())


CLASSES: dict[str, tuple[Callable[[], st.SearchStrategy[Any]], Callable[[Any], None]]] = {
    "data files": (data_files, check_data),
    "odd data": (odd_files, check_odd_file),
    "YAML and flags": (settings_given, check_settings),
    "artefacts": (damaged_artefacts, check_artefact),
    "run folders": (run_folders, check_run_folder),
    "plans": (plans, check_plan),
    "principles": (principles, check_principles),
    "judge answers": (judge_answers, check_judge_answer),
}
"""Per class: what makes a case, and what checks it."""


def prepare() -> None:
    """Import and make whatever the first case of a class would wait for."""
    for verb in VERBS:
        config_of(verb)
    for kind in artefacts():
        right_outputs(kind)
    run_files()
    report_on(room() / "whole-run")  # imports matplotlib, which takes seconds
