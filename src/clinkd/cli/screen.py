"""Tables and lines on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from clinkd import distributed
from clinkd.records import SPELLED_OUT, Table, Task
from clinkd.storage import ungated, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Drawn

    from clinkd.workflows.correct import OutgoingPreview

GO_ON = "go on with: "  # before a command
PIPE_WIDTH = 160  # of what is printed into a file or another program


def show(*tables: Table) -> None:
    """Print tables with their notes, each as wide as the screen allows, and spell the tasks out below the first."""
    from rich.console import Console

    screen = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if screen else PIPE_WIDTH, highlight=False, file=ungated(sys.stdout))
    explained: set[Task] = set()
    for number, table in enumerate(tables):
        if number:
            console.print()
        if table.title:
            console.print(_escape(table.title), style="italic", soft_wrap=True)
        for part in _split_to_fit(table, console):
            console.print(part)
        tasks = [task for task in Task if task not in explained and _names_task(table, task)]
        explained.update(tasks)
        for note in (*table.notes, *(f"{task}: {SPELLED_OUT[task]}" for task in tasks)):
            console.print(_escape(note), style="dim", soft_wrap=GO_ON in note)  # a command stays one line, to be copied


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(visible(text))


def _names_task(table: Table, task: Task) -> bool:
    heads = (*table.columns, *(row[0] for row in table.rows if row))
    return any(task in head.split() for head in heads)


def _split_to_fit(table: Table, console: Console) -> list[Drawn]:
    """The table, or as many below each other as are needed to show every column whole; each begins with the first."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, (name, *(row[n] for row in table.rows)))) for n, name in enumerate(table.columns)]
    parts: list[list[int]] = [[0]]
    for number in range(1, len(widths)):
        if len(parts[-1]) > 1 and sum(widths[n] + 2 for n in [*parts[-1], number]) > console.width:
            parts.append([0])
        parts[-1].append(number)
    return [_draw(table, columns) for columns in parts]


def _draw(table: Table, columns: Sequence[int]) -> Drawn:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn

    drawn = Drawn(box=SIMPLE_HEAD, pad_edge=False)
    for number in columns:
        drawn.add_column(_escape(table.columns[number]), overflow="fold", no_wrap=number == 0)
    for row in table.rows:
        drawn.add_row(*(_escape(row[number]) for number in columns))
    return drawn


def split_modalities(table: Table) -> tuple[Table, ...]:
    """A table of scores as two that fit a narrow screen: tasks with score and blind, then a row for each modality."""
    first = replace(table, columns=table.columns[:3], rows=tuple(row[:3] for row in table.rows))
    rows = [row for row in table.rows if any(cell.strip("-/") for cell in row[3:])]
    if not rows:
        return (first,)
    columns = ("modality", *(row[0] for row in rows))
    by_modality = tuple((name, *(row[n] for row in rows)) for n, name in enumerate(table.columns[3:], start=3))
    return first, Table("score/blind by modality", columns, by_modality)


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
