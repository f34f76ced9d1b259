"""From a specification to a policy: the one place where chat, generate, evaluate and the study load one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.engines.adapters import attach_adapter
from frugalign.engines.fingerprints import check_base, fingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import device_of, embedding_rows
from frugalign.policies.best_of_n import BestOfN
from frugalign.policies.policy import Policy
from frugalign.policies.principles import load_principles
from frugalign.policies.reward_guided import RewardGuidance
from frugalign.policies.spec import PolicySpec
from frugalign.policies.steering import Steering, load_steering
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import load_proxy
from frugalign.rewards import NamedReward, RewardSpec, load_rewards


def load(spec: PolicySpec, *, base: LoadedModel | None = None, rewards: Sequence[NamedReward] = ()) -> Policy:
    """Load the policy that `spec` describes, and check its parts against the base.

    Args:
        base: the base, if it is loaded already (`load_base`).
        rewards: rewards that are loaded already. One that the specification also names is not loaded twice.

    Raises:
        FrugalignError: a part that is missing, damaged, or belongs to another base.
    """
    base = base or load_base(spec)
    plain = Policy(spec, base, base.model, base.model, base_parameters=base.model.num_parameters())
    if spec.principles is not None:
        plain = replace(plain, principles=load_principles(spec.principles))
    policy = _with_weights(plain)
    device, weights = str(device_of(base.model)), spec.decoding_reward_weights
    if spec.best_of_n is not None:
        chosen_by = load_rewards(_loaded_once(spec.selection_reward, rewards), device=device)
        return replace(policy, best_of_n=BestOfN(spec.best_of_n, chosen_by, weights))
    if spec.guiding_reward:
        guiding = load_rewards(_loaded_once(spec.guiding_reward, rewards), device=device)
        return replace(policy, guidance=RewardGuidance(guiding, spec.guiding_weight, spec.guiding_top_k, weights))
    return policy


def load_base(spec: PolicySpec) -> LoadedModel:
    """Load the base. Proxies and a steering vector decide the revision and the adapter that it is loaded with.

    Raises:
        FrugalignError: a specification without a base, or a base that cannot be loaded.
    """
    if spec.model_name_or_path is None:
        raise FrugalignError("model_name_or_path is missing: the base of the policy.")
    stored = {}
    if spec.proxy:
        stored = load_proxy(spec.proxy[0].path).config.base
    elif spec.steering is not None:
        stored = load_steering(spec.steering.path).config.base
    return load_model(
        spec.model_name_or_path,
        revision=spec.revision or stored.get("revision"),
        dtype=spec.dtype,
        device_map=spec.device_map,
        load_in_4bit=spec.load_in_4bit,
        adapter=stored.get("adapter"),
        tp_size=spec.tp_size,
        fsdp_size=spec.fsdp_size,
    )


def _with_weights(plain: Policy) -> Policy:
    """The base under its proxies, with its adapter or steering vector, or replaced by a whole model."""
    spec, base = plain.spec, plain.base
    if spec.steering is not None:
        vector = load_steering(spec.steering.path)
        found, what = fingerprint(base.model, base.tokenizer, name=base.name), spec.steering.path
        check_base(vector.config.base, found, f"The steering vector in {what}")
        steering = Steering(base.model, vector, spec.steering.strength)
        return replace(
            plain,
            trainable_parameters=vector.num_parameters(),
            policy_context=steering.on,
            base_context=steering.off,
        )
    if spec.proxy:
        networks, found = [], fingerprint(base.model, base.tokenizer, name=base.name)
        for each in spec.proxy:
            networks.append(load_proxy(each.path))
            check_base(networks[-1].config.base, found, f"The proxy in {each.path}")
        return replace(
            plain,
            trainable_parameters=sum(network.num_parameters() for network in networks),
            guide=ProxyGuide.build(networks, embedding_rows(base.model), [each.strength for each in spec.proxy]),
            artefact=networks[0].config,
        )
    if spec.adapter is not None:
        adapted: Any = attach_adapter(base.model, spec.adapter, base.tokenizer)
        added = sum(parameter.numel() for parameter in adapted.parameters()) - plain.base_parameters
        return replace(
            plain, model=adapted, base_model=adapted, trainable_parameters=added, base_context=adapted.disable_adapter
        )
    if spec.policy is not None:
        # On the CPU if the base is there.
        device = "cpu" if device_of(base.model).type == "cpu" else None
        whole = load_model(
            spec.policy, dtype=spec.dtype, device_map=device, tp_size=spec.tp_size, fsdp_size=spec.fsdp_size
        )
        if whole.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise FrugalignError(
                f"The policy {spec.policy} has another tokenizer than {base.name}, so no KL between them exists."
            )
        return replace(plain, model=whole.model, trainable_parameters=whole.model.num_parameters())
    return plain


def _loaded_once(given: Sequence[RewardSpec], loaded: Sequence[NamedReward]) -> list[RewardSpec]:
    known = {named.spec: named for named in loaded if named.spec}
    return [known.get(reward, reward) if isinstance(reward, str) else reward for reward in given]
