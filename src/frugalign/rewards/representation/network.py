"""The representation reward: linear probes on a model's own hidden states at the end of an answer (`docs/methods/representation-reward.md#network-and-loss`).

`r = Σ_l w_l·h^l + b` over the chosen layers; calibrated `r̃ = (r − μ)/t̂`, so that the difference of two is the log-odds
of being preferred. That is `L·D + 1` numbers. The model itself is frozen and not in the file. This module holds the network and the scoring; `frugalign.methods.representation_reward` trains it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers import initialization as init

from frugalign.base.errors import FrugalignError
from frugalign.base.files import MODEL_CONFIG_FILE
from frugalign.base.specs import local_path
from frugalign.data.encode import answer_text
from frugalign.data.templating import Rendering, is_chat
from frugalign.engines.artefacts import ArtefactKind, SealedModel, content_hash, load_artefact
from frugalign.engines.encode import encode_for_model
from frugalign.engines.fingerprints import check_base, fingerprint
from frugalign.engines.loading import LoadedModel, load_stored_base
from frugalign.engines.states import endpoint_states, read_ids
from frugalign.options.kinds import COUNT, COUNT_OR_ZERO, POSITIVE

MODEL_TYPE = "frugalign_representation_reward"


class RepresentationConfig(PreTrainedConfig):
    """The probes' inputs and training setting. `base` and `trained_on` describe the frozen LM and the data."""

    model_type = MODEL_TYPE

    width: int = 64
    layers: list[int] | tuple[int, ...] = (1,)
    mu: float = 0.0
    scale: float = 1.0
    max_length: int | None = None
    prompt_format: str = "auto"
    chat_template_kwargs: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
    trained_on: dict[str, Any] | None = None
    sha256: str | None = None


class RepresentationModel(SealedModel):
    """One probe per layer. `forward` takes `states [B, L, D]` and returns the raw reward `r [B]`."""

    config_class = RepresentationConfig
    base_model_prefix = "representation"

    def __init__(self, config: RepresentationConfig) -> None:
        super().__init__(config)
        n = len(config.layers)
        self.weight = nn.Parameter(torch.empty(n, config.width))
        self.bias = nn.Parameter(torch.empty(1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            for parameter in (self.weight, self.bias):
                init.zeros_(parameter)

    def forward(self, states: Tensor) -> Tensor:
        return torch.einsum("bld,ld->b", states.to(self.weight.dtype), self.weight) + self.bias

    def calibrated(self, states: Tensor) -> Tensor:
        """`r̃ = (r − μ)/t̂ [B]`."""
        raw: Tensor = self(states)
        found: Tensor = (raw - self.config.mu) / self.config.scale
        return found


PROBES = ArtefactKind(
    "representation reward",
    RepresentationConfig,
    RepresentationModel,
    kinds={"width": COUNT, "layers": COUNT_OR_ZERO, "scale": POSITIVE, "max_length": COUNT},
    words={"prompt_format": ("auto", "chat", "raw")},
)


class RepresentationReward:
    """A `Reward` and a `StateReward`: the calibrated reward of an answer, computed from the base's own states.

    Called like a TRL reward, it runs its base over prompt and answer. Given states that are already computed, it runs
    nothing. The base is loaded on first use. With `share_base`, one model in memory serves generation and reward.
    Scores do not depend on the other rows, the batch or the padding.
    """

    def __init__(
        self, probes: RepresentationModel, base: LoadedModel | None = None, *, name: str = "representation"
    ) -> None:
        self.probes = probes.eval().requires_grad_(False)
        self.layers: list[int] = probes.config.layers
        self.fingerprint: str = state_fingerprint(probes.config.base)
        self.__name__ = name
        self._base = base
        self._device: str | None = None

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, base: LoadedModel | None = None, *, device: str | None = None
    ) -> RepresentationReward:
        """Load the probes from a folder or hub id. `base`: an already loaded model, which must be the one that they name.

        Raises:
            FrugalignError: a file is missing, truncated or damaged, or the base differs.
        """
        reward = cls(load_probes(folder), name=Path(folder).name)
        reward._device = device
        if base is not None:
            reward.base = base
        return reward

    @property
    def base(self) -> LoadedModel:
        """The model whose states are read.

        Raises:
            FrugalignError: it cannot be loaded, or has changed since the probes were fitted.
        """
        if self._base is None:
            what = f"The representation reward {self.__name__!r}"
            self.base = load_stored_base(self.probes.config.base, what, device_map=self._device)
        assert self._base is not None
        return self._base

    @base.setter
    def base(self, base: LoadedModel) -> None:
        found = fingerprint(base.model, base.tokenizer, name=base.name)
        check_base(self.probes.config.base, found, f"The representation reward {self.__name__!r}")
        self._base = base

    def content_hash(self) -> str:
        """A hash of the probes, their settings and the fingerprint of their base."""
        return content_hash(PROBES, self.probes)

    @torch.no_grad()
    def score_states(self, states: Tensor) -> Tensor:
        """`states [B, layers, D]` at the answers' endpoints to calibrated rewards `[B]`."""
        calibrated: Tensor = self.probes.calibrated(states.to(self.probes.weight.device))
        return calibrated

    def states(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """`[B, layers, D]`: one pass of the base over every prompt and its completion."""
        config = self.probes.config
        encoded = encode_for_model(
            self.base.model,
            self.base.tokenizer,
            prompts,
            completions,
            completion_ids=completion_ids,
            max_length=config.max_length,
            rendering=Rendering.of(config),
        )
        return endpoint_states(self.base.model, read_ids(encoded, self.base.tokenizer), self.layers)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        endpoint_states: Sequence[Tensor] | None = None,
        endpoint_layers: Sequence[int] = (),
        **_: Any,
    ) -> list[float]:
        """One calibrated reward per completion.

        Args:
            completion_ids: they show where an answer was cut, which its text does not. Those of a row are used if they
                are this base's own tokens for its text.
            endpoint_states: per row `[len(endpoint_layers), D]`, states of this base from generation.
        """
        if endpoint_states is not None and set(self.layers) <= set(endpoint_layers):
            columns = [list(endpoint_layers).index(layer) for layer in self.layers]
            handed: list[float] = self.score_states(torch.stack(list(endpoint_states))[:, columns]).tolist()
            return handed
        ids = self._own_ids(completions, completion_ids)
        own = [row for row, tokens in enumerate(ids) if tokens]
        others = [row for row, tokens in enumerate(ids) if not tokens]
        found = torch.zeros(len(ids))
        for rows, given in ((own, [ids[row] for row in own]), (others, None)):
            if rows:
                states = self.states([prompts[row] for row in rows], [completions[row] for row in rows], given)
                found[rows] = self.score_states(states).float().cpu()
        scores: list[float] = found.tolist()
        return scores

    def _own_ids(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None
    ) -> list[Sequence[int]]:
        """The ids of every completion whose text they decode to; nothing for the others."""
        if not completion_ids:
            return [[] for _ in completions]
        texts = self.base.tokenizer.batch_decode(list(map(list, completion_ids)), skip_special_tokens=True)
        return [
            ids if text == answer_text(completion) else []
            for ids, text, completion in zip(completion_ids, texts, completions, strict=True)
        ]


def check_rendering(
    config: PreTrainedConfig, rendering: Rendering, tokenizer: PreTrainedTokenizerBase, name: str = ""
) -> None:
    """Check that probes were fitted on prompts that became text in this way.

    Raises:
        FrugalignError: they were not, so their states are of other texts.
    """
    own_rendering = Rendering.of(config)
    whose = f"The representation reward{f' {name!r}' if name else ''} was fitted with"
    if is_chat("", tokenizer, own_rendering) != is_chat("", tokenizer, rendering):
        raise FrugalignError(
            f"{whose} prompt_format {own_rendering.prompt_format}, not {rendering.prompt_format}: use the same format here."
        )
    fitted, here = (dict(each.chat_template_kwargs) or None for each in (own_rendering, rendering))
    if fitted != here:
        raise FrugalignError(f"{whose} chat_template_kwargs {fitted}, not {here}: use the same here.")


def share_base(rewards: Sequence[Any], base: LoadedModel, fingerprint_of_base: str, rendering: Rendering) -> list[int]:
    """Let all state rewards among `rewards` that read this model share it. Returns the layers that they read.

    Raises:
        FrugalignError: one of them was fitted on prompts that became text in another way.
    """
    mine = [
        reward
        for reward in rewards
        if isinstance(reward, RepresentationReward) and reward.fingerprint == fingerprint_of_base
    ]
    for reward in mine:
        check_rendering(reward.probes.config, rendering, base.tokenizer, reward.__name__)
        reward.base = base
    return sorted({layer for reward in mine for layer in reward.layers})


def state_fingerprint(base: dict[str, Any]) -> str:
    """A hash of the model whose states are read. Equal for equal weights, adapter included, config and tokenizer."""
    names = ("architecture", "width", "vocabulary", "tokenizer", "weights", "layers", "quantised", "config")
    parts = {name: base.get(name) for name in names}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_probes(folder: str | Path) -> RepresentationModel:
    """The probes alone, loaded strictly.

    Raises:
        FrugalignError: a file is missing, truncated or damaged.
    """
    probes: RepresentationModel = load_artefact(PROBES, folder)
    return probes


def is_representation_reward(name: str | Path) -> bool:
    """Whether a folder or a repository of the hub holds a representation reward, by its config.json. Of the hub, that
    file alone is fetched."""
    path = Path(name) / MODEL_CONFIG_FILE
    if local_path(str(name)) is None:
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(str(name), MODEL_CONFIG_FILE))
        except (OSError, ValueError, RuntimeError):  # whoever loads it says why
            return False
    return path.is_file() and MODEL_TYPE in path.read_text(encoding="utf-8", errors="replace")
