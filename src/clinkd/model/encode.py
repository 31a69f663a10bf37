"""Samples to tensors: prompts, shared-prefix rows, images.

Shapes: B rows, S tokens of a row, N answer tokens of the batch, I images, P places of images, T vision patches of all
images.

A training row is one set of images with all questions about it. The images stand once, in front. Each question with its
answer is a segment that attends only to the images and to itself, at the positions that it would have alone. The loss
and its gradients equal those of separate rows, at a fraction of the work for images and prefixes.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clinkd.data.codecs import Codec
from clinkd.data.grids import Size, limit_tokens, smart_resize, square_resize
from clinkd.model.eyes import CELL, Eyes
from clinkd.model.families import ChatTemplate, Family, ImageGeometry
from clinkd.model.folders import first_line, is_panic
from clinkd.records import BadInput, ImageRef, Sample

CACHE_BYTES = 256 << 20  # an encoder keeps so many bytes of resized pixels
OpenImage = Callable[[ImageRef], Image.Image]
Kept = TypeVar("Kept", np.ndarray, Tensor)
FeatureLookup = Callable[[ImageRef], Tensor | None]  # the stored features [tokens, H] of an image, if there are any


@dataclass(frozen=True)
class Labelled:
    """The fields of every training batch: labels_N and the number of its samples."""

    labels_N: Tensor
    num_samples: int

    def to(self, device: torch.device) -> Self:
        tensors: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Batch(Labelled):
    """Rows ready for the model.

    input_ids_BS; running_BS: index of each token in its own sequence; mask_B1SS: True where query (dim 2) attends to
    key (dim 3); pixels_TD, grids_I3: the vision tower's input; features_FH: its stored output, if there is one, and
    then there are no pixels; answer_row_N, answer_column_N: the tokens whose hidden state predicts an answer token;
    labels_N: that answer token; spans: id of each sample and number of its answer tokens, in the order of labels_N.
    """

    input_ids_BS: Tensor
    running_BS: Tensor
    mask_B1SS: Tensor
    pixels_TD: Tensor
    grids_I3: Tensor
    answer_row_N: Tensor
    answer_column_N: Tensor
    spans: tuple[tuple[str, int], ...]
    features_FH: Tensor | None = None


@dataclass(frozen=True)
class Prompts:
    """Questions for generation, in two parts, both left-padded; a row of the second part is a sample.

    front_US, front_mask_US: all tokens up to the end of the images, once for all samples with equal images; front_B:
    the front that stands before a sample's question_BS, question_mask_BS. pixels_TD, grids_I3, features_FH describe
    each different image once; image_P: the image at each place of the fronts.
    """

    front_US: Tensor
    front_mask_US: Tensor
    front_B: Tensor
    question_BS: Tensor
    question_mask_BS: Tensor
    image_P: Tensor
    pixels_TD: Tensor
    grids_I3: Tensor
    features_FH: Tensor | None

    def whole(self) -> tuple[Tensor, Tensor]:
        """Each sample's front and question in one row [B, S], and the mask of its tokens: 0 at padding."""
        ids_BS = torch.cat([self.front_US[self.front_B], self.question_BS], dim=1)
        return ids_BS, torch.cat([self.front_mask_US[self.front_B], self.question_mask_BS], dim=1)

    def to(self, device: torch.device) -> Self:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if v is not None})


def group_by_images(samples: Sequence[Sample], most: int = 0) -> list[list[Sample]]:
    """Samples with the same images, together, in order of first appearance; at most `most` in a row (0: no limit).

    A sample without images is a row of its own.
    """
    by_images: OrderedDict[tuple[ImageRef, ...] | int, list[Sample]] = OrderedDict()
    for number, sample in enumerate(samples):
        by_images.setdefault(sample.images or number, []).append(sample)
    rows = by_images.values()
    return [row[i : i + (most or len(row))] for row in rows for i in range(0, len(row), most or len(row))]


class ImageEncoder:
    """Image files to vision patches, with the resized pixels of recent images kept in memory (CACHE_BYTES).

    With `eyes`, a patch holds frozen features of its place, not pixels; these are then kept.
    """

    def __init__(
        self, family: Family, processor: Any, open_image: OpenImage, square: bool, eyes: Eyes | None = None
    ) -> None:
        self.family, self.processor, self.open_image, self.square = family, processor, open_image, square
        self.eyes = eyes
        self.cell_lookup: FeatureLookup | None = None  # the stored cells [patches, values] of an image
        self.free_bytes = CACHE_BYTES
        # a DICOM may be shown in several windows
        self.cache: OrderedDict[ImageRef, np.ndarray | Tensor] = OrderedDict()
        self.limits: dict[ImageRef, int] = {}  # most tokens of single images
        self.feature_lookup: FeatureLookup | None = None

    def limit_tokens(self, ref: ImageRef, tokens: int) -> None:
        """From now on, let an image have at most `tokens` tokens; of several limits the lowest counts.

        Raises BadInput where all images have the same number.
        """
        if self.geometry.square:
            raise BadInput(
                f"image {ref.path}: {self.family.name} makes as many tokens of every image, so overlong=shrink cannot "
                "make it smaller; raise fit.max_tokens, or set fit.overlong=drop"
            )
        self.limits[ref] = min(tokens, self.limits.get(ref, tokens))
        if (kept := self.cache.pop(ref, None)) is not None:
            self.free_bytes += kept.nbytes

    def forget(self) -> None:
        """Drop the pixels of all images."""
        self.free_bytes = CACHE_BYTES
        self.cache.clear()

    @property
    def geometry(self) -> ImageGeometry:
        """How images are cut."""
        return self.family.geometry(self.processor)

    def resampled_size(self, ref: ImageRef) -> Size:
        """The size to which the image is resampled for the vision tower: the processor's, within the image's limit."""
        if ref.width is None or ref.height is None:
            raise BadInput(f"image {ref.path}: its size is not known; import the data again with its images")
        cut = self.geometry
        limit = self.limits.get(ref)
        most = cut.most_pixels if limit is None else min(cut.most_pixels, limit * cut.factor**2)
        resize = square_resize if self.square or cut.square else smart_resize
        try:
            size = resize(ref.width, ref.height, cut.factor, min(cut.least_pixels, most), most)
        except BadInput as error:
            raise BadInput(f"image {ref.path}: {error}") from None
        return size if limit is None else limit_tokens(size, cut.factor, limit)

    def box_frame(self, refs: Sequence[ImageRef]) -> Size:
        """The size in whose pixels boxes are: that of the last image, resampled, or of the dummy image."""
        factor = self.geometry.factor
        return self.resampled_size(refs[-1]) if refs else Size(factor, factor)

    def grid(self, ref: ImageRef) -> tuple[int, int]:
        """Merged patches (height, width): the image's tokens in the text."""
        size, factor = self.resampled_size(ref), self.geometry.factor
        return size.height // factor, size.width // factor

    def pixels(self, ref: ImageRef) -> np.ndarray:
        """Resampled pixels, uint8 [height, width, 3]."""
        if self.eyes is not None:
            return self._resample(ref, self.resampled_size(ref))
        return self._remember(ref, lambda: self._resample(ref, self.resampled_size(ref)))

    def picture(self, ref: ImageRef) -> np.ndarray:
        """What the eyes get, uint8 [height, width, 3]: CELL pixels a side for each patch."""
        patch = self.geometry.patch
        return self._resample(ref, Size(*(side // patch * CELL for side in self.resampled_size(ref))))

    def cells(self, ref: ImageRef) -> Tensor:
        """What the eyes see, float16 [patches, values], in the order of patches."""
        stored, size, patch = None, self.resampled_size(ref), self.geometry.patch
        if self.cell_lookup is not None:
            stored = self.cell_lookup(ref)
        if stored is not None and len(stored) == size.width * size.height // patch**2:
            return stored
        return self._remember(ref, lambda: self.look(ref))

    def look(self, ref: ImageRef) -> Tensor:
        """As `cells`, and nothing is looked up or kept. Threads may share it."""
        assert self.eyes
        return self.family.order_patches(self.eyes.cells(self.picture(ref)), self.geometry.merge)

    def _resample(self, ref: ImageRef, size: Size) -> np.ndarray:
        return np.asarray(self.open_image(ref).resize(size, Image.Resampling(self.processor.resample)))

    def _remember(self, ref: ImageRef, make: Callable[[], Kept]) -> Kept:
        """What is kept of an image, or is made now."""
        kept: Any = self.cache.get(ref)
        if kept is None:
            kept = self.cache[ref] = make()
            self.free_bytes -= kept.nbytes
            while self.free_bytes < 0 and len(self.cache) > 1:
                self.free_bytes += self.cache.popitem(last=False)[1].nbytes
        else:
            self.cache.move_to_end(ref)
        return kept

    def patches(self, refs: Sequence[ImageRef]) -> tuple[Tensor, Tensor]:
        """Patches [T, D] float32 and grids [I, 3] (frames, patches high, patches wide)."""
        if not refs:
            return torch.zeros((0, self.geometry.values)), torch.zeros((0, 3), dtype=torch.long)
        if self.eyes is None:
            return self.family.patches(self.processor, [self.pixels(r) for r in refs])
        sizes, patch = [self.resampled_size(r) for r in refs], self.geometry.patch
        grids_I3 = torch.tensor([(1, size.height // patch, size.width // patch) for size in sizes])
        return torch.cat([self.cells(r) for r in refs]).float(), grids_I3

    def patches_or_features(self, refs: Sequence[ImageRef]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Patches and grids of images. If the features of all are stored: no patches, but features, and no image is
        opened. Features of another size do not count.
        """
        if self.feature_lookup is None:
            return (*self.patches(refs), None)
        grids, features = [self.grid(ref) for ref in refs], [self.feature_lookup(ref) for ref in refs]
        fitting = [
            f for f, (tall, wide) in zip(features, grids, strict=True) if f is not None and len(f) == tall * wide
        ]
        if len(fitting) < len(refs):
            return (*self.patches(refs), None)
        merge = self.geometry.merge
        grids_I3 = torch.tensor([(1, t * merge, w * merge) for t, w in grids], dtype=torch.long).reshape(-1, 3)
        return torch.zeros((0, self.geometry.values)), grids_I3, torch.cat(fitting) if fitting else torch.zeros((0, 0))

    def dummy_image(self) -> tuple[Tensor, Tensor]:
        """Patches, all zeros, and grid of the smallest possible image."""
        side = self.geometry.least_side
        return torch.zeros((side**2, self.geometry.values)), torch.tensor([[1, side, side]])


class TextEncoder:
    """The chat template around questions and answers. `codec` spells boxes; pixels are those of `images`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, codec: Codec, chat: ChatTemplate, images: ImageEncoder
    ) -> None:
        self.tokenizer, self.codec, self.chat, self.images = tokenizer, codec, chat, images
        self.image_token = int(tokenizer.convert_tokens_to_ids(chat.image_token))
        self.pad = int(tokenizer.pad_token_id)
        self.end = int(tokenizer.convert_tokens_to_ids(chat.end))
        self.frame = self.ids([chat.opening, chat.image_start, chat.image_end])
        self.fronts: dict[int, list[int]] = {}  # by the number of images

    def ids(self, texts: list[str]) -> list[list[int]]:
        try:
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        except BaseException as error:
            if not is_panic(error):
                raise
            raise BadInput(
                f"the tokenizer gives a text up ({first_line(error)}): a pattern in its tokenizer.json takes without "
                "end; take that of another release"
            ) from None

    def prefix(self, grids: Sequence[tuple[int, int]]) -> list[int]:
        """The tokens before the question: system turn, start of the user's turn, images."""
        if len(grids) not in self.fronts:  # in one piece: words of neighbouring marks may be one token
            image = self.chat.image_start + self.chat.image_token + self.chat.image_end
            (self.fronts[len(grids)],) = self.ids([self.chat.opening + image * len(grids)])
        numbers = iter([tall * wide for tall, wide in grids])
        return [t for t in self.fronts[len(grids)] for _ in range(next(numbers) if t == self.image_token else 1)]

    def box_frame(self, refs: Sequence[ImageRef]) -> Size | None:
        """The size that the codec needs for a text about these images; None if it needs none."""
        return self.images.box_frame(refs) if self.codec.needs_size else None

    def segments(self, samples: Sequence[Sample]) -> list[list[tuple[list[int], list[int]]]]:
        """For each sample and turn: the tokens up to the answer, and those of the answer with its end mark."""
        texts = []
        for sample in samples:
            size = self.box_frame(sample.images)
            for number, turn in enumerate(sample.turns):
                opened = "" if number == 0 else self.chat.between + self.chat.user
                texts.append(opened + self.codec.encode(turn.question, size) + self.chat.answer)
                texts.append(self.codec.encode(turn.answer, size) + self.chat.end)
        ids = iter(self.ids(texts))
        return [[(next(ids), next(ids)) for _ in sample.turns] for sample in samples]


@dataclass(frozen=True)
class TokenCount:
    """Tokens of a single sample: `front` up to the question, images included; `images` of these; and the `rest`."""

    front: int
    images: int
    rest: int

    @property
    def whole(self) -> int:
        return self.front + self.rest


@dataclass(frozen=True)
class _TokenRow:
    """A row before it gets its place in a line: tokens, segment (0: the shared prefix) and running index of each;
    answer tokens as (column that predicts, label); id of each sample and number of its answer tokens."""

    ids: list[int]
    owner: list[int]
    running: list[int]
    answers: list[tuple[int, int]]
    spans: list[tuple[str, int]]


def encode_rows(
    rows: Sequence[Sequence[Sample]], text: TextEncoder, images: ImageEncoder, line_tokens: int = 0
) -> Batch:
    """Training rows as tensors. Raises BadInput if the samples of a row have different images.

    `line_tokens`: whole rows are packed into lines of at most so many tokens (0: a row a line). Rows of a line do not
    attend to each other, and each has the positions that it would have alone.
    """
    segments = iter(text.segments([s for row in rows for s in row]))
    encoded = [_encode_row(row, [next(segments) for _ in row], text, images) for row in rows]
    lines = _pack_rows([len(row.ids) for row in encoded], line_tokens)
    longest = max(sum(len(encoded[k].ids) for k in line) for line in lines)
    input_ids_BS = torch.full((len(lines), longest), text.pad)
    owner_BS, unit_BS = (torch.full((len(lines), longest), -1) for _ in range(2))
    running_BS = torch.zeros((len(lines), longest), dtype=torch.long)
    answers: list[list[tuple[int, int, int]]] = [[] for _ in rows]  # line, column that predicts, label
    for number, line in enumerate(lines):
        start = 0
        for k in line:
            row, end = encoded[k], start + len(encoded[k].ids)
            input_ids_BS[number, start:end] = torch.tensor(row.ids)
            owner_BS[number, start:end] = torch.tensor(row.owner)
            running_BS[number, start:end] = torch.tensor(row.running)
            unit_BS[number, start:end] = k
            answers[k] = [(number, start + column, label) for column, label in row.answers]
            start = end
    # In its own row a token attends to itself and to what stands before it in the shared prefix or in its own segment.
    same_segment_BSS = (owner_BS[:, :, None] == owner_BS[:, None, :]) | (owner_BS == 0)[:, None, :]
    mask_BSS = (same_segment_BSS & (unit_BS[:, :, None] == unit_BS[:, None, :])).tril()
    pixels_TD, grids_I3, features_FH = images.patches_or_features(
        [ref for line in lines for k in line for ref in rows[k][0].images]
    )
    row_N, column_N, labels_N = torch.tensor([answer for row in answers for answer in row]).unbind(1)
    return Batch(
        labels_N=labels_N,
        num_samples=sum(len(row) for row in rows),
        input_ids_BS=input_ids_BS,
        running_BS=running_BS,
        mask_B1SS=mask_BSS[:, None],
        pixels_TD=pixels_TD,
        grids_I3=grids_I3,
        answer_row_N=row_N,
        answer_column_N=column_N,
        spans=tuple(span for row in encoded for span in row.spans),
        features_FH=features_FH,
    )


def _encode_row(
    row: Sequence[Sample],
    segments: Sequence[list[tuple[list[int], list[int]]]],
    text: TextEncoder,
    images: ImageEncoder,
) -> _TokenRow:
    if any(s.images != row[0].images for s in row):
        raise BadInput(f"sample {row[0].id}: the samples of a row must look at the same images")
    ids = text.prefix([images.grid(r) for r in row[0].images])
    front = len(ids)
    owner, running = [0] * front, list(range(front))
    answers: list[tuple[int, int]] = []
    spans: list[tuple[str, int]] = []
    for segment, (sample, turns) in enumerate(zip(row, segments, strict=True), start=1):
        start, answers_before = len(ids), len(answers)
        for question_ids, answer_ids in turns:
            ids += question_ids
            answers += [(len(ids) + k - 1, label) for k, label in enumerate(answer_ids)]
            ids += answer_ids
        spans.append((sample.id, len(answers) - answers_before))
        owner += [segment] * (len(ids) - start)
        running += range(front, front + len(ids) - start)
    return _TokenRow(ids, owner, running, answers, spans)


def _pack_rows(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Pack rows into lines of at most `most` tokens: the longest first, each into the first line with enough room."""
    if not most:
        return [[k] for k in range(len(lengths))]
    lines: list[list[int]] = []
    free: list[int] = []
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        place = next((i for i, tokens in enumerate(free) if tokens >= lengths[k]), len(lines))
        if place == len(lines):
            lines.append([])
            free.append(max(most, lengths[k]))
        lines[place].append(k)
        free[place] -= lengths[k]
    return lines


def encode_prompts(samples: Sequence[Sample], text: TextEncoder, images: ImageEncoder) -> Prompts:
    """Questions for generation: earlier turns with their answers, the last turn without."""
    front: dict[tuple[ImageRef, ...], int] = {}
    front_B = torch.tensor([front.setdefault(s.images, len(front)) for s in samples])
    place: dict[ImageRef, int] = {}
    image_P = torch.tensor([place.setdefault(r, len(place)) for refs in front for r in refs], dtype=torch.long)
    questions = []
    for turns in text.segments(samples):
        ids = [t for question, answer in turns[:-1] for t in (*question, *answer)]
        questions.append([*ids, *turns[-1][0]])
    fronts = [text.prefix([images.grid(r) for r in refs]) for refs in front]
    front_US, front_mask_US = _pad_left(fronts, text.pad)
    question_BS, question_mask_BS = _pad_left(questions, text.pad)
    image_tensors = images.patches_or_features(list(place))
    return Prompts(front_US, front_mask_US, front_B, question_BS, question_mask_BS, image_P, *image_tensors)


def _pad_left(lines: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens, and a mask: 1 at a token, 0 at padding."""
    longest = max(map(len, lines))
    ids_BS = torch.tensor([[pad] * (longest - len(ids)) + [*ids] for ids in lines])
    return ids_BS, torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in lines])


def template_identity(text: TextEncoder) -> dict[str, Any]:
    """What a stored teacher and its student must have in common: chat template, spelling of boxes, vocabulary."""
    images, entries = text.images, json.dumps(sorted(text.tokenizer.get_vocab().items()))
    cut = images.geometry
    return {
        "system": text.chat.system,
        "frame": text.frame,
        "codec": text.codec.name,
        "step": [cut.factor, {"shortest_edge": cut.least_pixels, "longest_edge": cut.most_pixels}, images.square]
        if text.codec.needs_size
        else text.codec.steps()[0],
        "vocabulary": hashlib.sha256(entries.encode()).hexdigest(),
    }
