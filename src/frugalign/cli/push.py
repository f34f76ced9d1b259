"""`frugalign push RUN`: upload a finished artefact to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass

from frugalign.cli.parser import Command, parse
from frugalign.cli.report import ReportOptions
from frugalign.options.declare import REQUIRED, like, option
from frugalign.options.groups import Tracking


@dataclass
class PushOptions:
    """Options of `frugalign push`."""

    run: str = like(ReportOptions, "run", REQUIRED, "It holds a finished artefact.", positional=True)
    hub_model_id: str | None = like(Tracking, "hub_model_id", None, "Default: the folder's name.")
    hub_private_repo: bool | None = like(Tracking, "hub_private_repo", None)
    hub_revision: str | None = option(None, "Branch of the repository. Default: main.")


COMMAND = Command(
    "push",
    "Upload a finished proxy, representation reward, steering vector, adapter or model to the Hugging Face Hub: its files, and a card with its "
    "base, figures, and how it is loaded.",
    PushOptions,
)


def run(argv: list[str]) -> int:
    """Upload, and say where it is."""
    options: PushOptions = parse(COMMAND, argv)
    from pathlib import Path

    from frugalign.options.training_parts import check_hub
    from frugalign.runs.hub import Upload, push

    check_hub()
    folder = Path(options.run)
    print(f"Uploaded: {push(folder, Upload.of(options, folder))}")
    return 0
