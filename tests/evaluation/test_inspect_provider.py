"""A policy as a model of inspect-ai, on a task of its own. Without inspect-ai these tests are skipped: its pins are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.policies.loading import load
from frugalign.policies.spec import PolicySpec

inspect_ai = pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")

ORDERS = ["I seek a draught to cure a fever.", "A poison, keeper."]


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("INSPECT_DISPLAY", "none")


def evaluated(tmp_path: Path, model_args: dict[str, Any] | None = None, **config: Any) -> Any:
    """The log of one evaluation of both orders by the base, or a policy on it."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes

    import frugalign.evaluation.inspect_provider  # noqa: F401  the entry point does it where the package is installed

    model = get_model(f"frugalign/{two_layers()}", memoize=False, **(model_args or {}))
    task = Task(dataset=[Sample(input=order, target="draught") for order in ORDERS], scorer=includes())
    (log,) = eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none", **config)
    assert log.status == "success", log.error
    return log


def answers(log: Any) -> list[str]:
    return [sample.output.completion for sample in log.samples]


def test_a_task_is_answered_as_generate_does(tmp_path: Path) -> None:
    """Greedy answers are those of the library; sampled ones repeat with the seed, and differ between epochs."""
    from frugalign.policies.answer import answer
    from frugalign.policies.spec import SamplingSettings

    log = evaluated(tmp_path, temperature=0.0, max_tokens=12)
    policy = load(PolicySpec(model_name_or_path=two_layers()))
    greedy = SamplingSettings(max_new_tokens=12, do_sample=False)
    prompts: list[Any] = [[{"role": "user", "content": order}] for order in ORDERS]
    if not policy.base.tokenizer.chat_template:
        prompts = list(ORDERS)
    wanted = [answer(policy, prompt, greedy) for prompt in prompts]
    assert answers(log) == [each.text for each in wanted]
    usage = log.samples[0].output.usage
    assert usage.output_tokens == len(wanted[0].ids) and usage.total_tokens == usage.input_tokens + usage.output_tokens
    sampled = [evaluated(tmp_path, temperature=1.0, max_tokens=12, seed=3, epochs=2) for _ in range(2)]
    assert answers(sampled[0]) == answers(sampled[1])
    by_epoch = [[each.output.completion for each in sampled[0].samples if each.epoch == epoch] for epoch in (1, 2)]
    assert by_epoch[0] != by_epoch[1]


def test_settings_that_change_the_policy_are_refused(tmp_path: Path) -> None:
    with pytest.raises((FrugalignError, AssertionError), match=r"A policy answers without top_p: leave that out\."):
        evaluated(tmp_path, top_p=0.5)
