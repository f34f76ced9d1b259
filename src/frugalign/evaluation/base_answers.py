"""Answers of the base that several evaluations share. Each of them compares a policy with the base on the same prompts and noise, so the base
answers once. What best-of-n draws is kept too.

A file per question, with one answer to each prompt: a hash of the base's weights, the token ids of the prompts, the noise and the sampling settings
names it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor

from frugalign.base.files import write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.base.ledger import Ledger
from frugalign.decoding.loop import Generation
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.sharding import is_tensor_parallel
from frugalign.policies.best_of_n import Draw
from frugalign.policies.policy import Policy
from frugalign.policies.prompt_rows import PromptBatch
from frugalign.policies.spec import SamplingSettings


class _Answers(TypedDict):
    completion_ids: list[list[int]]
    ended: list[bool]
    kl_temperature: list[float] | None
    generated_tokens: int
    lm_forward_tokens: float
    seconds: float


@dataclass(frozen=True)
class BaseAnswers:
    """The answers of a base, kept in a folder. Without one, nothing is kept."""

    folder: Path | None

    def sample(
        self, policy: Policy, batch: PromptBatch, settings: SamplingSettings, batch_size: int, ledger: Ledger
    ) -> Generation:
        """What the policy's base answers. The ledger counts the tokens and the seconds of stored answers too."""
        return self.draw(policy, batch, settings, batch_size, ledger)(batch.base_ids, batch.keys)

    def draw(
        self, policy: Policy, batch: PromptBatch, settings: SamplingSettings, batch_size: int, ledger: Ledger
    ) -> Draw:
        """A function of the base's prompts, each repeated as often as it is drawn, and of the draws' keys.

        A prompt's first draw is its answer, and a draw is stored by its number: the draws of best-of-4 are among those of best-of-16.
        """

        def drawn(ids: Sequence[Sequence[int]], keys: Tensor) -> Generation:
            number = len(ids) // len(batch.base_ids)
            if self.folder is None or is_tensor_parallel():  # else one process could find what another has just written
                return _sampled(policy, batch, settings, keys, batch_size, ledger)
            began = time.perf_counter()
            parts = [keys[first::number] for first in range(number)]
            paths = [self.folder / f"answers-{_question(policy, batch, part, settings)}.json" for part in parts]
            missing = [place for place, path in enumerate(paths) if not path.is_file()]
            if missing:
                asked, spent = torch.stack([parts[place] for place in missing], 1).flatten(), Ledger()
                found = _sampled(policy, batch, settings, asked, batch_size, spent)
                for place, first in enumerate(missing):
                    write_json_atomic(paths[first], _part(found, place, len(missing), spent))
            known = [cast(_Answers, read_json(path, _Answers)) for path in paths]
            ledger.count(
                round(sum(each["lm_forward_tokens"] for each in known)), sum(each["generated_tokens"] for each in known)
            )
            seconds = sum(each["seconds"] for each in known)
            ledger.add(Ledger(), seconds - (time.perf_counter() - began))
            return _joined(known)

        return drawn


def _sampled(
    policy: Policy, batch: PromptBatch, settings: SamplingSettings, keys: Tensor, batch_size: int, ledger: Ledger
) -> Generation:
    """The base's answers, with as many keys to a prompt as there are, side by side."""
    each = len(keys) // len(batch.base_ids)
    index = [row for row in range(len(batch.base_ids)) for _ in range(each)]
    asked = replace(batch, base_ids=[batch.base_ids[row] for row in index], keys=keys)
    return policy.sample_base(asked, settings, batch_size=batch_size, ledger=ledger)


def _part(found: Generation, first: int, number: int, spent: Ledger) -> _Answers:
    """One draw of each prompt, with its share of what `number` draws cost, by its tokens."""
    ids = found.completion_ids[first::number]
    share = sum(map(len, ids)) / max(1, sum(map(len, found.completion_ids)))
    kl = found.kl_temperature
    return {
        "completion_ids": ids,
        "ended": found.ended[first::number],
        "kl_temperature": None if kl is None else kl[first::number].tolist(),
        "generated_tokens": sum(map(len, ids)),
        "lm_forward_tokens": share * spent.lm_forward_tokens,
        "seconds": share * spent.wall_clock_seconds,
    }


def _joined(draws: Sequence[_Answers]) -> Generation:
    """The draws of a prompt, side by side. The base neither restricts its candidates nor chooses among them."""
    size = len(draws[0]["completion_ids"])
    kl = [each["kl_temperature"] for each in draws]
    known = None if any(each is None for each in kl) else torch.tensor(kl, dtype=torch.float64).T.flatten()
    zero = None if known is None else torch.zeros_like(known)
    return Generation(
        [each["completion_ids"][row] for row in range(size) for each in draws],
        [each["ended"][row] for row in range(size) for each in draws],
        kl_temperature=known,
        kl_restriction=zero,
        kl_choice=zero,
    )


def _question(policy: Policy, batch: PromptBatch, keys: Tensor, settings: SamplingSettings) -> str:
    """A hash of everything that the base's answers depend on."""
    with policy.base_context():
        base = fingerprint(policy.base_model, policy.base.tokenizer, without_adapter=True).identity
    params = settings.params()
    how = [params.max_new_tokens, params.temperature, params.do_sample]
    asked = [base, str(policy.base_model.dtype), [list(ids) for ids in batch.base_ids], keys.tolist(), how]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
