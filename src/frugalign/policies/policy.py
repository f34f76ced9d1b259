"""What is evaluated: the base itself, or the base under a proxy, with an adapter, replaced by a whole model, chosen from by best-of-n, or
guided by a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from frugalign.base.errors import FrugalignError
from frugalign.base.files import load_config
from frugalign.base.ledger import Ledger
from frugalign.decoding.chooser import Chooser, Guide
from frugalign.decoding.log_probs import sequence_kl
from frugalign.decoding.loop import Generation, SamplingParams, generate
from frugalign.engines.loading import LoadedModel, attach_adapter, load_model
from frugalign.engines.transformers import device_of
from frugalign.policies.best_of_n import BestOfN
from frugalign.policies.prompt_rows import Asked
from frugalign.policies.reward_guided import RewardGuidance
from frugalign.proxy.network import ProxyModelConfig, load_proxy
from frugalign.rewards import NamedReward, RewardSpec, load_rewards


@dataclass(frozen=True)
class Policy:
    """A policy beside its base.

    `model` samples, guided by `guide` where there is one; `base_model` inside `base_context` is the base. `artefact`:
    the proxy's config, whose settings are the defaults. `best_of_n`, `guidance`: the base under a rule of decoding, which reads
    the prompts as well.
    """

    kind: str
    model: PreTrainedModel
    base_model: PreTrainedModel
    trainable_parameters: int
    guide: Guide | None = None
    base_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    artefact: Any = None
    best_of_n: BestOfN | None = None
    guidance: RewardGuidance | None = None

    @property
    def decoding_settings(self) -> dict[str, Any]:
        """What metrics.json says of the rules of decoding; None where one does not apply."""
        chosen, guided = self.best_of_n, self.guidance
        return {
            "best_of_n": chosen.n if chosen is not None else None,
            "selection_reward": _specs(chosen.rewards) if chosen is not None else None,
            "guiding_reward": _specs(guided.rewards) if guided is not None else None,
            "guiding_weight": guided.weight if guided is not None else None,
            "guiding_top_k": guided.top_k if guided is not None else None,
            "kl_is_bound": chosen is not None,
        }


def _specs(rewards: Sequence[NamedReward]) -> list[str]:
    return [named.spec or named.name for named in rewards]


def load_base(
    name: str,
    *,
    proxy: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    load_in_4bit: bool = False,
) -> LoadedModel:
    """Load the base; where a proxy comes with it, in the revision and with the adapter that the proxy was trained on."""
    stored = load_config(proxy, ProxyModelConfig, "proxy").base if proxy is not None else {}
    return load_model(
        name,
        revision=revision or stored.get("revision"),
        dtype=dtype,
        device_map=device_map,
        load_in_4bit=load_in_4bit,
        adapter=stored.get("adapter"),
    )


def load_policy(
    base: LoadedModel,
    *,
    proxy: str | None = None,
    adapter: str | None = None,
    policy: str | None = None,
    strength: float = 1.0,
    dtype: str | None = None,
    best_of_n: int | None = None,
    selection_reward: Sequence[RewardSpec] = (),
    guiding_reward: Sequence[RewardSpec] = (),
    guiding_weight: float = 1.0,
    guiding_top_k: int = 10,
    decoding_reward_weights: Sequence[float] | None = None,
) -> Policy:
    """Load what one of `proxy`, `adapter`, `policy`, `best_of_n`, `guiding_reward` names, checked against the base; none of
    them: the base itself.

    Raises:
        FrugalignError: two of them at once, one that does not belong to the base, or `best_of_n` and `selection_reward` apart.
    """
    kinds = {"proxy": proxy, "adapter": adapter, "policy": policy, "best_of_n": best_of_n}
    given = [name for name, value in kinds.items() if value is not None] + ["guiding_reward"] * bool(guiding_reward)
    if len(given) > 1:
        raise FrugalignError(f"Only one policy can be evaluated at a time, but {' and '.join(given)} are given.")
    if best_of_n is None and selection_reward:
        raise FrugalignError("selection_reward chooses among the draws of best_of_n, which is not given.")
    if not guiding_reward and (guiding_weight, guiding_top_k) != (1.0, 10):
        raise FrugalignError("guiding_weight and guiding_top_k belong to a guiding_reward, which is not given.")
    if best_of_n is not None:
        if not selection_reward:
            raise FrugalignError("best_of_n needs a selection_reward to choose by.")
        loaded = load_rewards(selection_reward, device=str(device_of(base.model)))
        chooser = BestOfN(best_of_n, loaded, decoding_reward_weights)
        return Policy("best_of_n", base.model, base.model, 0, best_of_n=chooser)
    if guiding_reward:
        rewards = load_rewards(guiding_reward, device=str(device_of(base.model)))
        guidance = RewardGuidance(rewards, guiding_weight, guiding_top_k, decoding_reward_weights)
        return Policy("reward_guided", base.model, base.model, 0, guidance=guidance)
    if proxy is not None:
        network = load_proxy(proxy, base.model, base.tokenizer, name=base.name)
        return Policy(
            "proxy",
            base.model,
            base.model,
            trainable_parameters=network.num_parameters(),
            guide=network.guide(base.model, strength),
            artefact=network.config,
        )
    if adapter is not None:
        before = base.model.num_parameters()
        adapted: Any = attach_adapter(base.model, adapter)
        added = sum(parameter.numel() for parameter in adapted.parameters()) - before
        return Policy("adapter", adapted, adapted, added, base_context=adapted.disable_adapter)
    if policy is not None:
        # Beside the base, where that stays on the CPU.
        whole = load_model(policy, dtype=dtype, device_map="cpu" if device_of(base.model).type == "cpu" else None)
        if whole.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise FrugalignError(
                f"The policy {policy} has another tokenizer than {base.name}, so no KL between them exists."
            )
        return Policy("policy", whole.model, base.model, whole.model.num_parameters())
    return Policy("base", base.model, base.model, 0)


@dataclass(frozen=True)
class Divergence:
    """Nats a sequence, `[B]` each: `kl` = KL(policy ‖ base) along the policy's own samples, for best-of-n an upper bound;
    `restriction`: the part of it that restricting the candidates costs."""

    kl: list[float] | None
    restriction: list[float] | None


def sample_policy(
    policy: Policy,
    base: LoadedModel,
    asked: Asked,
    prompt_ids: Sequence[Sequence[int]],
    params: SamplingParams,
    keys: Tensor,
    batch_size: int,
    ledger: Ledger,
) -> Generation:
    """The policy's completions of `prompt_ids`, the tokens of the rows in `asked`."""
    if policy.best_of_n is not None:
        return policy.best_of_n.sample(base, asked, prompt_ids, params, keys, batch_size, ledger)
    guide: Chooser | None = policy.guide
    if policy.guidance is not None:
        guide = policy.guidance.guide(base, asked, params.temperature, keys, ledger)
    return generate(
        policy.model,
        base.tokenizer,
        prompt_ids,
        params,
        keys=keys,
        guide=guide,
        batch_size=batch_size,
        ledger=ledger,
    )


def sample_base(
    policy: Policy,
    base: LoadedModel,
    prompt_ids: Sequence[Sequence[int]],
    params: SamplingParams,
    keys: Tensor,
    batch_size: int,
    ledger: Ledger,
) -> Generation:
    """The base's completions of the same prompts, on the same noise."""
    with policy.base_context():
        return generate(
            policy.base_model, base.tokenizer, prompt_ids, params, keys=keys, batch_size=batch_size, ledger=ledger
        )


def divergence(
    policy: Policy, prompt_ids: Sequence[Sequence[int]], sampled: Generation, params: SamplingParams, ledger: Ledger
) -> Divergence:
    """KL over the full vocabulary: from the decoding loop for a proxy or a guiding reward, teacher-forced for an adapter or a whole
    model; for best-of-n its known bound.

    None where decoding is greedy: a policy without chance has no divergence worth the name.
    """
    if not params.do_sample:
        return Divergence(None, None)
    if policy.kind not in ("adapter", "policy"):
        assert sampled.kl_restriction is not None and sampled.kl_choice is not None
        total = (sampled.kl_restriction.double() + sampled.kl_choice.double()).tolist()
        restricted = policy.kind in ("proxy", "reward_guided")
        return Divergence(total, sampled.kl_restriction.double().tolist() if restricted else None)
    kl = sequence_kl(
        policy.model,
        policy.base_model,
        prompt_ids,
        sampled.completion_ids,
        temperature=params.temperature,
        ledger=ledger,
        base_context=policy.base_context,
    )
    return Divergence([float(value) for value in kl], None)
