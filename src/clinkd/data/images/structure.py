"""How many parts a picture file has, counted before a decoder takes time for each of them.

A few bytes make a part: a file within the limit of bytes may have millions. Each format is walked by the lengths that
its parts give; nothing is decoded, and a file that breaks off or is damaged is left to its decoder.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from clinkd.data.images.limits import FileLimits
from clinkd.records import BadInput

_Parts = Iterator[tuple[int, int]]  # number of parts, and bytes of them that are no pixels
_LEAST_BYTES = 2  # of a part
_TAGS = 4  # of a TIFF take as long as another part
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # of a JPEG, between coded pixels, too (ISO/IEC 10918-1 B.1.1.2)
_TIFF_SIZES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8])  # bytes of a value, by its type


def check_structure(stream: BinaryIO, place: str, limits: FileLimits) -> None:
    """Raise BadInput where a file has more parts, or more bytes beside the pixels, than allowed."""
    head, size = stream.read(12), stream.seek(0, io.SEEK_END)
    walk = next((walk for magic, walk in _WALKS.items() if re.match(magic, head)), None)
    tiny = size <= _LEAST_BYTES * limits.blocks and walk is not _walk_tiff  # whose parts may share their bytes
    if walk is not None and not tiny:
        blocks, metadata, way = 0, 0, "save it anew as a PNG"
        most_bytes = max(size, limits.metadata_bytes) if walk is _walk_tiff else limits.metadata_bytes
        for count, length in walk(stream):
            blocks, metadata = blocks + count, metadata + length
            if blocks > limits.blocks:
                raise BadInput(f"{place}: more than {limits.blocks:,} parts (chunks, marks, tags or frames); {way}")
            if metadata > most_bytes:
                raise BadInput(f"{place}: more than {most_bytes:,} bytes of tags and comments; {way}")
    stream.seek(0)


def _walk_png(stream: BinaryIO) -> _Parts:
    position = 8
    while len(head := (stream.seek(position), stream.read(8))[1]) == 8:
        length = int.from_bytes(head[:4], "big")
        yield 1, 0 if head[4:] in (b"IDAT", b"fdAT") else length
        position += 12 + length


def _walk_riff(stream: BinaryIO) -> _Parts:
    position = 12
    while len(head := (stream.seek(position), stream.read(8))[1]) == 8:
        length = int.from_bytes(head[4:], "little")
        yield 1, length if head[:4] in (b"EXIF", b"XMP ", b"ICCP") else 0
        position += 8 + length + length % 2


def _walk_jpeg(stream: BinaryIO) -> _Parts:
    stream.seek(0)
    data, position = stream.read(), 2
    while marker := _MARKER.search(data, position):
        code, position = data[marker.end() - 1], marker.end()
        if code == 0xD9:  # the end: what follows is no part of the picture
            return
        length = int.from_bytes(data[position : position + 2], "big") if code not in (0x01, 0xD8) else 0
        yield 1, length if code == 0xFE or 0xE0 <= code <= 0xEF else 0
        position += length


def _walk_gif(stream: BinaryIO) -> _Parts:
    stream.seek(0)
    data = stream.read() + bytes(16)  # what is cut ends in zeros
    position = 13 + _count_colour_bytes(data[10])
    while position < len(data) - 16 and data[position] in b"!,":
        picture = data[position] == 0x2C
        position += 11 + _count_colour_bytes(data[position + 9]) if picture else 2
        yield 1, 0
        while position < len(data) and (length := data[position]):
            if length < 255 or not picture:
                yield 1, 0 if picture else length
            position += 1 + length
        position += 1


def _count_colour_bytes(flags: int) -> int:
    return 3 << (flags % 8 + 1) if flags & 0x80 else 0


def _walk_tiff(stream: BinaryIO) -> _Parts:
    stream.seek(0)
    head = stream.read(16)
    order, big = "<" if head[:1] == b"I" else ">", 0x2B in head[2:4]
    word, counter, entry = ("Q", "Q", "V8") if big else ("I", "H", "V4")
    count_bytes, word_bytes = struct.calcsize(f"={counter}"), struct.calcsize(f"={word}")
    row = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u{word_bytes}"), ("at", entry)])
    (position,) = struct.unpack_from(f"{order}{word}", head, 8 if big else 4)
    while position:
        stream.seek(min(position, 1 << 62))
        if len(start := stream.read(count_bytes)) < count_bytes:
            return
        (count,) = struct.unpack(f"{order}{counter}", start)
        yield 1 + count // _TAGS, 0
        table = stream.read(count * row.itemsize)
        rows = np.frombuffer(table[: len(table) // row.itemsize * row.itemsize], row)
        sizes = _TIFF_SIZES[np.where(rows["type"] < len(_TIFF_SIZES), rows["type"], 0)]
        yield 0, int(min((rows["count"].astype(float) * sizes).sum(), 1 << 62))
        if len(after := stream.read(word_bytes)) < word_bytes:
            return
        (position,) = struct.unpack(f"{order}{word}", after)


_WALKS: dict[bytes, Callable[[BinaryIO], _Parts]] = {
    rb"\x89PNG\r\n\x1a\n": _walk_png,
    rb"\xff\xd8\xff": _walk_jpeg,
    rb"GIF8[79]a": _walk_gif,
    rb"II[*+]\0|MM\0[*+]|MM\*\0|II\0\*": _walk_tiff,
    rb"(?s)RIFF....WEBP": _walk_riff,
}
