"""vLLM as an engine that completes prompts: its scheduler and kernels, and this project's choosers with their keyed noise.

The engine, its model and its sampler run in this process, so a chooser acts inside the sampler and an observer sees every position, as in
`loop`. A chooser may change between two calls. Nothing in vLLM is restarted for it.

Written against the source of vLLM 0.33, and tested on a stand-in of its interfaces. It was not run on a GPU. vLLM excludes the versions of
transformers that this project trains with, so it has an environment of its own; what a worker imports runs under both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.wording import shown
from frugalign.decoding.chooser import Chooser
from frugalign.decoding.loop import Generation, LoopOptions, SamplingParams
from frugalign.engines.engine import Capabilities

if TYPE_CHECKING:
    from frugalign.decoding.vllm_sampler import Part

SUPPORTED = "0.33"
"""The version whose source this was written against."""
_SAMPLER = "frugalign.decoding.vllm_sampler"
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the sampler and the trainer's proxy share a process
    "VLLM_USE_V2_MODEL_RUNNER": "1",  # its processors are told every row's position
    "VLLM_NO_USAGE_STATS": "1",
}
_SET_HERE = {
    "model",
    "revision",
    "tokenizer",
    "dtype",
    "skip_tokenizer_init",
    "logits_processors",
    "async_scheduling",
    "trust_remote_code",
    "runner",
    "worker_cls",
}
_SPREADS = {
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
}
_DRAFTS = {"speculative_config", "spec_method", "spec_model", "spec_tokens"}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check keyword arguments of `vllm.LLM` that a user has given.

    Raises:
        FrugalignError: one of them is set here, or rules out that a chooser sees every token's state and logits, or cannot be sent as JSON.
    """
    try:
        json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FrugalignError(f"vllm_args must hold what JSON can hold: {error}.") from error
    for name in sorted(settings):
        if name in _SET_HERE:
            raise FrugalignError(f"vllm_args holds {name}, which the training sets itself: leave it out.")
        if name in _DRAFTS:
            raise FrugalignError(
                f"vllm_args holds {name}: with speculative decoding a draft chooses tokens, and the proxy has to: leave it out."
            )
        if name in _SPREADS and settings[name] != 1:
            raise FrugalignError(
                f"vllm_args holds {name} = {settings[name]}: the proxy reads the logits of the whole vocabulary in one process, so a worker "
                "has one GPU. Raise ray_workers instead, or name a quantised model."
            )


class VllmEngine:
    """A model in vLLM as a `LoopingEngine`. One at a time in a process.

    Args:
        model: a hub id or a folder.
        end_token_ids: every token that ends a completion.
        arguments: further ones of `vllm.LLM`, such as its dtype.

    Raises:
        FrugalignError: vLLM is missing, has another version, or cannot hold the model.
    """

    capabilities = Capabilities(gives_layers=False, can_select=False, can_expand=False)

    def __init__(self, model: str, end_token_ids: Sequence[int], arguments: Mapping[str, Any]) -> None:
        _check_version()
        os.environ |= _ENVIRONMENT
        import vllm

        self.name, self.end_token_ids = "vLLM", tuple(end_token_ids)
        self._vllm = vllm
        try:
            self._llm = vllm.LLM(
                model=model,
                skip_tokenizer_init=True,
                logits_processors=[f"{_SAMPLER}:KeyedSampler"],
                # A token is chosen once its request is known to go on: then every position is chosen once.
                async_scheduling=False,
                **arguments,
            )
        except Exception as error:  # vLLM raises any kind
            raise FrugalignError(f"vLLM cannot hold {model}: {_said(error)}") from error
        self.is_quantised = self._llm.model_config.quantization is not None
        self._rows = self._head_rows()
        self.device, self.dtype = self._rows.device, self._rows.dtype

    def output_embeddings(self) -> Tensor:
        """The rows of the LM head, `[V, D]`."""
        return self._rows

    def state_after(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The LM head's input `[D]` and the logits `[V]` after these tokens."""
        from frugalign_runtime.vllm import CAPTURED

        asked = self._vllm.SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
        self._llm.generate([{"prompt_token_ids": list(ids)}], asked, use_tqdm=False)
        if CAPTURED.hidden is None:
            raise FrugalignError(
                "vLLM computes this model's logits without its logits layer, so nothing can read its states."
            )
        return CAPTURED.hidden[-1], CAPTURED.logits[-1]

    def complete(
        self,
        prompt_ids: Sequence[Sequence[int]],
        keys: Tensor,
        guide: Chooser,
        params: SamplingParams,
        options: LoopOptions,
        ledger: Ledger | None,
    ) -> Generation:
        """As `LoopingEngine.complete`, without traces.

        Raises:
            FrugalignError: a row does not fit into vLLM's `max_model_len`, or vLLM took other tokens than were chosen.
        """
        from frugalign.decoding.vllm_sampler import ROW, Run, acting

        assert not options.record_trace
        run = Run(guide, keys, params, options.observer, len(prompt_ids))
        asked = [
            self._vllm.SamplingParams(
                temperature=0.0,  # the sampler's choice is the only token that is left
                max_tokens=params.max_new_tokens,
                stop_token_ids=list(self.end_token_ids),
                ignore_eos=True,
                detokenize=False,
                extra_args={ROW: row},
            )
            for row in range(len(prompt_ids))
        ]
        with acting(run):
            outputs = self._llm.generate([{"prompt_token_ids": list(ids)} for ids in prompt_ids], asked, use_tqdm=False)
        completions = [list(output.outputs[0].token_ids) for output in outputs]
        ended = [output.outputs[0].finish_reason == "stop" for output in outputs]
        for ids, is_ended in zip(completions, ended, strict=True):
            if not is_ended and len(ids) < params.max_new_tokens:
                raise FrugalignError(
                    f"vLLM ended a response after {len(ids)} of {params.max_new_tokens} tokens: raise max_model_len in vllm_args."
                )
        if ledger is not None:
            fed = sum(len(output.prompt_token_ids) - (output.num_cached_tokens or 0) for output in outputs)
            new = sum(map(len, completions))
            ledger.count(lm_forward_tokens=fed + new - len(completions), generated_tokens=new)
        return Generation(completions, ended, **run.finish(completions), states=None, traces=None)

    def read(self, texts: Sequence[Sequence[int]], take: Callable[[Sequence[Part], Tensor, Tensor], None]) -> None:
        """Feed every text once.

        Args:
            take: gets parts of the texts, the LM head's input at their tokens `[n, D]` and the logits `[n, V]`, one part after the other. A
                part that begins with a text's first token discards what came of that text before.

        Raises:
            FrugalignError: the logits are not those of these texts.
        """
        from frugalign.decoding.vllm_sampler import ROW, Reading, acting

        reading = Reading(texts, take)
        asked = [
            self._vllm.SamplingParams(
                temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, extra_args={ROW: row}
            )
            for row in range(len(texts))
        ]
        with acting(reading):
            outputs = self._llm.generate([{"prompt_token_ids": list(ids)} for ids in texts], asked, use_tqdm=False)
        reading.finish([output.prompt_logprobs for output in outputs])

    def _head_rows(self) -> Tensor:
        """The rows of the head that the model calls its logits layer with. vLLM pads their number."""
        from frugalign_runtime.vllm import CAPTURED

        _, logits = self.state_after([0])
        weight = getattr(CAPTURED.lm_head, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 2:
            raise FrugalignError(
                "The LM head of this model is quantised in vLLM, and a proxy reads its rows: name a model whose head is not."
            )
        return weight.detach()[: len(logits)]


def _check_version() -> None:
    try:
        found = version("vllm")
    except PackageNotFoundError as error:
        raise FrugalignError(
            f"vLLM is not installed where the workers run: name the Python of an environment that has it (--ray_python), with vllm=={SUPPORTED}.*."
        ) from error
    if not found.startswith(f"{SUPPORTED}."):
        raise FrugalignError(
            f"vLLM {found} is installed where the workers run, and its internals differ between versions: install vllm=={SUPPORTED}.*."
        )


def _said(error: Exception) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__, quoted=False, longest=500)
