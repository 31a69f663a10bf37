"""What a frozen vision tower makes of every image, made once, so that no stage opens or sees an image again.

A feature cache is a tensor store (`tensor_store.py`) with a tensor [tokens, H] an image, under the image's key.
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
from clinkd.training.tensor_store import Filled, TensorStore, finished

IMAGES_A_FILE = 64  # what a kill can lose: a hundred megabytes of a 2B model
PREPARED_BY = (
    "size", "patch_size", "merge_size", "temporal_patch_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip


def cache_features(folder: Path, model: VisionLanguageModel, images: Iterable[ImageRef], title: str) -> int:
    """See each image once and write its features into `folder`, going on where it was stopped; the bytes of all.

    Raises BadInput where the disk has less room than they take, or the folder is of another tower.
    """
    refs = {_key(ref): ref for ref in images}
    names = sorted(refs)
    parts = [names[k : k + IMAGES_A_FILE] for k in range(0, len(names), IMAGES_A_FILE)]
    files = {f"images-{number:05d}.safetensors": part for number, part in enumerate(parts)}
    sizes = {name: math.prod(model.images.grid(ref)) for name, ref in refs.items()}
    needed = sum(sizes.values()) * model.head.weight_VH.shape[1] * model.dtype.itemsize
    if not finished(folder):
        _demand_room(folder, needed, len(refs))

    def make(file: str, advance: Advance) -> Filled:
        features: dict[str, Tensor] = {}
        for name in files[file]:
            features[name] = _features(model, refs[name])
            advance(1)
        return features, [[name, sizes[name]] for name in files[file]]

    _tensor_store(folder, model).fill(files, make, f"{title} ({spell_bytes(needed / 1e6)})", "images")
    return needed


class FeatureCache:
    """The features of a filled cache.

    Every byte is checked once, here. Raises BadInput where it was never filled, is damaged, or is of another tower than
    the model's; to be removed is then `owner`, if that is more than the folder.
    """

    def __init__(self, folder: Path, model: VisionLanguageModel, owner: Path | None = None) -> None:
        self.store = _tensor_store(folder, model, owner)
        self.files = {name: file for file, items in self.store.opened().items() for name, _ in items}

    def serve(self, model: VisionLanguageModel) -> None:
        """Let the model take its features from here. Raises BadInput where its tower is another one."""
        self.store.demand_same(vision_identity(model))
        model.images.known = self.features

    def features(self, ref: ImageRef) -> Tensor | None:
        """Features [tokens, H] of an image, None where it is not here."""
        key = _key(ref)
        if key not in self.files:
            return None
        features_FH: Tensor = self.store.file(self.files[key]).get_tensor(key)
        return features_FH


def _tensor_store(folder: Path, model: VisionLanguageModel, owner: Path | None = None) -> TensorStore:
    return TensorStore(folder, "the gallery", vision_identity(model), owner)


def vision_identity(model: VisionLanguageModel) -> dict[str, Any]:
    """What decides the features of an image: the weights of tower and merger, and how images are prepared."""
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


def _key(ref: ImageRef) -> str:
    return json.dumps(ref.to_json(), sort_keys=True)


@torch.inference_mode()
def _features(model: VisionLanguageModel, ref: ImageRef) -> Tensor:
    """Of an image alone: beside others its last bits would depend on them."""
    pixels_TD, grids_I3 = (t.to(model.device) for t in model.images.patches([ref]))
    return model.tower(pixels_TD, grids_I3)[0].cpu().contiguous()


def _demand_room(folder: Path, needed: int, images: int) -> None:
    there, free = folder_bytes(folder), free_bytes(folder)
    if needed - there > free:
        takes, there_is = spell_bytes(needed / 1e6), spell_bytes(free / 1e6)
        raise BadInput(
            f"{folder}: the features of {images} images take {takes} and {there_is} are free; make room, lower "
            "model.max_image_tokens, or set model.vision_features=live"
        )
