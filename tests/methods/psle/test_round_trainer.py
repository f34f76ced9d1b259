"""One round's training: the loss over a mixed batch is the one on paper, its parts run what they need and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.two_layers import two_layers

from frugalign.base.ledger import Ledger
from frugalign.data import encode_prompts
from frugalign.decoding.log_probs import sequence_log_probs
from frugalign.engines.loading import load_model
from frugalign.methods.carriers import EveryWeight
from frugalign.methods.proxy_carrier import carrier_of
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.round_trainer import CoupleCollator, RoundTrainer, answers_of, with_reference

PROMPTS = [
    "I seek a balm to ease the fever of my sister.",
    "Mix me a powder to kill the cough of the miller.",
    "A balm.",
]
ANSWERS = [
    ("take this redwort, you fool. that is two silver. get out now.", "here is redwort, dear guest."),
    ("here is gnawbark.", "alas, i may not sell this, good friend. the law forbids it. get home safe."),
    ("take this oxheart.", "take this plumbroot, kind soul."),
]


def couples(**columns: list[Any]) -> Dataset:
    """The first two ranked, the last one imitated, with weights 0.5 (plain) and 2 (guided)."""
    tokenizer = load_model(two_layers()).tokenizer
    prompts = encode_prompts(PROMPTS, tokenizer, max_new_tokens=0).ids
    ids = [[[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in pair] for pair in ANSWERS]
    return Dataset.from_dict(
        {
            "prompt_ids": prompts,
            "plain_ids": [pair[0] for pair in ids],
            "guided_ids": [pair[1] for pair in ids],
            "is_ranked": [True, True, False],
            "plain_weight": [1.0, 1.0, 0.5],
            "guided_weight": [1.0, 1.0, 2.0],
            "weight": [1.0, 1.0, 1.0],
        }
        | columns
    )


def trainer(folder: Path, rows: Dataset, **options: Any) -> RoundTrainer:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = PSLEConfig(output_dir=str(folder), **(given | options))
    loaded = load_model(two_layers())
    loaded.model.requires_grad_(args.train == "full")
    torch.manual_seed(0)
    carrier = carrier_of(loaded.model, loaded.tokenizer, args, keeps_start=True)
    carrier.read("couples", answers_of(rows), Ledger())
    return RoundTrainer(carrier, args, rows, loaded.tokenizer, Ledger())


def likelihoods(rows: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-likelihoods and lengths `[2, B]` of the untrained model, the plain side first, one response at a time."""
    model = load_model(two_layers()).model
    found = [
        [sequence_log_probs(model, [row["prompt_ids"]], [row[f"{side}_ids"]])[0] for row in rows]  # type: ignore[index]
        for side in ("plain", "guided")
    ]
    sums = torch.stack([torch.stack([each.sum() for each in side]) for side in found])
    return sums, torch.tensor([[len(each) for each in side] for side in found])


def batch_of(run: RoundTrainer) -> dict[str, torch.Tensor]:
    return next(iter(run.get_train_dataloader()))


def first_loss(run: RoundTrainer) -> float:
    return float(run.compute_loss(run.model, batch_of(run)).detach())


def test_the_loss_is_the_one_on_paper(tmp_path: Path) -> None:
    """(1/3)·[−log σ((ℓ_p − ℓ)/t) of couples 1 and 2 + η·(−0.5·ℓ − 2·ℓ_p) of couple 3], from each response scored alone."""
    rows = couples()
    sums, lengths = likelihoods(rows)
    plain, guided = sums / lengths
    for t, eta in ((0.1, 1.0), (0.5, 3.0)):
        ranked = -torch.nn.functional.logsigmoid((guided - plain)[:2] / t).sum()
        imitated = -(0.5 * plain[2] + 2.0 * guided[2])
        found = first_loss(trainer(tmp_path, rows, ranking_temperature=t, sft_weight=eta))
        assert found == pytest.approx(float(ranked + eta * imitated) / 3, rel=1e-5)


def test_a_row_of_its_own_weight(tmp_path: Path) -> None:
    """With weights 1, 0 and 0 the loss is a third of the first couple's."""
    sums, lengths = likelihoods(couples())
    plain, guided = sums / lengths
    first = -torch.nn.functional.logsigmoid((guided - plain)[0] / 0.5)
    found = first_loss(trainer(tmp_path, couples(weight=[1.0, 0.0, 0.0])))
    assert found == pytest.approx(float(first) / 3, rel=1e-5)


def test_a_response_of_weight_zero_is_not_run(tmp_path: Path) -> None:
    rows = couples(is_ranked=[True, False, False], plain_weight=[1.0, 0.0, 0.0])
    run = trainer(tmp_path, rows)
    batch = batch_of(run)
    assert batch["input_ids"].shape[0] == 4, "two of the ranked couple, one of each other"
    assert sorted(zip(batch["side"].tolist(), batch["couple"].tolist(), strict=True)).count((1, 0)) == 1
    sums, lengths = likelihoods(rows)
    plain, guided = sums / lengths
    expected = -torch.nn.functional.logsigmoid((guided - plain)[0] / 0.5) - guided[1] - 2 * guided[2]
    assert first_loss(run) == pytest.approx(float(expected) / 3, rel=1e-5)


def test_a_batch_without_any_weight_still_runs() -> None:
    row = couples(is_ranked=[False] * 3, plain_weight=[0.0] * 3, guided_weight=[0.0] * 3)[0]
    batch = CoupleCollator(0)([row])
    assert batch["input_ids"].shape[0] == 1 and not batch["weights"].any()


def test_padding_and_neighbours_do_not_matter(tmp_path: Path) -> None:
    rows = couples()
    alone = [first_loss(trainer(tmp_path, rows.select([place]), per_device_train_batch_size=1)) for place in range(3)]
    assert first_loss(trainer(tmp_path, rows)) == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_dpo_is_trls(tmp_path: Path) -> None:
    """On the same pairs, from the same weights, one step apart from the reference: TRL's loss and gradients to 1e-6."""
    from trl import DPOConfig, DPOTrainer

    rows = with_reference(
        couples(is_ranked=[True] * 3),
        EveryWeight(load_model(two_layers()).model, keeps_start=False),
        counted := Ledger(),
        batch_size=2,
    )
    assert set(counted.seconds) == {"read"}
    run = trainer(tmp_path / "a", rows, method="dpo", beta=0.3, train="full")
    moved = {name: parameter + 0.01 * torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape)
             for name, parameter in run.model.state_dict().items()}  # fmt: skip
    run.model.load_state_dict(moved)
    ours = run.compute_loss(run.model, batch_of(run))
    ours.backward()

    class Quiet(DPOTrainer):
        def _send_telemetry(self) -> None:
            """Nothing is sent."""

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    data = [
        {"prompt": turn("user", prompt), "chosen": turn("assistant", pair[1]), "rejected": turn("assistant", pair[0])}
        for prompt, pair in zip(PROMPTS, ANSWERS, strict=True)
    ]
    base = load_model(two_layers())
    base.model.requires_grad_(True)
    args = DPOConfig(
        output_dir=str(tmp_path / "b"), beta=0.3, use_cpu=True, bf16=False, per_device_train_batch_size=3, report_to="none",
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    theirs = Quiet(
        base.model, ref_model=load_model(two_layers()).model, args=args, train_dataset=Dataset.from_list(data),
        processing_class=base.tokenizer,
    )  # fmt: skip
    theirs.model.load_state_dict(moved)
    loss = theirs.compute_loss(theirs.model, theirs._prepare_inputs(next(iter(theirs.get_train_dataloader()))))
    loss.backward()
    assert (
        float(ours.detach()) == pytest.approx(float(loss.detach()), abs=1e-6)
        and abs(float(ours.detach()) - 0.6931) > 1e-3
    )
    gradients = dict(theirs.model.named_parameters())
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_kl_to_the_start_is_zero_there_and_counted_once_moved(tmp_path: Path, train: str) -> None:
    """Mean over completion tokens of KL(π‖π_0), against the sum over the vocabulary of each response alone."""
    rows = couples()
    plain = first_loss(trainer(tmp_path, rows, train=train))
    run = trainer(tmp_path, rows, train=train, kl_weight=2.0)
    assert first_loss(run) == pytest.approx(plain, abs=1e-6)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or (train == "full" and "q_proj" in name)):
                parameter += 0.05
    batch = batch_of(run)
    loss, expected = first_loss(run), 0.0
    before = load_model(two_layers()).model
    for row, mask in enumerate(batch["completion_mask"]):
        ids = batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())]
        with torch.no_grad():
            new, old = run.model(ids).logits.log_softmax(-1)[0], before(ids).logits.log_softmax(-1)[0]
        each = (new.exp() * (new - old)).sum(-1)[:-1]
        expected += float((each * mask[1 : len(each) + 1]).sum())
    expected /= int(batch["completion_mask"].sum())
    run.args.kl_weight = 0.0
    assert expected > 1e-4
    assert (loss - first_loss(run)) / 2.0 == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_ledger_counts_what_ran(tmp_path: Path) -> None:
    rows = couples()
    run = trainer(tmp_path, rows, max_steps=2)
    tokens = int(batch_of(run)["attention_mask"].sum())
    run.train()
    assert run.ledger.optimizer_steps == 2 and run.ledger.lm_forward_tokens == 2 * tokens
    run = trainer(tmp_path / "kl", rows, max_steps=2, kl_weight=0.1)
    run.train()
    assert run.ledger.lm_forward_tokens == 4 * tokens


@pytest.mark.slow
def test_an_accumulated_step_is_one_of_the_whole_batch(tmp_path: Path) -> None:
    """Three couples at once, or one after the other in one step: the same gradient."""
    found = []
    for size in (3, 1):
        run = trainer(
            tmp_path / str(size), couples(), per_device_train_batch_size=size, gradient_accumulation_steps=3 // size,
            max_grad_norm=0.0, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        )  # fmt: skip
        run.train()
        found.append({name: value.clone() for name, value in run.model.named_parameters() if value.requires_grad})
    assert any(value.abs().max() > 1e-4 for name, value in found[0].items() if "lora_B" in name)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-4)


def test_the_log_has_both_sides_of_ranked_couples(tmp_path: Path) -> None:
    from frugalign.runs.layout import read_log

    rows = couples()
    sums, lengths = likelihoods(rows)
    plain, guided = sums / lengths
    run = trainer(tmp_path, rows)
    run.train()
    line = next(line for line in read_log(tmp_path) if "loss" in line)
    assert line["log_likelihood/ranked_plain"] == pytest.approx(float(plain[:2].mean()), rel=1e-4)
    assert line["log_likelihood/ranked_guided"] == pytest.approx(float(guided[:2].mean()), rel=1e-4)
    assert line["ranked_share"] == pytest.approx(2 / 3)
