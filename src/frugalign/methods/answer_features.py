"""The feature cache: what a proxy reads of stored answers, from one pass through the frozen base (`docs/methods/proxy.md#stored-data`).

At every token of an answer it keeps the head's input, the candidates with the log-probabilities of proposing them, the column of the
answer's own token, and the token's log-probability under the base. From then on training runs the proxy alone. Candidates are
stored without padding. Rows are read from the disk as they are needed, so memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, work
from frugalign.base.wording import pluralize
from frugalign.data.stored_lists import array_of, lengths_of
from frugalign.decoding.log_probs import Read, read_completions, tokens_to_read
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.sentences import SentenceEnds, sentence_ends
from frugalign.engines.sharding import replica
from frugalign.engines.transformers import Forward, embedding_rows, evaluating
from frugalign.methods.imitation import Imitated
from frugalign.methods.position_features import BY_ANSWER, BY_COLUMN, by_answer, features_at, shard_of
from frugalign.proxy.candidates import Limits
from frugalign.proxy.positions import Positions
from frugalign.runs.progress import say_size
from frugalign.runs.shard_store import ShardFile, Shards, ShardStore
from frugalign.workers.pool import Pool
from frugalign.workers.record import Piece, Pieces, Record

_SHARD_TOKENS = 8192
"""Tokens that are fed for a shard, on average. A kill loses no more than one shard."""
_LOGIT_BYTES = 256 * 2**20
"""Float32 logits of one batch, at most, unless one answer alone has more."""
_BATCH = 32
_TYPICAL_CANDIDATES = 12
"""Candidates of a position, to estimate how much a key takes on the disk."""
_FORM = 2
"""What a shard holds. It is a part of the key, so that a cache of another version is not read."""


@dataclass(frozen=True)
class Answers:
    """Token ids of prompts and their answers, and which tokens of an answer count: 0 for turns of others."""

    prompt_ids: Sequence[Sequence[int]]
    answer_ids: Sequence[Sequence[int]]
    masks: Sequence[Sequence[int]] | None = None

    def __len__(self) -> int:
        return len(self.answer_ids)

    @property
    def n_tokens(self) -> int:
        """Tokens fed in one pass. The last token of an answer predicts nothing."""
        return int(lengths_of(self.prompt_ids).sum() + lengths_of(self.answer_ids).sum()) - len(self)


@dataclass(frozen=True)
class Proposals:
    """How the base proposes: at a `temperature`, and which tokens are candidates. The tail is kept, since an answer may hold any token."""

    temperature: float
    limits: Limits


@dataclass(frozen=True)
class Teacher:
    """The distribution that the proxy is to imitate: `model` after other `prompt_ids`, at `temperature`."""

    model: Any
    tokenizer: Any
    prompt_ids: Sequence[Sequence[int]]
    temperature: float


@dataclass(frozen=True)
class Features:
    """The positions of some answers. `positions.sequence` counts the answers from 0. `base_log_prob [N]`: of each answer's own token under
    the base. `lengths [n]`: positions of each answer."""

    positions: Positions
    base_log_prob: Tensor
    lengths: Tensor
    imitated: Imitated | None = None

    def to(self, device: torch.device) -> Features:
        """The same on another device."""
        if self.lengths.device == device:
            return self

        def moved(part: Any) -> Any:
            there = {each.name: getattr(part, each.name) for each in fields(part)}
            return replace(part, **{name: value.to(device) for name, value in there.items() if value is not None})

        imitated = None if self.imitated is None else moved(self.imitated)
        return Features(moved(self.positions), self.base_log_prob.to(device), self.lengths.to(device), imitated)


@dataclass(frozen=True)
class AnswerFeatures:
    """Features of `n` answers on the disk. `read` gives those of some of them. `n_tokens`: what the whole pass feeds."""

    shards: Shards
    per_shard: int
    n: int
    n_tokens: int

    def __len__(self) -> int:
        return self.n

    def states(self, rows: Sequence[int]) -> Tensor:
        """The hidden states of the answers `rows` at their last sentence ends, `[n, layers, D]`, if they were asked for."""
        files = [(ShardFile.of(self.shards.files[row // self.per_shard]), row % self.per_shard) for row in rows]
        return torch.cat([file.rows("states", place, place + 1) for file, place in files])

    def answer(self, row: int) -> dict[str, Tensor]:
        """What is stored of one answer, by name, for `joined`."""
        return _answer(self.shards.files[row // self.per_shard], row % self.per_shard)

    def read(self, rows: Sequence[int]) -> Features:
        """The features of the answers `rows`, in this order."""
        return joined([self.answer(row) for row in rows])


def joined(parts: Sequence[dict[str, Tensor]]) -> Features:
    """The features of some answers (`AnswerFeatures.answer`), in this order."""
    lengths = torch.tensor([len(part["choice"]) for part in parts])
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    counts = together["count"].long()
    which = torch.arange(len(counts)).repeat_interleave(counts)
    column = torch.arange(len(which)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    shape = (len(counts), int(counts.max()) if len(counts) else 1)

    def padded(values: Tensor, fill: float) -> Tensor:
        out = torch.full(shape, fill, dtype=values.dtype)
        out[which, column] = values
        return out

    positions = Positions(
        sequence=torch.arange(len(parts)).repeat_interleave(lengths),
        position=together["position"].long(),
        hidden=together["hidden"].float(),
        ids=padded(together["ids"].long(), 0),
        log_p=padded(together["log_p"], -math.inf),
        mask=padded(torch.ones(len(which), dtype=torch.bool), False),
        choice=together["choice"].long(),
    )
    imitated = None
    if "teacher_log_p" in together:
        imitated = Imitated(padded(together["teacher_log_p"], -math.inf), together["teacher_rest"])
    return Features(positions, together["base_log_prob"], lengths, imitated)


def _answer(shard: Path, row: int) -> dict[str, Tensor]:
    """The tensors of one answer of a shard."""
    file = ShardFile.of(shard)
    begins = _begins(shard)
    (start, column), (stop, last) = begins[row].tolist(), begins[row + 1].tolist()
    return {
        name: file.rows(name, *((column, last) if name in BY_COLUMN else (start, stop)))
        for name in file.names
        if name not in BY_ANSWER
    }


@lru_cache(maxsize=4096)
def _begins(shard: Path) -> Tensor:
    return ShardFile.of(shard).rows("begins")


def answer_features(
    model: Any,
    tokenizer: Any,
    answers: Answers,
    proposals: Proposals,
    store: ShardStore,
    *,
    ledger: Ledger | None = None,
    teacher: Teacher | None = None,
    layers: Sequence[int] = (),
    dtype: torch.dtype = torch.bfloat16,
    pool: Pool | None = None,
) -> AnswerFeatures:
    """What a proxy reads of these answers, from the store. What is missing is computed and stored.

    Args:
        model: the frozen base.
        dtype: of the stored states.
        teacher: whose distribution is stored too. Its prompts belong to the same answers.
        layers: indices into `hidden_states` whose states at every answer's last sentence end are stored too, as probes read them.
        pool: of `FeatureWorker`s with the same models and `dtype`, which compute what is missing. Default: this process.

    Raises:
        FrugalignError: an answer without a token that counts, more features than the store may hold, or a full disk.
    """
    _check(answers)
    width = embedding_rows(model).shape[1]
    n_positions = int(lengths_of(answers.answer_ids).sum())
    a_position = width * dtype.itemsize + (12 if teacher is not None else 8) * _TYPICAL_CANDIDATES + 24
    needed = n_positions * a_position + len(answers) * len(layers) * width * 4
    if needed > store.max_bytes:
        raise FrugalignError(
            f"The features of {len(answers):,} answers take about {needed / 2**30:.1f} GiB, and the store may hold "
            f"{store.max_bytes / 2**30:.1f}: raise its bound (--max_cache_gib)."
        )
    # An even number, so that a shard has both answers of a pair.
    per_shard = 2 * max(1, int(_SHARD_TOKENS * len(answers) / max(1, answers.n_tokens)) // 2)
    starts = range(0, len(answers), per_shard)
    parts = [range(start, min(start + per_shard, len(answers))) for start in starts]
    ends = sentence_ends(tokenizer) if layers else None
    reading = FeaturePass(model, answers, proposals, teacher, tuple(layers), ends, dtype, ledger)

    def compute(missing: list[int]) -> Iterator[Mapping[str, Tensor]]:
        rows = [parts[each] for each in missing]
        n_missing, tokens = sum(map(len, rows)), sum(reading.n_tokens(part) for part in rows)
        elsewhere = "stored" if replica().number == 1 else "stored or read by other processes"
        others = "" if n_missing == len(answers) else f" of {len(answers):,}, the others are {elsewhere}"
        if n_missing:
            say_size(0, tokens, f"the features of {pluralize(n_missing, 'answer')}{others}")
        with work("features", tokens, FED):
            yield from map(reading.shard, rows) if pool is None else _shards_of(pool, reading, rows)

    key = _key(model, tokenizer, answers, proposals, teacher, f"{_FORM} {dtype} {per_shard} {list(layers)}")
    shards = store.shards(key, len(parts), compute, needed=needed)
    fed = sum(int(ShardFile.of(file).rows("fed")) for file in shards.files)
    return AnswerFeatures(shards, per_shard, len(answers), fed)


def _shards_of(pool: Pool, reading: FeaturePass, parts: Sequence[Sequence[int]]) -> Iterator[Mapping[str, Tensor]]:
    """The shards of these rows, computed by workers. Only the pieces that are on their way are in memory."""
    pieces = Pieces(len(parts), lambda place: reading.piece(parts[place]))
    for answer in pool.run(pieces, reading.settings()):
        if reading.ledger is not None:
            reading.ledger.count(lm_forward_tokens=int(answer.tensors["fed"]))
        yield answer.tensors


@dataclass(frozen=True)
class FeaturePass:
    """The pass through the base, and through the teacher where there is one."""

    model: Any
    answers: Answers
    proposals: Proposals
    teacher: Teacher | None
    layers: tuple[int, ...]
    ends: SentenceEnds | None
    dtype: torch.dtype
    ledger: Ledger | None

    def n_tokens(self, rows: Sequence[int]) -> int:
        """Tokens that these rows feed."""
        models = [(self.model, self.answers.prompt_ids, self.layers)]
        if self.teacher is not None:
            models.append((self.teacher.model, self.teacher.prompt_ids, ()))
        ids = self.answers.answer_ids
        return sum(
            tokens_to_read(model, [prompts[row] for row in batch], [ids[row] for row in batch], layers=layers)
            for batch in self._batches(rows)
            for model, prompts, layers in models
        )

    def settings(self) -> Record:
        """What all pieces have in common, for a `FeatureWorker`."""
        temperature = None if self.teacher is None else self.teacher.temperature
        proposals = {"temperature": self.proposals.temperature, "limits": asdict(self.proposals.limits)}
        return Record({"proposals": proposals, "layers": list(self.layers), "teacher_temperature": temperature})

    def piece(self, rows: Sequence[int]) -> Piece:
        """The token ids of a shard, for a `FeatureWorker`."""
        answers, taught = self.answers, None if self.teacher is None else self.teacher.prompt_ids
        every = {"prompt_ids": answers.prompt_ids, "answer_ids": answers.answer_ids, "masks": answers.masks}
        every["teacher_prompt_ids"] = taught
        values = {
            name: None if ids is None else [[int(token) for token in ids[row]] for row in rows]
            for name, ids in every.items()
        }
        return Piece(Record(values), FED, self.n_tokens(rows))

    @torch.no_grad()
    def shard(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of a shard: those of every row one after the other. `begins`: where each row begins."""
        found: dict[int, dict[str, Tensor]] = {}
        ids, teacher = self.answers.answer_ids, self.teacher
        for batch in self._batches(rows):
            taught: dict[int, Read] = {}
            if teacher is not None:
                with evaluating(teacher.model), Forward(teacher.model) as forward:
                    taught = dict(read_completions(forward, teacher.prompt_ids, ids, [batch], self.ledger))
            with evaluating(self.model), Forward(self.model) as forward:
                prompts = self.answers.prompt_ids
                read = dict(read_completions(forward, prompts, ids, [batch], self.ledger, layers=self.layers))
            found |= zip(batch, self._of_batch(batch, read, taught), strict=True)
        return shard_of([found[row] for row in rows], self.n_tokens(rows))

    def _batches(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows in batches of similar length, whose logits take a bounded part of the memory. Answers in a row to one prompt stay together,
        so that it is fed once."""
        ids, vocabulary = self.answers.answer_ids, embedding_rows(self.model).shape[0]
        together = [list(group) for _, group in groupby(rows, key=lambda row: tuple(self.answers.prompt_ids[row]))]
        parts: list[list[int]] = []
        for group in together:
            a_row = max(len(ids[row]) for row in group) * vocabulary * 4
            most = max(1, min(_BATCH, _LOGIT_BYTES // a_row))
            parts += [group[start : start + most] for start in range(0, len(group), most)]
        batches: list[list[int]] = []
        for longest, part in sorted((max(len(ids[row]) for row in part), part) for part in parts):
            size = len(part) + (len(batches[-1]) if batches else 0)
            if batches and size <= _BATCH and size * longest * vocabulary * 4 <= _LOGIT_BYTES:
                batches[-1] += part
            else:
                batches.append(part)
        return batches

    def _of_batch(self, rows: Sequence[int], read: dict[int, Read], taught: dict[int, Read]) -> list[dict[str, Tensor]]:
        """The tensors of every answer of a batch. All positions are worked on at once, since answers are many and short."""
        device, temperature, answers = read[rows[0]].logits.device, self.proposals.temperature, self.answers
        ids = torch.tensor([token for row in rows for token in answers.answer_ids[row]], device=device)
        place = torch.cat([torch.arange(len(answers.answer_ids[row])) for row in rows]).to(device)
        counts = torch.ones(len(ids), dtype=torch.bool, device=device)
        if answers.masks is not None:
            counts = torch.tensor([bool(each) for row in rows for each in answers.masks[row]], device=device)
        hidden, logits = (
            torch.cat([getattr(read[row], name) for row in rows])[counts] for name in ("hidden", "logits")
        )
        said = None
        if self.teacher is not None:
            said = torch.cat([taught[row].logits for row in rows])[counts] / self.teacher.temperature
        made = features_at(hidden, logits, ids[counts], temperature, self.proposals.limits, self.dtype, said)
        lengths = [
            len(answers.answer_ids[row]) if answers.masks is None else sum(map(bool, answers.masks[row]))
            for row in rows
        ]
        each = by_answer(made | {"position": place[counts].int()}, lengths)
        if self.ends is not None:
            for row, found in zip(rows, each, strict=True):
                states, end = read[row].states, len(self.ends.read((), answers.answer_ids[row]))
                assert states is not None
                found["states"] = states[end - 1 : end].cpu()
        return each


def _check(answers: Answers) -> None:
    lengths = lengths_of(answers.answer_ids)
    for row in range(len(answers)) if answers.masks is not None or not lengths.all() else ():
        if not lengths[row] or (answers.masks is not None and not any(answers.masks[row])):
            raise FrugalignError(f"Answer {row + 1} has no tokens, so there is nothing to learn from it.")


def _key(model: Any, tokenizer: Any, answers: Answers, proposals: Proposals, teacher: Teacher | None, form: str) -> str:
    """A hash of everything that the features depend on. The token ids reflect the chat template."""
    about: list[Any] = [fingerprint(model, tokenizer).identity, str(model.dtype), form]
    about += [proposals.temperature, proposals.limits.p_t, proposals.limits.max_candidates]
    rows: list[Sequence[Sequence[int]]] = [answers.prompt_ids, answers.answer_ids]
    rows += [] if answers.masks is None else [answers.masks]
    if teacher is not None:
        identity = fingerprint(teacher.model, teacher.tokenizer).identity
        about += [identity, str(teacher.model.dtype), teacher.temperature]
        rows.append(teacher.prompt_ids)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for part in rows:
        digest.update(b"\n")
        for row in range(len(part)):
            digest.update(array_of(part, row).tobytes() + b"\n")
    return digest.hexdigest()[:24]
