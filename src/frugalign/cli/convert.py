"""`frugalign convert`: a data set in a published format as JSON lines of TRL's types."""

from __future__ import annotations

from dataclasses import dataclass

from frugalign.cli.parser import Command, parse
from frugalign.options import groups
from frugalign.options.declare import REQUIRED, like, option

_SHOWN = 5


@dataclass
class ConvertOptions:
    """Options of `frugalign convert`."""

    dataset_name: str = like(groups.Data, "dataset_name", REQUIRED, positional=True)
    out: str = option(
        REQUIRED, "The file to write (.jsonl), or the folder where there are several splits.", positional=True
    )
    prefer: str | None = option(
        None, "The column that says which answer is better, where the data has several. Default: its first."
    )


COMMAND = Command(
    "convert",
    "Write a data set as JSON lines with the columns that every command reads. Recognised: PKU-SafeRLHF, HH-RLHF, "
    "UltraFeedback, OpenAssistant, Alpaca, ShareGPT, TL;DR comparisons, pairs whose prompt has another name, and more.",
    ConvertOptions,
)


def run(argv: list[str]) -> int:
    """Convert, and print what was done and what was left out."""
    options: ConvertOptions = parse(COMMAND, argv)
    from frugalign.base.progress_display import showing
    from frugalign.base.wording import pluralize
    from frugalign.data.convert import convert
    from frugalign.data.rows import printable

    with showing():
        found, files = convert(options.dataset_name, options.out, prefer=options.prefer)
    for done, file in zip(found, files, strict=True):
        says = f"; {done.says}" if done.says else ""
        print(f"{done.split}: {done.format}, {pluralize(done.n_read, 'row')} read{says}.")
        print(f"  {pluralize(done.n_written, 'row')} of {done.kind} in {printable(str(file))}.")
        left_out = done.left_out.most_common(_SHOWN)
        for reason, number in left_out:
            print(f"  Left out: {pluralize(number, 'row')}, as {printable(reason)}.")
        if more := sum(done.left_out.values()) - sum(number for _, number in left_out):
            print(f"  Left out: {more:,} more for other reasons.")
        if done.dropped_columns:
            print(f"  Columns that are not written: {printable(', '.join(done.dropped_columns))}.")
    print(f"Next: frugalign validate {printable(options.out)}")
    return 0
