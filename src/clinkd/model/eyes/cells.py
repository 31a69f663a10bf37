"""Cells: frozen image features in the place of pixel patches. Each has the numbers of a patch, so no tower is changed.

Shapes: K cells, C channels of all maps (744), V numbers of a cell, as many as of a patch; Y, X cells down and across.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clinkd.model.eyes.network import EyesNetwork, to_pixels
from clinkd.model.folders import EYES, ModelFolder
from clinkd.records import BadInput

CELL = 16  # pixels a side of a cell, in the picture that the eyes get: the stride of the middle maps
LEAST_VARIANCE = 1e-6  # of a direction, next to the largest; below it is noise, which no whitening may blow up
LICENSE = "eyes.LICENSE"
Item = TypeVar("Item")


class Whitening:
    """Channels to uncorrelated numbers of variance 1, those of the largest part of the spread first."""

    def __init__(self, mean_C: Tensor, projection_CV: Tensor) -> None:
        self.mean_C, self.projection_CV = mean_C, projection_CV

    @classmethod
    def fit(cls, channels: Iterable[Tensor], values: int) -> Whitening:
        """From channels [K, C] of many pictures: standardised, then principal components, then scaled.

        Where these have less than `values` directions, the last numbers of a cell are 0.
        Raises BadInput without a picture.
        """
        number, sum_C, gram_CC = 0, torch.zeros(0), torch.zeros(0)
        for channels_KC in channels:
            wide_KC = channels_KC.double()
            gram_CC = wide_KC.T @ wide_KC + (gram_CC if number else 0.0)
            sum_C = wide_KC.sum(0) + (sum_C if number else 0.0)
            number += len(wide_KC)
        if not number:
            raise BadInput("eyes: there is no training picture to learn from; give data with images")
        mean_C = sum_C / number
        covariance_CC = gram_CC / number - mean_C[:, None] * mean_C
        spread_C = covariance_CC.diagonal().clamp(min=0).sqrt()
        spread_C[spread_C < LEAST_VARIANCE] = 1.0  # a channel that never changes has no direction below either
        variance_C, direction_CC = torch.linalg.eigh(covariance_CC / spread_C[:, None] / spread_C)
        variance_V, direction_CV = variance_C.flip(0)[:values], direction_CC.flip(1)[:, :values]
        # a direction may as well point the other way, and libraries differ
        direction_CV = direction_CV * direction_CV.gather(0, direction_CV.abs().argmax(0, keepdim=True)).sign()
        scale_V = torch.where(variance_V > LEAST_VARIANCE * variance_V[0], variance_V.clamp(min=1e-12).rsqrt(), 0.0)
        return cls(mean_C.float(), (direction_CV / spread_C[:, None] * scale_V).float())

    def apply(self, channels_KC: Tensor) -> Tensor:
        """Cells [K, V]."""
        return (channels_KC - self.mean_C) @ self.projection_CV


class Eyes:
    """A network and the whitening of its maps: pictures to cells. One file holds both and the licence."""

    def __init__(self, network: EyesNetwork, whitening: Whitening, terms: str, file: Path | None = None) -> None:
        """`terms`: the licence of the weights. `file`: where all of this is saved already."""
        self.network, self.whitening, self.terms, self.file = network.eval(), whitening, terms, file

    def cells(self, picture_HW3: NDArray[np.uint8]) -> Tensor:
        """Cells [Y, X, V] of a picture whose sides are multiples of CELL. In float16, as they are kept: the same for
        a picture that is looked at now and one that was looked at before."""
        channels_YXC = look(self.network, picture_HW3)
        cells_KV = self.whitening.apply(channels_YXC.flatten(0, 1))
        return cells_KV.half().reshape(*channels_YXC.shape[:2], -1)

    def identity(self) -> str:
        """Sixteen hexadecimal digits of all weights."""
        sha256 = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            sha256.update(name.encode())
            sha256.update(tensor.numpy().data)
        return sha256.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write EYES and the licence into a folder. Stages of a run share the bytes where the disk allows it."""
        from safetensors.torch import save_file

        (folder / LICENSE).write_text(self.terms, encoding="utf-8")
        target = folder / EYES
        target.unlink(missing_ok=True)
        try:
            if self.file is None:
                raise OSError
            os.link(self.file, target)
        except OSError:  # not saved yet, or on another disk
            save_file(self._tensors(), target, {"license": self.terms})

    @classmethod
    def load(cls, opened: ModelFolder) -> Eyes:
        """Raises BadInput where the folder has no file of eyes, or that of others."""
        tensors, about = opened.eyes()
        whitening = {name: tensors.pop(f"whitening_{name}", None) for name in ("mean", "projection")}
        mean_C, projection_CV = whitening["mean"], whitening["projection"]
        if mean_C is None or projection_CV is None:
            raise BadInput(f"{opened.folder / EYES}: holds no whitening; copy the file there again")
        file = (opened.path / EYES).resolve()
        return cls(EyesNetwork(tensors), Whitening(mean_C, projection_CV), about.get("license", ""), file)

    def _tensors(self) -> dict[str, Tensor]:
        whitening = {"whitening_mean": self.whitening.mean_C, "whitening_projection": self.whitening.projection_CV}
        own: Mapping[str, Tensor] = dict(self.network.named_buffers())
        return {name: tensor.contiguous() for name, tensor in {**own, **whitening}.items()}


@torch.inference_mode()
def look(network: EyesNetwork, picture_HW3: NDArray[np.uint8]) -> Tensor:
    """Channels [Y, X, C] of a picture: every map brought to one value a cell, by means or bilinearly."""
    grid = (picture_HW3.shape[0] // CELL, picture_HW3.shape[1] // CELL)
    maps, _ = network.maps(to_pixels([picture_HW3]))
    same = [
        F.adaptive_avg_pool2d(x, grid)
        if x.shape[2] >= grid[0] and x.shape[3] >= grid[1]
        else F.interpolate(x, grid, mode="bilinear", align_corners=False)
        for x in maps
    ]
    return torch.cat(same, 1)[0].permute(1, 2, 0)


def look_in_parallel(work: Callable[[Item], Tensor], items: Sequence[Item]) -> Iterator[Tensor]:
    """Results in order. One picture a thread: two threads on one picture gain little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, "eyes", torch.set_num_threads, (1,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)
