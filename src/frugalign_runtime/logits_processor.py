"""A plain logits processor: for `generate` of transformers, and for anything that calls `processor(input_ids, scores)`.

    import frugalign_runtime as runtime
    from frugalign_runtime.logits_processor import GuidedLogits

    with GuidedLogits(runtime.load("exported/safe"), model) as guided:
        model.generate(**inputs, logits_processor=[guided])

With a model, a hook on its LM head gives the hidden states. Without one they are recovered from the scores, which must then be
untouched: no penalty may run before. The engine's own temperature acts on π, so leave it at 1.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from frugalign_runtime.arrays import Array
from frugalign_runtime.errors import ProxyError
from frugalign_runtime.judge import Proxies


class GuidedLogits:
    """`processor(input_ids, scores [N, V]) → log π [N, V]`.

    Wrong under prompt lookup and assistants, where one call receives the scores of several positions of a row.
    """

    def __init__(
        self,
        proxies: Proxies,
        model: Any = None,
        *,
        proxy: str | int | list[int] = 0,
        strength: float | list[float] = 1.0,
    ) -> None:
        """
        Args:
            model: a model with `get_output_embeddings()`, whose head is compared with the one that the proxies were exported for.
            proxy: a proxy's name or number, or one number for each row; −1 guides nothing.
            strength: λ, or one for each row.

        Raises:
            ProxyError: there is no such proxy, or it is for another model.
        """
        self._proxies = proxies
        self.proxy = proxies.index(proxy) if isinstance(proxy, str) else proxy
        self.strength = strength
        self._local = threading.local()
        self._handle: Any = None
        if model is not None:
            head = model.get_output_embeddings()
            weight = head.weight
            if weight.is_floating_point():
                proxies.check_head(lambda ids: weight[ids], len(weight))
            self._handle = head.register_forward_pre_hook(self._catch)

    def __call__(self, input_ids: Any, scores: Array) -> Array:
        """`log π`, float32. Rows that no proxy guides come back as they are.

        Raises:
            ProxyError: the model computed scores without its LM head.
        """
        n = len(scores)
        proxy = [self.proxy] * n if isinstance(self.proxy, int) else self.proxy
        hidden = getattr(self._local, "hidden", None)
        self._local.hidden = None
        if self._handle is not None:
            if hidden is None:
                raise ProxyError("The model computed scores without calling its LM head, so a proxy cannot guide it.")
            hidden = hidden[:, -1] if len(hidden.shape) == 3 else hidden
        return self._proxies.judge(scores, hidden, proxy, self.strength)

    def _catch(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self._local.hidden = inputs[0]

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __enter__(self) -> GuidedLogits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
