"""A policy that samples, for chat, generate, evaluate and the study. `loading` builds one from its specification.

A `Policy` keeps its base, so both can answer the same prompts on the same noise and their KL can be measured.
Only `encode` puts principles before prompts. Rewards read the prompts without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, SAMPLED, work
from frugalign.base.quantities import KL_PARTS
from frugalign.data.templating import AUTO, Prompt, Rendering, encode_prompts
from frugalign.decoding.chooser import BaseGuide, Chooser
from frugalign.decoding.log_probs import Reference, compare_sequences, sequence_log_probs
from frugalign.decoding.loop import Generation, LoopOptions, Observer, generate
from frugalign.decoding.noise import row_keys
from frugalign.engines.engine import Engine
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import TransformersEngine, context_length, sampling_temperature
from frugalign.policies.best_of_n import BestOfN, Draw
from frugalign.policies.principles import Principles, under_principles
from frugalign.policies.prompt_rows import PromptBatch, PromptRows
from frugalign.policies.reward_guided import RewardGuidance
from frugalign.policies.spec import PolicySpec, SamplingSettings
from frugalign.proxy.guide import ProxyGuide

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Divergence:
    """KL(policy ‖ base at temperature 1) along the policy's own samples, in nats per sequence, `[B]`.

    `kl`: the whole; an upper bound for best-of-n. `parts`: for a guide, what of it the temperature costs, restricting the
    candidates, and choosing among them, by the names of the measures. None where it is unknown. `base_log_probs`: the base's
    log-probability of each completion at temperature 1, where the KL took a pass of the base.
    """

    kl: list[float] | None
    parts: dict[str, list[float]] | None = None
    base_log_probs: list[float] | None = None

    def of(self, row: int) -> dict[str, Any]:
        """What is known of one completion, by the names of the measures."""
        whole = {} if self.kl is None else {"kl_per_sequence": self.kl[row]}
        return whole | {name: part[row] for name, part in (self.parts or {}).items()}


@dataclass(frozen=True)
class Record:
    """What to record while sampling, beside the completions.

    `observer` is called at every step. `trace` keeps the proposals behind each token. `state_layers` are the hidden layers
    whose endpoint states are kept. Best-of-n records the trace of the kept draw only.
    """

    observer: Observer | None = None
    trace: bool = False
    state_layers: Sequence[int] = ()


_NO_RECORD = Record()


@dataclass(frozen=True)
class Policy:
    """A policy, with its base.

    `model` inside `policy_context` samples, under `guide` if there is one. `base_model` inside `base_context` is the base, also
    where the policy's context is open. `artefact` is the first proxy's config, whose settings are the defaults. `best_of_n` and `guidance` change the decoding and read the prompts.
    """

    spec: PolicySpec
    base: LoadedModel
    model: PreTrainedModel
    base_model: PreTrainedModel
    trainable_parameters: int = 0
    base_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    policy_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    guide: ProxyGuide | None = None
    artefact: Any = None
    principles: Principles | None = None
    best_of_n: BestOfN | None = None
    guidance: RewardGuidance | None = None
    base_parameters: int = 0

    @property
    def kind(self) -> str:
        """The parts on top of the base, joined by `+`; `base` if there are none."""
        return self.spec.kind

    def with_defaults(self, settings: SamplingSettings, max_new_tokens: int = DEFAULT_NEW_TOKENS) -> SamplingSettings:
        """The settings with open values filled in: the proxy's values, else the defaults.

        Raises:
            FrugalignError: a temperature other than the one that the proxy was trained at.
        """
        artefact, own = self.artefact, settings.chat_template_kwargs
        if artefact is None:
            return replace(
                settings,
                max_new_tokens=settings.max_new_tokens or max_new_tokens,
                temperature=settings.temperature or sampling_temperature(self.base_model),
                prompt_format=settings.prompt_format or "auto",
            )
        if settings.temperature not in (None, artefact.temperature):
            raise FrugalignError(
                f"The proxy was trained at temperature {artefact.temperature:g} and cannot be used at {settings.temperature:g}."
            )
        return replace(
            settings,
            max_new_tokens=settings.max_new_tokens or artefact.max_new_tokens,
            temperature=artefact.temperature,
            prompt_format=settings.prompt_format or artefact.prompt_format,
            chat_template_kwargs=artefact.chat_template_kwargs if own is None else own,
            max_prompt_length=settings.max_prompt_length or artefact.max_prompt_length,
        )

    def under_principles(self, prompts: Sequence[Prompt], rendering: Rendering = AUTO) -> list[Prompt]:
        """The prompts as the policy reads them: with its principles before them, if it has any."""
        if self.principles is None:
            return list(prompts)
        return under_principles(self.principles, prompts, self.base.tokenizer, rendering)

    def encode(
        self,
        rows: PromptRows,
        settings: SamplingSettings,
        *,
        numbers: Sequence[int] | None = None,
        num_samples: int = 1,
        epoch: int = 0,
    ) -> PromptBatch:
        """Encode the rows as the policy reads them and as the base does, each `num_samples` times.

        Args:
            numbers: the prompts' numbers, which select their noise. Default: their positions.
            epoch: selects the noise, too. Different epochs have independent noise.

        Raises:
            FrugalignError: a prompt that leaves no room for the completion, or that cannot follow principles.
        """
        tokenizer, rendering = self.base.tokenizer, settings.rendering

        def encoded(prompts: Sequence[Any]) -> Sequence[list[int]]:
            return encode_prompts(
                prompts,
                tokenizer,
                max_prompt_length=settings.max_prompt_length,
                max_context=context_length(self.base.model),
                max_new_tokens=settings.max_new_tokens or 1,
                rendering=rendering,
            ).ids

        plain = encoded(rows.prompts)
        ids = plain if self.principles is None else encoded(self.under_principles(rows.prompts, rendering))
        index = [row for row in range(len(rows)) for _ in range(num_samples)]
        numbers = range(len(rows)) if numbers is None else numbers
        samples = [sample for _ in range(len(rows)) for sample in range(num_samples)]
        keys = row_keys(settings.seed, epoch, [numbers[row] for row in index], samples)
        return PromptBatch(rows.take(index), [ids[row] for row in index], [plain[row] for row in index], keys, index)

    def sample(
        self,
        batch: PromptBatch,
        settings: SamplingSettings,
        *,
        batch_size: int = 64,
        ledger: Ledger | None = None,
        record: Record = _NO_RECORD,
        draw: Draw | None = None,
    ) -> Generation:
        """The policy's completions.

        Args:
            draw: what best-of-n draws with, if not with the policy itself.

        Raises:
            FrugalignError: a reward that fails, or best-of-n with greedy decoding.
        """
        if self.best_of_n is not None and not settings.do_sample:
            raise FrugalignError(
                "best_of_n chooses among random draws, so it cannot decode greedily: leave do_sample on."
            )
        params, ledger = settings.params(), ledger or Ledger()
        guide: Chooser | None = self.guide
        if self.guidance is not None:
            sampling = replace(self.base, model=self.model)
            guide = self.guidance.guide(sampling, batch.rows, params.temperature, batch.keys, ledger)

        def own(ids: Sequence[Sequence[int]], keys: Tensor) -> Generation:
            options = LoopOptions(
                batch_size=batch_size,
                observer=record.observer if self.best_of_n is None else None,
                state_layers=record.state_layers if self.best_of_n is None else (),
                record_trace=record.trace,
            )
            with self.policy_context():
                engine = self._engine(self.model)
                return generate(engine, ids, params, keys=keys, guide=guide, options=options, ledger=ledger)

        with work("sampling", len(batch.ids) * self.draws * params.max_new_tokens, SAMPLED):
            if self.best_of_n is None:
                return own(batch.ids, batch.keys)
            return self.best_of_n.sample(draw or own, batch, self.base.tokenizer, batch_size, ledger)

    def sample_base(
        self,
        batch: PromptBatch,
        settings: SamplingSettings,
        *,
        batch_size: int = 64,
        ledger: Ledger | None = None,
    ) -> Generation:
        """The base's completions of the same prompts on the same noise, without principles."""
        params = settings.params()
        total = len(batch.base_ids) * params.max_new_tokens
        with self.base_context(), work("sampling the base", total, SAMPLED):
            return generate(
                self._engine(self.base_model),
                batch.base_ids,
                params,
                keys=batch.keys,
                options=LoopOptions(batch_size=batch_size),
                ledger=ledger,
            )

    def divergence(
        self, batch: PromptBatch, sampled: Generation, settings: SamplingSettings, ledger: Ledger | None = None
    ) -> Divergence:
        """KL to the base over the full vocabulary, along the policy's own samples.

        The decoding loop computes it for a guide on the plain base. An adapter, a whole model, a steering vector or principles
        need a teacher-forced pass, under the proxies if there are any. Best-of-n of the base reports its known bound. The KL is
        unknown under greedy decoding, for best-of-n of anything else, and for a pass under a guide that reads more than
        states: a guiding reward, or a proxy with lookahead.
        """
        if not batch.ids:
            return Divergence([])
        moved = self.needs_kl_pass
        guided = self.guide is not None or self.guidance is not None
        cannot_pass = self.guidance is not None or (self.guide is not None and self.guide.needs_lookahead)
        if not settings.do_sample or (self.best_of_n is not None and (moved or guided)) or (moved and cannot_pass):
            return Divergence(None)
        if not moved:
            parts = {name: getattr(sampled, name) for name in KL_PARTS}
            if any(part is None for part in parts.values()):
                return Divergence(None)
            kl = sum(parts.values()).tolist()
            return Divergence(kl, {name: part.tolist() for name, part in parts.items()} if guided else None)
        ids = sampled.completion_ids
        fed = _tokens(batch.ids, ids) + _tokens(batch.base_ids, ids)
        with work("KL", fed, FED), self.policy_context():
            compared = compare_sequences(
                self.model,
                Reference(self.base_model, self.base_context, batch.base_ids),
                batch.ids,
                ids,
                guide=self.guide or BaseGuide(settings.params().temperature),
                ledger=ledger,
            )
        return Divergence(compared.kl.tolist(), base_log_probs=compared.reference_log_probs.tolist())

    def base_log_probs(self, batch: PromptBatch, sampled: Generation, ledger: Ledger | None = None) -> list[float]:
        """The base's log-probability of each completion at temperature 1, in nats."""
        with self.base_context(), work("perplexity", _tokens(batch.base_ids, sampled.completion_ids), FED):
            found = sequence_log_probs(self.base_model, batch.base_ids, sampled.completion_ids, ledger=ledger)
        return [float(values.sum()) for values in found]

    @property
    def draws(self) -> int:
        """Responses sampled for each one that is kept."""
        return 1 if self.best_of_n is None else self.best_of_n.n

    @property
    def needs_kl_pass(self) -> bool:
        """Whether the KL to the base takes a pass of both models, since sampling does not give it."""
        return self._weights_differ or self.principles is not None

    def _engine(self, model: PreTrainedModel) -> Engine:
        """What samples from the model. Another engine for policies begins here."""
        return TransformersEngine(model, self.base.tokenizer)

    @property
    def _weights_differ(self) -> bool:
        return self.model is not self.base_model or self.base_context is not nullcontext


def _tokens(prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> int:
    """The tokens of a teacher-forced pass. The last token of a completion is not fed."""
    return sum(
        len(prompt) + len(ids) - 1 for prompt, ids in zip(prompt_ids, completion_ids, strict=True) if len(ids) > 0
    )
