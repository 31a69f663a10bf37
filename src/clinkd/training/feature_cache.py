"""What is frozen of every image, computed once, so that no stage opens an image again: the cells that eyes see, and
the features by a vision tower.

A cache is a tensor store (`tensor_store.py`) with one tensor for each image, under the image's key: its cells
[patches, values] in float16, or its features [tokens, width of features].
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clinkd.model.encode import ImageEncoder
from clinkd.model.eyes import look_in_parallel
from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import BadInput, ImageRef
from clinkd.storage import Advance, folder_bytes, free_bytes, spell_bytes
from clinkd.training.tensor_store import Filled, TensorStore, is_store_full

GALLERY = "the gallery"  # of images, as errors name a store
IMAGES_A_FILE = 64  # the most that a kill can lose: a hundred megabytes of a 2B model
PREPARED_BY = (
    "size", "patch_size", "merge_size", "temporal_patch_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip


def cache_features(folder: Path, model: VisionLanguageModel, images: Iterable[ImageRef], title: str) -> int:
    """Write the features of each image into `folder`, from where it was stopped; the number of bytes of all.

    Raises BadInput if the disk has too little space, or the folder belongs to another tower.
    """
    refs = {_make_key(ref): ref for ref in images}
    sizes = {name: math.prod(model.images.grid(ref)) for name, ref in refs.items()}
    bytes_a_row = model.family.feature_width(model.network.config) * model.dtype.itemsize

    def compute(names: Sequence[str]) -> Iterator[Tensor]:
        return (_compute_features(model, refs[name]) for name in names)

    return _fill(TensorStore(folder, GALLERY, vision_identity(model)), sizes, bytes_a_row, compute, title)


def cache_cells(folder: Path, images: ImageEncoder, refs: Iterable[ImageRef], title: str) -> int:
    """Write the cells of each image into `folder`, as `cache_features`."""
    by_key = {_make_key(ref): ref for ref in refs}
    merge, bytes_a_row = images.geometry.merge, images.geometry.values * torch.float16.itemsize
    sizes = {name: math.prod(images.grid(ref)) * merge**2 for name, ref in by_key.items()}

    def compute(names: Sequence[str]) -> Iterator[Tensor]:
        return look_in_parallel(images.look, [by_key[name] for name in names])

    return _fill(TensorStore(folder, GALLERY, image_identity(images)), sizes, bytes_a_row, compute, title)


def _fill(
    store: TensorStore, sizes: Mapping[str, int], bytes_a_row: int,
    compute: Callable[[Sequence[str]], Iterator[Tensor]], title: str,
) -> int:  # fmt: skip
    """Fill a store with a tensor of `sizes` rows a key; the number of bytes of all."""
    names = sorted(sizes)
    parts = [names[k : k + IMAGES_A_FILE] for k in range(0, len(names), IMAGES_A_FILE)]
    files = {f"images-{number:05d}.safetensors": part for number, part in enumerate(parts)}
    needed = sum(sizes.values()) * bytes_a_row
    if not is_store_full(store.folder):
        _demand_space(store.folder, needed, len(names))

    def make(file: str, advance: Advance) -> Filled:
        tensors: dict[str, Tensor] = {}
        for name, tensor in zip(files[file], compute(files[file]), strict=True):
            tensors[name] = tensor
            advance(1)
        return tensors, [[name, sizes[name]] for name in files[file]]

    store.fill(files, make, f"{title} ({spell_bytes(needed / 1e6)})", "images")
    return needed


class ImageCache:
    """The tensors in a full cache, by image.

    All bytes are checked once, here. Raises BadInput if the cache is not full, is damaged, or was made from something
    else than `about`. `owner`: the folder to remove then, if that is more than the cache's own.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], owner: Path | None = None) -> None:
        self.store = TensorStore(folder, GALLERY, about, owner)
        self.files = {key: file for file, items in self.store.opened().items() for key, _ in items}

    def find(self, ref: ImageRef) -> Tensor | None:
        """The tensor of an image; None if it is not here."""
        key = _make_key(ref)
        if key not in self.files:
            return None
        tensor: Tensor = self.store.file(self.files[key]).get_tensor(key)
        return tensor


class CellCache(ImageCache):
    """The cells [patches, values] of the eyes of an encoder."""

    def __init__(self, folder: Path, images: ImageEncoder, owner: Path | None = None) -> None:
        super().__init__(folder, image_identity(images), owner)

    def serve(self, images: ImageEncoder) -> None:
        """Let the encoder take its cells from here. Raises BadInput if its eyes are others."""
        self.store.demand_same(image_identity(images))
        images.cell_lookup = self.find


class FeatureCache(ImageCache):
    """The features [tokens, H] of the tower of a model."""

    def __init__(self, folder: Path, model: VisionLanguageModel, owner: Path | None = None) -> None:
        super().__init__(folder, vision_identity(model), owner)

    def serve(self, model: VisionLanguageModel) -> None:
        """Let the model take its features from here. Raises BadInput if its tower is another one."""
        self.store.demand_same(vision_identity(model))
        model.images.feature_lookup = self.find


def vision_identity(model: VisionLanguageModel) -> dict[str, Any]:
    """All that decides the features of an image: the weights of tower and merger, and the preparation of images."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.visual.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {"tower": weights.hexdigest()[:16], **image_identity(model.images)}


def image_identity(images: ImageEncoder) -> dict[str, Any]:
    """All that decides the patches of an image: its preparation, and the eyes where there are any."""
    processor = json.loads(images.processor.to_json_string())
    prepared = {name: value for name, value in processor.items() if name in PREPARED_BY}
    if images.processor.resample != Image.Resampling.BICUBIC:  # older caches, all of them bicubic, do not name it
        prepared["resample"] = int(images.processor.resample)
    eyes = {} if images.eyes is None else {"eyes": images.eyes.identity()}
    return {"processor": prepared, "square": images.square, **eyes}


def _make_key(ref: ImageRef) -> str:
    return json.dumps(ref.to_json(), sort_keys=True)


@torch.inference_mode()
def _compute_features(model: VisionLanguageModel, ref: ImageRef) -> Tensor:
    """Features of a single image: in a batch its last bits would depend on the others."""
    pixels_TD, grids_I3 = (t.to(model.device) for t in model.images.patches([ref]))
    return model.tower(pixels_TD, grids_I3)[0].cpu().contiguous()


def _demand_space(folder: Path, needed: int, images: int) -> None:
    free = free_bytes(folder)
    if needed - folder_bytes(folder) > free:
        raise BadInput(
            f"{folder}: the features of {images} images take {spell_bytes(needed / 1e6)} and "
            f"{spell_bytes(free / 1e6)} are free; make room, lower model.max_image_tokens, or set "
            "model.vision_features=live"
        )
