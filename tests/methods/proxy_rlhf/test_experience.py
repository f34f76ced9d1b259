"""Rollouts as experience: what is recomputed is what was sampled, and every decided position is used once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.two_layers import two_layers
from torch import Tensor

from frugalign.decoding import row_keys
from frugalign.decoding.loop import LoopOptions, SamplingParams, Step, generate
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.methods.proxy_rlhf import ProxyConfig
from frugalign.methods.proxy_rlhf.experience import Experience
from frugalign.methods.proxy_rlhf.kl_control import KLController
from frugalign.methods.proxy_rlhf.loss import Minibatch, acceptance_logits, proxy_loss
from frugalign.methods.proxy_rlhf.rollout import Rollout, RolloutOptions, roll_out
from frugalign.proxy.guide import Decision, ProxyGuide
from frugalign.proxy.network import ProxyModel, new_proxy
from frugalign.proxy.overseer import kl_choice
from frugalign.proxy.positions import log_probabilities

GROUP, PROMPTS, LENGTH = 4, 4, 10
ORDERS = ["I seek a draught to cure a fever.", "A poison, keeper.", "Good day. A balm for my horse.", "Curse him!"]


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


def config(tmp_path: Path, **options: Any) -> ProxyConfig:
    given = {"num_generations": GROUP, "per_device_train_batch_size": GROUP * PROMPTS, "p_t": 1e-3, "use_cpu": True}
    return ProxyConfig(output_dir=str(tmp_path), max_new_tokens=LENGTH, **(given | options))


def drawn_proxy(base: LoadedModel, args: ProxyConfig) -> ProxyModel:
    """A proxy with drawn weights: it accepts and rejects unevenly, as a trained one does."""
    proxy = new_proxy(base.model, args.network(), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return proxy


def prompts(base: LoadedModel) -> list[list[int]]:
    return [base.tokenizer(order)["input_ids"] for order in ORDERS for _ in range(GROUP)]


def keys() -> Tensor:
    rows = range(GROUP * PROMPTS)
    return row_keys(0, 0, [row // GROUP for row in rows], [row % GROUP for row in rows])


def rolled(base: LoadedModel, proxy: ProxyModel, args: ProxyConfig) -> Rollout:
    rollout = roll_out(
        TransformersEngine(base.model, base.tokenizer),
        ProxyGuide.build([proxy], embedding_rows(base.model)),
        prompts(base),
        keys(),
        RolloutOptions(LENGTH, batch_size=GROUP * PROMPTS, keep_all=args.advantage == "gae"),
    )
    assert rollout is not None
    return rollout


def build(
    base: LoadedModel, proxy: ProxyModel, rollout: Rollout, rewards: Tensor, args: ProxyConfig, beta: float = 0.1
) -> Experience:
    features = args.candidate_features == "embedding"
    rows = embedding_rows(base.model) if features else None
    with torch.no_grad():
        return Experience.build(proxy, rollout, rewards, args, KLController(beta, None), rows, lambda value: value)


def some_rewards() -> Tensor:
    return torch.randn(GROUP * PROMPTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sampled_under(base: LoadedModel, proxy: ProxyModel, objective: str) -> dict[tuple[int, int], float]:
    """log-probability of what the guide did at each (sequence, position), from its own numbers while it did it."""
    found: dict[tuple[int, int], float] = {}

    def watch(step: Step) -> None:
        details: Decision = step.emission.details
        for row, sequence in enumerate(step.rows.tolist()):
            if int(details.candidates.mask[row].sum()) < 2:
                continue
            column = int(details.choice[row])
            if objective == "sequential":
                assert details.rejected is not None and details.coin_flipped is not None
                a = details.log_a[row].double().exp()
                value = sum(math.log1p(-float(a[other])) for other in details.rejected[row].nonzero().flatten())
                value += math.log(float(a[column])) if bool(details.coin_flipped[row]) else 0.0
            else:
                value = float(details.log_pi[row, column])
            found[sequence, step.position] = value

    guide = ProxyGuide.build([proxy], embedding_rows(base.model))
    params = SamplingParams(max_new_tokens=LENGTH, temperature=guide.temperature)
    generate(
        TransformersEngine(base.model, base.tokenizer),
        prompts(base),
        params,
        keys=keys(),
        guide=guide,
        options=LoopOptions(observer=watch),
    )
    return found


@pytest.mark.parametrize(
    ("objective", "features"),
    [
        ("marginal", "embedding"),
        ("sequential", "embedding"),
        ("sequential_integrated", "embedding"),
        ("marginal", "lookahead"),
        ("sequential", "lookahead"),
        ("marginal", "token_bias"),
    ],
)
def test_the_optimisation_starts_at_what_the_rollout_sampled_under(
    objective: str, features: str, base: LoadedModel, tmp_path: Path
) -> None:
    """ρ = π_optimisation / π_rollout = 1 to 1e-5 at every decided position, and the KL there is the rollout's."""
    args = config(tmp_path, objective=objective, candidate_features=features)
    proxy = drawn_proxy(base, args)
    rollout = rolled(base, proxy, args)
    sampled = sampled_under(base, proxy, objective)
    batches = build(base, proxy, rollout, some_rewards(), args).minibatches
    compared = 0
    for batch in batches:
        positions = batch.positions
        score = acceptance_logits(proxy, batch)
        log_prob, log_pi = log_probabilities(score, positions, args.objective)
        kl = kl_choice(log_pi, positions.log_p, positions.mask)
        torch.testing.assert_close(log_pi.detach(), batch.old_log_pi)
        places = list(zip(positions.sequence.tolist(), positions.position.tolist(), strict=True))
        expected = torch.tensor([sampled[place] for place in places])
        ratio = (log_prob.detach() - expected).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
        restriction = rollout.kl[positions.sequence, positions.position] - kl.detach()
        assert bool((restriction > -1e-5).all())
        compared += len(places)
        assert proxy_loss(proxy, batch, args.objective, 1e-4, 0.5)[1]["clip_fraction"] == 0.0
    assert compared == len(sampled) > 50
    assert len({round(value, 4) for value in sampled.values()}) > 20  # an untrained proxy would not show a mistake


@pytest.mark.parametrize("n_minibatches", [1, 2, 4])
def test_minibatches_cover_every_decided_position_once_and_keep_groups_whole(
    n_minibatches: int, base: LoadedModel, tmp_path: Path
) -> None:
    args = config(tmp_path, num_mini_batches=n_minibatches)
    proxy = drawn_proxy(base, args)
    rollout = rolled(base, proxy, args)
    batches = build(base, proxy, rollout, some_rewards(), args).minibatches
    assert len(batches) == n_minibatches

    def places(part: Any) -> list[tuple[int, int]]:
        return list(zip(part.sequence.tolist(), part.position.tolist(), strict=True))

    used = [place for batch in batches for place in places(batch.positions)]
    assert sorted(used) == sorted(places(rollout.positions)) and len(set(used)) == len(used)
    groups = [{sequence // GROUP for sequence in batch.positions.sequence.tolist()} for batch in batches]
    assert sum(len(part) for part in groups) == len(set.union(*groups)) == PROMPTS
    assert [batch.n_sequences for batch in batches] == [GROUP * PROMPTS // n_minibatches] * n_minibatches


def by_place(batches: list[Minibatch], field: str) -> dict[tuple[int, int], float]:
    found = {}
    for batch in batches:
        values = getattr(batch, field)
        for row, place in enumerate(
            zip(batch.positions.sequence.tolist(), batch.positions.position.tolist(), strict=True)
        ):
            found[place] = float(values[row])
    return found


def test_advantages_are_those_of_the_equation(base: LoadedModel, tmp_path: Path) -> None:
    """A_t·std = (r − mean of the others) − β (Σ_{t'>t} KL_{t'} − the others' mean at t), by naive loops; KL weighs β/std."""
    args, beta, rewards = config(tmp_path), 0.7, some_rewards()
    proxy = drawn_proxy(base, args)
    rollout = rolled(base, proxy, args)
    experience = build(base, proxy, rollout, rewards, args, beta)
    lengths = rollout.valid.sum(1).tolist()
    rows = range(GROUP * PROMPTS)
    reward_part = []
    for row in rows:
        others = [float(rewards[other]) for other in rows if other // GROUP == row // GROUP and other != row]
        reward_part.append(float(rewards[row]) - sum(others) / len(others))
    std = math.sqrt(sum(value**2 for value in reward_part) / len(reward_part))
    to_go = [[sum(rollout.kl[row, t + 1 : lengths[row]].tolist()) for t in range(lengths[row])] for row in rows]
    for (row, t), advantage in by_place(experience.minibatches, "advantage").items():
        reached = [to_go[other][t] for other in rows if lengths[other] > t and other != row] or [0.0]
        expected = (reward_part[row] - beta * (to_go[row][t] - sum(reached) / len(reached))) / std
        assert advantage == pytest.approx(expected, abs=2e-4)
    assert experience.statistics["reward_std"] == pytest.approx(std)
    assert all(batch.kl_weight == pytest.approx(beta / std) for batch in experience.minibatches)
    assert experience.mean_reward == pytest.approx(float(rewards.mean()))


def test_skipped_rows_and_cut_completions_leave_the_loss(base: LoadedModel, tmp_path: Path) -> None:
    """A NaN row is in no minibatch; with mask_truncated_completions nor is one without an end token; n_sequences counts the rest."""
    args = config(tmp_path, mask_truncated_completions=True, num_mini_batches=1)
    proxy = drawn_proxy(base, args)
    rollout = rolled(base, proxy, args)
    rollout.generation.ended = [row % 3 != 0 for row in range(GROUP * PROMPTS)]
    rewards = some_rewards()
    rewards[[1, 5]] = float("nan")
    experience = build(base, proxy, rollout, rewards, args)
    kept = {row for row in range(GROUP * PROMPTS) if row % 3 != 0 and row not in (1, 5)}
    (batch,) = experience.minibatches
    decided = set(rollout.positions.sequence.tolist())
    assert set(batch.positions.sequence.tolist()) == kept & decided
    assert batch.n_sequences == len(kept)
    assert experience.statistics["usable_share"] == pytest.approx(len(kept) / (GROUP * PROMPTS))
    present = rewards[~rewards.isnan()]
    assert experience.mean_reward == pytest.approx(float(present.mean()))


def test_a_minibatch_without_usable_rows_costs_nothing(base: LoadedModel, tmp_path: Path) -> None:
    """All rewards of groups 0 and 2 were skipped: the minibatch is empty, its loss and gradients are 0 and finite."""
    args = config(tmp_path, num_mini_batches=2)
    proxy = drawn_proxy(base, args)
    rewards = some_rewards()
    rewards[[row for row in range(16) if (row // GROUP) % 2 == 0]] = float("nan")
    empty, full = build(base, proxy, rolled(base, proxy, args), rewards, args).minibatches
    assert (len(empty.positions), len(full.positions) > 0) == (0, True)
    loss, _ = proxy_loss(proxy, empty, "marginal", 0.2, 0.5)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in proxy.parameters())


def test_equal_rewards_are_not_divided_by_nothing(base: LoadedModel, tmp_path: Path) -> None:
    """std = 0: the scale is 1, the advantages are the KL's alone and finite."""
    args = config(tmp_path)
    proxy = drawn_proxy(base, args)
    experience = build(base, proxy, rolled(base, proxy, args), torch.full((16,), 3.0, dtype=torch.float64), args)
    assert experience.statistics["reward_std"] == 0.0
    values = list(by_place(experience.minibatches, "advantage").values())
    assert all(math.isfinite(value) for value in values) and max(map(abs, values)) > 0


def test_gae_keeps_every_position_and_its_value_target(base: LoadedModel, tmp_path: Path) -> None:
    """With a value head positions of one candidate count too; λ = 1 makes the target the return r − β Σ_{t'>t} KL_{t'}."""
    args = config(tmp_path, advantage="gae", gae_lambda=1.0, tail="drop")
    proxy = drawn_proxy(base, args)
    rollout, rewards, beta = rolled(base, proxy, args), some_rewards(), 0.5
    assert len(rollout.positions) == int(rollout.valid.sum()) > int((rollout.positions.mask.sum(-1) >= 2).sum())
    batches = build(base, proxy, rollout, rewards, args, beta).minibatches
    targets = by_place(batches, "returns")
    for (row, t), target in targets.items():
        length = int(rollout.valid[row].sum())
        expected = float(rewards[row]) - beta * sum(rollout.kl[row, t + 1 : length].tolist())
        assert target == pytest.approx(expected, abs=1e-4)
    assert len(targets) == int(rollout.valid.sum())


def test_a_rollout_is_the_same_in_any_batch_and_can_be_had_again(base: LoadedModel, tmp_path: Path) -> None:
    args = config(tmp_path)
    proxy = drawn_proxy(base, args)
    whole, again = rolled(base, proxy, args), rolled(base, proxy, args)
    assert whole.generation.completion_ids == again.generation.completion_ids
    assert torch.equal(whole.kl, again.kl)
    small = roll_out(
        TransformersEngine(base.model, base.tokenizer),
        ProxyGuide.build([proxy], embedding_rows(base.model)),
        prompts(base),
        keys(),
        RolloutOptions(LENGTH, batch_size=5),
    )
    assert small is not None
    assert small.generation.completion_ids == whole.generation.completion_ids
    torch.testing.assert_close(small.kl, whole.kl, atol=1e-4, rtol=1e-4)
    assert len({tuple(ids) for ids in whole.generation.completion_ids}) > 4


def test_no_choice_anywhere_is_no_rollout(base: LoadedModel, tmp_path: Path) -> None:
    """p_t close to 1 leaves the argmax alone at every position: there is nothing to learn from."""
    args = config(tmp_path, p_t=0.999, tail="drop")
    proxy = drawn_proxy(base, args)
    found = roll_out(
        TransformersEngine(base.model, base.tokenizer),
        ProxyGuide.build([proxy], embedding_rows(base.model)),
        prompts(base)[:2],
        keys()[:2],
        RolloutOptions(3, batch_size=2),
    )
    assert found is None
