"""The server's limits, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from frugalign.base.errors import FrugalignError


@dataclass(frozen=True)
class ServerSettings:
    """What the server allows.

    Args:
        max_new_tokens: the longest answer, and the length of one that asks for none.
        max_batch_size: answers generated at once.
        max_queue: answers that may wait for a place. More are refused with 429.
        request_timeout: seconds from a request's arrival until its answers are cut.
        max_body_bytes: the largest request body.
        shutdown_timeout: seconds that running answers get after a stop signal.
        api_keys: whoever calls must send one of them. Empty: anyone may call.
        log_requests: log prompts and answers too.
    """

    max_new_tokens: int = 512
    max_batch_size: int = 64
    max_queue: int = 256
    request_timeout: float = 300.0
    max_body_bytes: int = 1 << 20
    shutdown_timeout: float = 30.0
    api_keys: tuple[str, ...] = ()
    log_requests: bool = False


def read_keys(text: str, source: str) -> tuple[str, ...]:
    """API keys, one a line; blank lines and lines that begin with `#` are left out.

    Raises:
        FrugalignError: no key, or one that an HTTP header cannot carry.
    """
    keys = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise FrugalignError(f"{source} holds no API key: it needs one a line.")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise FrugalignError(f"{source} holds an API key with other than printable ASCII characters.")
    return keys
