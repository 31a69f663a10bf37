"""Which mask belongs to which image, by the names of files and folders. No file is opened.

    images/a.jpg  masks/a.jpg                          Kvasir-SEG, CVC-ClinicDB (Original/, Ground Truth/)
    ISIC_01.jpg  ISIC_01_segmentation.png              ISIC, in one folder or two; BUSI: a_mask.png, a_mask_1.png
    a.tif  a_optic_disc.tif  masks/left_lung/a.png     a class in the end of the name, or in a folder of masks
    imagesTr/a_0000.png  labelsTr/a.png                nnU-Net, a file a channel; BraTS: a-t1c.nii.gz, a-seg.nii.gz
    imagesTr/a.nii.gz  labelsTr/a.nii.gz               MSD; img0001.nii.gz and label0001.nii.gz are a pair, too
    s1/ct.nii.gz  s1/segmentations/liver.nii.gz        TotalSegmentator: the only image of a folder, a mask a class

A file is a mask if a folder of its path, or the end or the front of its name, says so (`_MASK`). It belongs to the
image whose name it continues, in a folder of the same other words; else to the only image of that name.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from clinkd.data.dataset import ABOUT
from clinkd.data.images import is_named_as_image
from clinkd.data.images.nifti import SUFFIXES as VOLUMES
from clinkd.data.readers.record_files import walk_files
from clinkd.data.readers.split_words import SPLIT_WORDS
from clinkd.records import Split

PICTURES = (".png", ".bmp", ".gif", ".jpeg", ".jpg", ".tif", ".tiff", ".webp")
_SUFFIXES = (*PICTURES, *VOLUMES)
_MOST_NAMES, _MOST_PATHS = 100, 5000  # looked at in a folder and in all, to tell what it holds

_MASK = re.compile(
    r"(?:masks?|labels?|segmentations?|segs?|gts?|ground ?truths?|annotations?|annots?|manual|attribute)\d*", re.I
)
_IMAGE = re.compile(r"(?:images?|imgs?|imaging|inputs?|originals?|data|datasets?|volumes?|scans?|pictures?|raw)", re.I)
_LESION = re.compile(r"lesions?", re.I)  # marks a mask, and is the name of what it shows
_FRONT = re.compile(rf"(?:{_MASK.pattern[:-3]}|{_IMAGE.pattern})[_\-. ]*(?=\d)", re.I)
_SEPARATOR = re.compile(r"[_\-. ]+")
_FOLDER_SPLITS: dict[str, Split] = {**SPLIT_WORDS, "tr": "train", "ts": "test", "vl": "validation"}


@dataclass(slots=True)
class MaskedImage:
    """An image with its masks: paths below their roots. Each mask has the class that its name or folder states."""

    image: str
    channel: str = ""  # what the name of the image has more than that of the mask, as 0000
    masks: list[tuple[str, str]] = field(default_factory=list)
    splits: set[Split] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _NamedFile:
    path: str
    core: str  # of the name, without suffix and without words for image or mask around it
    stem: str
    place: tuple[str, ...]  # words of the folders, without those for image and mask
    split: Split | None

    @classmethod
    def of(cls, path: str) -> _NamedFile:
        pure = PurePosixPath(path)
        stem = _stem_of(pure.name)
        words = [w.lower() for folder in pure.parent.parts for w in _split_words(folder)]
        place = tuple(w for w in words if not _MASK.fullmatch(w) and not _IMAGE.fullmatch(w))
        split = next((_FOLDER_SPLITS[w] for w in place if w in _FOLDER_SPLITS), None)
        return cls(path, _strip_words(stem), stem, place, split)


def _split_words(name: str) -> list[str]:
    """`ISIC2018_Training_GroundTruth` -> ISIC2018, Training, groundtruth."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [w for w in _SEPARATOR.split(re.sub(r"ground[ _-]?truth", "groundtruth", spaced, flags=re.I)) if w]


def _strip_words(stem: str) -> str:
    """A name without words for image or mask, and numbers behind them, at its end, and before a number at its front."""
    core = _FRONT.sub("", stem, count=1) if _FRONT.match(stem) else stem
    parts = re.split(r"([_\-. ]+)", core)
    end = len(parts)
    while end > 0 and parts[end - 1].isdecimal() and len(parts[end - 1]) < 4:
        end -= 2
    if end > 0 and (_is_mask_word(parts[end - 1]) or _IMAGE.fullmatch(parts[end - 1])):
        return "".join(parts[: end - 1]).rstrip("_-. ")
    return core


def _is_mask_word(word: str) -> bool:
    return bool(_MASK.fullmatch(word) or _LESION.fullmatch(word))


def is_mask(path: str) -> bool:
    """Whether the name of a file says that it is a mask, or the innermost of its folders that says anything."""
    *folders, name = PurePosixPath(path).parts
    said = (_says_mask(_split_words(folder)) for folder in reversed(folders))
    of_folder = next((says for says in said if says is not None), None)
    stem = _stem_of(name)
    words = [w for w in _split_words(stem) if not w.isdecimal() or len(w) > 3] or [stem]
    if _MASK.fullmatch(words[-1]) or of_folder is not None:
        return bool(of_folder or _MASK.fullmatch(words[-1]))
    front = re.match(rf"{_MASK.pattern[:-3]}[_\-. ]*\d", stem, re.I)
    return bool(front or (len(words) > 1 and (_LESION.fullmatch(words[-1]) or any(map(_MASK.fullmatch, words[1:])))))


def _says_mask(words: Sequence[str]) -> bool | None:
    """Whether the name of a folder is one of masks; None where it says neither."""
    words = [w for w in words if w.lower() not in _FOLDER_SPLITS]
    if not words or _IMAGE.fullmatch(words[-1]):
        return False if words else None
    return True if any(map(_MASK.fullmatch, words)) or _LESION.fullmatch(words[-1]) else None


def _stem_of(name: str) -> str:
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem


def is_folder(folder: Path) -> bool:
    """Whether a folder holds masks of its pictures or volumes, by the first names in each of its folders."""
    paths: list[str] = []
    for directory, folders, names in os.walk(folder):
        place = Path(directory).relative_to(folder)
        folders[:] = sorted(folders) if len(paths) < _MOST_PATHS else []
        paths += [(place / n).as_posix() for n in sorted(names)[:_MOST_NAMES] if n.lower().endswith(_SUFFIXES)]
    masks = [path for path in paths if is_mask(path)]
    return bool(masks) and any(pair.masks for pair in pair_masks(sorted({*paths} - {*masks}), masks)[0])


def are_named_as_sa_med2d(folder: Path) -> bool:
    """Whether the masks of a folder are named as those of SA-Med2D, IMAGE--CLASS_INSTANCE.png, or there are none."""
    masks = folder / "masks"
    entries = list(itertools.islice(masks.iterdir(), _MOST_NAMES)) if masks.is_dir() else []
    names = [entry.name for entry in entries if entry.name.lower().endswith(_SUFFIXES)]
    return any("--" in name for name in names) or not (names or any(entry.is_dir() for entry in entries))


def list_image_files(root: Path, notes: Counter[str]) -> list[str]:
    """The pictures and volumes below a folder, sorted. `notes` counts other files, and the hidden ones of macOS."""
    paths = []
    for path in walk_files(root):
        name = path.rpartition("/")[2]
        if name.startswith("."):
            notes["hidden files (._ and the like), which are not read"] += 1
        elif is_named_as_image(name):
            paths.append(path)
        elif name != ABOUT:
            notes["files that are no images and no masks"] += 1
    return paths


def pair_masks(images: Sequence[str], masks: Sequence[str]) -> tuple[list[MaskedImage], list[tuple[str, str]]]:
    """Each image with its masks, in the order of the images, and each mask that has no one image, with the reason."""
    pairs = {path: MaskedImage(path) for path in images}
    files = [_NamedFile.of(path) for path in images]
    named: dict[str, list[_NamedFile]] = defaultdict(list)
    placed: dict[tuple[str, ...], list[_NamedFile]] = defaultdict(list)
    for file in files:
        placed[file.place].append(file)
        for name in {file.stem, file.core}:
            named[name].append(file)
    mask_files = [_NamedFile.of(path) for path in masks]
    cores = {mask.core for mask in mask_files if not _find_named(mask, named)}
    channels: dict[str, list[_NamedFile]] = defaultdict(list)  # by the longest name of a mask that an image continues
    for file in files:
        if core := next((p for p in _iterate_prefixes(file.stem) if p in cores), None):
            channels[core].append(file)
    orphans = []
    for mask in mask_files:
        by_name = _find_named(mask, named)
        continued, name = by_name or (channels.get(mask.core, []), mask.core)
        near = [file for file in continued if file.place == mask.place] or continued
        rest = mask.stem[len(name) :] if mask.stem.startswith(name) else ""
        if not near and mask.place and len(placed[mask.place]) == 1:
            near, rest = placed[mask.place], mask.stem
        if not near or (by_name and len(near) > 1):
            why = f"{len(near)} images of its name ({near[0].path}, {near[1].path})" if near else "no image of its name"
            orphans.append((mask.path, f"{why}; bring the one it belongs to, or remove the mask"))
            continue
        for file in near:
            pair = pairs[file.path]
            pair.masks.append((mask.path, _find_class(mask, rest)))
            pair.splits |= {mask.split} if mask.split else set()
            if not by_name and file.stem.startswith(name):
                pair.channel = file.stem[len(name) :].strip("_-. ")
    for file in files:
        pairs[file.path].splits |= {file.split} if file.split else set()
    return list(pairs.values()), orphans


def _find_named(mask: _NamedFile, named: dict[str, list[_NamedFile]]) -> tuple[list[_NamedFile], str] | None:
    """The images whose name a mask continues, the longest such name, and that name."""
    for name in (*_iterate_prefixes(mask.stem), mask.core):
        if name and name in named:
            return named[name], name
    return None


def _iterate_prefixes(stem: str) -> Iterator[str]:
    """`a_b-c` -> a_b-c, a_b, a."""
    yield stem
    for match in reversed(list(_SEPARATOR.finditer(stem))):
        yield stem[: match.start()]


def _find_class(mask: _NamedFile, rest: str) -> str:
    """The class that the end of a mask's name states, else the folders below the one for masks; "" for none."""
    words = [w for w in _SEPARATOR.split(rest) if w and not w.isdecimal() and not _MASK.fullmatch(w)]
    if not words:
        folders = [_split_words(folder) for folder in PurePosixPath(mask.path).parent.parts]
        first = next((i for i, f in enumerate(folders) if any(map(_is_mask_word, f))), len(folders))
        below = [w for f in folders[first + 1 :] for w in f if not _MASK.fullmatch(w) and not _IMAGE.fullmatch(w)]
        words = [w for w in below if w.lower() not in _FOLDER_SPLITS]
    return " ".join(words)
