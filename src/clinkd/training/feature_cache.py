"""The features of every image by a frozen vision tower, computed once, so that no stage opens an image again.

A feature cache is a tensor store (`tensor_store.py`) with one tensor [tokens, H] for each image, under the image's key.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import BadInput, ImageRef
from clinkd.storage import Advance, folder_bytes, free_bytes, spell_bytes
from clinkd.training.tensor_store import Filled, TensorStore, is_store_full

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
    names = sorted(refs)
    parts = [names[k : k + IMAGES_A_FILE] for k in range(0, len(names), IMAGES_A_FILE)]
    files = {f"images-{number:05d}.safetensors": part for number, part in enumerate(parts)}
    sizes = {name: math.prod(model.images.grid(ref)) for name, ref in refs.items()}
    needed = sum(sizes.values()) * model.head.weight_VH.shape[1] * model.dtype.itemsize
    if not is_store_full(folder):
        _demand_space(folder, needed, len(refs))

    def make(file: str, advance: Advance) -> Filled:
        features: dict[str, Tensor] = {}
        for name in files[file]:
            features[name] = _compute_features(model, refs[name])
            advance(1)
        return features, [[name, sizes[name]] for name in files[file]]

    _tensor_store(folder, model).fill(files, make, f"{title} ({spell_bytes(needed / 1e6)})", "images")
    return needed


class FeatureCache:
    """The features in a full cache.

    All bytes are checked once, here. Raises BadInput if the cache is not full, is damaged, or belongs to another tower
    than the model's. `owner`: the folder to remove then, if that is more than the cache's own.
    """

    def __init__(self, folder: Path, model: VisionLanguageModel, owner: Path | None = None) -> None:
        self.store = _tensor_store(folder, model, owner)
        self.files = {key: file for file, items in self.store.opened().items() for key, _ in items}

    def serve(self, model: VisionLanguageModel) -> None:
        """Let the model take its features from here. Raises BadInput if its tower is another one."""
        self.store.demand_same(vision_identity(model))
        model.images.feature_lookup = self.features

    def features(self, ref: ImageRef) -> Tensor | None:
        """Features [tokens, H] of an image; None if they are not here."""
        key = _make_key(ref)
        if key not in self.files:
            return None
        features_FH: Tensor = self.store.file(self.files[key]).get_tensor(key)
        return features_FH


def _tensor_store(folder: Path, model: VisionLanguageModel, owner: Path | None = None) -> TensorStore:
    return TensorStore(folder, "the gallery", vision_identity(model), owner)


def vision_identity(model: VisionLanguageModel) -> dict[str, Any]:
    """All that decides the features of an image: the weights of tower and merger, and the preparation of images."""
    processor = json.loads(model.images.processor.to_json_string())
    weights = hashlib.sha256()
    for name, tensor in sorted(model.visual.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {
        "tower": weights.hexdigest()[:16],
        "processor": {name: value for name, value in processor.items() if name in PREPARED_BY},
        "square": model.images.square,
    }


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
