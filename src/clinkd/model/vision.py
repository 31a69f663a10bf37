"""The vision tower with a linear read-out, to train it alone on the names and places of structures.

Shapes: I images, T merged image tokens of all images, N labels, H text width (the tower's output), C classes.

In the language model a name is one or two tokens of an answer, once a question. Here every image token is asked for the
name at its place, the corners of that structure's box and its own place in the image. On phantoms the tower learns
names in a fraction of the time (LOG.md). Where a model sees by eyes, which know no medicine and are coarse, corners are
asked in its own location tokens: in their steps, by their codes, which learn along and are given back to the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clinkd.config import FitConfig
from clinkd.model import flops
from clinkd.model.encode import Labelled, TokenCount
from clinkd.model.vlm import Head, VisionLanguageModel
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, Sample, Task

CORNERS = 16  # classes of a corner's coordinate, where they are no location tokens
PLACES = 8  # classes of a token's own row and column
LEAST_COVER = 0.2  # share of the token's area, or of the structure's if smaller; below it a token is background
QUESTIONS = 7  # name, x1, y1, x2, y2, row, column


@dataclass(frozen=True)
class VisionBatch(Labelled):
    """Images for the tower; token_N, question_N: the image token of each label and the question that it answers."""

    pixels_TD: Tensor
    grids_I3: Tensor
    token_N: Tensor
    question_N: Tensor


class VisionPretrainer(nn.Module):
    """Is trained by `fit` like a model: a hidden state is an image token plus the code of a question.

    Rows hold bare pairs of name and box. The read-out (`lm_head`, `slots`) is thrown away afterwards, but for the codes
    of location tokens, which `return_codes` gives back.
    Raises BadInput if the samples name no structure.
    """

    def __init__(self, model: VisionLanguageModel, names: Sequence[str]) -> None:
        super().__init__()
        if not names:
            raise BadInput("model.tiny.pretrain.vision: the training samples name no structure; set it to null")
        self.images, self.names = model.images, {name: n for n, name in enumerate(sorted(set(names)))}
        self.family, self.visual = model.family, model.visual
        self.merge = model.images.geometry.merge
        self.codec = model.codec if model.images.eyes and model.knobs.boxes == "locations" else None
        num_names, hidden = len(self.names) + 1, model.head.weight_VH.shape[1]
        if self.codec is None:
            sizes = [num_names, *[CORNERS] * 4, PLACES, PLACES]
            self.first = [sum(sizes[:n]) for n in range(QUESTIONS)]  # class 0 of each question
        else:
            sizes = [num_names, len(self.codec.special_tokens), PLACES, PLACES]
            corners, row, column = (sum(sizes[:n]) for n in (1, 2, 3))
            self.first = [0, *[corners] * 4, row, column]
        self.lm_head = nn.Linear(hidden, sum(sizes), bias=False)
        if self.codec is not None:
            self.classes = {token: number for number, token in enumerate(self.codec.special_tokens)}
            self.codes = slice(num_names, num_names + len(self.classes))
            self.token_ids = [int(model.tokenizer.convert_tokens_to_ids(token)) for token in self.classes]
            with torch.no_grad():
                self.lm_head.weight[self.codes] = model.head.weight_VH[self.token_ids]
        self.slots = nn.Parameter(torch.zeros(QUESTIONS, hidden))

    @torch.no_grad()
    def return_codes(self, model: VisionLanguageModel) -> None:
        """Give the codes of location tokens, as they have learned, back to the model."""
        if self.codec is not None:
            model.head.weight_VH[self.token_ids] = self.lm_head.weight[self.codes].to(model.device)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def head(self) -> Head:
        return Head(self.lm_head.weight)

    def operations(self, batch: VisionBatch) -> dict[str, flops.Operations] | None:
        """Operations of a batch by part: vision, merger, head; None if they are not known."""
        vision = flops.count_vision(self.family, self.visual, batch.grids_I3, self.merge)
        return (
            None if vision is None else vision | {"head": flops.count_linear(self.lm_head, len(batch.labels_N), True)}
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the tower."""
        return [*self.visual.get_submodule(self.family.vision_blocks).children()]

    def freeze(self, parts: Sequence[str]) -> None:
        """Raises BadInput for any part: nothing of a tower that is trained alone stays fixed."""
        if parts:
            raise BadInput(f"model.tiny.pretrain.vision.freeze={list(parts)}: nothing can be frozen here")

    def encode(self, rows: Sequence[Sequence[Sample]]) -> VisionBatch:
        """A batch from rows, each with the bare pairs of one image; each image token gets its labels."""
        pixels_TD, grids_I3 = self.images.patches([row[0].images[0] for row in rows])
        label_rows, start = [], 0
        for row, (_, tall, wide) in zip(rows, (grids_I3 // self.merge).tolist(), strict=True):
            # a structure may be only named, or only located: readers limit the questions of an image
            objects = [
                (self.names[s.names[0]], box)
                for s in row
                for box in (s.answer.boxes if s.task is Task.VG else s.question.boxes)
            ]
            label_rows.append(self._label_tokens(objects, tall, wide) + np.array([start, 0, 0]))
            start += tall * wide
        token_N, question_N, labels_N = torch.from_numpy(np.concatenate(label_rows)).unbind(1)
        return VisionBatch(labels_N, sum(map(len, rows)), pixels_TD, grids_I3, token_N, question_N)

    @contextmanager
    def prepared_for(self, config: FitConfig, seed: int) -> Iterator[None]:
        """In the block, all of it is in training; of `config` only `freeze` is read."""
        self.freeze(config.freeze)
        self.train()
        yield
        self.eval()

    def count_tokens(self, samples: Sequence[Sample]) -> list[TokenCount]:
        """0 each: a row is an image, whatever its number of questions."""
        return [TokenCount(0, 0, 0) for _ in samples]

    def vision_features(self, batch: VisionBatch) -> Tensor:
        """Features [T, H] of the images, by tower and merger."""
        return self.family.vision_features(self.visual, batch.pixels_TD, batch.grids_I3)

    def hidden_states(self, batch: VisionBatch, features: Tensor | None = None) -> Tensor:
        """Hidden states [N, H]. `features`: of `vision_features`."""
        features_TH = self.vision_features(batch) if features is None else features
        return features_TH[batch.token_N] + self.slots[batch.question_N]

    forward = hidden_states

    def _classify_corners(self, box: Box) -> list[int]:
        """Class of x1, y1, x2, y2."""
        if self.codec is None:
            return [min(int(v * CORNERS), CORNERS - 1) for v in (box.x1, box.y1, box.x2, box.y2)]
        spelled = self.codec.encode(BoxedText(BOX_MARK, (box,)))
        return [self.classes[token] for token in re.findall(r"<[^<>]+>", spelled)]

    def _label_tokens(self, objects: Sequence[tuple[int, Box]], tall: int, wide: int) -> NDArray[np.int64]:
        """Rows (token, question, class) for the tokens of one image, in reading order."""
        cells = tall * wide
        row_K, column_K = (k.ravel() for k in np.indices((tall, wide)))
        name_K, cover_K = np.full(cells, len(self.names)), np.full(cells, LEAST_COVER)
        corner_K4 = np.full((cells, 4), -1)
        for name, box in objects:
            across = np.minimum(box.x2, (column_K + 1) / wide) - np.maximum(box.x1, column_K / wide)
            down = np.minimum(box.y2, (row_K + 1) / tall) - np.maximum(box.y1, row_K / tall)
            share = across.clip(0) * down.clip(0) / min(1 / cells, box.area)
            best = share > cover_K
            cover_K[best], name_K[best] = share[best], name
            corner_K4[best] = self._classify_corners(box)
        places = [((row_K + 0.5) / tall * PLACES).astype(int), ((column_K + 0.5) / wide * PLACES).astype(int)]
        class_lists = [name_K, *corner_K4.T, *places]
        labelled = [
            np.stack([np.flatnonzero(a >= 0), np.full((a >= 0).sum(), q), a[a >= 0] + self.first[q]], 1)
            for q, a in enumerate(class_lists)
        ]
        return np.concatenate(labelled)
