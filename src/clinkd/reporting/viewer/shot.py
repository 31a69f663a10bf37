"""Pictures as text, embedded once, and boxes drawn over them as SVG, so that the image below stays visible."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple, NewType

from PIL import Image, ImageChops

from clinkd.data.images import encode_picture
from clinkd.records import BOX_MARK, Box

Html = NewType("Html", str)
SMALL = 224  # pixels: a picture whose longer side has fewer is enlarged without smoothing
_PNG_SIDE = 160  # pixels: up to here PNG may be the smaller form, as of drawings
KINDS = ("truth", "answer", "asked", "later")  # of boxes, in the style sheet


class Picture(NamedTuple):
    """An encoded picture: a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


class DrawnBox(NamedTuple):
    """A box on a picture, drawn as its kind is (one of KINDS)."""

    box: Box
    kind: str


def thumbnail(image: Image.Image, side: int, quality: int = 84) -> Picture:
    """A picture whose longer side has at most `side` pixels: JPEG, grey where it has no colour; or, of a small one, PNG
    where that is smaller. It is never enlarged."""
    scaled = image.convert("RGB")
    red, green, blue = scaled.split()
    if ImageChops.difference(red, green).getbbox() is None and ImageChops.difference(red, blue).getbbox() is None:
        scaled = red
    if max(scaled.size) > side:
        scaled.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    formats = [("JPEG", {"quality": quality, "optimize": True})]
    if max(scaled.size) <= _PNG_SIDE:
        formats.append(("PNG", {"optimize": True}))
    encodings = []
    for format_name, options in formats:
        encodings.append((format_name.lower(), encode_picture(scaled, format_name, **options)))
    format_name, best = min(encodings, key=lambda pair: len(pair[1]))
    return Picture(f"data:image/{format_name};base64,{base64.b64encode(best).decode()}", *scaled.size)


def over(marks: Sequence[DrawnBox]) -> Html:
    """Boxes as a drawing that lies on a picture of any size."""
    boxes = "".join(_draw_box(mark) for mark in marks)
    return Html(f'<svg class="over" viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg>')


def _draw_box(mark: DrawnBox) -> str:
    """A coloured line inside a dark one: visible on any tissue."""
    box = mark.box
    place = f'x="{box.x1:.4f}" y="{box.y1:.4f}" width="{box.width:.4f}" height="{box.height:.4f}"'
    kind = escape(mark.kind)
    return f'<rect class="edge {kind}" {place}/><rect class="line {kind}" {place}/>'


def shot(picture: Picture, marks: Sequence[DrawnBox], alt: str, number: int | None = None) -> Html:
    """A picture with its boxes. The page's script finds it by `number`, where one is given."""
    attribute = "" if number is None else f' data-picture="{number}"'
    return Html(
        f'<div class="shot"><img{attribute}{_size_class(picture)} width="{picture.width}" height="{picture.height}" '
        f'loading="lazy" alt="{escape(alt)}" src="{picture.uri}">{over(marks)}</div>'
    )


def repeated(picture: Picture, marks: Sequence[DrawnBox], alt: str, name: str, first: bool) -> Html:
    """A picture that the page shows several times under the same `name`: it is embedded the first time only."""
    size = f'width="{picture.width}" height="{picture.height}"'
    content = f'<image id="{escape(name)}" {size} href="{picture.uri}"/>' if first else f'<use href="#{escape(name)}"/>'
    return Html(
        f'<div class="shot"><svg role="img" aria-label="{escape(alt)}"{_size_class(picture)} '
        f'viewBox="0 0 {picture.width} {picture.height}">{content}</svg>{over(marks)}</div>'
    )


def _size_class(picture: Picture) -> str:
    return ' class="small"' if max(picture.width, picture.height) < SMALL else ""


def boxed_words(text: str, kind: str) -> Html:
    """A text in which each box mark becomes a sign that looks like the box on the picture."""
    sign = f'<span class="chip {escape(kind)}">box</span>'
    return Html(sign.join(escape(part) for part in text.split(BOX_MARK)))
