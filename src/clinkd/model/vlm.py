"""A vision-language model as five verbs: encode, hidden_states, head, generate, save.

Shapes: B rows, S tokens, N answer tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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
from clinkd.model.families import qwen2_vl as qwen2vl
from clinkd.model.generate import (
    Choose,
    DecodeLimits,
    PartialHypotheses,
    Rows,
    beams,
    diverse,
    finished,
    greedy,
    lines,
    top_p_sampling,
)
from clinkd.objectives import LowRank
from clinkd.records import BadInput, BoxedText, Candidate, Sample

SYSTEM = "You are a helpful assistant."  # Qwen2-VL's own
PARTS = {
    "vision": ("model.visual.patch_embed", "model.visual.blocks"),
    "merger": ("model.visual.merger",),
    "text": ("model.language_model",),
    "head": ("lm_head",),
}


@dataclass(frozen=True)
class Head:
    """The output layer: logits = hidden @ weight_VH.T (Qwen2-VL has no bias), and what LoRA adds, if anything."""

    weight_VH: Tensor
    lora: tuple[Tensor, Tensor, float] | None = None  # A [R, H], B [V, R], scale

    def added(self, hidden_NH: Tensor) -> LowRank | None:
        """The addition, as a fused loss takes it."""
        if self.lora is None:
            return None
        down_RH, up_VR, scale = self.lora
        return LowRank((hidden_NH.to(down_RH.dtype) @ down_RH.T) * scale, up_VR)


class VisionLanguageModel(nn.Module):
    """Records in, records out; tensors stay inside.

    `open_image` finds the pixels of an ImageRef: the model does not know where data lie.
    """

    def __init__(
        self,
        network: qwen2vl.ClinkdForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        processor: qwen2vl.Qwen2VLImageProcessorPil,
        open_image: OpenImage,
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.processor = processor
        self.knobs = qwen2vl.scheme_knobs(network.config)
        self.codec: Codec = make_codec(self.knobs.boxes, self.knobs.box_bins)
        self.line_tokens = 0  # of a line into which training rows are packed; 0: a row a line
        self.images = ImageEncoder(processor, open_image, self.knobs.square)
        self.text = TextEncoder(tokenizer, self.codec, SYSTEM if network.config.system_turn else None, self.images)

    # -- verbs ----------------------------------------------------------------------------------------------------

    def encode(self, rows: Sequence[Sequence[Sample]]) -> Batch:
        """Rows of samples that share their images, as a Batch on the CPU."""
        return encode_rows(rows, self.text, self.images, self.line_tokens)

    def see(self, batch: Batch | Prompts) -> Any:
        """What the vision tower and the merger make of the images, for `hidden_states`, of this model or of another.

        Where there are none they look at a blank one, whose weight is 0: processes that train together must all go
        through every module, or wait for each other for ever. (Where images are known, no process looks at any.)

        Raises BadInput where they are known already, and tower or merger are to learn.
        """
        pixels_TD, grids_I3 = batch.pixels_TD, batch.grids_I3
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in self.network.model.visual.parameters())
        if batch.seen_FH is not None:
            if learning:
                raise BadInput(
                    "model.vision_features=cached: the vision tower or the merger is to learn here; freeze both, or "
                    "set model.vision_features=live"
                )
            sizes = (grids_I3.prod(-1) // self.images.processor.merge_size**2).tolist()
            return qwen2vl.vision_output(torch.split(batch.seen_FH.to(self.dtype), sizes) if sizes else ())
        if not len(grids_I3):
            pixels_TD, grids_I3 = (t.to(grids_I3.device) for t in self.images.blank())
        with torch.set_grad_enabled(learning):  # recomputed blocks ask for gradients of their inputs all the same
            return self.tower(pixels_TD, grids_I3)

    def tower(self, pixels_TD: Tensor, grids_I3: Tensor) -> Any:
        """Features of patches: tower and merger."""
        return self.network.model.get_image_features(pixels_TD.to(self.dtype), grids_I3, return_dict=True)

    def hidden_states(self, batch: Batch, seen: Any = None) -> Tensor:
        """Last hidden states [N, H] at the tokens that predict an answer token. `seen`: what `see` made already."""
        config = self.network.config
        image_BS = batch.input_ids_BS == config.image_token_id
        grids_N2 = batch.grids_I3[:, 1:] // config.vision_config.spatial_merge_size
        positions_3BS = self.network.model.scheme.positions(image_BS, batch.running_BS, grids_N2)
        seen = self.see(batch) if seen is None else seen
        hidden_BSH = self.network.model(
            input_ids=batch.input_ids_BS,
            attention_mask=batch.mask_B1SS,
            position_ids=positions_3BS,
            mm_encoder_outputs={"image": seen} if len(batch.grids_I3) else None,
            image_grid_thw=batch.grids_I3,
            use_cache=False,
        ).last_hidden_state
        hidden_NH = hidden_BSH[batch.answer_row_N, batch.answer_column_N]
        blank = () if len(batch.grids_I3) else seen.pooler_output
        return hidden_NH + 0 * blank[0].sum() if blank else hidden_NH

    forward = hidden_states

    @property
    def head(self) -> Head:
        return Head(adapters.plain_weight(self.network.lm_head), adapters.factors(self.network.lm_head))

    def generate(self, samples: Sequence[Sample], config: AnswerConfig, seed: int = 0) -> list[list[Candidate]]:
        """Answers, best first, to one batch of samples; one list of candidates a sample.

        Candidates of a sample differ in what they say: equal texts keep their best, so there may be fewer than asked.
        Best is whose mean log-probability a token is highest, by the model itself: without temperature, penalty or
        limits. What is drawn depends on `seed` and the sample's id, not on the other samples; only where rounding
        differs with the size of a batch can a draw at the very edge of two tokens fall to the other one.
        """
        return finished(self.writing(samples, config, seed))

    @torch.inference_mode()
    def writing(
        self, samples: Sequence[Sample], config: AnswerConfig, seed: int = 0
    ) -> Generator[PartialHypotheses, None, list[list[Candidate]]]:
        """As `generate`, a token a step, with what leads so far; closed early, the rest is never computed."""
        prompts = encode_prompts(samples, self.text, self.images).to(self.device)
        rows = Rows(self.network, prompts, self.features(prompts))
        limits = DecodeLimits(self.text.end, config.max_new_tokens, self.never)
        if config.method == "beams" and config.beams > 1:
            hypotheses = yield from beams(rows, config.beams, limits)
        else:
            hypotheses = yield from lines(rows, config.candidates, self._make_chooser(samples, config, seed), limits)
        sizes = [self.text.box_frame(s.images) for s in samples]
        answer_lists = [
            [self._read(hypothesis.ids, hypothesis.logprob, size) for hypothesis in answers]
            for answers, size in zip(hypotheses, sizes, strict=True)
        ]
        return [_rank_distinct(answers)[: config.candidates] for answers in answer_lists]

    def drafts(self, leading: PartialHypotheses, samples: Sequence[Sample]) -> dict[int, BoxedText]:
        """What a step of `writing` these samples' answers tells, read: by the number of the sample. A box half written
        is left out."""
        partial_answers = zip(leading.question_B.tolist(), leading.said_BL.tolist(), strict=True)
        return {n: self._read(ids, None, self.text.box_frame(samples[n].images)).answer for n, ids in partial_answers}

    def length(self, candidate: Candidate) -> int:
        """Tokens of an answer, its end mark among them where it was not cut; as the tokenizer would spell it, which
        need not be how the model did."""
        num_tokens = len(self.tokenizer.encode(candidate.raw, add_special_tokens=False))
        return max(1, num_tokens + (not candidate.truncated))

    def count_tokens(self, samples: Sequence[Sample]) -> list[TokenCount]:
        """Tokens of each sample by itself, as a training row."""
        return [
            TokenCount(
                len(self.text.prefix(grids := [self.images.grid(ref) for ref in sample.images])),
                sum(tall * wide for tall, wide in grids),
                sum(len(question_ids) + len(answer) for question_ids, answer in turns),
            )
            for sample, turns in zip(samples, self.text.segments(samples), strict=True)
        ]

    def prompt_length(self, sample: Sample) -> int:
        """Tokens that stand before an answer: the images, all that is said, and the marks around them."""
        *before, (question_ids, _) = self.text.segments([sample])[0]
        prefix_ids = self.text.prefix([self.images.grid(ref) for ref in sample.images])
        return len(prefix_ids) + sum(len(q) + len(a) for q, a in before) + len(question_ids)

    def features(self, prompts: Prompts) -> Any:
        """Merged features of the images at their places in the prompts' fronts; None where there are none."""
        if not len(prompts.shown_P):
            return None
        one_each = self.see(prompts).pooler_output
        return qwen2vl.vision_output(tuple(one_each[k] for k in prompts.shown_P.tolist()))

    def _make_chooser(self, samples: Sequence[Sample], config: AnswerConfig, seed: int) -> Choose:
        """How the next token is chosen, where there are no beams to compare."""
        if config.method == "beams":
            return greedy
        if config.method == "diverse":
            return diverse(config.candidates, config.diversity)
        shape = config.candidates, config.max_new_tokens
        uniform_SKL = [_make_rng(f"{seed} {s.id}").random(shape) for s in samples]
        return top_p_sampling(
            torch.from_numpy(np.concatenate(uniform_SKL)).to(self.device), config.temperature, config.top_p
        )

    def save(self, folder: Path) -> None:
        """Weights (safetensors), configuration, tokenizer and image processor, as transformers lays them out."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def save_stock(self, folder: Path) -> None:
        """As `save`, for the stock Qwen2-VL classes. Raises BadInput where no stock class has these positions."""
        qwen2vl.as_stock(self.network).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @torch.inference_mode()
    def difference(self, folder: Path, samples: Sequence[Sample]) -> float:
        """Greatest difference of any logit between this model and the one written to `folder`, a question at a time."""
        reloaded = qwen2vl.load_written(folder, self.dtype).to(self.device).eval()
        greatest = 0.0
        for sample in samples:
            prompt = encode_prompts([sample], self.text, self.images).to(self.device)
            input_ids_BS, seen_BS = prompt.whole()
            pixels_TD, grids_I3 = (t.to(self.device) for t in self.images.patches(sample.images))
            ours, theirs = (
                network(
                    input_ids=input_ids_BS,
                    attention_mask=seen_BS,
                    mm_token_type_ids=(input_ids_BS == self.text.image_token).int(),
                    pixel_values=pixels_TD.to(self.dtype),
                    image_grid_thw=grids_I3,
                ).logits
                for network in (self.network, reloaded)
            )
            gap = float((ours - theirs).abs().max())
            greatest = max(greatest, gap) if math.isfinite(gap) else math.inf
        return greatest

    @property
    def is_stock(self) -> bool:
        """Whether `save_stock` can be: the positions are Qwen2-VL's own."""
        return qwen2vl.is_stock(self.network.config)

    # -- about the model ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.head.weight_VH.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight_VH.dtype

    def operations(self, batch: Batch) -> dict[str, flops.Operations] | None:
        """Operations of a batch by part; None where they are not known."""
        return flops.count_operations(self.network, batch)

    @property
    def blocks(self) -> list[nn.Module]:
        """Those of the vision tower and of the text part, where nearly all weights are."""
        return [*self.network.model.visual.blocks, *self.network.model.language_model.layers]

    @property
    def never(self) -> list[int]:
        """Tokens that no answer holds: an undertrained model may else emit image tokens."""
        return [
            int(self.tokenizer.convert_tokens_to_ids(t)) for t in ("<|image_pad|>", "<|video_pad|>", "<|im_start|>")
        ]

    @property
    def visual(self) -> nn.Module:
        """Tower and merger."""
        visual: nn.Module = self.network.model.visual
        return visual

    def sees_as(self, visual: nn.Module) -> bool:
        """Whether tower and merger make the same of an image as these, and will: they are equal and get no gradient."""
        ours, theirs = (dict(v.named_parameters()) for v in (self.visual, visual))
        frozen = not any(p.requires_grad for p in (*ours.values(), *theirs.values()))
        return frozen and ours.keys() == theirs.keys() and all(torch.equal(p, theirs[n]) for n, p in ours.items())

    def freeze(self, parts: Sequence[str]) -> None:
        """Stop the gradients of whole parts. Raises BadInput for a part that does not exist."""
        for part in parts:
            if part not in PARTS:
                raise BadInput(f"freeze: {part!r} is not a part of the model; the parts are {', '.join(PARTS)}")
            for name in PARTS[part]:
                self.network.get_submodule(name).requires_grad_(False)

    @contextmanager
    def prepared_for(self, config: FitConfig, seed: int) -> Iterator[None]:
        """In training in the block, as `config` says; afterwards a plain model again, with what it learned.

        Where the block raises, it stays as it is: a model that was trained halfway is of no use, and one whose parts
        lie in processes that are gone cannot be put together.
        """
        self.freeze(config.freeze)
        self.recompute_blocks(config.recompute == "blocks")
        self.compile_blocks(config.compile)
        self.line_tokens = config.pack
        if config.lora is not None:
            self.adapt(config.lora, seed)
        self.train()
        yield
        self.eval()
        self.recompute_blocks(False)
        self.compile_blocks(False)
        self.line_tokens = 0
        self.merge()

    def adapt(self, config: LoraConfig, seed: int) -> None:
        """Add what `config` says, and let nothing else learn. Raises BadInput for a head that is the input table."""
        prefixes = [name for part in config.parts for name in PARTS[part]]
        adapters.add(self.network, prefixes, config.rank, config.alpha, seed)

    def merge(self) -> None:
        """Put additions into the weights: the model is a plain one again."""
        adapters.merge(self.network)

    def recompute_blocks(self, on: bool) -> None:
        """Keep only the inputs of blocks for the backward, and compute the rest again."""
        if on:
            self.network.activation_checkpointing_enable()
        else:
            self.network.activation_checkpointing_disable()

    def compile_blocks(self, on: bool) -> None:
        """Let torch make one program of each block of the text, for rows of any length; or undo that.

        Raises BadInput where a CPU's programs cannot be made: without a C++ compiler.
        """
        if on and self.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise BadInput("fit.compile=true: no g++ here; install it (apt install g++), or set fit.compile=false")
        for block in self.network.model.language_model.layers:
            if on:
                block.compile(dynamic=True)
            else:
                qwen2vl.uncompile(block)

    def _read(self, ids: list[int], score: float | None, size: Size | None = None) -> Candidate:
        ended = self.text.end in ids
        ids = ids[: ids.index(self.text.end)] if ended else [t for t in ids if t != self.text.pad]
        raw = self.tokenizer.decode(ids, skip_special_tokens=False)
        decoded = self.codec.decode(raw, size)
        return Candidate(raw, decoded.answer, score, unread=decoded.unread, truncated=not ended)


def _rank_distinct(candidates: list[Candidate]) -> list[Candidate]:
    """Best first; of those that say the same, the best one."""
    ranked = sorted(candidates, key=lambda c: -(c.logprob or 0.0))
    return [c for k, c in enumerate(ranked) if all(c.raw != b.raw for b in ranked[:k])]


def _make_rng(seed: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()))


def new_tiny(config: ModelConfig, texts: Sequence[str], seed: int, open_image: OpenImage) -> VisionLanguageModel:
    """A tiny model with random weights; its vocabulary comes from `texts` (training texts, boxes spelled out)."""
    boxes = make_codec(config.boxes, config.box_bins)
    words = [*texts, "user", "assistant\n", "\n"] * 2
    tokenizer = tiny.train_tokenizer(words, config.tiny.vocabulary, boxes.special_tokens)
    stock = tiny.stock_config(config.tiny, tokenizer)
    torch.manual_seed(seed)
    network = qwen2vl.build(stock, config)
    with torch.no_grad():
        table_VH = network.get_input_embeddings().weight
        tiny.smooth_location_codes(table_VH, tokenizer, boxes.special_tokens, config.tiny.init_std)
    network.config.system_turn = False  # tokens a tiny model has no use for
    return VisionLanguageModel(network, tokenizer, tiny.image_processor(config.tiny), open_image)


def load(
    folder: Path, open_image: OpenImage, config: ModelConfig | None = None, dtype: torch.dtype = torch.float32
) -> VisionLanguageModel:
    """A model from a folder: one of ours, or (with `config`) a stock Qwen2-VL that gets the scheme `config` names.

    Raises BadInput where the folder is not such a model, a weight is missing or left over, or a part is absent.
    """
    network = qwen2vl.load_folder(folder, config, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = qwen2vl.Qwen2VLImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: tokenizer or image processor: {str(error).splitlines()[0]}") from None
    if config is not None:
        side = (processor.patch_size * processor.merge_size) ** 2
        size = dict(processor.size)
        size["longest_edge"] = min(size["longest_edge"], config.max_image_tokens * side)
        size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
        processor.size = size
    return VisionLanguageModel(network, tokenizer, processor, open_image)


def texts_of(samples: Sequence[Sample], config: ModelConfig) -> list[str]:
    """Questions and answers with their boxes spelled out: what a tokenizer is trained on."""
    boxes = make_codec(config.boxes, config.box_bins)
    images = ImageEncoder(tiny.image_processor(config.tiny), lambda ref: Image.open(ref.path), config.square)
    sizes = [images.box_frame(s.images) if boxes.needs_size else None for s in samples]
    return [
        boxes.encode(part, size)
        for s, size in zip(samples, sizes, strict=True)
        for turn in s.turns
        for part in (turn.question, turn.answer)
    ]
