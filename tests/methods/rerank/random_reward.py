"""Not a test: a representation reward of random probes on the sandbox's model, where what it says does not matter."""

from __future__ import annotations

import torch
from tests.two_layers import two_layers

from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel


def random_probes() -> RepresentationModel:
    """Probes on layers 1 and 2, the same ones each time, that name the base."""
    base = load_model(two_layers())
    config = RepresentationConfig(width=base.model.config.hidden_size, layers=[1, 2])
    config.base = fingerprint(base.model, base.tokenizer, name=two_layers()).to_dict()
    probes = RepresentationModel(config)
    torch.manual_seed(0)
    for parameter in probes.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return probes
