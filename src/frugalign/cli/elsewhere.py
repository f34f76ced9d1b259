"""A command whose `--output_dir` is a URL: it runs in a copy on this machine until it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_copies: ExitStack | None = None
"""What ends with the command that runs."""


@contextmanager
def copies_until_the_end() -> Iterator[None]:
    """Upload what the block has written into copies, also if it fails."""
    global _copies
    with ExitStack() as stack:
        _copies = stack
        try:
            yield
        finally:
            _copies = None


def copy_of(url: str) -> str:
    """The folder on this machine that stands for a URL until the command ends.

    Raises:
        FrugalignError: the URL cannot be read, or another command uses its copy.
    """
    from frugalign.runs.elsewhere import working_copy

    assert _copies is not None
    folder = str(_copies.enter_context(working_copy(url)))
    print(f"The run's folder is {url}; its copy here is {folder}.")
    return folder
