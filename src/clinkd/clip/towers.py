"""The two towers of a CLIP, and those of a SigLIP, read from a folder: words and pictures to vectors of one space.

Shapes: I images, P texts, E width of the shared space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerFast, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from clinkd.records import BadInput

KNOB = "select.clip.base"  # what every refusal names
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# what older releases wrote beside the weights: the numbers 0, 1, 2, ..., which the classes now make themselves
COUNTED = "position_ids"


class Towers(Protocol):
    """What a model of the CLIP family does. `limit` is the most tokens of a text, marks of start and end included."""

    limit: int

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as it would be embedded were there no limit."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [P, E], float32; what passes the limit is cut off."""

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Processed pixels [I, 3, height, width]."""

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Unit vectors [I, E], float32."""


class _TransformersTowers:
    """What a CLIP and a SigLIP of transformers share."""

    def __init__(self, network: Any, tokenizer: PreTrainedTokenizerFast, processor: Any) -> None:
        self.network, self.tokenizer, self.processor = network, tokenizer, processor
        self.limit = int(network.config.text_config.max_position_embeddings)

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return pixels

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        return unit(self.network.get_image_features(pixels.to(self.network.device)).pooler_output)


class ClipTowers(_TransformersTowers):
    """A CLIP of transformers."""

    @classmethod
    def read(cls, folder: Path) -> ClipTowers:
        return cls(
            network_in(folder, CLIPModel),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
            CLIPImageProcessorPil.from_pretrained(folder),
        )

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(line) for line in self._ids(texts)]

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)  # older CLIPs carry a wrong one in their configuration

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        return [line if line and line[-1] == self.end else [*line, self.end] for line in ids]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        ids = [[*line[: self.limit - 1], self.end] if len(line) > self.limit else line for line in self._ids(texts)]
        longest = max(map(len, ids))
        padded = torch.tensor([line + [self.end] * (longest - len(line)) for line in ids])
        seen = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in ids])
        device = self.network.device
        return unit(self.network.get_text_features(padded.to(device), seen.to(device)).pooler_output)

    def save(self, folder: Path) -> None:
        """As transformers lays out a CLIP: `read` reads it, and so does `CLIPModel.from_pretrained`."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class SiglipTowers(_TransformersTowers):
    """A SigLIP of transformers, or a SigLIP 2 of fixed resolution, which is the same class.

    Its text tower reads the last place, so that every text is filled up to the limit, without an attention mask: that
    is how it was trained. It has seen lower case only, which not every tokenizer of such folders sees to.
    """

    @classmethod
    def read(cls, folder: Path) -> SiglipTowers:
        # tokenizer.json says all; the class that goes by the name of these folders wants sentencepiece beside it
        kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
        return cls(
            network_in(folder, SiglipModel),
            kind.from_pretrained(folder, local_files_only=True),
            SiglipImageProcessorPil.from_pretrained(folder),
        )

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
        return unit(self.network.get_text_features(ids.to(self.network.device)).pooler_output)


KINDS: dict[str, type[ClipTowers] | type[SiglipTowers]] = {"clip": ClipTowers, "siglip": SiglipTowers}


def kind_of(folder: Path) -> str | None:
    """The `model_type` that the folder's config.json names; None where it names none, or there is no such file."""
    return json_in(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None


def json_in(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BadInput where the file holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{KNOB}={file.parent}: {file.name} cannot be read: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise BadInput(f"{KNOB}={file.parent}: {file.name} holds no JSON object")
    return found


def read_towers(folder: Path, kind: str) -> Towers:
    """A model in Hugging Face layout. Raises BadInput where it cannot be read, or a weight is missing or too many."""
    demand_no_pickle(folder, "model.safetensors")
    try:
        return KINDS[kind].read(folder)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{KNOB}={folder}: not a {kind} that can be read: {first_line(error)}") from None


def network_in(folder: Path, kind: type[Any]) -> Any:
    """The weights in float32, whatever they are stored in: pixels come in float32, and a CPU is slow in halves."""
    network, report = kind.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, local_files_only=True, dtype=torch.float32
    )
    for trouble in ("missing_keys", "unexpected_keys"):
        if names := sorted(n for n in report[trouble] if not n.endswith(COUNTED)):
            raise BadInput(
                f"{KNOB}={folder}: {trouble.removesuffix('_keys')} weights: {', '.join(names[:3])} ({len(names)}); "
                "config.json and the weights are to be of one model"
            )
    return network.eval()


def demand_no_pickle(folder: Path, wanted: str) -> None:
    """Raises BadInput where the folder has weights as pickles alone: opening one can run any program."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if not pickles:
        raise BadInput(f"{KNOB}={folder}: no weights there; {wanted} is wanted")
    code = (
        "import torch, safetensors.torch as s; "
        f"w = torch.load('{pickles[0]}', map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.clone() for k, v in w.items()}}, '{wanted}', {{'format': 'pt'}})"
    )
    raise BadInput(
        f"{KNOB}={folder}: {pickles[0]} is a pickle, which can run any program when it is opened, and is not read; in "
        f'that folder, turn it into {wanted}: python -c "{code}"'
    )


def unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
