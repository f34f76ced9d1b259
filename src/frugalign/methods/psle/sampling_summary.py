"""What a round's responses say before it trains on them: the gain of the principles, refusals, ranked couples. In one line, with warnings."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from frugalign.base.progress_display import say
from frugalign.base.wording import pluralize
from frugalign.data.encode import as_completions
from frugalign.evaluation.schema import few_prompts
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.responses import Round, ScoredResponses
from frugalign.methods.psle.round_eval import RoundEvaluation
from frugalign.methods.psle.rules import RANKED
from frugalign.methods.psle.sampling import Sampler
from frugalign.metrics import is_refusal
from frugalign.rewards.check_scores import (
    reads_states,
    warn_of_cut_responses,
    warn_of_equal_groups,
    warn_of_useless_rewards,
)
from frugalign.rewards.loading import NamedReward
from frugalign.runs.progress import say_size

_log = logging.getLogger(__name__)

_NORMAL = 1.96
"""Standard errors on each side of a 95 % interval."""


@dataclass(frozen=True)
class Gap:
    """The mean reward of responses under the principles minus that of plain ones. `error`: its standard error over `n` prompts; NaN for one."""

    mean: float
    error: float
    n: int

    @property
    def reaches_zero(self) -> bool:
        """Whether the 95 % interval reaches down to 0. One prompt has no interval."""
        return self.mean - _NORMAL * self.error <= 0

    @classmethod
    def of(cls, scored: ScoredResponses) -> Gap:
        """Over prompts, since the couples of one prompt are not independent. Couples without both rewards are left out."""
        differences = (scored.guided - scored.plain).double()
        means = differences.nanmean(1)
        means = means[~means.isnan()]
        n = len(means)
        error = float(means.std(correction=1)) / math.sqrt(n) if n > 1 else math.nan
        return cls(round(float(means.mean()), 12) + 0.0, error, n)  # equal rewards may differ by rounding; no −0


def warn_of_few(prompts: int, wanted: int) -> None:
    """Warn if the rounds are measured on few prompts, or on fewer than `eval_prompts` asks for."""
    if prompts < wanted:
        _log.warning(
            "Rounds are measured on %s, not on eval_prompts = %s: there are no more.",
            pluralize(prompts, "held-out prompt"),
            wanted,
        )
    if few := few_prompts(prompts, "held-out prompt", "Rounds are measured on"):
        _log.warning(few)


def say_rounds(sampler: Sampler, rows: Sequence[int], evaluation: RoundEvaluation | None) -> None:
    """Say how many tokens a run samples and feeds. `rows`: the prompts that fit the context."""
    args = sampler.args
    size = min(args.prompts_per_round or len(rows), len(rows))
    responses = args.rounds * size * 2 * args.num_generations
    how = f"{pluralize(args.rounds, 'round')} of {pluralize(size, 'prompt')} with {2 * args.num_generations} responses"
    measured = 0
    if evaluation is not None:
        measured = (args.rounds + 1) * len(evaluation.dataset)
        how += f", {pluralize(args.rounds + 1, 'evaluation')} on {pluralize(len(evaluation.dataset), 'prompt')}"
    plain, sampled_from = sampler.mean_prompt_lengths(rows)
    longest = args.max_new_tokens
    epochs = 1 if args.train == "proxy" else args.num_train_epochs
    fed = responses * (sampled_from + longest + epochs * (plain + longest)) + measured * (plain + longest)
    say_size((responses + measured) * longest, fed, f"{how}, each at most {longest} tokens")


def describe_sampling(
    done: Round, rewards: Sequence[NamedReward], args: PSLEConfig, number: int, threshold: float
) -> None:
    """Say what round `number` has sampled, and warn where there is little to learn from.

    Args:
        threshold: the gain from which on a couple is ranked.
    """
    scored, counts = done.scored, done.counts()
    k = scored.plain.shape[1]
    couples = sum(counts.values())
    plain = [text for texts in scored.completions for text in texts[:k]]
    guided = [text for texts in scored.completions for text in texts[k:]]
    ranked = f"{counts[RANKED]:,} of {pluralize(couples, 'couple')} ranked"
    if not args.needs_principles:
        say(f"Round {number}: refusals {_refusals(plain + guided)}; {ranked}.")
    else:
        gap = Gap.of(scored)
        error = "" if math.isnan(gap.error) else f" ± {gap.error:.2g}"
        say(
            f"Round {number}: the principles change the reward by {gap.mean:+.3g}{error} (standard error over {pluralize(gap.n, 'prompt')}); "
            f"refusals {_refusals(plain)} plain, {_refusals(guided)} under them; {ranked}."
        )
    prompts = [prompt for prompt in scored.prompts for _ in range(2 * k)]
    completions = as_completions(prompts, [text for texts in scored.completions for text in texts])
    by_name = {name: [value for values in each for value in values] for name, each in scored.by_name.items()}
    if reads_states(rewards):
        lengths = [len(ids) for group in scored.completion_ids for ids in group]
        warn_of_cut_responses(sum(n >= args.max_new_tokens for n in lengths) / len(lengths), args.max_new_tokens)
    useless = warn_of_useless_rewards(rewards, by_name, completions)
    warn_of_equal_groups(scored.rewards.flatten().tolist(), 2 * k)
    if len(useless) == len(rewards):
        return
    if args.needs_principles and gap.reaches_zero:
        _log.warning(
            "The principles do not clearly raise the reward: the 95 %% interval of the difference is %.3g to %.3g. %s",
            gap.mean - _NORMAL * gap.error,
            gap.mean + _NORMAL * gap.error,
            "This model may not follow them; try other principles or a larger model."
            if number == 0
            else "There is little left to learn from them: compare this round with the one before.",
        )
    if args.method in ("psle", "dpo", "rejection") and args.use_ranking and not counts[RANKED]:
        _log.warning("Round %d has no couple to rank: no gain is above %.3g.", number, threshold)


def _refusals(texts: Sequence[str]) -> str:
    return f"{100 * sum(map(is_refusal, texts)) / max(1, len(texts)):.0f} %"
