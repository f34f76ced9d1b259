"""Not a test: what rollouts need of vLLM, by the source of its release 0.33.0, around a tiny transformers model.

`folder` writes a package `vllm` that is found on the path, so it serves in this process and in workers. The engine is that of the second model
runner without async scheduling: slots, a batch in another order at every step, prompts that are fed in parts, requests that are preempted where
the cache is full, and prefixes that are not fed again. The logits of a part of what is to be fed reach the sampler, and nobody reads its token.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from tests.runtime.vllm_stand_in import V2Processor

BLOCK = 4
CHUNK = 16
"""Tokens of a block of the cache, and rows whose prompt logits are computed at once."""


def folder(path: Path, version: str = "0.33.0") -> str:
    """A folder with the package and its version."""
    (path / "vllm").mkdir(parents=True)
    (path / "vllm" / "__init__.py").write_text("from tests.decoding.vllm_stand_in import build\n\nbuild(globals())\n")
    about = path / f"vllm-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return str(path)


@contextmanager
def on_path(path: str) -> Iterator[None]:
    """Inside the block, `import vllm` gives the package in `path`."""
    forget()
    sys.path.insert(0, path)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = [each for each in sys.path if each != path]
        forget()


def forget() -> None:
    """What has imported vLLM is imported anew."""
    for name in list(sys.modules):
        if name.split(".")[0] == "vllm" or name in ("frugalign_runtime.vllm", "frugalign.decoding.vllm_sampler"):
            del sys.modules[name]


def build(package: dict[str, Any]) -> None:
    """The contents of `vllm`, and its modules."""
    package |= {"LLM": LLM, "SamplingParams": SamplingParams, "__path__": []}
    modules: dict[str, dict[str, Any]] = {
        "vllm.v1.worker.gpu.sample.logits_processor": {"LogitsProcessor": V2Processor},
        "vllm.model_executor.layers.logits_processor": {
            "LogitsProcessor": type("Layer", (LogitsLayer,), {"forward": LogitsLayer.forward})
        },
    }
    for name, content in modules.items():
        parts = name.split(".")
        for length in range(2, len(parts) + 1):
            module = sys.modules.setdefault(".".join(parts[:length]), ModuleType(".".join(parts[:length])))
            module.__path__ = []
        vars(sys.modules[name]).update(content)


class LogitsLayer(torch.nn.Module):
    """`vllm.model_executor.layers.logits_processor.LogitsProcessor`."""

    def __init__(self, vocabulary: int, soft_cap: float | None = None) -> None:
        super().__init__()
        self.vocabulary, self.soft_cap = vocabulary, soft_cap

    def forward(self, lm_head: Any, hidden_states: torch.Tensor, embedding_bias: Any = None) -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden_states, lm_head.weight)[:, : self.vocabulary]
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    detokenize: bool = True
    prompt_logprobs: int | None = None
    extra_args: dict[str, Any] | None = None


@dataclass
class Request:
    prompt: list[int]
    params: SamplingParams
    output: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int | None = None
    cached: int | None = None
    scores: list[torch.Tensor] = field(default_factory=list)
    finish: str | None = None

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output

    def log_probs(self) -> list[dict[int, Any] | None]:
        """Of every token of the prompt but the first."""
        scores, tokens = torch.cat(self.scores), self.prompt[1:]
        return [
            None,
            *({token: SimpleNamespace(logprob=float(scores[row, token]))} for row, token in enumerate(tokens)),
        ]


class LLM:
    """`vllm.LLM` with the engine, the model and the sampler in one process. What it did is counted in `happened`."""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool,
        logits_processors: list[str],
        async_scheduling: bool,
        dtype: str,
        revision: str | None = None,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 12,
        max_model_len: int = 512,
        num_gpu_blocks_override: int = 1000,
        enable_prefix_caching: bool = True,
        quantization: str | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM

        assert skip_tokenizer_init and not async_scheduling and revision is None
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        weight = self.model.get_output_embeddings().weight.detach()
        padding = weight.new_zeros(-len(weight) % 64, weight.shape[1])
        self.lm_head = SimpleNamespace(weight=torch.cat([weight, padding]))
        layer = sys.modules["vllm.model_executor.layers.logits_processor"].LogitsProcessor
        self.layer = layer(len(weight), getattr(self.model.config, "final_logit_softcapping", None))
        self.model_config = SimpleNamespace(quantization=quantization)
        self.max_num_seqs, self.budget, self.max_model_len = max_num_seqs, max_num_batched_tokens, max_model_len
        self.room, self.caches = num_gpu_blocks_override * BLOCK, enable_prefix_caching
        self.blocks: set[tuple[int, ...]] = set()
        self.happened = dict.fromkeys(("parts", "preempted", "cached", "steps"), 0)
        self.shuffle = np.random.default_rng(0)
        lengths = {
            name: SimpleNamespace(np=np.zeros(max_num_seqs, dtype=np.int32)) for name in ("prompt_len", "prefill_len")
        }
        self.states = SimpleNamespace(max_num_reqs=max_num_seqs, **lengths)
        module, name = logits_processors[0].split(":")
        self.processor = getattr(importlib.import_module(module), name)(None, self.states)
        self._warm_up()

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(self.lm_head, hidden)
        return found

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """The sampler runs on states that belong to no request, before and after parameters that use all of it."""
        hidden = torch.randn(self.max_num_seqs, self.lm_head.weight.shape[1], dtype=self.model.dtype)
        for _ in range(2):
            self._apply(
                self.compute_logits(hidden), np.arange(self.max_num_seqs), np.ones(self.max_num_seqs, dtype=np.int32)
            )
            for slot in range(self.max_num_seqs):
                self.processor.add_request(slot, SamplingParams(temperature=0.9))

    def _apply(self, logits: torch.Tensor, slots: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        padded = np.concatenate([lengths, np.zeros(2, dtype=np.int32)])  # as a graph's batch is
        rows = torch.from_numpy(slots)
        ctx = SimpleNamespace(
            idx_mapping=rows, expanded_idx_mapping=rows, idx_mapping_np=slots, seq_lens_upper_bound_np=padded
        )
        found: torch.Tensor = self.processor.apply(torch.empty_like(logits, dtype=torch.float32).copy_(logits), ctx)
        return found

    def generate(self, prompts: list[dict[str, list[int]]], sampling_params: Any, *, use_tqdm: bool) -> list[Any]:
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        every = [Request(list(each["prompt_token_ids"]), given) for each, given in zip(prompts, params, strict=True)]
        assert all(each.params.temperature == 0 and not each.params.detokenize for each in every)
        self.waiting, self.running = list(every), list[Request]()
        while self.waiting or self.running:
            self._step()
        return [
            SimpleNamespace(
                prompt_token_ids=each.prompt,
                num_cached_tokens=each.cached,
                prompt_logprobs=None if each.params.prompt_logprobs is None else each.log_probs(),
                outputs=[SimpleNamespace(token_ids=each.output, finish_reason=each.finish)],
            )
            for each in every
        ]

    # -- scheduling -----------------------------------------------------------------------------------------------------

    def _schedule(self) -> list[tuple[Request, int]]:
        """Requests of this step, and how many of their tokens are fed: those in progress first, as far as budget and cache reach."""
        batch: list[tuple[Request, int]] = []
        left, preempted = self.budget, False
        for request in list(self.running):
            new = min(len(request.tokens) - request.computed, left)
            while request in self.running and self._used(batch) + new > self.room:
                self._preempt(self.running[-1], batch)
                preempted = True
            if request in self.running and new:
                batch.append((request, new))
                left -= new
        while self.waiting and left and len(self.running) < self.max_num_seqs and not preempted:
            request = self.waiting[0]
            request.computed = self._in_cache(request)
            new = min(len(request.tokens) - request.computed, left)
            if self._used(batch) + request.computed + new > self.room:
                break
            self.waiting.pop(0)
            self.running.append(request)
            self._add(request)
            batch.append((request, new))
            left -= new
        return batch

    def _used(self, batch: list[tuple[Request, int]]) -> int:
        return sum(each.computed for each in self.running) + sum(new for _, new in batch)

    def _preempt(self, request: Request, batch: list[tuple[Request, int]]) -> None:
        batch[:] = [(each, new) for each, new in batch if each is not request]
        self.running.remove(request)
        self.waiting.insert(0, request)
        request.slot, request.computed = None, 0
        self.happened["preempted"] += 1

    def _in_cache(self, request: Request) -> int:
        """Tokens whose blocks are in the cache. At least one is fed, for its logits."""
        n, tokens = 0, request.tokens
        if self.caches and request.params.prompt_logprobs is None:
            while n + BLOCK < len(tokens) and tuple(tokens[: n + BLOCK]) in self.blocks:
                n += BLOCK
        request.cached = n if request.cached is None else request.cached
        self.happened["cached"] += n
        return n

    def _add(self, request: Request) -> None:
        taken = {each.slot for each in self.running}
        request.slot = next(slot for slot in reversed(range(self.max_num_seqs)) if slot not in taken)
        self.states.prompt_len.np[request.slot] = len(request.prompt)
        self.states.prefill_len.np[request.slot] = len(request.tokens)
        self.processor.add_request(request.slot, request.params)

    # -- a step ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _step(self) -> None:
        batch = self._schedule()
        assert batch, "a request does not fit into the cache"
        self.happened["steps"] += 1
        batch = [batch[place] for place in self.shuffle.permutation(len(batch))]
        states = [self._states(request, new) for request, new in batch]
        slots = np.asarray([request.slot for request, _ in batch], dtype=np.int32)
        lengths = np.asarray([request.computed + new for request, new in batch], dtype=np.int32)
        found = self._apply(self.compute_logits(torch.stack([each[-1] for each in states])), slots, lengths)
        wanted = [each.params.prompt_logprobs is not None and each.computed < len(each.prompt) for each, _ in batch]
        if any(wanted):
            logits = torch.cat([self.compute_logits(part) for part in torch.cat(states).split(CHUNK)])
            for (request, _), part in zip(
                batch, logits.float().log_softmax(-1).split(list(map(len, states))), strict=True
            ):
                request.scores = [*(request.scores if request.computed else []), part]
        for (request, new), token in zip(batch, found.argmax(-1).tolist(), strict=True):
            request.computed += new
            self.blocks |= {tuple(request.tokens[:end]) for end in range(BLOCK, request.computed + 1, BLOCK)}
            if request.computed < self.states.prefill_len.np[request.slot]:
                self.happened["parts"] += 1
                continue
            request.output.append(token)
            self._check_stop(request, token)

    def _states(self, request: Request, new: int) -> torch.Tensor:
        """What the head reads at the tokens that are fed, `[new, D]`."""
        text = torch.tensor([request.tokens[: request.computed + new]])
        found: torch.Tensor = self.model.base_model(text, use_cache=False).last_hidden_state[0, request.computed :]
        return found

    def _check_stop(self, request: Request, token: int) -> None:
        if token in request.params.stop_token_ids:
            request.finish = "stop"
        elif len(request.tokens) >= self.max_model_len or len(request.output) >= request.params.max_tokens:
            request.finish = "length"
        if request.finish is not None:
            self.running.remove(request)
