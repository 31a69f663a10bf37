"""The findings of a data check, as a table for the terminal and as one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clinkd.data.checks.check import LENGTHS, ClassBoxes, Findings, group_problems, spell_rows
from clinkd.data.images import open_image
from clinkd.data.readers import RowError
from clinkd.records import BadInput, BoxedText, Modality, Sample, Table, Task
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.maps import render_column_chart, render_heat_map
from clinkd.reporting.viewer.overlay import ASKED, TRUTH, draw_sample_boxes
from clinkd.reporting.viewer.shot import Html
from clinkd.storage import write_atomic

MOST_LISTED = 500  # rows of a table on the page; --json and the quarantine hold all
CELLS = 24  # of a map, a side


def tabulate_question_counts(findings: Findings) -> Table:
    """Questions by split and modality (rows) and task (columns)."""
    tasks = [t for t in Task if any(key[2] is t for key in findings.turns)]
    rows: list[tuple[str, ...]] = []
    for split in findings.splits:
        modalities = [m for m in Modality if any(findings.turns[split, m, t] for t in tasks)]
        for modality in modalities:
            rows.append((split, modality.value, *_format_counts([findings.turns[split, modality, t] for t in tasks])))
        total = [sum(findings.turns[split, m, t] for m in modalities) for t in tasks]
        groups = findings.groups[split]
        rows.append((split, f"all, {groups:,} group{'s' * (groups != 1)}", *_format_counts(total)))
    return Table("Questions", ("split", "modality", *(t.value for t in tasks), "all"), tuple(rows))


def _format_counts(numbers: Sequence[int]) -> tuple[str, ...]:
    return (*(f"{n:,}" if n else "-" for n in numbers), f"{sum(numbers):,}")


def write_survey_page(findings: Findings, path: Path) -> None:
    """Write the page: counts, faults, maps of boxes, guessable boxes, lengths; examples if images were opened."""
    counts = page.table(tabulate_question_counts(findings))
    sections = [
        page.section("Counts", [counts, page.note(_describe_reading(findings))]),
        page.section("Bad rows", _render_row_errors(findings)),
        page.section("Boxes", _render_box_maps(findings)),
        page.section("Guessed without looking", [page.table(_tabulate_guessed(findings.classes))]),
        page.section("Lengths", [_draw_lengths(findings)]),
    ]
    if findings.root is not None and findings.examples:
        sections.append(page.section("Examples", _render_examples(findings.examples, findings.root)))
    state = "clean" if findings.clean else f"{findings.bad_rows:,} bad rows"
    lead = f"{findings.rows:,} rows, {findings.samples:,} samples, {findings.images:,} images: {state}."
    write_atomic(path, page.document("Check of data", sections, lead=lead))


def _describe_reading(findings: Findings) -> list[str]:
    opened = "every image was opened and decoded" if findings.root else "images were not opened"
    return [opened, *(f"{count:,} {reason}" for reason, count in findings.notes.most_common())]


def _render_row_errors(findings: Findings) -> list[Html]:
    parts = [page.paragraph("None." if findings.clean else f"{findings.bad_rows:,} of {findings.rows:,} rows.")]
    for title, row_errors in (("Bad", findings.bad), ("To look at", findings.warnings)):
        if row_errors:
            kind_counts = ", ".join(f"{n} {k}" for k, n in Counter(p.kind for p in row_errors).most_common())
            groups = group_problems(row_errors)
            rows = tuple(_render_group(group) for group in groups[:MOST_LISTED])
            notes = (f"the first {MOST_LISTED} of {len(groups):,}",) if len(groups) > MOST_LISTED else ()
            columns = ("file", "rows", "id", "image", "field", "value", "reason")
            parts.append(page.table(Table(f"{title}: {kind_counts}", columns, rows, notes)))
    return parts


def _render_group(group: Sequence[RowError]) -> tuple[str, ...]:
    """A line of the table: the rows with the same fault, and what is wrong with the first of them."""
    first = group[0]
    return Path(first.file).name, spell_rows(group), first.id, first.image, first.field, first.value, first.why


def _render_box_maps(findings: Findings) -> list[Html]:
    if not findings.classes:
        return [page.paragraph("No boxes.")]
    figures = []
    for modality in Modality:
        boxes = [c.box_N4 for c in findings.classes if c.modality is modality]
        if not boxes:
            continue
        box_N4 = np.concatenate(boxes)
        title = f"{modality.value}, {len(box_N4):,} boxes"
        coverage = _count_box_coverage(box_N4)
        figures.append(render_heat_map(f"{title}: where", coverage, "left to right", "bottom to top"))
        width_N, height_N = box_N4[:, 2] - box_N4[:, 0], box_N4[:, 3] - box_N4[:, 1]
        sizes = np.histogram2d(height_N, width_N, bins=CELLS, range=((0, 1), (0, 1)))[0]
        figures.append(render_heat_map(f"{title}: size", sizes.tolist(), "width, 0 to 1", "height, 0 to 1", up=True))
    return [
        page.paragraph("Where boxes lie (darkest: the place that most of them cover), and how wide and high they are."),
        page.charts(figures, small=True),
    ]


def _count_box_coverage(box_N4: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[list[float]]:
    """How many boxes cover the middle of each cell of the image."""
    centre = (np.arange(CELLS) + 0.5) / CELLS
    across = (box_N4[:, 0:1] <= centre) & (centre <= box_N4[:, 2:3])
    down = (box_N4[:, 1:2] <= centre) & (centre <= box_N4[:, 3:4])
    grid: list[list[float]] = (down.astype(np.float32).T @ across.astype(np.float32)).tolist()
    return grid


def _tabulate_guessed(classes: Sequence[ClassBoxes]) -> Table:
    rows = tuple((c.modality.value, c.name, f"{len(c.box_N4):,}", f"{100 * c.guessed:.1f}") for c in classes)
    notes = (
        "Per cent of the boxes that the median of the others of their class meets at IoU 0.5: "
        "what can be scored in visual grounding without seeing the image.",
    )
    return Table("Median box of each class", ("modality", "class", "boxes", "guessed"), rows[:MOST_LISTED], notes)


def _draw_lengths(findings: Findings) -> Html:
    entries = [(f"to {end}", int(n)) for end, n in zip(LENGTHS, findings.lengths, strict=False)]
    entries.append((f"over {LENGTHS[-1]}", int(findings.lengths[-1])))
    used = [i for i, (_, n) in enumerate(entries) if n]
    shown = entries[used[0] : used[-1] + 1] if used else []
    scope = "" if findings.root else ", without the image"
    return render_column_chart(f"Tokens of a sample{scope} ({findings.counted}; longest {findings.longest:,})", shown)


def _render_examples(examples: Sequence[Sample], root: Path) -> list[Html]:
    cards = []
    for sample in examples:
        try:
            picture = draw_sample_boxes(open_image(root, sample.images[-1]), sample, side_pixels=320)
        except BadInput:
            continue  # listed among the bad rows
        lines = (
            page.CardText("asked", _shorten_text(sample.question), "asked"),
            page.CardText("truth", _shorten_text(sample.answer), "truth"),
            page.CardText("group", sample.group),
            page.CardText("id", sample.id),
        )
        title = f"{sample.task}, {sample.modality.value}"
        cards.append(page.Card(picture, f"{title}: {sample.id}", title, lines))
    return [page.key((("asked about", ASKED), ("truth", TRUTH))), page.gallery(cards)]


def _shorten_text(text: BoxedText) -> str:
    return text.text if len(text.text) <= 300 else f"{text.text[:297]}..."
