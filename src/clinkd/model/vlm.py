"""A vision-language model as five verbs: encode, hidden_states, head, generate, save.

Shapes: B rows, S tokens, N answer tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from clinkd.config import AnswerConfig, FitConfig, LoraConfig, ModelConfig
from clinkd.data.codecs import Codec, make_codec
from clinkd.data.grids import Size
from clinkd.model import adapters, flops, tiny
from clinkd.model.encode import (
    Batch,
    ImageEncoder,
    OpenImage,
    Prompts,
    TextEncoder,
    TokenCount,
    encode_prompts,
    encode_rows,
)
from clinkd.model.eyes import Eyes
from clinkd.model.families import TINY, TYPES, family_of, load_folder, native_knobs, scheme_knobs
from clinkd.model.folders import find_not_finite, opened_folder
from clinkd.model.generate import (
    Choose,
    DecodeLimits,
    PartialHypotheses,
    Rows,
    beams,
    decode_rows,
    diverse,
    greedy,
    run_to_end,
    top_p_sampling,
)
from clinkd.model.positions import position_scheme
from clinkd.model.quantized import dequantize, is_quantized, quantized_layers
from clinkd.objectives import LowRank
from clinkd.records import BadInput, BoxedText, Candidate, ImageRef, Modality, Sample, Task, Turn


@dataclass(frozen=True)
class Head:
    """The output layer: logits = hidden @ weight_VH.T (no family has a bias), and the addition of LoRA, if any."""

    weight_VH: Tensor
    lora: tuple[Tensor, Tensor, float] | None = None  # A [R, H], B [V, R], scale

    def added(self, hidden_NH: Tensor) -> LowRank | None:
        """The addition of LoRA at these hidden states, for the loss."""
        if self.lora is None:
            return None
        down_RH, up_VR, scale = self.lora
        return LowRank((hidden_NH.to(down_RH.dtype) @ down_RH.T) * scale, up_VR)


class VisionLeftOut(nn.Module):
    """Stands in the place of tower and merger where only stored features are used."""

    def forward(self, *_: Any, **__: Any) -> None:
        raise BadInput(
            "model.vision_features=cached: an image has no stored features of its size, and the vision tower is not "
            "loaded here; set model.vision_features=live"
        )


class VisionLanguageModel(nn.Module):
    """Takes and gives records; tensors stay inside.

    `open_image` returns the pixels of an ImageRef: the model does not know where the data are.
    """

    def __init__(
        self,
        network: Any,  # of the family's network_class
        tokenizer: PreTrainedTokenizerFast,
        processor: Any,  # of its processor_class
        open_image: OpenImage,
        eyes: Eyes | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.processor = processor
        self.family = family_of(network.config)
        self.knobs = scheme_knobs(network.config)
        self.scheme = position_scheme(self.knobs.positions, self.family.native)
        self.codec: Codec = make_codec(self.knobs.boxes, self.knobs.box_bins)
        self.additions: adapters.Additions | None = None  # what LoRA added to the base; None: no low rank, or unknown
        self.pointer: Mapping[str, Any] | None = None  # names the base, where that is quantized as it is loaded
        # by path, what `VisionLeftOut` stands for; tower and merger as one are kept beside it
        self.vision_aside: dict[str, nn.Module] = {}
        self.visual_aside: tuple[nn.Module, ...] = ()
        self.line_tokens = 0  # length of a line into which training rows are packed; 0: a row a line
        self.images = ImageEncoder(self.family, processor, open_image, self.knobs.square, eyes)
        chat = self.family.chat
        chat = chat if network.config.system_turn else replace(chat, system=None)
        self.text = TextEncoder(tokenizer, self.codec, chat, self.images)

    # -- verbs ----------------------------------------------------------------------------------------------------

    def encode(self, rows: Sequence[Sequence[Sample]]) -> Batch:
        """Rows of samples that share their images, as a Batch on the CPU."""
        return encode_rows(rows, self.text, self.images, self.line_tokens)

    def vision_features(self, batch: Batch | Prompts) -> tuple[Tensor, ...]:
        """Features [tokens, H] of each image, for `hidden_states` of this model or of another.

        Without images, tower and merger process a dummy image with weight 0: processes that train together must all
        pass through every module, or they wait for each other forever. (With stored features no process does.)

        Raises BadInput if the features are stored, but tower or merger are to learn.
        """
        pixels_TD, grids_I3 = batch.pixels_TD, batch.grids_I3
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in self.visual.parameters())
        if batch.features_FH is not None:
            if learning:
                raise BadInput(
                    "model.vision_features=cached: the vision tower or the merger is to learn here; freeze both, or "
                    "set model.vision_features=live"
                )
            return self._split_by_image(batch.features_FH.to(self.dtype), grids_I3)
        if not len(grids_I3):
            pixels_TD, grids_I3 = (t.to(grids_I3.device) for t in self.images.dummy_image())
        with torch.set_grad_enabled(learning):  # recomputed blocks ask for gradients of their inputs in any case
            return self.tower(pixels_TD, grids_I3)

    def tower(self, pixels_TD: Tensor, grids_I3: Tensor) -> tuple[Tensor, ...]:
        """Features [tokens, H] of each image from its patches, by tower and merger."""
        return self._split_by_image(
            self.family.vision_features(
                self.network.get_submodule(self.family.visual), pixels_TD.to(self.dtype), grids_I3
            ),
            grids_I3,
        )

    def _split_by_image(self, features_FH: Tensor, grids_I3: Tensor) -> tuple[Tensor, ...]:
        sizes = (grids_I3.prod(-1) // self.images.geometry.merge**2).tolist()
        return torch.split(features_FH, sizes) if sizes else ()

    def _compute_positions(self, input_ids_BS: Tensor, running_BS: Tensor, grids_I3: Tensor) -> Tensor:
        """Positions [3, B, S]. grids_I3: of the images at their places in the text."""
        image_BS = input_ids_BS == self.text.image_token
        return self.scheme.positions(image_BS, running_BS, grids_I3[:, 1:] // self.images.geometry.merge)

    def demand_places(self, refs: Iterable[ImageRef]) -> None:
        """Raises BadInput, naming it, for an image that the position scheme gives no place in the text."""
        for ref in refs:
            if overlap := self.scheme.explain_overlap(*self.images.grid(ref)):
                raise BadInput(f"image {ref.path} {overlap}")

    def hidden_states(self, batch: Batch, features: tuple[Tensor, ...] | None = None) -> Tensor:
        """Last hidden states [N, H] at the tokens that predict an answer token. `features`: of `vision_features`."""
        positions_3BS = self._compute_positions(batch.input_ids_BS, batch.running_BS, batch.grids_I3)
        features = self.vision_features(batch) if features is None else features
        hidden_BSH = self.network.model(
            use_cache=False,
            **self.family.inputs(
                self.network.config,
                batch.input_ids_BS,
                batch.mask_B1SS,
                positions_3BS,
                features if len(batch.grids_I3) else None,
            ),
        ).last_hidden_state
        hidden_NH = hidden_BSH[batch.answer_row_N, batch.answer_column_N]
        dummy = () if len(batch.grids_I3) else features
        return hidden_NH + 0 * dummy[0].sum() if dummy else hidden_NH

    forward = hidden_states

    @property
    def head(self) -> Head:
        return Head(adapters.plain_weight(self.network.lm_head), adapters.factors(self.network.lm_head))

    def generate(self, samples: Sequence[Sample], config: AnswerConfig, seed: int = 0) -> list[list[Candidate]]:
        """Answers to one batch of samples: for each sample a list of candidates, the best first.

        Of candidates with equal texts only the best stays, so there may be fewer than `config` asks for. The best has
        the highest mean log-probability a token under the model itself: without temperature, penalty or limits. What
        is sampled depends on `seed` and the sample's id, not on the other samples. Only rounding, which differs with
        the size of a batch, can move a sample at the very edge of two tokens to the other one.
        """
        return run_to_end(self.decode_stream(samples, config, seed))

    @torch.inference_mode()
    def decode_stream(
        self, samples: Sequence[Sample], config: AnswerConfig, seed: int = 0
    ) -> Generator[PartialHypotheses, None, list[list[Candidate]]]:
        """As `generate`, but yields the best partial answers after each token. Closed early, it computes no more."""
        prompts = encode_prompts(samples, self.text, self.images).to(self.device)
        rows = self.start_rows(prompts)
        limits = DecodeLimits(self.text.end, config.max_new_tokens, self.suppressed_tokens)
        if config.method == "beams" and config.beams > 1:
            hypotheses = yield from beams(rows, config.beams, limits)
        else:
            hypotheses = yield from decode_rows(
                rows, config.candidates, self._make_chooser(samples, config, seed), limits
            )
        sizes = [self.text.box_frame(s.images) for s in samples]
        answer_lists = [
            [self._read(hypothesis.ids, hypothesis.logprob, size) for hypothesis in answers]
            for answers, size in zip(hypotheses, sizes, strict=True)
        ]
        return [_rank_distinct(answers)[: config.candidates] for answers in answer_lists]

    def read_partial_answers(self, leading: PartialHypotheses, samples: Sequence[Sample]) -> dict[int, BoxedText]:
        """The partial answers that a step of `decode_stream` yields, by the number of the sample, without boxes that
        are half written."""
        partial_answers = zip(leading.question_B.tolist(), leading.tokens_BL.tolist(), strict=True)
        return {n: self._read(ids, None, self.text.box_frame(samples[n].images)).answer for n, ids in partial_answers}

    def count_answer_tokens(self, candidates: Sequence[Candidate]) -> list[int]:
        """Tokens of each answer as the tokenizer spells it, with its end mark if it was not cut. The model may
        have used other tokens."""
        ids = self.tokenizer([c.raw for c in candidates], add_special_tokens=False)["input_ids"]
        return [max(1, len(i) + (not c.truncated)) for i, c in zip(ids, candidates, strict=True)]

    def count_tokens(self, samples: Sequence[Sample]) -> list[TokenCount]:
        """Tokens of each sample, as a training row of its own."""
        return [
            TokenCount(
                len(self.text.prefix(grids := [self.images.grid(ref) for ref in sample.images])),
                sum(tall * wide for tall, wide in grids),
                sum(len(question_ids) + len(answer) for question_ids, answer in turns),
            )
            for sample, turns in zip(samples, self.text.segments(samples), strict=True)
        ]

    def count_prompt_tokens(self, samples: Sequence[Sample]) -> list[int]:
        """Tokens before each answer: images, earlier turns, the question, and the marks around them."""
        counts = []
        for sample, (*before, (question_ids, _)) in zip(samples, self.text.segments(samples), strict=True):
            prefix_ids = self.text.prefix([self.images.grid(ref) for ref in sample.images])
            counts.append(len(prefix_ids) + sum(len(q) + len(a) for q, a in before) + len(question_ids))
        return counts

    def start_rows(self, prompts: Prompts) -> Rows:
        """The rows of these prompts, a row a sample, before the first new token."""
        mask_US = prompts.front_mask_US.bool()
        running_US = (mask_US.cumsum(1) - 1).clamp(min=0)
        positions_3US = self._compute_positions(prompts.front_US, running_US, prompts.grids_I3[prompts.image_P])
        features = None
        if len(prompts.image_P):
            one_each = self.vision_features(prompts)
            features = tuple(one_each[k] for k in prompts.image_P.tolist())
        return Rows(self.network, prompts, positions_3US.masked_fill(~mask_US, 0.0), features)

    def _make_chooser(self, samples: Sequence[Sample], config: AnswerConfig, seed: int) -> Choose:
        """How the next token is chosen if there are no beams to compare."""
        if config.method == "beams":
            return greedy
        if config.method == "diverse":
            return diverse(config.candidates, config.diversity)
        shape = config.candidates, config.max_new_tokens
        digests = [hashlib.sha256(f"{seed} {s.id}".encode()).digest() for s in samples]
        uniform_SKL = [np.random.default_rng(int.from_bytes(digest)).random(shape) for digest in digests]
        return top_p_sampling(
            torch.from_numpy(np.concatenate(uniform_SKL)).to(self.device), config.temperature, config.top_p
        )

    def save(self, folder: Path, stock: bool = False) -> None:
        """Weights (safetensors), configuration, tokenizer and image processor, as transformers lays them out.

        The eyes, where the model has any, lie beside. `stock`: for the family's stock class. Raises BadInput where no
        stock class has these positions or these patches.
        """
        assert not self.is_quantized, "what is saved of it are the additions"
        aside, self.vision_aside, self.visual_aside = self.vision_aside, {}, ()
        for path, part in aside.items():
            self.network.set_submodule(path, part)
        network = self.family.as_stock(self.network) if stock else self.network
        for part in (network, self.tokenizer, self.processor):
            part.save_pretrained(folder)
        if aside:
            self.put_vision_aside()
        if self.images.eyes is not None:
            self.images.eyes.save(folder)

    def round_weights(self, dtype: torch.dtype) -> None:
        """Round the weights to a type, as a model is that is loaded in it: rotary frequencies stay in float32. What is
        saved then says that it be loaded in this type (in float32, where `model.dtype` has no word for it).

        Raises BadInput for a weight that is too large for the type.
        """
        for name, parameter in self.network.named_parameters():
            parameter.data = parameter.data.to(dtype)
            if find_not_finite({name: parameter}):
                raise BadInput(f"{str(dtype).removeprefix('torch.')}: holds no number as large as some of {name}")
        word = next((word for word, known in TYPES.items() if known == dtype), "float32")
        self.network.config.scheme = {**self.network.config.scheme, "dtype": word}

    @property
    def is_stock(self) -> bool:
        """Whether `save` is possible with `stock`: the positions are the family's own."""
        return self.family.is_stock(self.network.config)

    # -- about the model ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.head.weight_VH.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight_VH.dtype

    def operations(self, batch: Batch) -> dict[str, flops.Operations] | None:
        """Operations of a batch by part; None if they are not known."""
        return flops.count_operations(self.network, self.visual, batch, self.images.geometry.merge)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of vision tower and text part, which hold nearly all weights."""
        return [*self.visual.get_submodule(self.family.vision_blocks).children(), *self._text_blocks]

    @property
    def _text_blocks(self) -> list[nn.Module]:
        return [*self.network.get_submodule(self.family.text_blocks)]

    @property
    def suppressed_tokens(self) -> list[int]:
        """Tokens that no answer holds: an undertrained model might emit image tokens."""
        return [int(self.tokenizer.convert_tokens_to_ids(token)) for token in self.family.chat.suppressed]

    @property
    def visual(self) -> nn.Module:
        """Tower and merger, on the disk or not."""
        visual: nn.Module = self.network.get_submodule(self.family.visual)
        return next(iter(self.visual_aside), visual)

    def put_vision_aside(self) -> None:
        """Keep tower and merger out of the network until it is saved: nothing moves, changes or uses them. What was
        loaded in the type of its file so stays on the disk."""
        self.visual_aside = (self.visual.requires_grad_(False),)
        self.vision_aside = {path: self.network.get_submodule(path) for path in self.family.vision_modules}
        for path in self.vision_aside:
            self.network.set_submodule(path, VisionLeftOut())

    def with_additions(self, additions: adapters.Additions) -> VisionLanguageModel:
        """A model with these weights, not copied, and additions of LoRA beside them. It is of no use any more once
        weights of this one have changed."""
        weights = [t for t in self.network.parameters() if not is_quantized(t)]
        shared = {id(t): nn.Parameter(t.detach(), requires_grad=False) for t in weights}
        as_they_are = [*self.network.buffers(), *(layer for _, layer in quantized_layers(self.network))]
        network = copy.deepcopy(self.network, shared | {id(it): it for it in as_they_are})
        adapters.put_beside(network, additions)
        twin = VisionLanguageModel(network, self.tokenizer, self.processor, self.images.open_image, self.images.eyes)
        twin.vision_aside, twin.visual_aside = self.vision_aside, self.visual_aside
        return twin

    def share_fixed_weights(self, other: nn.Module) -> None:
        """Use the tensors of `other` for weights that are equal there and do not learn: both then have one copy."""
        theirs = {name: p for name, p in other.named_parameters() if not p.requires_grad}
        for name, parameter in self.named_parameters():
            fixed = theirs.get(name)
            if fixed is not None and _is_alike(fixed, parameter) and torch.equal(fixed, parameter):
                parameter.data = fixed.data

    def shares_vision_with(self, visual: nn.Module, whole: Callable[[Tensor], Tensor] = Tensor.detach) -> bool:
        """Whether `visual`, tower and merger, has the same weights as these, and neither gets a gradient. `whole`: puts
        a tensor together that processes share out."""
        ours, theirs = (dict(v.named_parameters()) for v in (self.visual, visual))
        frozen = not any(p.requires_grad for p in (*ours.values(), *theirs.values()))
        if not frozen or ours.keys() != theirs.keys():
            return False
        return all(torch.equal(whole(p), whole(theirs[n])) for n, p in ours.items())

    def freeze(self, parts: Sequence[str]) -> None:
        """Stop the gradients of whole parts. Raises BadInput for a part that does not exist."""
        modules = self.family.parts
        for part in parts:
            if part not in modules:
                raise BadInput(f"freeze: {part!r} is not a part of the model; the parts are {', '.join(modules)}")
            for name in modules[part]:
                if not name.startswith(tuple(self.vision_aside)):  # what is aside is fixed
                    self.network.get_submodule(name).requires_grad_(False)

    def explain_freeze(self, parts: Sequence[str]) -> str | None:
        """What stays fixed beside the parts named: a head may be one with the input table, which is of the text."""
        named = {"text", "head"} & {*parts}
        if len(named) != 1 or self.network.lm_head.weight is not self.network.get_input_embeddings().weight:
            return None
        more = "the head is fixed, too" if named == {"text"} else "the input embeddings are fixed, too"
        return f"freeze={[*parts]}: head and input embeddings are one table in this model, so {more}"

    @contextmanager
    def prepared_for(self, config: FitConfig, seed: int) -> Iterator[None]:
        """In the block the model is in training, as `config` says; afterwards it is a plain model that has learned.

        Weights that learn are float32 in the block, as a change is often too small for a weight of fewer bits.

        If the block raises, the model stays as it is: a model that was trained halfway is of no use, and one whose
        parts are in processes that are gone cannot be put together.

        Raises BadInput if nothing would learn.
        """
        self.freeze(config.freeze)
        self.recompute_blocks(config.recompute == "blocks")
        self.compile_blocks(config.compile)
        self.line_tokens = config.pack
        if config.lora is not None:
            self.adapt(config.lora, seed)
        dtype, learning = self.dtype, [p for p in self.parameters() if p.requires_grad]
        if not learning:  # what is aside or one table with another part is fixed, too
            raise BadInput(f"freeze={[*config.freeze]}: nothing of this model would learn; leave a part out")
        for parameter in learning:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        self.train()
        yield
        self.eval()
        self.recompute_blocks(False)
        self.compile_blocks(False)
        self.line_tokens = 0
        self.merge()
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def adapt(self, config: LoraConfig, seed: int) -> None:
        """Add LoRA as `config` says, and let nothing else learn. Raises BadInput for a head that is the input table,
        and for a part without a linear layer."""
        for part in config.parts:
            modules = [m for name in self.family.parts[part] for m in self.network.get_submodule(name).modules()]
            if not any(isinstance(module, nn.Linear) for module in modules):
                raise BadInput(
                    f"fit.lora.parts: {part} of {self.family.name} has no linear layer, so it gets no addition; leave "
                    f"{part} out"
                )
        prefixes = [name for part in config.parts for name in self.family.parts[part]]
        adapters.add(self.network, prefixes, config.rank, config.alpha, seed)

    def merge(self) -> None:
        """Put the additions of LoRA into the weights: the model is a plain one again, and knows what was added since
        the base, as long as nothing else has learned. Beside matrices of four bits they stay, as one with those of
        before."""
        quantized, before = self.is_quantized, self.additions
        added = adapters.take_off(self.network, merged=not quantized)
        if quantized:
            self.put_additions(adapters.stack(before or {}, added))
        else:
            self.additions = adapters.stack(before, added) if added and before is not None else None

    def put_additions(self, additions: adapters.Additions) -> None:
        """Let what LoRA added to a base stay beside its weights."""
        self.additions = additions
        adapters.put_beside(self.network, additions)

    @property
    def is_quantized(self) -> bool:
        """Whether matrices have four bits (`model.quantize`)."""
        return next(quantized_layers(self.network), None) is not None

    def dequantize(self) -> None:
        """Become a plain model in float32 of the same additions, merged into the numbers that four bits stand for."""
        added, self.pointer = self.additions or {}, None
        adapters.take_off(self.network, merged=False)
        dequantize(self.network)
        self.round_weights(torch.float32)
        adapters.merge_additions(self.network, added, 1.0, "additions")

    def cut_head(self, rows: int) -> None:
        """Give logits of the first `rows` entries alone; the input table stays."""
        head = self.network.lm_head
        head.weight, head.out_features = nn.Parameter(head.weight.detach()[:rows]), rows

    def recompute_blocks(self, on: bool) -> None:
        """For the backward, keep only the inputs of blocks and compute the rest again; or stop that."""
        if on:
            self.network.activation_checkpointing_enable()
        else:
            self.network.activation_checkpointing_disable()

    def compile_blocks(self, on: bool) -> None:
        """Let torch compile each block of the text, for rows of any length; or undo that.

        Raises BadInput if there is no C++ compiler, which torch needs on a CPU.
        """
        if on and self.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise BadInput("fit.compile=true: no g++ here; install it (apt install g++), or set fit.compile=false")
        for block in self._text_blocks:
            if on:
                block.compile(dynamic=True)
            else:
                block._compiled_call_impl = None  # torch has no public way back

    def _read(self, ids: list[int], score: float | None, size: Size | None = None) -> Candidate:
        ended = self.text.end in ids
        ids = ids[: ids.index(self.text.end)] if ended else [t for t in ids if t != self.text.pad]
        raw = self.tokenizer.decode(ids, skip_special_tokens=False)
        decoded = self.codec.decode(raw, size)
        return Candidate(raw, decoded.answer, score, unread=decoded.unparsed_boxes, truncated=not ended)


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)


def _rank_distinct(candidates: list[Candidate]) -> list[Candidate]:
    """The best first; of candidates with equal texts, only the best."""
    ranked = sorted(candidates, key=lambda c: -(c.logprob or 0.0))
    return [c for k, c in enumerate(ranked) if all(c.raw != b.raw for b in ranked[:k])]


def new_tiny(
    config: ModelConfig, texts: Sequence[str], seed: int, open_image: OpenImage, eyes: Eyes | None = None
) -> VisionLanguageModel:
    """A tiny model with random weights and a vocabulary made from `texts` (those of `spell_samples`)."""
    boxes = make_codec(config.boxes, config.box_bins)
    words = [*texts, *TINY.chat.words] * 2
    tokenizer = tiny.train_tokenizer(words, config.tiny.vocabulary, boxes.special_tokens)
    stock = TINY.tiny_settings(config.tiny, tokenizer)
    torch.manual_seed(seed)
    network = TINY.build(stock, config)
    with torch.no_grad():
        table_VH = network.get_input_embeddings().weight
        tiny.smooth_location_codes(table_VH, tokenizer, boxes.special_tokens, config.tiny.init_std)
        if eyes:  # random weights would mix the first numbers of a cell, which tell most, with the last, noise
            TINY.start_as_identity(network.get_submodule(TINY.visual))
    network.config.system_turn = False  # a tiny model has no use for its tokens
    network.config.eyes = eyes is not None
    return VisionLanguageModel(network, tokenizer, TINY.tiny_processor(config.tiny), open_image, eyes)


def tiny_images(config: ModelConfig, open_image: OpenImage) -> ImageEncoder:
    """How a tiny model cuts images."""
    return ImageEncoder(TINY, TINY.tiny_processor(config.tiny), open_image, config.square)


def load_foreign(folder: Path, open_image: OpenImage) -> VisionLanguageModel:
    """A model that belongs to no run here: an exported one, or a stock one of any family."""
    return load(folder, open_image, native_knobs(folder), foreign=True)


def load(
    folder: Path,
    open_image: OpenImage,
    config: ModelConfig | None = None,
    dtype: torch.dtype | None = None,
    foreign: bool = False,
) -> VisionLanguageModel:
    """A model from a folder: one of ours, or (with `config`) a stock one, which gets the scheme that `config` names;
    either of them with a LoRA adapter merged in, where the folder holds that and names its base. Its weights have the
    type that `config`, or the checkpoint, says, unless `dtype` does.

    One that is `foreign` is tried out on a blank picture. Raises BadInput as `opened_folder`, and if
    the folder holds no such model, a weight is missing or left over, or its parts do not fit each other.
    """
    with opened_folder(folder, "a vision-language model", adapters=True) as opened:
        network = load_folder(opened, config, dtype)
        family = family_of(network.config)
        tokenizer, processor = opened.tokenizer(), opened.processor(family.processor_class)
        family.complete_processor(processor, network.config)
        eyes = Eyes.load(opened) if network.config.eyes else None
        if config is not None:
            family.limit_image_tokens(processor, config.max_image_tokens)
        if foreign:
            blank = VisionLanguageModel(network, tokenizer, processor, lambda ref: Image.new("RGB", (64, 64)), eyes)
            _try_out(blank, folder)
        return VisionLanguageModel(network, tokenizer, processor, open_image, eyes)


def _try_out(model: VisionLanguageModel, folder: Path) -> None:
    """Raises what an answer to a question about a blank picture raises; BadInput where its numbers are not finite."""
    turn = Turn(Task.QA, BoxedText("What is it?"), BoxedText(""))
    sample = Sample("", (ImageRef("", 64, 64),), Modality.CT, (turn,), "")
    (candidates,) = model.generate([sample], AnswerConfig(beams=1, candidates=1, max_new_tokens=1))
    if not math.isfinite(candidates[0].logprob or 0.0):
        raise BadInput(
            f"{folder}: a blank picture gives no finite numbers, though all weights are: look at the settings in "
            "preprocessor_config.json (image_std) and config.json"
        )


def spell_samples(samples: Sequence[Sample], config: ModelConfig) -> list[str]:
    """The words of questions and answers, their boxes spelled out, to train a tokenizer: those of at least
    `config.tiny.min_patients` groups."""
    boxes = make_codec(config.boxes, config.box_bins)
    images = tiny_images(config, lambda ref: Image.open(ref.path))
    sizes = [images.box_frame(s.images) if boxes.needs_size else None for s in samples]
    texts = [
        (s.group, boxes.encode(part, size))
        for s, size in zip(samples, sizes, strict=True)
        for turn in s.turns
        for part in (turn.question, turn.answer)
    ]
    return tiny.shared_words(texts, config.tiny.min_patients)
