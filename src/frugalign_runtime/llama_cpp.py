"""Guide a GGUF model in llama.cpp, through the package llama-cpp-python. The engine itself gives the hidden states.

    import llama_cpp
    from frugalign_runtime import load
    from frugalign_runtime.llama_cpp import GuidedLlama

    llm = llama_cpp.Llama("model.gguf", embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE)
    guided = GuidedLlama(llm, load("exported/safe"), proxy="safe", strength=0.7)
    llm.create_chat_completion(messages, logits_processor=[guided], **guided.neutral)

A head in the GGUF is usually quantised. The proxy's keys stay those of the original base; the states and logits are the engine's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from frugalign_runtime.errors import ProxyError
from frugalign_runtime.judge import Proxies
from frugalign_runtime.requests import read_guidance


class GuidedLlama:
    """A logits processor for `Llama`: it is called for one position of one text, and returns `log π [V]`.

    `neutral`: sampling settings under which `Llama` samples from π itself. Its own defaults cut π to the 40 likeliest tokens.
    """

    neutral: ClassVar[dict[str, float]] = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
    }

    def __init__(self, llama: Any, proxies: Proxies, *, proxy: str = "", strength: float = 1.0) -> None:
        """
        Args:
            llama: a `llama_cpp.Llama` with `embedding=True` and `pooling_type=LLAMA_POOLING_TYPE_NONE`.
            proxy: as in a request, such as `safe:0.7+terse`. Default: the first one.

        Raises:
            ProxyError: the engine does not give hidden states, or its sizes are another model's.
        """
        import llama_cpp

        self._api, self._llama, self._proxies = llama_cpp, llama, proxies
        guidance = read_guidance(proxy or proxies.names[0], proxies.names, strength)
        self._proxy = np.asarray([[number for number, _ in guidance]])
        self._strength = np.asarray([[each for _, each in guidance]])
        if not llama.context_params.embeddings or llama.pooling_type() != llama_cpp.LLAMA_POOLING_TYPE_NONE:
            raise ProxyError(
                "This Llama gives no hidden states: load it with embedding=True and pooling_type=LLAMA_POOLING_TYPE_NONE."
            )
        sizes = (llama.n_vocab(), llama.n_embd())
        if sizes != (proxies.vocabulary, proxies.width):
            raise ProxyError(
                f"{proxies.names[0]} is for a model of {proxies.vocabulary:,} tokens and width {proxies.width}, and this one has {sizes[0]:,} and {sizes[1]}."
            )
        self._is_checked = False

    def __call__(self, input_ids: Any, scores: np.ndarray) -> np.ndarray:
        """`log π [V]` from the logits `scores [V]` of the last position.

        Raises:
            ProxyError: the engine runs another model.
        """
        hidden, logits = self._hidden()[None], np.array(scores, dtype=np.float32)[None]
        if not self._is_checked:
            self._proxies.check_outputs(logits, hidden)
            self._is_checked = True
        found: np.ndarray = self._proxies.judge(logits, hidden, self._proxy, self._strength)[0]
        return found

    def _hidden(self) -> np.ndarray:
        """`h [D]` at the last position that was fed: what the LM head read there."""
        pointer = self._api.llama_get_embeddings_ith(self._llama.ctx, -1)
        if not pointer:
            raise ProxyError("llama.cpp gave no hidden state for the last token.")
        return np.ctypeslib.as_array(pointer, shape=(self._proxies.width,)).copy()
