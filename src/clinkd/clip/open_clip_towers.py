"""The towers of a model in open_clip's layout, such as BiomedCLIP: an optional extra, which needs torchvision.

Shapes: I images, P texts, E width of the shared space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clinkd.clip.towers import KNOB, normalise_vectors
from clinkd.model.folders import OPEN_CLIP, ModelFolder, first_line, opened_folder, read_config
from clinkd.records import BadInput

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")  # the first wins
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


class OpenClipTowers:
    """A model of open_clip: its own text tower, or one of transformers."""

    def __init__(self, network: Any, transform: Any, tokenizer: Any) -> None:
        self.network, self.transform, self.tokenizer = network, transform, tokenizer
        self.limit = int(tokenizer.context_length)

    @classmethod
    def read(cls, folder: Path) -> OpenClipTowers:
        """Raises BadInput if the extra is not installed, the folder is incomplete, or its weights do not fit its
        configuration. Nothing is fetched: if the text tower is a model of a hub, its configuration and tokenizer must
        be in the folder."""
        config = read_config(folder / OPEN_CLIP)
        text = config.get("model_cfg", {}).get("text_cfg", {})
        _check_text_tower_files(folder, text)
        open_clip = _import_open_clip(folder)
        with opened_folder(folder, "an open_clip model", KNOB) as opened:
            opened.refuse_pickles(WEIGHTS[0])
            if "hf_model_name" in text:
                text["hf_model_name"] = str(opened.path)
            (opened.path / OPEN_CLIP).write_text(json.dumps(config), encoding="utf-8")
            _keep_one_file(opened)
            network, transform = open_clip.create_model_from_pretrained(f"local-dir:{opened.path}")
            opened.demand_finite(network)
            tokenizer = open_clip.get_tokenizer(f"local-dir:{opened.path}")
        return cls(network.eval(), transform, tokenizer)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:  # open_clip's own tokenizer leaves out the marks of start and end
            return [len(self.tokenizer.encode(t)) + 2 for t in texts]
        lines = inner([self.tokenizer.clean_fn(t) for t in texts])["input_ids"]
        return [len(line) + (self.tokenizer.tokenizer_mode == "clips") for line in lines]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return normalise_vectors(self.network.encode_text(self.tokenizer(list(texts)).to(self._device)))

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        return torch.stack([self.transform(p) for p in pictures])

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        return normalise_vectors(self.network.encode_image(pixels.to(self._device)))

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device


def _import_open_clip(folder: Path) -> Any:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises the second
        raise BadInput(
            f"{KNOB}={folder}: {OPEN_CLIP} makes it an open_clip model, and that library cannot be loaded "
            f"({first_line(error)}); install it: pip install -c constraints.txt '.[open-clip]'"
        ) from None
    return open_clip


def _check_text_tower_files(folder: Path, text: dict[str, Any]) -> None:
    if (tower := text.get("hf_model_name")) and not (folder / "config.json").is_file():
        raise BadInput(
            f"{KNOB}={folder}: config.json is missing: the text tower is {tower}, and nothing is fetched; put the "
            "config.json of that model there"
        )
    hub_name = text.get("hf_tokenizer_name")
    if hub_name and not any((folder / name).is_file() for name in TOKENIZERS):
        raise BadInput(
            f"{KNOB}={folder}: tokenizer.json is missing: the tokenizer is that of {hub_name}, and nothing is fetched; "
            "put its files there"
        )


def _keep_one_file(opened: ModelFolder) -> None:
    """Leave one file of weights, under the name that the library looks for first."""
    files = [opened.path / name for name in WEIGHTS if (opened.path / name).is_file()]
    weights = (files or sorted(opened.path.glob("*.safetensors")))[0].rename(opened.path / ".weights")
    for other in opened.path.glob("*.safetensors*"):
        other.unlink()
    weights.rename(opened.path / WEIGHTS[0])
