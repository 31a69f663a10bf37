"""Pixels alone: colours of a file's profile as sRGB, parts made grey, and image files that hold nothing but pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any

from PIL import Image, ImageCms

from clinkd.records import Box

_MODES = {"RGB": ("RGB", "RGBA", "RGBX", "P", "PA"), "GRAY": ("L", "LA"), "CMYK": ("CMYK",)}  # by a profile's space


def convert_to_srgb(image: Image.Image, rgb: Image.Image) -> Image.Image:
    """An image whose colours were read as `rgb`, in sRGB by the ICC profile of its file, with nothing else of the file.

    A profile that is damaged, or of another kind of colours than the image, is of no use to any program: then `rgb`.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        space = profile.profile.xcolor_space.strip()
        if image.mode in _MODES.get(space, ()):
            source = {"RGB": rgb, "GRAY": rgb.convert("L")}.get(space, image)
            intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
            target = ImageCms.createProfile("sRGB")
            rgb = ImageCms.profileToProfile(source, profile, target, intent, "RGB", flags=flags) or rgb
    except (KeyError, OSError, TypeError, ValueError, ImageCms.PyCMSError):
        pass
    rgb.info = {}
    return rgb


def encode_picture(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """An image file of the pixels of a picture and of what `options` of its format ask for: no comment, tag or profile
    of the file that the picture was read from. Every picture that is written or sent is made here."""
    pixels, buffer = picture.copy(), io.BytesIO()
    pixels.info = {}
    pixels.save(buffer, file_format, **options)
    return buffer.getvalue()


def blank_outside(picture: Image.Image, boxes: Iterable[Box]) -> Image.Image:
    """The picture, of the same size, with only the pixels that a box touches; the rest is mid grey."""
    (width, height), blank = picture.size, Image.new("RGB", picture.size, (128, 128, 128))
    for box in boxes:
        part = (
            math.floor(box.x1 * width), math.floor(box.y1 * height),
            math.ceil(box.x2 * width), math.ceil(box.y2 * height),
        )  # fmt: skip
        blank.paste(picture.crop(part), part)
    return blank
