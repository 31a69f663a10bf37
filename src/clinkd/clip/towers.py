"""The two towers of a CLIP or a SigLIP, read from a folder: texts and images to vectors of one space.

Shapes: I images, P texts, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerFast, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from clinkd.model.folders import ModelFolder, opened_folder, read_config
from clinkd.records import BadInput

KNOB = "select.clip.base"  # named in every error
# older releases wrote these numbers 0, 1, 2, ... beside the weights; the classes now make them
COUNTED = "position_ids"


class Towers(Protocol):
    """A model of the CLIP family. `limit`: the most tokens of a text, marks of start and end included."""

    limit: int

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before it is cut at the limit."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [P, E], float32; tokens beyond the limit are cut off."""

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Processed pixels [I, 3, height, width]."""

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Unit vectors [I, E], float32."""


class _TransformersTowers:
    """The parts that a CLIP and a SigLIP of transformers share."""

    def __init__(self, network: Any, tokenizer: PreTrainedTokenizerFast, processor: Any) -> None:
        self.network, self.tokenizer, self.processor = network, tokenizer, processor
        self.limit = int(network.config.text_config.max_position_embeddings)

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return pixels

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        return normalise_vectors(self.network.get_image_features(pixels.to(self.network.device)).pooler_output)


class ClipTowers(_TransformersTowers):
    """A CLIP of transformers."""

    @classmethod
    def read(cls, opened: ModelFolder) -> ClipTowers:
        return cls(read_network(opened, CLIPModel), opened.tokenizer(), opened.processor(CLIPImageProcessorPil))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(line) for line in self._ids(texts)]

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)  # the configuration of older CLIPs has a wrong one

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        return [line if line and line[-1] == self.end else [*line, self.end] for line in ids]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        ids = [[*line[: self.limit - 1], self.end] if len(line) > self.limit else line for line in self._ids(texts)]
        longest = max(map(len, ids))
        padded = torch.tensor([line + [self.end] * (longest - len(line)) for line in ids])
        mask = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in ids])
        device = self.network.device
        return normalise_vectors(self.network.get_text_features(padded.to(device), mask.to(device)).pooler_output)

    def save(self, folder: Path) -> None:
        """As transformers lays out a CLIP: `read` reads it, and so does `CLIPModel.from_pretrained`."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class SiglipTowers(_TransformersTowers):
    """A SigLIP of transformers, or a SigLIP 2 of fixed resolution, which is the same class.

    Its text tower reads the last position, so every text is padded to the limit, without an attention mask, as in its
    training. It was trained on lower case only, and not every tokenizer of such folders lowers capitals.
    """

    @classmethod
    def read(cls, opened: ModelFolder) -> SiglipTowers:
        # tokenizer.json is enough; the class that these folders name needs sentencepiece too
        kind = PreTrainedTokenizerFast if (opened.path / "tokenizer.json").is_file() else None
        network = read_network(opened, SiglipModel)
        return cls(network, opened.tokenizer(kind), opened.processor(SiglipImageProcessorPil))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(line) for line in self.tokenizer([t.lower() for t in texts])["input_ids"]]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(
            [t.lower() for t in texts],
            padding="max_length",
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
        )["input_ids"]
        return normalise_vectors(self.network.get_text_features(ids.to(self.network.device)).pooler_output)


KINDS: dict[str, type[ClipTowers] | type[SiglipTowers]] = {"clip": ClipTowers, "siglip": SiglipTowers}


def read_model_type(folder: Path) -> str | None:
    """The `model_type` in the folder's config.json; None if it has none, or there is no such file."""
    return read_config(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None


def read_towers(folder: Path, kind: str) -> Towers:
    """A model in Hugging Face layout. Raises BadInput if it cannot be read, or weights are missing or unexpected."""
    with opened_folder(folder, f"a {kind}", KNOB) as opened:
        return KINDS[kind].read(opened)


def read_network(opened: ModelFolder, kind: type[Any]) -> Any:
    """The network in float32, whatever its files hold: pixels are float32, and half precision is slow on a CPU."""
    network, report = opened.network(kind, dtype=torch.float32)
    for trouble in ("missing_keys", "unexpected_keys"):
        if names := sorted(n for n in report[trouble] if not n.endswith(COUNTED)):
            raise BadInput(
                f"{opened.name}: {trouble.removesuffix('_keys')} weights: {', '.join(names[:3])} ({len(names)}); "
                "config.json and the weights are to be of one model"
            )
    return network.eval()


def normalise_vectors(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
