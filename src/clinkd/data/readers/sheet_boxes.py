"""Boxes of a sheet: what their four numbers mean, and the Box that they make.

The heads of the columns say it, or `Source.box_form` does; it is never guessed. Boxes are pixels of the upright image,
unless `Source.boxes` is "normalised" (fractions) or "qwen2-vl" (thousandths).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clinkd.data.readers.annotated import parse_pixel_box, put_on_border, require_sizes
from clinkd.data.readers.box_layout import NUMBERS, BoxForm, BoxLayout, FourNumbers, clip_to_border, lies_inside
from clinkd.data.readers.columns import CORNERS, EXTENT, list_box_forms
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Box, ImageRef
from clinkd.spelling import suggest

FRAMES = {None: "pixels", "normalised": "fractions 0 to 1", "qwen2-vl": "thousandths 0 to 999"}  # units of boxes
Cells = dict[str, str]  # our name of a column -> the text in the line, "" if the sheet has no such column


def check_box_flags(source: Source) -> None:
    """Raise BadInput for a unit that sheets do not have, or a flag that contradicts the unit."""
    if source.boxes not in FRAMES:
        hint = suggest(source.boxes or "", filter(None, FRAMES))
        raise BadInput(
            f"--boxes {source.boxes}: boxes of a sheet are pixels (leave it out), normalised or qwen2-vl{hint}"
        )
    if source.boxes == "qwen2-vl" and (source.box_form or source.one_based or source.y_up):
        flags = "leave --box-form, --one-based and --y-up out"
        raise BadInput(f"--boxes {source.boxes} says itself what the numbers of a box are; {flags}")
    if source.boxes == "normalised" and source.one_based:
        raise BadInput("--one-based with --boxes normalised: fractions do not count pixels; leave one of them out")


class SheetBoxes:
    """Reads the box of a line. `declared` is the form that the publisher of the sheet gives to a single column."""

    def __init__(
        self, file: Path, source: Source, columns: Mapping[str, str], notes: Counter[str], declared: BoxForm | None
    ) -> None:
        self.file, self.source, self.columns, self.notes = file, source, columns, notes
        self.corners = EXTENT if "x" in columns else CORNERS  # of a box in four columns
        self.forms = (declared,) if declared else list_box_forms(columns) if source.boxes != "qwen2-vl" else ("xyxy",)
        given = source.box_form
        if given is not None and given not in self.forms:
            heads = ", ".join(repr(columns[c]) for c in ("box", *CORNERS, *EXTENT) if c in columns)
            raise BadInput(f"{file}: --box-form {given}, and the heads {heads} say {self.forms[0]}; leave the flag out")
        self.layout = replace(source.box_layout, form=given or self.forms[0])

    def choose_form(self, boxes: Iterable[tuple[Cells, ImageRef]]) -> None:
        """Raise BadInput, with the boxes that fit each form, if nothing says what the numbers of a single column are.

        A column `box` is left, top, right and bottom, unless as many of its boxes fit another form.
        """
        if self.source.box_form or len(self.forms) == 1 or "box" not in self.columns:
            return
        forms = [form for form in self.forms if not (self.source.one_based and form == "cxcywh")]
        layouts = [replace(self.source.box_layout, form=form) for form in forms]
        fitting: Counter[BoxForm] = Counter()
        total = 0
        for cells, image in boxes:
            try:
                a, b, c, d = self._parse_numbers(cells)
            except FieldError:
                continue  # the line is told later
            size = (1, 1) if self.source.boxes == "normalised" else (image.width, image.height)
            if size[0] and size[1]:
                total += 1
                fitting.update(x.form for x in layouts if _fits((a, b, c, d), (size[0], size[1]), x))
        column = self.columns["box"]
        is_ours = column.strip().casefold() == "box"
        others = max(fitting[form] for form in self.forms[1:])
        if total and not (is_ours and (fitting["xyxy"] > others or not others)):
            self._refuse(column, total, fitting)

    def _refuse(self, column: str, total: int, fitting: Mapping[BoxForm, int]) -> None:
        counts = ", ".join(f"{form} {NUMBERS[form]} fits {fitting[form]}" for form in self.forms)
        most = max(fitting.values(), default=0)
        flags = " or ".join(f"--box-form {form}" for form in self.forms if most and fitting[form] == most)
        way_out = f"give {flags}" if flags else "give the right one with --box-form, and mend the boxes"
        raise BadInput(
            f"{self.file}: the column {column!r} does not say what the four numbers of a box are: of {total} boxes "
            f"{counts}; {way_out}"
        )

    def parse(self, cells: Cells, image: ImageRef) -> Box | None:
        """The box of a line, None if it has none. Raises FieldError if it is no box in the image."""
        numbers = self._parse_numbers(cells)
        if not numbers:
            return None
        try:
            return self._make_box(numbers, image)
        except FieldError as fault:
            x1, y1, x2, y2 = numbers
            if self.layout.form == "xyxy" and (x1 > x2 or y1 > y2):
                fault.why += "; left, top, width and height go into columns x, y, width, height"
            raise

    def _parse_numbers(self, cells: Cells) -> Sequence[float]:
        if "box" in self.columns:
            return self._parse_single_cell(cells["box"])
        empty = [c for c in self.corners if not cells[c]]
        if 0 < len(empty) < 4:
            raise FieldError(empty[0], "", "empty, where other corners of the box are given; fill it in")
        numbers = [] if empty else [_parse_number(cells[c], c, cells[c]) for c in self.corners]
        for key, size in zip(("width", "height"), numbers[2:] if self.corners is EXTENT else (), strict=False):
            if size <= 0:
                raise FieldError(key, cells[key], f"the {key} of a box is above 0; correct it")
        return numbers

    def _parse_single_cell(self, cell: str) -> list[float]:
        texts = [t.strip() for t in re.sub(r"^[\[(](.*)[\])]$", r"\1", cell).split(",")] if cell else []
        if len(texts) not in (0, 4):
            wanted = f"four numbers {NUMBERS[self.layout.form]} are wanted, with points for decimals"
            raise FieldError("box", cell, wanted)
        return [_parse_number(t, "box", cell) for t in texts]

    def _make_box(self, numbers: Sequence[float], image: ImageRef) -> Box:
        if self.source.boxes is None:
            whole = [int(v) if v == int(v) else v for v in numbers]
            return parse_pixel_box(
                whole, "box", image, self.notes, self.layout, "if all boxes are, give --boxes normalised"
            )
        a, b, c, d = numbers
        require_sizes((a, b, c, d), self.layout, "box")
        scale = 1 if self.source.boxes == "normalised" else 1000
        corners = self.layout.to_corners((a, b, c, d), scale)
        if scale == 1 and image.width and image.height:
            corners = put_on_border(corners, (1, 1), (1 / image.width, 1 / image.height), self.notes)
        if max(corners) > scale or (scale == 1000 and any(v != int(v) for v in corners)):
            why = f"not {FRAMES[self.source.boxes]}, which --boxes declares; correct one of them"
            raise FieldError("box", list(numbers), why)
        try:
            x1, y1, x2, y2 = (v / scale for v in corners)
            return Box(x1, y1, x2, y2)
        except BadInput as error:
            raise FieldError("box", list(numbers), str(error)) from None


def _fits(numbers: FourNumbers, size: tuple[float, float], layout: BoxLayout) -> bool:
    """Whether the numbers are a box in an image of this size, if they are read so."""
    corners = layout.to_corners(numbers, size[1])
    pixel = (1, 1) if size > (1, 1) else (0, 0)
    return lies_inside(clip_to_border(corners, *size, pixel), *size)


def _parse_number(text: str, field: str, cell: str) -> float:
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", text):
        return float(text)
    if re.fullmatch(r"[+-]?[\d.]*,[\d.,]*", text):
        why = "a comma in a number: a decimal one is to be a point, one between thousands to be left out"
        raise FieldError(field, cell, why)
    raise FieldError(field, cell, "empty; four numbers are wanted" if not text else "not a number; correct it")
