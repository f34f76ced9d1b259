"""`--train proxy`: the loss of `frugalign proxy` on the same pairs, resumed bit for bit, online DPO from the guided model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tests.methods.psle.runs import Killed, stopping
from tests.methods.rerank.random_reward import random_probes
from tests.methods.rerank.small_trainer import batch_of, probes, trainer
from tests.methods.rerank.test_groups import command, home  # noqa: F401 — the fixture of a folder with data
from tests.two_layers import two_layers
from torch import Tensor, nn

import frugalign.runs.shared_sampling as together
from frugalign.base.errors import FrugalignError
from frugalign.cli.main import main
from frugalign.data.groups import read_groups
from frugalign.engines.loading import load_model
from frugalign.methods.proxy_carrier import Proxy
from frugalign.methods.proxy_stored.config import StoredProxyConfig
from frugalign.methods.proxy_stored.trainer import StoredProxyTrainer
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.sandbox.cached import sample_pairs


def perturb(proxy: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def small(folder: Path, reward: Any = None, **options: Any) -> RerankTrainer:
    return trainer(folder, reward, train="proxy", **({"cache_dir": str(folder / "cache")} | options))


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("settings", [{}, {"sft_weight": 0.5, "beta": 0.3}, {"label_noise": 0.2}])
@pytest.mark.parametrize("has_reward", [False, True])
def test_the_loss_is_that_of_frugalign_proxy(has_reward: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    """Same pairs, same proxy, same brake: loss and gradients agree, with the confidence of probes and without."""
    if "label_noise" in settings and not has_reward:
        settings = {}
    given = random_probes()
    given.save_pretrained(tmp_path / "probes")
    ours = small(tmp_path / "a", given if has_reward else None, per_device_train_batch_size=8, **settings)
    rows = Dataset.from_list(
        [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in sample_pairs("train", 8)]
    )
    loaded = load_model(two_layers())
    args = StoredProxyConfig(
        output_dir=str(tmp_path / "b"), cache_dir=str(tmp_path / "a" / "cache"), temperature=1.0, use_cpu=True,
        reward=str(tmp_path / "probes") if has_reward else None, **settings,
    )  # fmt: skip
    theirs = StoredProxyTrainer(loaded.model, args, rows, rows, processing_class=loaded.tokenizer)
    perturb(ours.model), perturb(theirs.model)
    mine = ours.compute_loss(ours.model, batch_of(ours))
    other = theirs.compute_loss(theirs.model, theirs.stored(list(range(8))))
    assert abs(float(mine.detach()) - 0.6931) > 1e-3
    assert float(mine.detach()) == pytest.approx(float(other.detach()), abs=1e-6)
    for one, same in zip(gradients(mine, ours.model), gradients(other, theirs.model), strict=True):
        torch.testing.assert_close(one, same, atol=1e-6, rtol=1e-4)


def test_it_learns_while_its_base_reads_once(tmp_path: Path) -> None:
    found = small(tmp_path, held_out=4, eval_steps=3, max_steps=12, learning_rate=0.02)
    assert isinstance(found.carrier, Proxy)
    before = [parameter.clone() for parameter in found.carrier.lm.parameters()]
    calls: list[int] = []
    hook = found.carrier.lm.model.register_forward_hook(lambda *_: calls.append(1))
    fed = found.ledger.lm_forward_tokens
    found.train()
    hook.remove()
    assert not calls and found.ledger.lm_forward_tokens == fed > 0
    lines = [line for line in found.state.log_history if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5) and lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["rewards/accuracies"] == 1.0 and lines[-1]["kl"] > 1e-3 and "entropy" not in lines[-1]
    assert all(torch.equal(one, other) for one, other in zip(before, found.carrier.lm.parameters(), strict=True))


def test_the_brake_holds_a_target(tmp_path: Path) -> None:
    """The KL of the stored answers, in nats. The default weight, without a target, lets the same steps go further."""
    options: dict[str, Any] = {"max_steps": 60, "learning_rate": 0.03}
    found = [small(tmp_path / name, **options, **brake) for name, brake in (("a", {}), ("b", {"target_kl": 0.5}))]
    for each in found:
        each.train()
    free, held = (sum(line["kl"] for line in each.state.log_history[-21:-1]) / 20 for each in found)
    assert free > 1.0 and 0.3 < held < 0.8 and found[0].args.kl_weight == 0.02


def test_other_pairs_can_be_evaluated(tmp_path: Path) -> None:
    """Given later, as texts or encoded, beside the held-out ones."""
    found = small(tmp_path, held_out=2)
    rows = Dataset.from_list(sample_pairs("train", 4))
    seen = [found.evaluate(each)["eval_logps/chosen"] for each in (rows, found.encode(rows), None)]
    assert seen[0] == seen[1] != seen[2]


def test_the_confidence_does_not_move(tmp_path: Path) -> None:
    found = small(tmp_path, probes(), max_steps=6, per_device_train_batch_size=8, learning_rate=0.05)
    found.train()
    gamma = [line["confidence/mean"] for line in found.state.log_history if "loss" in line]
    assert len(gamma) == 6 and gamma == pytest.approx([gamma[0]] * 6, abs=1e-6)


def test_a_resumed_training_ends_the_same(tmp_path: Path) -> None:
    """Bit for bit, also where the cache is gone and the base reads the answers again."""
    options: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 0.02, "target_kl": 0.01
    }  # fmt: skip
    first = small(tmp_path, probes(), **options)
    first.train()
    whole = {name: value.clone() for name, value in first.model.state_dict().items()}
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = small(tmp_path, probes(), **options, cache_dir=str(tmp_path / "other"))
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, whole[name]) for name, value in again.model.state_dict().items())
    assert again.ledger.lm_forward_tokens == first.ledger.lm_forward_tokens and again.brake == first.brake
    with pytest.raises(FrugalignError, match=r"was made with p_t 0\.0062, not 0\.1"):
        small(tmp_path, probes(), **options, p_t=0.1).train(resume_from_checkpoint=True)


def test_what_a_proxy_cannot_do_says_so(tmp_path: Path) -> None:
    for options, words in (
        ({"train": "proxy", "reward_refresh_steps": 2}, "those of a proxy's base do not: leave it at 0"),
        ({"train": "proxy", "tail": "drop"}, "stored answers need tail keep"),
        ({"objective": "sequential"}, "objective is an option of a proxy: it goes with train proxy"),
        ({"train": "full", "initial_proxy": "there"}, "initial_proxy is an option of a proxy"),
        ({"cache_dir": "there"}, "cache_dir is an option of a proxy"),
        ({"target_kl": 2.0}, "target_kl go with train proxy"),
    ):
        with pytest.raises(FrugalignError, match=words):
            RerankConfig(output_dir=str(tmp_path), use_cpu=True, **options)
    assert RerankConfig(output_dir=str(tmp_path), use_cpu=True).learning_rate == 1e-4
    assert small(tmp_path).args.learning_rate == pytest.approx(0.002)


@pytest.mark.slow
def test_online_it_samples_from_the_guided_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Each epoch from the proxy as it is, ranked on the base; killed while it samples, it ends the same."""
    flags: dict[str, Any] = {
        "train": "proxy", "resample": "true", "confidence": "constant", "cache_dir": "cache", "learning_rate": 0.03,
        "max_new_tokens": 8, "save_steps": 2, "sampling_batch_size": 4,
    }  # fmt: skip
    observed = {"shift_reward": "frugalign.sandbox:gold", "shift_prompts": 2, "shift_steps": 100}
    assert main(command(**flags, **observed, output_dir="whole")) == 0
    assert "--proxy whole" in capsys.readouterr().out
    shifts = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert any("shift/wasserstein" in line for line in shifts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "sample_groups", stopping(together.sample_groups, 2))
        with pytest.raises(Killed):
            main(command(**flags))
    assert main(command(**flags, resume_from_checkpoint="true")) == 0
    assert main(command(**flags | {"learning_rate": 0.0, "num_train_epochs": 2}, output_dir="still")) == 0
    whole, again, still = (
        [read_groups(Path(f"{run}/groups/epoch-00{epoch}.jsonl")).completion_ids for epoch in range(2)]
        for run in ("whole", "run", "still")
    )
    assert whole == again and whole[0] == still[0] and whole[1] != still[1]
    ours, theirs = load_file("run/model.safetensors"), load_file("whole/model.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
