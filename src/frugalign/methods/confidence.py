"""The confidence γ in a label, from the current rewards of both answers (`docs/methods/rerank.md#the-loss`).

`methods/losses.py` has the loss that γ weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, sigmoid, where
from transformers import PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.data.templating import Rendering
from frugalign.engines.fingerprints import check_base, fingerprint
from frugalign.engines.transformers import causal_lm
from frugalign.rewards.representation.network import RepresentationModel, check_rendering


def pair_confidence(chosen: Tensor, rejected: Tensor, floor: float = 0.5) -> Tensor:
    """`γ_i = max(σ(r̃_c − r̃_r), floor)` from calibrated rewards `[B]` each.

    A floor of ½ only weakens a doubtful label. A floor of 0 lets it flip: below ½ the gradient prefers the rejected answer.
    """
    return sigmoid(chosen - rejected).clamp(min=floor).detach()


def posterior_confidence(chosen: Tensor, rejected: Tensor, noise: float, floor: float = 0.5) -> Tensor:
    """The probability that a label is right, given the states *and* the label, if a share `noise` ε of the labels is wrong; `[B]`.

    The rewards are calibrated on noisy labels, so `q = σ(r̃_c − r̃_r)` is the probability of the *label*. The probability of the
    truth is `p = (q − ε)/(1 − 2ε)`, clipped to [0, 1]. Bayes' rule gives `γ = p(1 − ε) / (p(1 − ε) + (1 − p)ε)`. Undecided states
    (q = ½) give 1 − ε. `pair_confidence` uses the states only.
    """
    true = ((sigmoid(chosen - rejected) - noise) / (1 - 2 * noise)).clamp(0, 1)
    right = true * (1 - noise)
    return (right / (right + (1 - true) * noise)).clamp(min=floor).detach()


def confidence_by_settings(chosen: Tensor, rejected: Tensor, args: Any) -> Tensor:
    """γ per pair by the settings `label_noise` and `confidence_floor`, from calibrated rewards `[B]` each."""
    if args.label_noise is None:
        return pair_confidence(chosen, rejected, args.confidence_floor)
    return posterior_confidence(chosen, rejected, args.label_noise, args.confidence_floor)


def batch_confidence(chosen: Tensor, rejected: Tensor, mu: float, kappa: float = 7.5) -> Tensor:
    """One γ for the batch, as in the published code, repeated `[B]`.

    `max(σ(κ·(mean σ(r_c − μ) − mean σ(r_r − μ))), ½)`, from raw rewards.
    """
    gap = sigmoid(chosen - mu).mean() - sigmoid(rejected - mu).mean()
    return sigmoid(kappa * gap).clamp(min=0.5).detach().expand(len(chosen))


def prefer_given(gamma: Tensor, given: Tensor | None) -> Tensor:
    """γ, replaced by a row's own confidence if it has one."""
    if given is None:
        return gamma
    own = given.to(gamma)
    return where(own.isnan(), gamma, own)


def check_probes(probes: RepresentationModel, model: Any, tokenizer: PreTrainedTokenizerBase, args: Any) -> None:
    """Check that the probes were fitted on this model, with this prompt format.

    Raises:
        FrugalignError: they were not.
    """
    if probes.config.width != causal_lm(model).config.get_text_config().hidden_size:
        raise FrugalignError("The representation reward was fitted on a model of another width.")
    if probes.config.base is not None:
        found = fingerprint(model, tokenizer, name=str(args.model_name_or_path or ""))
        check_base(probes.config.base, found, "The representation reward")
    check_rendering(probes.config, Rendering.of(args), tokenizer)
