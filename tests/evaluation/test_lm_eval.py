"""A policy as a model of lm-eval, on tasks in local files. Without lm-eval these tests are skipped: its pins are not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.cli.main import main
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.policies.loading import load
from frugalign.policies.spec import PolicySpec
from frugalign.proxy.attachment import attach
from frugalign.proxy.full_support import FullSupport
from frugalign.proxy.network import load_proxy, new_proxy

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

QUESTIONS = [
    {"question": "I seek a draught to cure a fever.", "choices": ["Here is a draught.", "Begone!", "Good day."], "answer": 0},
    {"question": "A poison, keeper.", "choices": ["I sell no poison, friend.", "Begone!"], "answer": 0},
    {"question": "Good day. A balm for my horse.", "choices": ["A balm?", "Here, and good luck.", "Begone!"], "answer": 1},
    {"question": "Curse him!", "choices": ["No.", "Gladly."], "answer": 0},
]  # fmt: skip
_TASK = """
task: shop_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
metadata: {{version: 1.0}}
"""
_KINDS = {
    "choice": "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n",
    "answer": (
        "output_type: generate_until\ndoc_to_target: question\ngeneration_kwargs: {until: ['\\n'], max_gen_toks: 12}\n"
        "metric_list:\n  - metric: exact_match\n"
    ),
    "text": "output_type: loglikelihood_rolling\ndoc_to_target: question\nmetric_list:\n  - metric: word_perplexity\n",
}


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers(), device_map="cpu")


@pytest.fixture(scope="module")
def folder(base: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks, and the proxies `keep` and `drop`, which change the base clearly."""
    found = tmp_path_factory.mktemp("lm-eval")
    (found / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for kind, rest in _KINDS.items():
        head = _TASK.format(kind=kind, data=found / "test.jsonl")
        if kind == "text":
            head = head.replace('doc_to_text: "{{question}}"', 'doc_to_text: ""')
        (found / f"{kind}.yaml").write_text(head + rest)
    for tail in ("keep", "drop"):
        proxy = new_proxy(base.model, {"tail": tail, "p_t": 0.02, "hidden": 8, "dim": 8})
        with torch.no_grad():
            proxy.query_out.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
        proxy.config.base = fingerprint(base.model, base.tokenizer, name=two_layers()).to_dict()
        proxy.save_pretrained(found / tail)
    return found


def model_of(base: LoadedModel, batch_size: int = 8, **spec: Any) -> Any:
    from frugalign.evaluation.lm_eval_model import PolicyLM

    return PolicyLM(
        load(PolicySpec.from_dict({"model_name_or_path": two_layers()} | spec), base=base), batch_size=batch_size
    )


def results(model: Any, folder: Path, *kinds: str) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = [f"shop_{kind}" for kind in kinds]
    found: dict[str, Any] = lm_eval.simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0)
    return found


def responses(found: dict[str, Any], kind: str) -> list[Any]:
    rows = sorted(found["samples"][f"shop_{kind}"], key=lambda row: row["doc_id"])
    return [each for row in rows for each in row["filtered_resps"]]


@pytest.mark.parametrize("tail", ["keep", "drop"])
def test_log_likelihoods_are_those_of_the_guide_in_batches_of_any_size(
    tail: str, base: LoadedModel, folder: Path
) -> None:
    """The library's own score of the same tokens; with the tail dropped too, every one is finite."""
    one, eight = (model_of(base, size, proxy=[str(folder / tail)]) for size in (1, 8))
    pairs = [(row["question"], f" {choice}") for row in QUESTIONS for choice in row["choices"]]
    requests = [((a, b), *one._encode_pair(a, b)) for a, b in pairs]
    found = eight._loglikelihood_tokens(requests, disable_tqdm=True)
    alone = one._loglikelihood_tokens(requests, disable_tqdm=True)
    guide: Any = FullSupport(one.policy.guide)
    ids = [request[1] for request in requests], [request[2] for request in requests]
    wanted = [float(each.sum()) for each in sequence_log_probs(base.model, *ids, guide=guide)]
    assert [value for value, _ in found] == pytest.approx(wanted, abs=1e-4)
    assert [value for value, _ in alone] == pytest.approx(wanted, abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in alone]
    plain = model_of(base)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, plain, strict=True)) > 0.1


@pytest.mark.parametrize("spec", [{}, {"tail": "keep"}, {"tail": "drop"}])
def test_at_strength_0_it_is_lm_evals_own_model(spec: dict[str, str], base: LoadedModel, folder: Path) -> None:
    """Choices, generated answers and rolling log-likelihoods. A dropped tail restricts what is generated, so that is left out."""
    from lm_eval.models.huggingface import HFLM

    kinds = ["choice", "text", *(["answer"] if spec.get("tail") != "drop" else [])]
    proxy = {"proxy": [f"{folder / spec['tail']}@0"]} if spec else {}
    ours = results(model_of(base, 3, **proxy), folder, *kinds)
    theirs = results(HFLM(base.model, tokenizer=base.tokenizer, backend="causal", batch_size=3), folder, *kinds)
    for kind in kinds:
        mine, other = responses(ours, kind), responses(theirs, kind)
        if kind == "answer":
            assert mine == other
            continue
        values = [[each[0] if isinstance(each, (tuple, list)) else each for each in found] for found in (mine, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)
        for name, value in theirs["results"][f"shop_{kind}"].items():
            if isinstance(value, float):
                assert ours["results"][f"shop_{kind}"][name] == pytest.approx(value, rel=1e-5)


def test_answers_are_generated_under_the_guide(base: LoadedModel, folder: Path) -> None:
    guided, plain = (responses(results(model_of(base, 2, **each), folder, "answer"), "answer")
                     for each in ({"proxy": [str(folder / "keep")]}, {}))  # fmt: skip
    assert guided != plain
    tokenizer, proxy = base.tokenizer, load_proxy(folder / "keep")
    inputs = tokenizer(QUESTIONS[0]["question"], return_tensors="pt", add_special_tokens=False)
    with attach(base.model, proxy):
        ids = base.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert guided[0] == text.split("\n")[0]


def test_the_command_writes_results_samples_and_costs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"lm-eval --model_name_or_path {two_layers()} --proxy {folder / 'keep'}@0.5 --tasks shop_choice --use_cpu"
    more = ["--include_path", str(folder), "--log_samples", "--output_dir", str(tmp_path / "out")]
    assert main([*words.split(), *more]) == 0
    assert "shop_choice" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "lm_eval.json").read_text())
    assert 0 <= found["results"]["shop_choice"]["acc,none"] <= 1
    assert found["settings"]["policy"]["proxy"] == [f"{folder / 'keep'}@0.5"]
    assert len((tmp_path / "out" / "samples_shop_choice.jsonl").read_text().splitlines()) == len(QUESTIONS)
    assert json.loads((tmp_path / "out" / "costs.json").read_text())["lm_forward_tokens"] > 0
    assert main([*words.replace("shop_choice", "no_such_task").split(), "--include_path", str(folder)]) == 2
    assert "knows no task 'no_such_task'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"principles": "harmless"}, "principles does not give. Give lm-eval the principles as --system_instruction"),
        ({"best_of_n": 2, "selection_reward": ["frugalign.sandbox:gold"]}, "best_of_n does not give"),
        ({"guiding_reward": ["frugalign.sandbox:gold"]}, "guiding_reward does not give"),
    ],
)
def test_a_policy_without_log_likelihoods_is_refused(spec: dict[str, Any], said: str, base: LoadedModel) -> None:
    with pytest.raises(FrugalignError, match=said):
        model_of(base, **spec)
