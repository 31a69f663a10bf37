"""An image-text model of the CLIP family: read from a folder, or a tiny one that is trained here.

Shapes: I images, D distinct texts, P pieces of texts, E width of the shared space.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from clinkd.clip.open_clip_towers import OpenClipTowers
from clinkd.clip.towers import KINDS, KNOB, ClipTowers, Towers, read_model_type, read_towers
from clinkd.config import ClipConfig
from clinkd.model.encode import OpenImage
from clinkd.model.folders import OPEN_CLIP, first_line
from clinkd.records import BadInput, Box, ImageRef
from clinkd.storage import progress

TINY_TEXT_TOKENS = 77  # CLIP's own limit
LOWEST = -1.0  # the least cosine: the score of a text without words
# Around a crop, as a fraction of each side of its box, so that an outline on the border is visible. A larger margin
# hides from a small CLIP whether a box fits: with 0.15 the demo chose worse boxes than the first beam's (LOG.md).
MARGIN = 0.05
LEAST_PIXELS = 4  # of a crop's sides: a box of one pixel would show one colour

Overlong = Literal["split", "truncate"]


@dataclass(frozen=True, slots=True)
class View:
    """A part of an image: the crop of a box, or the whole image if there is none."""

    image: ImageRef
    box: Box | None = None


def crop_box(picture: Image.Image, box: Box | None, margin: float = MARGIN) -> Image.Image:
    """The pixels of a box and a margin around it (a fraction of each of its sides), inside the picture and at least a
    few pixels wide."""
    if box is None:
        return picture
    across = _span_pixels(box.x1, box.x2, picture.width, margin)
    down = _span_pixels(box.y1, box.y2, picture.height, margin)
    return picture.crop((across[0], down[0], across[1], down[1]))


def _span_pixels(start: float, stop: float, pixels: int, margin: float) -> tuple[int, int]:
    """First and last pixel of a span in fractions with its margin, widened to the least number of pixels."""
    middle, half = (start + stop) / 2 * pixels, (stop - start) * (0.5 + margin) * pixels
    half = max(half, LEAST_PIXELS / 2)
    first = max(0, min(math.floor(middle - half), pixels - LEAST_PIXELS))
    last = min(pixels, max(math.ceil(middle + half), LEAST_PIXELS))
    return first, last


class ImageTextModel:
    """How well a text fits a view of an image: the cosine of their embeddings, -1..1.

    A text longer than the towers' token limit is `split` between sentences into pieces that fit (a sentence that is too
    long by itself, between words), and its score is the mean over the pieces; or it is `truncate`d to the first whole
    sentences that fit (a first sentence that is too long by itself is cut between words).
    """

    def __init__(self, towers: Towers, open_image: OpenImage, overlong: Overlong = "split") -> None:
        self.towers, self.open_image, self.overlong = towers, open_image, overlong

    @classmethod
    def load(cls, folder: Path, open_image: OpenImage, overlong: Overlong = "split") -> ImageTextModel:
        """A CLIP or SigLIP in Hugging Face layout, or a model in open_clip's layout, by its configuration files.

        Raises BadInput if the folder is none of these, or its parts do not fit each other.
        """
        kind = read_model_type(folder)
        if kind in KINDS:
            towers: Towers = read_towers(folder, kind)
        elif (folder / OPEN_CLIP).is_file():
            towers = OpenClipTowers.read(folder)
        else:
            contents = f"config.json names a {kind!r}" if kind else "no config.json there that names a model_type"
            flexible = "; of SigLIP 2 those of fixed resolution are read" if kind == "siglip2" else ""
            raise BadInput(
                f"{KNOB}={folder}: {contents}, and no {OPEN_CLIP} there; a folder with a "
                f"{' or '.join(KINDS)} of transformers, or a model of open_clip, is wanted{flexible}"
            )
        _try_out(towers, folder)
        return cls(towers, open_image, overlong)

    @torch.inference_mode()
    def score(self, shown: Sequence[tuple[View, str]]) -> list[float]:
        """The cosine of each text with its view; a text without words scores the lowest.

        Equal views and texts are embedded once; neighbouring views of one image open it once.
        """
        if not shown:
            return []
        texts = list(dict.fromkeys(text for _, text in shown))
        long = {text for text, too in zip(texts, self.too_long(texts), strict=True) if too}
        pieces = {text: self.pieces(text) if text in long else [text] if text.strip() else [] for text in texts}
        distinct = sorted(set(chain.from_iterable(pieces.values())))
        views = list(dict.fromkeys(view for view, _ in shown))
        image_E = dict(zip(views, self.towers.embed_pixels(self.pixels(views)).cpu(), strict=True))
        text_E = dict(zip(distinct, self.towers.embed_texts(distinct).cpu(), strict=True)) if distinct else {}
        return [
            float(np.mean([float(text_E[p] @ image_E[view]) for p in pieces[text]])) if pieces[text] else LOWEST
            for view, text in shown
        ]

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is longer than the token limit."""
        return [n > self.towers.limit for n in self.towers.lengths(texts)] if texts else []

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text that are embedded: runs of whole sentences, each within the limit. Under `split` they
        hold all its words; under `truncate` there is one piece, the start of the text."""
        return (_split_text if self.overlong == "split" else _truncate_text)(text, self._fits)

    def _fits(self, text: str) -> bool:
        return not self.too_long([text])[0]

    def pixels(self, views: Sequence[View]) -> Tensor:
        """Processed pixels [I, 3, height, width]."""
        return self.towers.pixels(list(self.pictures(views)))

    def pictures(self, views: Sequence[View]) -> Iterator[Image.Image]:
        """The picture of each view."""
        image: ImageRef | None = None
        for view in views:
            if view.image != image:
                image, picture = view.image, self.open_image(view.image)
            yield crop_box(picture, view.box)

    def save(self, folder: Path) -> None:
        """Save in the layout of transformers. Only a tiny model is ever saved: others are read from where they are."""
        assert isinstance(self.towers, ClipTowers)
        self.towers.save(folder)


def _try_out(towers: Towers, folder: Path) -> None:
    """Raises BadInput if a blank picture or a word cannot be embedded, before hours are spent on answers."""
    try:
        with torch.inference_mode():
            image_IE = towers.embed_pixels(towers.pixels([Image.new("RGB", (32, 32))]))
            text_PE = towers.embed_texts(["a"])
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadInput(
            f"{KNOB}={folder}: the network does not take what its own processor and tokenizer make: {first_line(error)}"
        ) from None
    if image_IE.shape[1] != text_PE.shape[1] or not (image_IE.isfinite().all() and text_PE.isfinite().all()):
        raise BadInput(
            f"{KNOB}={folder}: images give {image_IE.shape[1]} numbers and texts {text_PE.shape[1]}, or some are not "
            "finite; a whole CLIP is wanted"
        )


# -- texts longer than the limit ---------------------------------------------------------------------------------------


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]


def _split_text(text: str, fits: Callable[[str], bool]) -> list[str]:
    units = [u for s in _sentences(text) for u in ([s] if fits(s) else _join_runs(s.split(), fits))]
    return _join_runs(units, fits)


def _truncate_text(text: str, fits: Callable[[str], bool]) -> list[str]:
    sentences = _sentences(text)
    if not sentences:
        return []
    return _join_runs(sentences if fits(sentences[0]) else sentences[0].split(), fits)[:1]


def _join_runs(units: Sequence[str], fits: Callable[[str], bool]) -> list[str]:
    """Units joined by spaces to the longest runs that fit, in order; a unit that is too long is a run by itself."""
    runs: list[str] = []
    for unit in units:
        joined = f"{runs[-1]} {unit}" if runs else unit
        if runs and fits(joined):
            runs[-1] = joined
        else:
            runs.append(unit)
    return runs


# -- a tiny one --------------------------------------------------------------------------------------------------------


def new_tiny_clip(
    tokenizer: PreTrainedTokenizerFast, config: ClipConfig, seed: int, open_image: OpenImage
) -> ImageTextModel:
    """A CLIP with random weights and the tokenizer of the vision-language model."""
    part = {"hidden_size": config.width, "intermediate_size": 2 * config.width, "num_attention_heads": 4}
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = "<|endoftext|>"  # id 0; with id 2, <|im_end|>, transformers would pool at the wrong token
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
    return ImageTextModel(ClipTowers(network, tokenizer, processor), open_image, config.overlong)


Captioned = tuple[View, Sequence[str]]  # a view and its true captions


def train_clip(model: ImageTextModel, kinds: Sequence[Sequence[Captioned]], config: ClipConfig, seed: int) -> float:
    """Train contrastively on views, with one of their captions drawn each pass; return the mean loss of the last tenth.

    Each step takes a batch of every kind (whole images, crops) and compares views within a batch only; `config.epochs`
    counts passes over the first kind. The loss is CLIP's symmetric cross-entropy over the distinct captions of a batch:
    short captions repeat, and a true caption must not count as false.
    """
    towers = model.towers
    assert isinstance(towers, ClipTowers)
    num_steps = max(1, round(config.epochs * len(kinds[0]) / config.rows))
    rng = np.random.default_rng(seed)
    views = sorted({view for kind in kinds for view, _ in kind}, key=lambda view: view.image.path)
    bytes_I, number_of_view = _read_view_bytes(model, views), {view: n for n, view in enumerate(views)}
    numbered = [[(number_of_view[view], captions) for view, captions in kind] for kind in kinds]
    batches = [_shuffled_batches(kind, config.rows, rng) for kind in numbered]
    optimizer = torch.optim.AdamW(towers.network.parameters(), lr=config.learning_rate, weight_decay=0.05)
    curve = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=num_steps, pct_start=0.1)
    losses: list[float] = []
    towers.network.train()
    with progress(num_steps, "clip", "steps") as advance:
        for _ in range(num_steps):
            drawn = [next(kind) for kind in batches]
            loss = torch.stack(
                [_contrastive_loss(towers, bytes_I[shown], captions) for shown, captions in drawn]
            ).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(towers.network.parameters(), 1.0)
            optimizer.step()
            curve.step()
            losses.append(loss.item())
            advance(1, loss=round(losses[-1], 3))
    towers.network.eval()
    if not losses or not np.isfinite(losses[-1]):
        raise BadInput(f"select.clip.learning_rate={config.learning_rate:g}: the loss is not finite; lower it")
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def _contrastive_loss(towers: ClipTowers, bytes_I: Tensor, captions: Sequence[str]) -> Tensor:
    """The loss of one batch: each view against the distinct captions, and each caption against the views."""
    distinct = list(dict.fromkeys(captions))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (towers.processor.image_mean, towers.processor.image_std))
    image_IE = towers.embed_pixels((bytes_I / 255 - mean) / std)
    text_DE = towers.embed_texts(distinct)
    logits_ID = towers.network.logit_scale.exp().clamp(max=100) * image_IE @ text_DE.T
    right_I = torch.tensor([distinct.index(c) for c in captions], device=logits_ID.device)
    of_D = F.one_hot(right_I, len(distinct)).to(logits_ID).T
    return (F.cross_entropy(logits_ID, right_I) + F.cross_entropy(logits_ID.T, of_D / of_D.sum(1, keepdim=True))) / 2


def _read_view_bytes(model: ImageTextModel, views: Sequence[View]) -> Tensor:
    """Views at the tiny CLIP's size [I, 3, height, width], one byte a value: a fourth of the memory of float32."""
    towers = model.towers
    assert isinstance(towers, ClipTowers)
    side = (towers.processor.size["width"], towers.processor.size["height"])
    pixels = torch.empty((len(views), 3, side[1], side[0]), dtype=torch.uint8)
    for n, picture in enumerate(model.pictures(views)):
        small = picture.convert("RGB").resize(side, towers.processor.resample)
        pixels[n] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    return pixels


def _shuffled_batches(
    kind: Sequence[tuple[int, Sequence[str]]], rows: int, rng: np.random.Generator
) -> Iterator[tuple[list[int], list[str]]]:
    """Endless batches of numbers of views, each with one of its captions; no view repeats before all were drawn."""
    order: list[int] = []
    while True:
        while len(order) < rows:
            order += rng.permutation(len(kind)).tolist()
        batch, order = [kind[i] for i in order[:rows]], order[rows:]
        yield [view for view, _ in batch], [captions[int(rng.integers(len(captions)))] for _, captions in batch]
