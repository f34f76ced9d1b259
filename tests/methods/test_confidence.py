"""How sure a label is, by hand."""

import math

import torch

from frugalign.methods.confidence import batch_confidence, pair_confidence, posterior_confidence


def test_confidence_by_hand() -> None:
    """Gaps of log 3, 0 and −log 3: ¾, ½, ¼; floored ¾, ½, ½. Batch: κ = 7.5, mean σ of (log 3, 0) is ⅝, of (0, 0) ½."""
    chosen, rejected = torch.tensor([math.log(3), 1.0, 0.0]), torch.tensor([0.0, 1.0, math.log(3)])
    torch.testing.assert_close(pair_confidence(chosen, rejected, 0.0), torch.tensor([0.75, 0.5, 0.25]))
    torch.testing.assert_close(pair_confidence(chosen, rejected), torch.tensor([0.75, 0.5, 0.5]))
    found = batch_confidence(torch.tensor([math.log(3), 0.0]) + 2, torch.zeros(2) + 2, mu=2.0)
    torch.testing.assert_close(found, torch.full((2,), 1 / (1 + math.exp(-7.5 / 8))))
    assert batch_confidence(torch.zeros(2), torch.ones(2), 0.0).tolist() == [0.5, 0.5]
    # ε = ¼: labels that the states call right three times in four are surely right, undecided ones keep ¾, and of log 2 (q = ⅔, p = ⅚)
    # 15/16 are; no noise leaves every label as it is.
    q = torch.tensor([math.log(3), math.log(2), 0.0, -math.log(3)])
    torch.testing.assert_close(posterior_confidence(q, 0 * q, 0.25, 0.0), torch.tensor([1, 15 / 16, 0.75, 0.0]))
    torch.testing.assert_close(posterior_confidence(q, 0 * q, 0.25), torch.tensor([1, 15 / 16, 0.75, 0.5]))
    torch.testing.assert_close(posterior_confidence(q, 0 * q, 1e-9), torch.ones(4), atol=1e-6, rtol=0)
    assert not pair_confidence(chosen.requires_grad_(), rejected).requires_grad
