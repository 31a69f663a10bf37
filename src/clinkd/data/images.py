"""Open an image safely: confined to its root, capped before decoding, upright, and always 8-bit RGB."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clinkd.records import BadInput, ImageRef

MAX_PIXELS = 40_000_000  # 120 MB as RGB
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")  # decoders that run no other program
_WAY_OUT = f"give a readable image ({', '.join(FORMATS)})"


def open_image(
    root: Path, image: ImageRef | str | Path, max_pixels: int = MAX_PIXELS, row: int | None = None
) -> Image.Image:
    """The image at `root`/`image` as RGB, turned upright as its EXIF says; the first frame where there are several.

    Grey levels beyond 8 bits are stretched from the image's least to its greatest value; transparent parts become
    black. Raises BadInput naming the path, and the row of a data file where given, when the path leads out of `root`,
    or the file is missing, empty, larger than `max_pixels`, damaged, or no image.
    """
    relative = image.path if isinstance(image, ImageRef) else image
    place = f"row {row}, image {relative}" if row is not None else f"image {relative}"
    path = _confined(root, relative, place)
    try:
        if path.stat().st_size == 0:
            raise BadInput(f"{place}: the file is empty (0 bytes); bring back the original, or leave it out")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > max_pixels:
                    size = f"{file.width}x{file.height} pixels"
                    raise BadInput(f"{place}: {size}, more than {max_pixels:,} in all; shrink it first")
                file.load()
                return _rgb(ImageOps.exif_transpose(file))
    except BadInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadInput(f"{place}: more than {max_pixels:,} pixels; shrink it first") from None
    except FileNotFoundError:
        raise BadInput(f"{place}: no such file in {root}; check the path") from None
    except UnidentifiedImageError:
        raise BadInput(f"{place}: not an image; {_WAY_OUT}") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        TypeError,
    ) as error:  # what damage makes of decoders
        raise BadInput(f"{place}: cannot be read ({error}); {_WAY_OUT}") from None


def _confined(root: Path, relative: str | Path, place: str) -> Path:
    try:
        base = Path(root).resolve()
        path = (base / relative).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL byte, a loop of links, a name too long
        raise BadInput(f"{place}: not a usable path ({error}); correct it") from None
    if not path.is_relative_to(base):
        raise BadInput(f"{place}: leads out of {root}; give a path inside it")
    return path


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        values = np.where(np.isfinite(values), values, 0)
        low, span = values.min(), max(values.max() - values.min(), 1e-12)
        return Image.fromarray(((values - low) / span * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, (0, 0, 0, 255)), clear).convert("RGB")
    return image.convert("RGB")
