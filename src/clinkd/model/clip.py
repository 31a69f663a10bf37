"""An image-text model of the CLIP family: loaded from a folder, or a tiny one trained contrastively here.

Shapes: I images, K texts, P pieces of texts, E width of the shared space.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from clinkd.config import ClipConfig
from clinkd.model.encode import OpenImage
from clinkd.records import BadInput, ImageRef
from clinkd.storage import progress

TINY_TEXT_TOKENS = 77  # CLIP's own limit


class ImageTextModel:
    """How well a text fits an image: the cosine of their CLIP embeddings, -1..1.

    A text longer than the model's token limit is not cut: it is split between sentences (a sentence that is too long
    alone, between words) into pieces that fit, and scored by the mean over its pieces.
    """

    def __init__(
        self,
        network: CLIPModel,
        tokenizer: PreTrainedTokenizerFast,
        processor: CLIPImageProcessorPil,
        open_image: OpenImage,
    ) -> None:
        self.network, self.tokenizer, self.processor, self.open_image = network, tokenizer, processor, open_image
        self.limit = int(network.config.text_config.max_position_embeddings)
        self.end = int(tokenizer.eos_token_id)  # older CLIPs carry a wrong one in their configuration

    @classmethod
    def load(cls, folder: Path, open_image: OpenImage) -> ImageTextModel:
        """A CLIP in Hugging Face layout. Raises BadInput where the folder is none, or a weight is missing."""
        if not (folder / "config.json").is_file():
            raise BadInput(f"select.clip.base={folder}: no config.json there; a CLIP folder is wanted")
        try:
            network, report = CLIPModel.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            processor = CLIPImageProcessorPil.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"select.clip.base={folder}: not a CLIP that can be read: {str(error).splitlines()[0]}"
            ) from None
        if missing := sorted(report["missing_keys"]):
            raise BadInput(f"select.clip.base={folder}: weights are missing: {', '.join(missing[:3])} ({len(missing)})")
        return cls(network.eval(), tokenizer, processor, open_image)

    @torch.inference_mode()
    def score(self, images: Sequence[ImageRef], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each image, the cosine with each of its texts. A text without words scores -1."""
        flat = [text for group in texts for text in group]
        pieces = [self.pieces(text) for text in flat]
        distinct = sorted({piece for group in pieces for piece in group})
        found = dict(zip(distinct, self.embed_texts(distinct), strict=True)) if distinct else {}
        embedded = iter(pieces)
        scored = []
        for image_E, group in zip(self.embed_images(images), texts, strict=True):
            cosines = [[float(found[p] @ image_E) for p in next(embedded)] for _ in group]
            scored.append([float(np.mean(c)) if c else -1.0 for c in cosines])
        return scored

    def pieces(self, text: str) -> list[str]:
        """Runs of whole sentences, each within the token limit; their words together are the words of `text`."""
        made: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
            for unit in [sentence] if self._fits(sentence) else self._by_words(sentence):
                joined = f"{made[-1]} {unit}" if made else unit
                if made and self._fits(joined):
                    made[-1] = joined
                elif unit:
                    made.append(unit)
        return made

    def _by_words(self, sentence: str) -> list[str]:
        made: list[str] = []
        for word in sentence.split():
            joined = f"{made[-1]} {word}" if made else word
            if made and self._fits(joined):
                made[-1] = joined
            else:
                made.append(word)
        return made

    def _fits(self, text: str) -> bool:
        return len(self._ids([text])[0]) <= self.limit

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        return [line if line and line[-1] == self.end else [*line, self.end] for line in ids]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [P, E] of texts within the limit (a single endless word is the only thing ever cut)."""
        ids = [[*line[: self.limit - 1], self.end] if len(line) > self.limit else line for line in self._ids(texts)]
        longest = max(map(len, ids))
        padded = torch.tensor([line + [self.end] * (longest - len(line)) for line in ids])
        seen = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in ids])
        device = self.network.device
        found = self.network.get_text_features(padded.to(device), seen.to(device)).pooler_output
        return F.normalize(found.float(), dim=-1).cpu() if not torch.is_grad_enabled() else F.normalize(found, dim=-1)

    def embed_images(self, images: Sequence[ImageRef]) -> Tensor:
        """Unit vectors [I, E]."""
        return self.embed_pixels(self.pixels(images))

    def pixels(self, images: Sequence[ImageRef]) -> Tensor:
        """Processed pixels [I, 3, height, width]."""
        found: Tensor = self.processor(images=[self.open_image(i) for i in images], return_tensors="pt")["pixel_values"]
        return found

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        found = self.network.get_image_features(pixels.to(self.network.device)).pooler_output
        return F.normalize(found.float(), dim=-1).cpu() if not torch.is_grad_enabled() else F.normalize(found, dim=-1)

    def save(self, folder: Path) -> None:
        """As transformers lays out a CLIP: `load` reads it, and so does `CLIPModel.from_pretrained`."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def new_tiny_clip(
    tokenizer: PreTrainedTokenizerFast, config: ClipConfig, seed: int, open_image: OpenImage
) -> ImageTextModel:
    """A CLIP with random weights that shares the vision-language model's tokenizer."""
    part = {"hidden_size": config.width, "intermediate_size": 2 * config.width, "num_attention_heads": 4}
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = "<|endoftext|>"  # id 0; id 2, <|im_end|>, makes transformers pool at the wrong token
    end = int(tokenizer.eos_token_id)
    text: dict[str, Any] = {
        **part, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": TINY_TEXT_TOKENS,
        "eos_token_id": end, "bos_token_id": end, "pad_token_id": end,
    }  # fmt: skip
    vision = {**part, "num_hidden_layers": 3, "image_size": config.image_pixels, "patch_size": 8}
    torch.manual_seed(seed)
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.width))
    side = {"height": config.image_pixels, "width": config.image_pixels}
    processor = CLIPImageProcessorPil(
        size=side, do_center_crop=False, do_resize=True, resample=Image.Resampling.BICUBIC
    )
    return ImageTextModel(network, tokenizer, processor, open_image)


def train_clip(
    model: ImageTextModel, pairs: Sequence[tuple[ImageRef, Sequence[str]]], config: ClipConfig, seed: int
) -> float:
    """Contrastive training on images with several captions each, one drawn a pass; the mean loss of the last pass.

    The loss is CLIP's symmetric cross-entropy, except that equal captions in a batch share the target evenly: short
    captions repeat, and calling a true caption false would teach nonsense.
    """
    pixels = torch.cat([model.pixels([image]) for image, _ in pairs])
    num_steps = max(1, round(config.epochs * len(pairs) / config.rows))
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=config.learning_rate, weight_decay=0.05)
    curve = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=num_steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    model.network.train()
    order: list[int] = []
    with progress(num_steps, "clip", "steps") as advance:
        for _ in range(num_steps):
            while len(order) < config.rows:
                order += rng.permutation(len(pairs)).tolist()
            picked, order = order[: config.rows], order[config.rows :]
            captions = [pairs[i][1][int(rng.integers(len(pairs[i][1])))] for i in picked]
            image_IE = model.embed_pixels(pixels[picked])
            text_IE = model.embed_texts(captions)
            logits_II = model.network.logit_scale.exp().clamp(max=100) * image_IE @ text_IE.T
            same_II = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float)
            goal_II = (same_II / same_II.sum(1, keepdim=True)).to(logits_II.device)
            loss = (F.cross_entropy(logits_II, goal_II) + F.cross_entropy(logits_II.T, goal_II)) / 2
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
            optimizer.step()
            curve.step()
            losses.append(loss.item())
            advance(1, loss=round(losses[-1], 3))
    model.network.eval()
    if not losses or not np.isfinite(losses[-1]):
        raise BadInput(f"select.clip.learning_rate={config.learning_rate:g}: the loss is not finite; lower it")
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
