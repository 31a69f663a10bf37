"""Tables and lines on a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from clinkd import distributed

if TYPE_CHECKING:
    from clinkd.records import Table
    from clinkd.workflows.correct import OutgoingPreview


def show(table: Table) -> None:
    """Print a table with its notes."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Drawn

    rich_table = Drawn(title=escape(table.title), box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, column in enumerate(table.columns):
        rich_table.add_column(escape(column), no_wrap=number == 0)
    for row in table.rows:
        rich_table.add_row(*(escape(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(rich_table)
    for note in table.notes:
        console.print(escape(note), style="dim")


def show_leaving(preview: OutgoingPreview, what: str) -> None:
    """Print the body of each call that `what` would need, and print the possible cost on stderr."""
    for body in preview.bodies:
        sys.stdout.buffer.write(body + b"\n")
    sys.stdout.buffer.flush()
    size = sum(map(len, preview.bodies))
    tell(f"{len(preview.bodies)} calls, {size:,} bytes in all, would leave for {what}")
    tell(
        f"they may cost up to {preview.most:.4f} US dollars (a token is at least a byte, and every reply as long "
        f"as it may be); {preview.spent:.4f} are spent or set aside in the journal"
    )


def tell(line: str) -> None:
    """Print one line on stderr."""
    prefix = "clinkd:" if distributed.is_main() else f"clinkd, process {distributed.rank()}:"
    print(prefix, " ".join(line.split()), file=sys.stderr)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
