"""A policy as a model of lm-eval (EleutherAI's lm-evaluation-harness), which must be installed.

Everything is as in lm-eval's own `HFLM`, except for two things. Log-likelihoods are those of π over the whole vocabulary, from our own
teacher-forced pass, which feeds a context once for all its answers. And the policy guides what is generated. Of the base alone, both are
what `HFLM` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, work
from frugalign.decoding.chooser import BaseGuide
from frugalign.decoding.log_probs import read_completions
from frugalign.engines.transformers import Forward, evaluating
from frugalign.policies.policy import Policy
from frugalign.proxy.attachment import attach
from frugalign.proxy.full_support import FullSupport

Request = tuple[Any, list[int], list[int]]
"""What lm-eval asks for: a key for its cache, the context's token ids, and those of the continuation."""


class PolicyLM(HFLM):  # type: ignore[misc]
    """The base, under proxies, with an adapter or a steering vector, or a whole model.

    Args:
        batch_size: continuations scored, or contexts continued, at once. Results do not depend on it.
        more: further arguments of `HFLM`, such as `max_length`.

    Raises:
        FrugalignError: a policy that has no log-likelihoods: best-of-n, a guiding reward, principles, or a proxy with lookahead.
    """

    def __init__(self, policy: Policy, *, batch_size: int = 8, **more: Any) -> None:
        check_scores(policy)
        super().__init__(
            pretrained=policy.model, tokenizer=policy.base.tokenizer, backend="causal", batch_size=batch_size, **more
        )
        self.policy, self.ledger = policy, Ledger()
        self._guide = BaseGuide(1.0) if policy.guide is None else FullSupport(policy.guide)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of every continuation, in nats, and whether greedy decoding gives it."""
        contexts, continuations = [], []
        for _, context, continuation in requests:
            # As HFLM: too long a context loses its first tokens. The last token is not fed.
            left = max(1, self.max_length + 1 - len(continuation))
            contexts.append(list(context)[-left:])
            continuations.append(list(continuation))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        tokens = sum(map(len, contexts)) + sum(map(len, continuations))
        with ExitStack() as stack, torch.no_grad(), work("log-likelihoods", tokens, FED):
            stack.enter_context(self.policy.policy_context())
            stack.enter_context(evaluating(self.policy.model))
            forward = stack.enter_context(Forward(self.policy.model))
            batches = self._batches(contexts, continuations, override_bs)
            for row, read in read_completions(forward, contexts, continuations, batches, self.ledger):
                ids = torch.tensor(continuations[row], device=read.logits.device)
                log_pi = self._guide.log_probs(read.hidden, read.logits)
                total = log_pi.gather(-1, ids[:, None]).sum()
                found[row] = float(total), bool((log_pi.argmax(-1) == ids).all())
                if requests[row][0] is not None:  # a window of a longer text has no key
                    self.cache_hook.add_partial("loglikelihood", requests[row][0], found[row])
        return found

    def _batches(
        self, contexts: list[list[int]], continuations: list[list[int]], override_bs: int | None
    ) -> list[list[int]]:
        """Rows by length, the longest first, so that too large a batch fails at once. Rows with one context lie together."""
        size = int(override_bs or self.batch_size)
        order = sorted(
            range(len(contexts)), key=lambda row: (-len(contexts[row]), contexts[row], -len(continuations[row]))
        )
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        guide = self.policy.guide
        with ExitStack() as stack:
            stack.enter_context(self.policy.policy_context())
            for proxy, strength in zip(guide.proxies, guide.strengths, strict=True) if guide is not None else ():
                stack.enter_context(attach(self.policy.model, proxy, strength=strength))
            sampled = super()._model_generate(context, max_length, stop, **generation_kwargs)
        new = sampled.shape[0] * (sampled.shape[1] - context.shape[1])
        self.ledger.count(lm_forward_tokens=context.numel() + new, generated_tokens=new)
        return sampled


def check_scores(policy: Policy) -> None:
    """Check that a policy gives every text a log-likelihood.

    Raises:
        FrugalignError: it does not.
    """
    parts = {
        "best_of_n": policy.best_of_n is not None,
        "guiding_reward": policy.guidance is not None,
        "principles": policy.principles is not None,
        "a proxy with candidate_features lookahead": policy.guide is not None and policy.guide.needs_lookahead,
    }
    if given := [name for name, is_given in parts.items() if is_given]:
        hint = " Give lm-eval the principles as --system_instruction." if given == ["principles"] else ""
        raise FrugalignError(f"lm-eval scores texts by their log-likelihood, which {given[0]} does not give.{hint}")
