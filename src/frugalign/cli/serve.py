"""`frugalign serve`: a base with its proxies over HTTP, as OpenAI's API."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from frugalign.base.errors import FrugalignError
from frugalign.cli.parser import Command, parse
from frugalign.options import groups
from frugalign.options.declare import REQUIRED, defaults, like, notes, option
from frugalign.options.kinds import COUNT, COUNT_OR_ZERO, NAME, NON_NEGATIVE, PATH, POSITIVE, Kind

_PORT = Kind("between 0 and 65535", lambda x: 0 <= x <= 65535, whole=True)
_KEY_VARIABLE = "FRUGALIGN_API_KEYS"
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(kw_only=True)
@defaults(model_name_or_path=REQUIRED)
@notes(model_name_or_path="It is the base.")
class ServeOptions(groups.Model):
    """Options of `frugalign serve`."""

    proxies: list[str] = option(
        [], "Proxies of the base: name=DIR, name=DIR@STRENGTH or DIR. Requests name them, as in base@name:0.7."
    )
    served_model_name: str | None = option(
        None, "What clients call the base. Default: the last part of model_name_or_path.", NAME
    )
    host: str = option("127.0.0.1", "Address to listen on. The default is reached from this machine alone.", NAME)
    port: int = option(8000, "Port to listen on. 0 takes a free one.", _PORT)
    api_key_file: str | None = option(
        None, f"File with one API key a line. The variable {_KEY_VARIABLE} may hold keys too.", PATH
    )
    max_new_tokens: int = like(
        groups.Sampling,
        "max_new_tokens",
        512,
        "A request that names no length gets as many, and one that asks for more is refused.",
    )
    max_batch_size: int = option(64, "Answers generated at once.", COUNT)
    max_queue: int = option(256, "Answers that may wait. More are refused with 429.", COUNT_OR_ZERO)
    request_timeout: float = option(300.0, "Seconds after which an answer is cut.", POSITIVE)
    max_body_kib: int = option(1024, "The largest request body, in KiB.", COUNT)
    shutdown_timeout: float = option(30.0, "Seconds that running answers get after a stop signal.", NON_NEGATIVE)
    log_requests: bool = option(False, "Log prompts and answers. Without this flag, no log holds any.")


COMMAND = Command(
    "serve",
    "Answer over HTTP as OpenAI's API does: chat and text completions under a mixture of proxies that each request chooses. A playground is at /.",
    ServeOptions,
)


def run(argv: list[str]) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    options: ServeOptions = parse(COMMAND, argv)
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise FrugalignError(f"frugalign serve needs {missing[0]}: pip install 'frugalign[serve]'.")
    from frugalign.serving.settings import ServerSettings

    settings = ServerSettings(
        **{name: getattr(options, name) for name in ("max_new_tokens", "max_batch_size", "max_queue")},
        request_timeout=options.request_timeout,
        max_body_bytes=options.max_body_kib * 1024,
        shutdown_timeout=options.shutdown_timeout,
        api_keys=_keys(options.api_key_file),
        log_requests=options.log_requests,
    )
    from frugalign.serving.models import load_served
    from frugalign.serving.running import address, listen, serve

    # Before the model: a port that is in use is said at once.
    with listen(options.host, options.port) as found:
        served = load_served(
            options.model_name_or_path or "",
            options.proxies,
            served_name=options.served_model_name,
            revision=options.revision,
            dtype=options.dtype,
            device_map=options.device_map or ("cpu" if options.use_cpu else None),
            load_in_4bit=options.load_in_4bit or None,
        )
        _configure_log()
        if not settings.api_keys and options.host not in _LOCAL:
            print("Anyone who reaches this address may use the model: set --api_key_file.", file=sys.stderr)
        found.listen()  # whoever reads the next line may connect
        names = ", ".join(card["id"] for card in served.cards())
        print(f"Serving {names} on {address(found)}. Ctrl-C stops.", flush=True)
        serve(served, settings, found)
    return 0


def _keys(path: str | None) -> tuple[str, ...]:
    """The keys in the file and in the environment."""
    from frugalign.serving.settings import read_keys

    found: tuple[str, ...] = ()
    if path is not None:
        try:
            found = read_keys(Path(path).expanduser().read_text(encoding="utf-8"), path)
        except UnicodeDecodeError as error:
            raise FrugalignError(f"{path} is not UTF-8 text.") from error
        except OSError as error:
            raise FrugalignError(f"Cannot read {path}: {error.strerror or error}.") from error
    own = os.environ.get(_KEY_VARIABLE, "").replace(",", "\n")
    return found + (read_keys(own, _KEY_VARIABLE) if own.strip() else ())


def _configure_log() -> None:
    """A line a request, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("frugalign.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
