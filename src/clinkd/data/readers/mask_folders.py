"""Read folders of images and masks, pictures or NIfTI volumes: Kvasir-SEG, ISIC, BUSI, nnU-Net, MSD, TotalSegmentator.

`mask_pairs` says which mask belongs to which image. A row is an image with its masks; masks without an image follow.
Each part of a class, connected by edges or corners, becomes a box, as in SA-Med2D. The class is that of the mask's name
or folder, or that of the value in `Source.names`, or in the `labels` of nnU-Net's or MSD's dataset.json. 0 is the
background. Of a volume, `Source.slices` chooses the slices, each of which is an image of its own.

JPEG does not keep values: where almost all are near black or white, they are divided at 128, which is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from clinkd.data.dataset import ABOUT
from clinkd.data.images import kind_of, locate
from clinkd.data.images.nifti import Nifti, VolumeHeader, read_volume_header
from clinkd.data.readers.annotated import annotate, make_samples
from clinkd.data.readers.channels import Channels
from clinkd.data.readers.mask_pairs import MaskedImage, is_mask, list_image_files, pair_masks
from clinkd.data.readers.mask_values import Layer, load_picture_mask, load_volume_mask, name_layers
from clinkd.data.readers.masks import find_regions, note_regions
from clinkd.data.readers.names import is_background, load_names
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, convert_rows, load_json_file, make_error_result
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.language.conflicts import sides
from clinkd.records import BadInput, Box, Sample, Split

_USED_KEYS = {"labels", "channel_names", "modality", "numTraining", "file_ending"}


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Read a folder. Raises BadInput where it has no masks, or classes, modality or channel cannot be told."""
    return _MaskReader(source, notes).read()


class _MaskReader:
    def __init__(self, source: Source, notes: Counter[str]) -> None:
        if not source.path.is_dir():
            raise BadInput(f"{source.path}: not a folder; give the one that holds images and masks")
        self.source, self.notes, self.images = source, notes, ImageResolver(source, notes)
        files = list_image_files(source.path, notes)
        self.mask_files = files if source.images is not None else [f for f in files if is_mask(f)]
        image_files = list_image_files(source.root, Counter()) if source.images is not None else files
        self.pairs, self.orphans = pair_masks(sorted({*image_files} - {*self.mask_files}), self.mask_files)
        if not any(pair.masks for pair in self.pairs):
            example = f", as {self.mask_files[0]}" if self.mask_files else ""
            raise BadInput(f"{source.path}: {len(self.mask_files)} masks{example}, and none is named after an image")
        description = source.path / ABOUT  # of nnU-Net and MSD
        value = load_json_file(description) if description.is_file() else None
        self.description: dict[str, Any] = value if isinstance(value, dict) else {}
        self.names = source.class_names
        if self.names is None and isinstance(self.description.get("labels"), dict):
            self.names = load_names(ABOUT, source.path)
        self._check_names()
        self.channels = Channels(source, self.description)
        self._choose_channel()
        self._note_description()
        self.splits = {split for pair in self.pairs if pair.masks for split in pair.splits}

    def _check_names(self) -> None:
        unnamed = next((mask for pair in self.pairs for mask, text in pair.masks if not text), None)
        names = self.names
        if names is None and unnamed:
            way = "give the name of what it marks, as --names polyp, or --names FILE where values are classes"
            raise BadInput(f"{self.source.path}: nothing names what the masks show ({unnamed}); {way}")
        if names is not None and unnamed and names.counted and not names.single:
            zero = names.of_value(0)
            if zero and not is_background(zero[0]):
                why = f"numbered from 0, which is {zero[0]} then, and the background in masks"
                raise BadInput(
                    f"{names.place}: its names are {why}; write number and name on each line, as 1,{zero[0]}"
                )

    def _choose_channel(self) -> None:
        """Keep one image of each case. Raises BadInput where there are several and none is named."""
        texts = {pair.channel for pair in self.pairs if pair.masks and pair.channel}
        if len(texts) > 1:
            try:
                chosen = self.channels.choose(sorted(texts))
            except FieldError as fault:
                raise BadInput(f"{self.source.path}: several images of a case: {fault.why}") from None
            kept = [pair for pair in self.pairs if pair.channel in (chosen, "")]
            self.notes[f"images of other channels than --channel {self.source.channel}"] += len(self.pairs) - len(kept)
            self.pairs = kept

    def _note_description(self) -> None:
        """Count what dataset.json says and is not used, and the cases that it counts and the folder has not."""
        if unused := sorted(self.description.keys() - _USED_KEYS):
            self.notes[f"keys of {ABOUT} that are not used ({', '.join(unused)})"] += len(unused)
        stated = self.description.get("numTraining")
        masked = sum(bool(pair.masks) for pair in self.pairs if pair.splits <= {"train"})
        if isinstance(stated, int) and stated > masked:
            self.notes[f"cases that {ABOUT} counts (numTraining) and the folder has not"] += stated - masked

    # ---- rows

    def read(self) -> Iterator[RowResult]:
        yield from convert_rows(self._list_rows(), self._convert)
        for number, (mask, why) in enumerate(self.orphans, start=len(self.pairs) + 1):
            raw = {"id": mask, "masks": [mask]}
            yield make_error_result(self.source.path, number, FieldError("mask", mask, why), raw, raw)

    def _list_rows(self) -> Iterator[SourceRow]:
        masked_places = {split for pair in self.pairs if pair.masks for split in pair.splits}
        for number, pair in enumerate(self.pairs, start=1):
            if not pair.masks and pair.splits and not pair.splits & masked_places:
                self.notes[f"images of the {min(pair.splits)} split, which has no masks"] += 1
                continue
            value = {"id": pair.image, "image": pair.image, "masks": [mask for mask, _ in pair.masks], "pair": pair}
            yield SourceRow(self.source.path, number, value, {k: v for k, v in value.items() if k != "pair"})

    def _convert(self, row: SourceRow) -> list[Sample]:
        pair: MaskedImage = row.value["pair"]
        if not pair.masks:
            raise FieldError("mask", pair.image, "no mask is named after this image; bring it, or remove the image")
        if len(folders := {mask.rpartition("/")[0] for mask, text in pair.masks if not text}) > 1:
            why = f"masks without a class from the folders {', '.join(sorted(folders))}; leave one of them there"
            raise FieldError("mask", pair.masks[0][0], why)
        split = self._find_split(pair)
        image_notes: Counter[str] = Counter()
        header = self._read_volume_header(pair.image)
        layers, has_unknown = self._load_layers(pair, header, image_notes)
        if header is not None and not header.has_orientation:
            if sided := next((layer.name for layer in layers if sides(layer.name)), None):
                why = "the volume has no orientation (sform and qform codes 0), so left and right cannot be told"
                raise FieldError("image", pair.image, f"{why} in {sided!r}; set its sform, or leave the name out")
            image_notes["volumes without orientation, taken as stored (sform and qform codes 0)"] += 1
        facts = self.images.header(self.source.prefix + pair.image)  # of a DICOM
        modality = self.source.modality or (facts and facts.modality) or self.channels.find_modality(pair.channel)
        patient = facts.patient if facts is not None and self.source.group is None else ""
        offset = int(self.channels.choose(range(header.volumes))) * header.extent[0] if header is not None else 0
        samples = []
        for index in self._choose_slices(layers):
            name = pair.image if header is None else f"{pair.image}#{offset + index + 1}"
            image = self.images.ref(self.source.prefix + name)
            objects = self._find_objects(layers, index, image_notes)
            record = annotate(self.source, image, objects, split, modality, patient)
            if has_unknown:
                record = replace(record, incomplete=frozenset(name for name, _ in record.objects))
            samples += make_samples(record, self.source, image_notes)
        if not samples:
            image_notes["images whose masks are empty, of which nothing is asked"] += 1
        self.notes.update(image_notes)
        return samples

    def _find_split(self, pair: MaskedImage) -> Split | None:
        if self.source.split is not None:
            return self.source.split
        if len(pair.splits) > 1:
            raise FieldError("split", pair.image, f"folders say {' and '.join(sorted(pair.splits))}; move one of them")
        return min(pair.splits, default=None) if len(self.splits) > 1 else None

    def _read_volume_header(self, name: str) -> VolumeHeader | None:
        """The header of a volume; None for a picture."""
        try:
            path, _ = locate(self.source.root, name, name)
            return read_volume_header(path, name) if isinstance(kind_of(path), Nifti) else None
        except BadInput as error:
            raise FieldError("image", name, str(error).removeprefix(f"{name}: ")) from None

    def _load_layers(
        self, pair: MaskedImage, header: VolumeHeader | None, image_notes: Counter[str]
    ) -> tuple[list[Layer], bool]:
        """The classes of an image, and whether a part of it is marked as unknown (nnU-Net's label `ignore`)."""
        layers = []
        for file, text in pair.masks:
            if header is None:
                image = self.images.ref(self.source.prefix + pair.image)
                mask = load_picture_mask(self.source, file, image, image_notes)
            else:
                mask = load_volume_mask(self.source, file, header)
            layers += name_layers(mask, text, self.names, image_notes)
        known = [layer for layer in layers if layer.name.casefold() != "ignore"]
        return known, len(known) < len(layers)

    def _choose_slices(self, layers: list[Layer]) -> list[int]:
        """The numbers of the slices to ask about, from 0."""
        if self.source.slices == "largest":
            return sorted({int(np.argmax(layer.areas)) for layer in layers if layer.areas.any()})
        step = int(self.source.slices.rpartition(":")[2]) if ":" in self.source.slices else 1
        return sorted({int(i) for layer in layers for i in np.flatnonzero(layer.areas)})[::step]

    def _find_objects(self, layers: list[Layer], index: int, image_notes: Counter[str]) -> tuple[tuple[str, Box], ...]:
        found = [(layer.name, find_regions(layer.inside(index), self.source.min_area)) for layer in layers]
        for _, regions in found:
            note_regions(regions, self.source.min_area, image_notes)
        return tuple((name, box) for name, regions in found for box in regions.boxes)
