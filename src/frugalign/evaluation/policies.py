"""What is evaluated: the base itself, or the base under a proxy, with an adapter, or replaced by a whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from frugalign.artifacts import load_config
from frugalign.errors import FrugalignError
from frugalign.generation.guide import Guide
from frugalign.generation.loop import Generation, SamplingParams, generate
from frugalign.generation.scoring import sequence_kl
from frugalign.ledger import Ledger
from frugalign.models.loading import LoadedModel, attach_adapter, load_model
from frugalign.proxy.network import ProxyModelConfig, load_proxy


@dataclass(frozen=True)
class Policy:
    """A policy beside its base.

    `model` samples, guided by `guide` where there is one; `base_model` inside `base_context` is the base. `artefact`:
    the proxy's config, whose settings are the defaults.
    """

    kind: str
    model: PreTrainedModel
    base_model: PreTrainedModel
    trainable_parameters: int
    guide: Guide | None = None
    base_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    artefact: Any = None


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
) -> Policy:
    """Load what one of `proxy`, `adapter`, `policy` names, checked against the base; none of them: the base itself.

    Raises:
        FrugalignError: two of them at once, or one that does not belong to the base.
    """
    given = [name for name, value in (("proxy", proxy), ("adapter", adapter), ("policy", policy)) if value is not None]
    if len(given) > 1:
        raise FrugalignError(f"Only one policy can be evaluated at a time, but {' and '.join(given)} are given.")
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
        whole = load_model(policy, dtype=dtype)
        if whole.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise FrugalignError(
                f"The policy {policy} has another tokenizer than {base.name}, so no KL between them exists."
            )
        return Policy("policy", whole.model, base.model, whole.model.num_parameters())
    return Policy("base", base.model, base.model, 0)


@dataclass(frozen=True)
class Divergence:
    """Nats a sequence, `[B]` each: `kl` = KL(policy ‖ base) along the policy's own samples; `restriction`: the part of
    it that restricting a proxy's candidates costs."""

    kl: list[float] | None
    restriction: list[float] | None


def sample_policy(
    policy: Policy,
    base: LoadedModel,
    prompt_ids: Sequence[Sequence[int]],
    params: SamplingParams,
    keys: Tensor,
    batch_size: int,
    ledger: Ledger,
) -> Generation:
    """The policy's completions."""
    return generate(
        policy.model,
        base.tokenizer,
        prompt_ids,
        params,
        keys=keys,
        guide=policy.guide,
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
    """KL over the full vocabulary: from the decoding loop for a proxy, teacher-forced for an adapter or a whole model.

    None where decoding is greedy: a policy without chance has no divergence worth the name.
    """
    if not params.do_sample:
        return Divergence(None, None)
    if policy.kind in ("proxy", "base"):
        assert sampled.kl_restriction is not None and sampled.kl_choice is not None
        total = (sampled.kl_restriction.double() + sampled.kl_choice.double()).tolist()
        return Divergence(total, sampled.kl_restriction.double().tolist() if policy.kind == "proxy" else None)
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
