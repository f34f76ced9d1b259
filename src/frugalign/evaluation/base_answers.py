"""Answers of the base that several evaluations share. Each of them compares a policy with the base on the same prompts and noise, so the base
answers once.

A file per question: a hash of the base's weights, the token ids of the prompts, the noise and the sampling settings names it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from frugalign.base.files import write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.base.ledger import Ledger
from frugalign.decoding.loop import Generation
from frugalign.engines.fingerprints import fingerprint
from frugalign.policies.policy import Policy
from frugalign.policies.prompt_rows import PromptBatch
from frugalign.policies.spec import SamplingSettings


class _Answers(TypedDict):
    completion_ids: list[list[int]]
    ended: list[bool]
    generated_tokens: int
    lm_forward_tokens: int


@dataclass(frozen=True)
class BaseAnswers:
    """The answers of a base, kept in a folder. Without one, nothing is kept."""

    folder: Path | None

    def sample(
        self, policy: Policy, batch: PromptBatch, settings: SamplingSettings, batch_size: int, ledger: Ledger
    ) -> Generation:
        """What the policy's base answers. The ledger counts the tokens of stored answers too."""
        if self.folder is None:
            return policy.sample_base(batch, settings, batch_size=batch_size, ledger=ledger)
        path = self.folder / f"answers-{_question(policy, batch, settings)}.json"
        if not path.is_file():
            spent = Ledger()
            found = policy.sample_base(batch, settings, batch_size=batch_size, ledger=spent)
            answers: _Answers = {
                "completion_ids": found.completion_ids,
                "ended": found.ended,
                "generated_tokens": spent.generated_tokens,
                "lm_forward_tokens": spent.lm_forward_tokens,
            }
            write_json_atomic(path, answers)
        known = read_json(path, _Answers)
        ledger.count(known["lm_forward_tokens"], known["generated_tokens"])
        return Generation(known["completion_ids"], known["ended"])


def _question(policy: Policy, batch: PromptBatch, settings: SamplingSettings) -> str:
    """A hash of everything that the base's answers depend on."""
    with policy.base_context():
        base = fingerprint(policy.base_model, policy.base.tokenizer, without_adapter=True).identity
    params = settings.params()
    how = [params.max_new_tokens, params.temperature, params.do_sample]
    asked = [base, str(policy.base_model.dtype), [list(ids) for ids in batch.base_ids], batch.keys.tolist(), how]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
