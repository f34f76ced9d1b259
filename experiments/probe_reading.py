"""Where probes read an answer: at its last token, there with truncated copies in the fit, or at its last sentence end.

    FRUGALIGN_TRIALS=folder python -m experiments.probe_reading [--smoke]

Probes learn from pairs of short PKU-SafeRLHF answers, in four splits by prompt, with the default penalties. The test cuts answers: which share of
pairs is still in order at 70 % of the tokens, how those rewards correlate with the whole answers', and how far a reward moves while the last 0 to 6
tokens are cut (standard deviation, between answers = 1). All readings use the middle third of the layers; other layers are read at the last
sentence end. SmolLM2-135M-Instruct is expected as `models/smollm2-135m` and left out if it is missing.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.chat import rows_of
from experiments.summary import script_options, write_summary
from experiments.trials import NAMED, model_folder, trials
from torch import Tensor

from frugalign.engines.encode import encode_for_model
from frugalign.engines.loading import load_model
from frugalign.engines.sentences import sentence_ends
from frugalign.methods.representation_reward.options import RewardOptions
from frugalign.methods.representation_reward.run import layer_blocks
from frugalign.rewards.representation.fit import Examples, FitOptions, FitResult, fit

COMMAND = f"{NAMED} python -m experiments.probe_reading"
BASES = {"chat-3m": 541, "smollm2-135m": 230}  # pairs
CUT, SHARES, TAIL, SPLITS = 0.7, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 7, 4
BLOCKS = ("first third", "last sentence end", "last third", "all layers")
READINGS = {"last token": (False, 0), "and 3 truncated copies": (False, 3), "last sentence end": (True, 0)}


class Answers:
    """The states of whole and cut answers, two per pair, the better one first: `states [N, layers, D]`."""

    def __init__(self, name: str, n_pairs: int) -> None:
        base, sides = load_model(model_folder(name)), ("chosen", "rejected")
        pairs = rows_of(trials() / "data" / "pku-saferlhf-pairs.jsonl.gz")
        pairs = [row for row in pairs if len(row["prompt"]) < 200 and all(120 < len(row[side]) < 420 for side in sides)]
        random.Random(0).shuffle(pairs)
        self.prompts = [row["prompt"] for row in pairs[:n_pairs] for _ in sides]
        answers = [row[side] for row in pairs[:n_pairs] for side in sides]
        encoded = encode_for_model(base.model, base.tokenizer, self.prompts, answers)
        ends = sentence_ends(base.tokenizer)
        self.lengths = [len(answer) - 1 for answer in encoded.completion_ids]  # without the end token
        self.rows: list[dict[tuple[int, bool], int]] = []
        places: list[list[int]] = []
        for prompt, answer, text in zip(encoded.prompt_ids, encoded.completion_ids, self.lengths, strict=True):
            cuts = {text + 1, *(text - less for less in range(TAIL)), *(round(share * text) for share in SHARES)}
            read = {(n, False): len(prompt) + n - 1 for n in cuts}
            read |= {(n, True): len(ends.read(prompt, answer[:n])) - 1 for n in cuts}
            own, start = sorted(set(read.values())), sum(map(len, places))
            self.rows.append({cut: start + own.index(place) for cut, place in read.items()})
            places.append(own)
        self.states = states_at(base.model, encoded.ids, places)

    def row(self, number: int, at_sentence: bool, share: float | None = None, less: int = 0) -> int:
        """The row of an answer: whole with its end token, or cut at `share` of its tokens and `less` tokens before."""
        n = self.lengths[number] + 1 if share is None else round(share * self.lengths[number]) - less
        return self.rows[number][n, at_sentence]

    def pairs(self, prompts: set[str], at_sentence: bool, copies: int) -> Examples:
        """The pairs of these prompts, whole, and `copies` times cut."""
        rng, found = random.Random(0), []
        for first in range(0, len(self.prompts), 2):
            if self.prompts[first] in prompts:
                for share in [None, *rng.sample(SHARES, copies)]:
                    found.append([self.row(number, at_sentence, share) for number in (first, first + 1)])
        return Examples(*torch.tensor(found).T)


@torch.no_grad()
def states_at(model: Any, rows: list[list[int]], places: list[list[int]]) -> Tensor:
    """`hidden_states[1:]` at each row's places, `[N, layers, D]` float16."""
    found: dict[int, Tensor] = {}
    for part in torch.tensor(sorted(range(len(rows)), key=lambda row: len(rows[row]))).split(8):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[row]) for row in part], batch_first=True)
        layers = model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[1:]
        for index, row in enumerate(part.tolist()):
            found[row] = torch.stack([layer[index, places[row]] for layer in layers], 1).half()
    return torch.cat([found[row] for row in range(len(rows))])


def best_fit(answers: Answers, columns: list[int], train: Examples, validation: Examples) -> FitResult:
    """The fit whose penalty has the lowest validation loss."""
    states, penalties = answers.states[:, columns], RewardOptions().weight_decay
    settings = [FitOptions(weight_decay=each, max_iterations=40, patience=6) for each in penalties]
    data = train, validation, columns, states.shape[2]
    return min((fit(lambda n: states[n].float(), *data, each) for each in settings), key=lambda f: f.validation_loss)


@torch.no_grad()
def measures(answers: Answers, model: Any, test: set[str], at_sentence: bool) -> dict[str, float]:
    """A row of the table, for one split."""
    numbers = [number for number, prompt in enumerate(answers.prompts) if prompt in test]
    rewards = torch.cat([model(part[:, model.config.layers].float()) for part in answers.states.split(1024)]).numpy()
    whole, cut = (rewards[[answers.row(number, at_sentence, share) for number in numbers]] for share in (None, CUT))
    tails = rewards[[[answers.row(number, at_sentence, 1.0, less) for less in range(TAIL)] for number in numbers]]
    return {
        "whole, %": 100 * float((whole[::2] > whole[1::2]).mean()),
        "cut at 70 %, %": 100 * float((cut[::2] > cut[1::2]).mean()),
        "correlation": float(np.corrcoef(whole, cut)[0, 1]),
        "spread": float(tails.std(1).mean() / whole.std()),
    }


def table(answers: Answers) -> dict[str, dict[str, float]]:
    """The rows of one base: means over the splits, and the standard error of the accuracy on whole answers."""
    columns = dict(zip(BLOCKS, layer_blocks(answers.states.shape[1]), strict=True))
    found = defaultdict(list)
    for seed in range(SPLITS):
        prompts = random.Random(seed).sample(sorted(set(answers.prompts)), len(set(answers.prompts)))
        a, b = int(0.3 * len(prompts)), int(0.45 * len(prompts))
        test, validation, train = set(prompts[:a]), set(prompts[a:b]), set(prompts[b:])
        fits = {}
        for title in dict.fromkeys((*READINGS, *BLOCKS)):
            at_sentence, copies = READINGS.get(title, (True, 0))
            learned = [answers.pairs(part, at_sentence, copies) for part in (train, validation)]
            fitted = best_fit(answers, columns.get(title, columns[BLOCKS[1]]), *learned)
            fits[title] = fitted, measures(answers, fitted.model, test, at_sentence)
        fits["layers by validation"] = min((fits[title] for title in BLOCKS), key=lambda each: each[0].validation_loss)
        for title, (_, row) in fits.items():
            found[title].append(row)
    return {
        title: {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        | {"standard error": float(np.std([row["whole, %"] for row in rows], ddof=1) / len(rows) ** 0.5)}
        for title, rows in found.items()
    }


def main() -> None:
    """Read, fit, measure, write and print, one base after the other."""
    is_smoke, rows = script_options(__doc__).smoke, {}
    there = [name for name in BASES if Path(model_folder(name)).is_dir()]
    for name in there[: 1 if is_smoke else None]:
        for title, row in table(Answers(name, 30 if is_smoke else BASES[name])).items():
            rows[f"{name}: {title}"] = row
            print(f"{name}: {title:40} {row}", flush=True)
        if not is_smoke:
            write_summary("probe-reading", COMMAND, "chat-3m, 3.0 million; SmolLM2-135M-Instruct", rows)


if __name__ == "__main__":
    main()
