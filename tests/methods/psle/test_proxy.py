"""`--train proxy`: rounds sample from the guided base, and train on what it read once."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.methods.psle.conftest import Finished
from tests.methods.psle.runs import Killed, command, same_end, stopping
from tests.methods.psle.test_round_trainer import batch_of, couples, first_loss, trainer
from tests.two_layers import two_layers
from torch import Tensor
from torch.nn.functional import logsigmoid

import frugalign.methods.proxy_carrier as module
import frugalign.runs.shared_sampling as together
from frugalign.base.ledger import Ledger
from frugalign.cli.main import main
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.engines.loading import load_model
from frugalign.methods.answer_features import answer_features
from frugalign.methods.carriers import weights_digest
from frugalign.methods.proxy_carrier import carrier_of
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.round_trainer import RoundTrainer, with_reference
from frugalign.methods.psle.sampling import Sampler
from frugalign.policies.principles import Principles
from frugalign.proxy.network import load_proxy
from frugalign.sandbox.world import make_prompts

PROXY: dict[str, Any] = {
    "train": "proxy",
    "learning_rate": 0.03,
    "target_kl": 0.02,
    "save_steps": 2,
    "sampling_batch_size": 4,
    "cache_dir": "cache",
}


def perturb(proxy: torch.nn.Module, by: float = 0.3) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def small(folder: Path, rows: Dataset, **options: Any) -> RoundTrainer:
    return trainer(folder, rows, train="proxy", cache_dir=str(folder / "cache"), **options)


def likelihoods(run: RoundTrainer, rows: Dataset) -> Tensor:
    """Mean log-likelihood per token `[2, B]` of the guided model, the plain side first, over the whole vocabulary."""
    guide = run.carrier.guide()
    return torch.tensor(
        [
            [
                float(
                    sequence_log_probs(run.carrier.lm, [row["prompt_ids"]], [row[f"{side}_ids"]], guide=guide)[0].mean()
                )
                for row in rows  # type: ignore[index]
            ]
            for side in ("plain", "guided")
        ]
    )


def test_the_loss_is_the_one_on_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two couples ranked, one imitated with the weights 0.5 and 2, by the guided model's own likelihoods."""
    monkeypatch.setattr(module, "answer_features", partial(answer_features, dtype=torch.float32))
    rows = couples()
    run = small(tmp_path, rows)
    untrained = first_loss(run)
    perturb(run.model)
    plain, guided = likelihoods(run, rows)
    ranked = -logsigmoid((guided - plain)[:2] / 0.5)
    expected = (float(ranked.sum()) - float(0.5 * plain[2] + 2 * guided[2])) / 3
    assert first_loss(run) == pytest.approx(expected, abs=1e-5) and abs(expected - untrained) > 1e-3
    with_kl = small(tmp_path / "kl", rows, kl_weight=2.0)
    assert first_loss(with_kl) == pytest.approx(untrained, abs=1e-6)
    perturb(with_kl.model)
    kl = with_kl.carrier.score(with_kl.model, batch_of(with_kl)).kl
    tokens = int(batch_of(with_kl)["completion_mask"].sum())
    assert kl is not None and first_loss(with_kl) - expected == pytest.approx(2 * float(kl.sum()) / tokens, abs=1e-5)


@pytest.mark.parametrize("train", ["proxy", "lora"])
def test_the_brake_holds_a_target(train: str, tmp_path: Path) -> None:
    """In nats a response. Without it the same steps go further."""
    options: dict[str, Any] = {"train": train, "max_steps": 60, "learning_rate": 0.002 if train == "proxy" else 0.003}
    cache = {"cache_dir": str(tmp_path / "cache")} if train == "proxy" else {}

    def per_response(**brake: Any) -> float:
        run = trainer(tmp_path / "run", couples(), **options, **brake, **cache)
        run.train()
        batch = batch_of(run)
        _, kl = run._scores(run.model, batch)
        assert kl is not None
        return float(kl.detach()) * int(batch["completion_mask"].sum()) / len(batch["side"])

    free, held = per_response(kl_weight=1e-9), per_response(target_kl=1.0)
    assert free > 2.0 and 0.6 < held < 1.4


def test_a_round_by_dpo_starts_from_its_own_proxy(tmp_path: Path) -> None:
    """The reference is the proxy as the round found it, so the loss begins at log 2 whatever it has learned."""
    rows = couples(is_ranked=[True] * 3)
    run = small(tmp_path, rows)
    perturb(run.model)
    rows = with_reference(rows, run.carrier, Ledger(), batch_size=2)
    again = RoundTrainer(
        run.carrier, PSLEConfig(output_dir=str(tmp_path), method="dpo", use_cpu=True), rows, load_model(two_layers()).tokenizer, Ledger()
    )  # fmt: skip
    assert first_loss(again) == pytest.approx(math.log(2), abs=1e-5)
    perturb(run.model)
    assert abs(first_loss(again) - math.log(2)) > 1e-3


def test_both_kinds_of_responses_come_from_the_guided_base(tmp_path: Path) -> None:
    """Under the principles too. What another proxy had begun is not taken over."""
    loaded = load_model(two_layers())
    args = PSLEConfig(output_dir=str(tmp_path), train="proxy", cache_dir=str(tmp_path), max_new_tokens=8, use_cpu=True)
    carrier = carrier_of(loaded.model, loaded.tokenizer, args, keeps_start=False)
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in make_prompts("train", 3, 0)])
    sampler = Sampler(data, loaded.tokenizer, Principles(preamble="Be polite."), args)

    def sampled(folder: str) -> list[Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        return sampler.sample(carrier, [0, 1, 2], 0, tmp_path / folder, Ledger()).completion_ids or []

    plain_base = sampled("here")
    perturb(carrier.policy, 1.0)
    moved = sampled("here")
    for side in (0, 1):
        assert [group[side] for group in moved] != [group[side] for group in plain_base]
    assert moved == sampled("elsewhere")


@pytest.mark.slow
def test_a_run_leaves_a_proxy_that_evaluate_and_report_take(
    finished: Finished, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(**PROXY)
    for number in range(2):
        about = json.loads((run / f"round-00{number}" / "manifest.json").read_text())
        proxy = load_proxy(run / f"round-00{number}")
        assert about["end"]["weights"] == weights_digest(proxy) and about["optimizer_steps"] == 6
    assert about["start"]["weights"] != about["end"]["weights"]
    seen = json.loads((run / "round-001" / "evaluation.json").read_text())
    assert seen["kl_per_sequence"]["mean"] > 1e-3
    proxy = load_proxy(run)
    assert proxy.config.trained_on["fingerprint"] and not list(run.glob("tokenizer*"))
    costs = json.loads((run / "costs.json").read_text())
    assert costs["trainable_parameters"] < 0.01 * costs["base_parameters"]
    assert main(["report", str(run)]) == 0
    words = ["evaluate", "--model_name_or_path", two_layers(), "--proxy", str(run), "--dataset_name", "prompts"]
    assert main([*words, "--reward", "frugalign.sandbox:gold", "--output_dir", "seen"]) == 0
    assert json.loads(Path("seen/metrics.json").read_text())["kl_per_sequence"]["mean"] > 1e-3
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "well"), [(together, "sample_groups", 3), (RoundTrainer, "training_step", 9)]
)
def test_killed_in_the_second_round_it_ends_the_same(
    owner: Any, name: str, well: int, finished: Finished, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished(**PROXY)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping(getattr(owner, name), well))
        with pytest.raises(Killed):
            main(command(**PROXY))
    assert Path("run/round-000/manifest.json").exists() and not Path("run/round-001/manifest.json").exists()
    assert main(command(**PROXY | {"cache_dir": "another"}, resume_from_checkpoint="true")) == 0
    same_end("run", str(whole))
    ours, theirs = (json.loads(Path(run, "costs.json").read_text()) for run in ("run", whole))
    assert ours["lm_forward_tokens"] == theirs["lm_forward_tokens"]
