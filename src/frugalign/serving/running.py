"""Run the server: in the foreground until a signal, or in a thread for a block of Python."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from frugalign.base.errors import FrugalignError
from frugalign.decoding.continuous import ContinuousBatch
from frugalign.serving.app import Server
from frugalign.serving.metrics import Metrics
from frugalign.serving.models import Served
from frugalign.serving.scheduler import Scheduler
from frugalign.serving.settings import ServerSettings

_GRACE = 5.0
"""Seconds that connections get to write their last words after the scheduler has ended."""


class _Uvicorn(uvicorn.Server):
    """uvicorn, whose stop signal also tells the scheduler, and which returns instead of raising the signal again."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, seconds: float) -> None:
        super().__init__(config)
        self.scheduler, self.seconds = scheduler, seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        stops = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self.handle_exit) for each in stops}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.stop(0.0 if self.force_exit else self.seconds)

    def stop(self, seconds: float) -> None:
        """Take no more requests, and give running ones this time."""
        self.should_exit = True
        # Not in this thread: a signal may interrupt a block that holds the scheduler's lock.
        threading.Thread(target=self.scheduler.drain, args=(seconds,), daemon=True).start()


def _build(served: Served, settings: ServerSettings) -> _Uvicorn:
    metrics = Metrics()
    scheduler = Scheduler(ContinuousBatch(served.engine, served.guide), settings, metrics)
    config = uvicorn.Config(
        Server(served, scheduler, settings, metrics).app(),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=round(settings.shutdown_timeout + _GRACE),
    )
    scheduler.start()
    return _Uvicorn(config, scheduler, settings.shutdown_timeout)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Port 0 takes a free one.

    Raises:
        FrugalignError: the address is in use, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise FrugalignError(f"Cannot listen on {host}, port {port}: {error.strerror or error}.") from error
    return found


def address(found: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(served: Served, settings: ServerSettings, found: socket.socket) -> None:
    """Answer requests on a socket until SIGINT or SIGTERM. Running answers then get `shutdown_timeout` seconds; a second
    Ctrl-C cuts them."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = _build(served, settings)
    server.run(sockets=[found])
    server.scheduler.stop()


@contextmanager
def running(
    served: Served, settings: ServerSettings | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> Iterator[str]:
    """A server in a thread, for the block: its URL.

    Raises:
        FrugalignError: the address cannot be had.
    """
    found = listen(host, port)
    server = _build(served, settings or ServerSettings())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [found]}, name="server", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        yield address(found)
    finally:
        server.stop(server.seconds)
        thread.join()
        server.scheduler.stop()
        found.close()
