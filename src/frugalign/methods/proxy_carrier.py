"""A proxy as the trained weights. Its base stays frozen, is in memory once, and reads every answer once.

What the proxy reads of an answer is found by the answer's token ids, so further epochs and the reference take no pass. The
base's states do not move: the confidence of probes in a label is fixed, and so is their ranking of stored responses.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.engines.fingerprints import BaseFingerprint, fingerprint
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import embedding_rows, set_up
from frugalign.methods.answer_features import AnswerFeatures, Answers, Proposals, answer_features, joined
from frugalign.methods.answer_scores import ScoredAnswers, score_stored
from frugalign.methods.carriers import Carrier, EveryWeight, GivenAdapter, Lora, StartingModel
from frugalign.methods.log_probs import Reading, Scored
from frugalign.methods.proxies import feature_store, given_proxy, prepare_proxy, settle_temperature
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel, load_proxy
from frugalign.runs.shard_store import ShardStore

Key = tuple[bytes, bytes]
"""The token ids of a prompt with its answer, and which of them count."""


class ReadAnswers:
    """The features of answers, found by their token ids. The features are on the disk, and only the keys in memory."""

    def __init__(self, base: LoadedModel, proposals: Proposals, store: ShardStore) -> None:
        self._base, self._proposals, self._store = base, proposals, store
        self._sets: dict[str, dict[Key, tuple[AnswerFeatures, int]]] = {}

    def read(self, name: str, answers: Answers, ledger: Ledger, layers: Sequence[int]) -> None:
        """Read these answers through the base, in place of the set of this `name`, which is forgotten."""
        masks = answers.masks or [[1] * len(ids) for ids in answers.answer_ids]
        rows: dict[Key, int] = {}
        for row, (prompt, ids, mask) in enumerate(zip(answers.prompt_ids, answers.answer_ids, masks, strict=True)):
            rows.setdefault(_key([*prompt, *ids], [0] * len(prompt) + list(mask)), row)
        each = rows.values()
        distinct = Answers(
            [answers.prompt_ids[row] for row in each],
            [answers.answer_ids[row] for row in each],
            None if answers.masks is None else [answers.masks[row] for row in each],
        )
        features = answer_features(
            self._base.model, self._base.tokenizer, distinct, self._proposals, self._store, layers=layers
        )
        # Features that the store already holds count as what they cost when they were computed.
        ledger.count(lm_forward_tokens=features.n_tokens)
        self._sets[name] = {key: (features, place) for place, key in enumerate(rows)}

    def of(self, keys: Iterable[Key]) -> list[tuple[AnswerFeatures, int]]:
        """Where the features of these answers are, which must have been read."""
        every = ChainMap(*self._sets.values())
        return [every[key] for key in keys]


class Proxy(Carrier):
    """A proxy for a frozen model, which is the start.

    Args:
        base: the frozen model.
        args: a config with `Trained`, a temperature, which is settled if it was not given, and a seed.

    Raises:
        FrugalignError: a base that is itself in training, or `initial_proxy` is not one for this base and these options.
    """

    policy: ProxyModel
    passes = 0

    def __init__(self, base: LoadedModel, args: Any) -> None:
        lm: Any = base.model
        if isinstance(lm, PeftModel):
            raise FrugalignError("A proxy's base is frozen, and this model has an adapter: merge it first.")
        self._lm = lm.eval().requires_grad_(False)
        set_up(self._lm)
        self.policy = prepare_proxy(given_proxy(args), base, _about(base), args)
        reads_tokens = self.policy.config.candidate_features == "embedding"
        self._embeddings = embedding_rows(self._lm) if reads_tokens else None
        proposals = Proposals(self.policy.config.temperature, self.policy.limits)
        self._answers = ReadAnswers(base, proposals, feature_store(args))

    @property
    def lm(self) -> Any:
        return self._lm

    def guide(self) -> ProxyGuide:
        """With the keys of the whole vocabulary under the proxy as it is now."""
        return ProxyGuide.build([self.policy], embedding_rows(self._lm))

    def read(self, name: str, answers: Answers, ledger: Ledger, layers: list[int] | None = None) -> None:
        with ledger.phase("read"):
            self._answers.read(name, answers, ledger, layers or [])

    def score(self, model: nn.Module, batch: dict[str, Tensor], reading: Reading | None = None) -> Scored:
        mask = batch["completion_mask"][:, 1:].bool()
        places = self._answers.of(_keys(batch))
        found = self._score(model, places, mask.device)
        log_probs = found.by_token.new_zeros(mask.shape).masked_scatter(mask, found.by_token)
        states = None
        if reading is not None:
            states = torch.cat([features.states([row]) for features, row in places]).to(mask.device)
        return Scored(log_probs, mask, states, log_ratio=found.log_ratio, kl=found.kl)

    def _score(self, model: nn.Module, places: list[tuple[AnswerFeatures, int]], device: torch.device) -> ScoredAnswers:
        features = joined([features.answer(row) for features, row in places]).to(device)
        return score_stored(model, features, self.policy.config.objective, self._embeddings)

    @torch.no_grad()
    def log_probs(
        self, prompt_ids: Sequence[Sequence[int]], answer_ids: Sequence[Sequence[int]], batch_size: int, ledger: Ledger
    ) -> Tensor:
        keys = [
            _key([*prompt, *ids], [0] * len(prompt) + [1] * len(ids))
            for prompt, ids in zip(prompt_ids, answer_ids, strict=True)
        ]
        places, device = self._answers.of(keys), next(self.policy.parameters()).device
        parts = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
        return torch.cat([self._score(self.policy, part, device).log_prob for part in parts]).cpu()

    def before(self) -> StartingModel:
        return StartingModel(self._lm)

    def save(self, folder: Path, tokenizer: Any, base: BaseFingerprint) -> None:
        self.policy.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        self.policy.load_state_dict(load_proxy(folder).state_dict())


def _about(base: LoadedModel) -> BaseFingerprint:
    return fingerprint(base.model, base.tokenizer, name=base.name, revision=base.revision)


def carrier_of(model: Any, tokenizer: Any, args: Any, *, keeps_start: bool) -> Carrier:
    """The carrier that `args` selects for this model. A temperature that was not given is settled."""
    if args.train == "proxy":
        return Proxy(LoadedModel(model, tokenizer, str(args.model_name_or_path or ""), args.revision), args)
    settle_temperature(args, model, None)
    if isinstance(model, PeftModel):
        return GivenAdapter(model)
    return Lora(model, args) if args.train == "lora" else EveryWeight(model, keeps_start=keeps_start)


def _key(ids: Sequence[int], mask: Sequence[int]) -> Key:
    return torch.tensor(ids, dtype=torch.int64).numpy().tobytes(), bytes(mask)


def _keys(batch: dict[str, Tensor]) -> list[Key]:
    """The keys of a padded batch's rows."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = zip(batch["input_ids"].tolist(), batch["completion_mask"].tolist(), lengths, strict=True)
    return [_key(ids[:length], mask[:length]) for ids, mask, length in rows]
