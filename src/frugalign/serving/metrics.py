"""What `/metrics` tells Prometheus. No label comes from a request, so their number is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("frugalign_requests", "Requests answered.", ["path", "status"], registry=own)
        self.prompt_tokens = Counter("frugalign_prompt_tokens", "Prompt tokens fed.", registry=own)
        self.completion_tokens = Counter("frugalign_completion_tokens", "Tokens generated.", registry=own)
        self.rejections = Counter("frugalign_rejections", "Proposals that proxies rejected.", registry=own)
        self.kl = Counter("frugalign_kl_nats", "KL to the base that proxies spent.", registry=own)
        self.cancelled = Counter("frugalign_cancelled", "Answers whose client left.", registry=own)
        self.timed_out = Counter("frugalign_timed_out", "Answers cut by the time limit.", registry=own)
        self.failures = Counter("frugalign_failures", "Forward passes that failed.", registry=own)
        self.running = Gauge("frugalign_running", "Answers being generated.", registry=own)
        self.waiting = Gauge("frugalign_waiting", "Answers waiting for a place.", registry=own)
        self.first_token = Histogram(
            "frugalign_first_token_seconds", "From arrival to the first token.", buckets=_SECONDS, registry=own
        )
        self.next_token = Histogram(
            "frugalign_next_token_seconds", "Between two tokens of an answer.", buckets=_SECONDS, registry=own
        )
        self.answer = Histogram(
            "frugalign_answer_seconds", "From arrival to the last token.", buckets=_SECONDS, registry=own
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return bytes(generate_latest(self._registry))
