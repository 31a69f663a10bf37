"""Labelled boxes drawn on an image, sharp at any size and told apart without colour vision."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from PIL import Image, ImageDraw, ImageFont

from clinkd.records import BOX_MARK, Box, BoxedText, Sample

# Okabe and Ito's palette for all kinds of colour vision, and white; answers are dashed, later ones dotted as well.
TRUTH, ANSWER, ASKED, LATER = "#56B4E9", "#E69F00", "#F0E442", "#FFFFFF"
DASHES = {ANSWER: (9, 6), LATER: (3, 4)}  # pixels drawn and left out
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"})
LARGEST_SIDE = 2048  # pixels of a picture with its answer
_INK, _EDGE = "#000000", "#000000"


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Box],
    labels: Sequence[str] = (),
    colours: Sequence[str] = (),
    side_pixels: int = 448,
) -> Image.Image:
    """A copy of `image`, its longer side about `side_pixels`, with each box outlined and labelled.

    Small images are enlarged by whole factors without smoothing, so that what the model saw stays visible. Missing
    labels are empty, missing colours are TRUTH; DASHES gives the dashes of a colour. A label stands above its box, else
    inside it, and steps aside for labels drawn before.
    """
    canvas = _resize_image(image.convert("RGB"), side_pixels)
    draw = ImageDraw.Draw(canvas)
    size = max(11, round(side_pixels / 34))
    font = ImageFont.load_default(size)
    label_areas: list[tuple[float, float, float, float]] = []
    corners = [_box_to_pixels(box, canvas) for box in boxes]
    entries = list(zip_longest(corners, labels[: len(boxes)], colours[: len(boxes)]))
    for place, _, colour in entries:
        _draw_outline(draw, place, colour or TRUTH)
    for place, label, colour in entries:
        if label:
            label_areas.append(_draw_label(draw, place, label, colour or TRUTH, font, label_areas))
    return canvas


def draw_answer(image: Image.Image, question: BoxedText, answer: BoxedText) -> Image.Image:
    """A copy of `image` with the boxes of question (A, B, ...) and answer (1, 2, ...), and both texts below it."""
    asked, given = [chr(ord("A") + n % 26) for n in range(len(question.boxes))], range(1, len(answer.boxes) + 1)
    labels = [*asked, *map(str, given)]
    colours = [ASKED] * len(asked) + [TRUTH] * len(given)
    side = min(max(448, *image.size), LARGEST_SIDE)
    drawn = draw_boxes(image, [*question.boxes, *answer.boxes], labels, colours, side)
    texts = f"Question: {_name_boxes(question.text, asked)}", f"Answer: {_name_boxes(answer.text, given)}"
    return write_below(drawn, texts, max(14, side // 34))


def write_below(picture: Image.Image, texts: Sequence[str], size: int = 14) -> Image.Image:
    """A copy of `picture` with texts below it, each on lines of its own, in letters of `size` pixels."""
    margin = 8
    font, has_accents = _load_text_font(size)
    width = max(picture.width, 320)
    spelled = texts if has_accents else tuple(map(_spell_plainly, texts))
    lines = [line for text in spelled for line in _wrap_text(text, font, width - 2 * margin)]
    canvas = Image.new("RGB", (width, picture.height + 2 * margin + round(1.4 * size) * len(lines)), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((margin, picture.height + margin + round(1.4 * size) * number), line, fill=_INK, font=font)
    return canvas


def _name_boxes(text: str, labels: Iterable[object]) -> str:
    for label in labels:
        text = text.replace(BOX_MARK, f"\0{label}]", 1)
    return text.replace("\0", "[")


def _load_text_font(size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, bool]:
    """A font, and whether it has letters beyond ASCII: one of the system, else Pillow's own."""
    for name in ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size), True
    return ImageFont.load_default(size), False


def _spell_plainly(text: str) -> str:
    """The text in ASCII: letters without their accents, umlauts as in German, "?" for all others."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_UMLAUTS))
    return "".join(c for c in decomposed if not unicodedata.combining(c)).encode("ascii", "replace").decode()


def _wrap_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider is divided."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines[1:]


def draw_sample_boxes(image: Image.Image, sample: Sample, side_pixels: int = 448) -> Image.Image:
    """A copy of `image` with the boxes of the sample's last turn: what is asked about, and the truth."""
    asked, true = sample.question.boxes, sample.answer.boxes
    labels = ["asked"] * len(asked) + ["truth"] * len(true)
    colours = [ASKED] * len(asked) + [TRUTH] * len(true)
    return draw_boxes(image, [*asked, *true], labels, colours, side_pixels=side_pixels)


def _resize_image(image: Image.Image, side: int) -> Image.Image:
    longer = max(image.size)
    if longer * 2 <= side:
        factor = side // longer
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    factor_down = side / longer
    size = (max(1, round(image.width * factor_down)), max(1, round(image.height * factor_down)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _box_to_pixels(box: Box, canvas: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom pixel, all inside the canvas and at least one apart."""
    left = min(round(box.x1 * canvas.width), canvas.width - 2)
    top = min(round(box.y1 * canvas.height), canvas.height - 2)
    right = max(left + 1, round(box.x2 * canvas.width) - 1)
    return left, top, right, max(top + 1, round(box.y2 * canvas.height) - 1)


def _draw_outline(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], colour: str) -> None:
    """Two coloured pixels inside one dark pixel on either side: visible on any tissue."""
    left, top, right, bottom = corners
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_EDGE)
    if right - left > 6 and bottom - top > 6:
        draw.rectangle((left + 2, top + 2, right - 2, bottom - 2), outline=_EDGE)
    if colour not in DASHES:
        draw.rectangle(corners, outline=colour, width=2)
        return
    length, gap = DASHES[colour]
    for x in range(left, right, length + gap):
        end = min(x + length - 1, right)
        draw.rectangle((x, top, end, top + 1), fill=colour)
        draw.rectangle((x, bottom - 1, end, bottom), fill=colour)
    for y in range(top, bottom, length + gap):
        end = min(y + length - 1, bottom)
        draw.rectangle((left, y, left + 1, end), fill=colour)
        draw.rectangle((right - 1, y, right, end), fill=colour)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    corners: tuple[int, int, int, int],
    label: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    label_areas: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    left, top, _, bottom = corners
    text = label if len(label) <= 40 else label[:39] + "…"
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    width, height = x1 - x0 + 6, y1 - y0 + 5
    canvas_width, canvas_height = draw.im.size
    x = max(0, min(left, canvas_width - width))
    tops = [top - height - 2, bottom + 3, top + 3, bottom - height - 3]
    tops_on_canvas = [y for y in tops if 0 <= y <= canvas_height - height] or [max(0, min(top, canvas_height - height))]
    free_tops = [
        y for y in tops_on_canvas if not any(_rectangles_overlap((x, y, x + width, y + height), a) for a in label_areas)
    ]
    y = (free_tops or tops_on_canvas)[0]
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + 3 - x0, y + 2 - y0), text, fill=_INK, font=font)
    return x, y, x + width, y + height


def _rectangles_overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
