"""Whether what was just written to a folder answers as the model that it was written from.

Shapes: B rows, S tokens of a prompt, N answer tokens, V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig

from clinkd.model.adapters import merge_additions
from clinkd.model.encode import encode_prompts
from clinkd.model.families import load_written
from clinkd.model.folders import opened_folder
from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import Sample
from clinkd.storage import progress

ANSWER_TOKENS = 32  # the most that are compared of an answer
ROUNDING = 1e-5  # of the largest logit: what float32 may lose where the same is added up in another order


class GreedyReply(NamedTuple):
    """A network's greedy answer, and the logits by which it would choose each token of an answer."""

    tokens_N: Tensor
    logits_NV: Tensor


@dataclass(frozen=True)
class ReplyMatch:
    """How far two models agree on questions. The difference is infinite where a logit is not a finite number."""

    questions: int
    equal_answers: int
    largest_difference: float  # of any logit
    largest_logit: float

    @property
    def same(self) -> bool:
        """Whether both give the same answers, by logits that differ by rounding alone."""
        close = self.largest_difference <= ROUNDING * max(1.0, self.largest_logit)
        return close and self.equal_answers == self.questions


class WrittenMatch(NamedTuple):
    """Of what was written with the same in memory, in the same type; and with the model of the run in float32, whose
    weights were not rounded again."""

    same_type: ReplyMatch
    before: ReplyMatch


def give_replies(model: VisionLanguageModel, questions: Sequence[Sample]) -> list[GreedyReply]:
    """The model's replies to questions, each asked alone."""
    return [_reply(model, model.network, question) for question in _show(questions, "ask the model")]


def compare_folder(
    model: VisionLanguageModel, folder: Path, questions: Sequence[Sample], before: Sequence[GreedyReply],
    rounded: bool = False,
) -> WrittenMatch:  # fmt: skip
    """Load a folder as whoever gets it will, and compare their replies to questions.

    Both multiply in float32, whatever the type of the weights: in bfloat16 a CPU takes many times as long, and each
    machine rounds in its own way. `before`: replies of the model before its weights were `rounded`.
    """
    with opened_folder(folder, "a model that was just written") as opened:
        written = load_written(opened, torch.float32).to(model.device).eval()
    same_type, drift = [], []
    for question, reply in zip(_show(questions, "ask what was written"), before, strict=True):
        theirs = _reply(model, written, question, reply)
        ours = _reply(model, model.network, question, reply) if rounded else reply
        same_type.append(_compare(ours, theirs))
        drift.append(_compare(reply, theirs))
    return WrittenMatch(_agree(same_type), _agree(drift))


def compare_adapter(
    model: VisionLanguageModel, adapter: Path, base: Path, questions: Sequence[Sample], before: Sequence[GreedyReply],
    exact: bool = True,
) -> WrittenMatch:  # fmt: skip
    """Put an adapter on its base by peft, as whoever gets it will, in float32; compare replies to questions.

    Where the run was `exact`, with weights in float32, it is to be the model. Where it rounded them, none but the base
    with the additions in float32 can be the same.
    """
    assert model.additions
    expected = before
    with opened_folder(base, "the base of an adapter") as opened:
        if not exact:
            network = load_written(opened, torch.float32).to(model.device).eval()
            merge_additions(network, model.additions, 1.0, str(adapter))
            expected = [_reply(model, network, question) for question in _show(questions, "ask base and additions")]
        network = load_written(opened, torch.float32)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # between peft and transformers
        adapted = PeftModel.from_pretrained(network, str(adapter)).get_base_model().to(model.device).eval()
    same, drift = [], []
    shown = _show(questions, "ask the base with the adapter")
    for question, ours, reply in zip(shown, expected, before, strict=True):
        theirs = _reply(model, adapted, question, ours)
        same.append(_compare(ours, theirs))
        drift.append(_compare(reply, theirs if ours is reply else _reply(model, adapted, question, reply)))
    return WrittenMatch(_agree(same), _agree(drift))


def _show(questions: Sequence[Sample], title: str) -> Iterator[Sample]:
    """The questions, with a bar: on a CPU each takes minutes of a large model."""
    with progress(len(questions), title, "questions") as advance:
        for question in questions:
            yield question
            advance(1)


@torch.inference_mode()
def _reply(model: VisionLanguageModel, network: Any, question: Sample, along: GreedyReply | None = None) -> GreedyReply:
    """The reply of a network of the model's family. Its logits are those along an answer: its own, or one given."""
    prompt = encode_prompts([question], model.text, model.images).to(model.device)
    input_ids_BS, mask_BS = prompt.whole()
    # no tower takes no image
    pixels = [t.to(model.device) for t in model.images.patches(question.images)] if question.images else []

    def inputs(input_ids_BS: Tensor, mask_BS: Tensor) -> dict[str, Any]:
        texts = {"input_ids": input_ids_BS, "attention_mask": mask_BS}
        if not pixels:
            return texts
        image_BS = input_ids_BS == model.text.image_token
        return texts | model.family.pixel_inputs(image_BS, pixels[0].to(network.dtype), pixels[1])

    greedy = GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=ANSWER_TOKENS,
        suppress_tokens=model.suppressed_tokens, eos_token_id=model.text.end, pad_token_id=model.text.pad,
    )  # fmt: skip
    tokens_N = network.generate(**inputs(input_ids_BS, mask_BS), generation_config=greedy)[0, input_ids_BS.shape[1] :]
    answer_BN = (along.tokens_N if along else tokens_N)[None]
    whole_BS = torch.cat((input_ids_BS, answer_BN), dim=1)
    given = inputs(whole_BS, torch.cat((mask_BS, torch.ones_like(answer_BN)), dim=1))
    logits_NV = network(**given, use_cache=False, logits_to_keep=answer_BN.shape[1] + 1).logits[0, :-1]
    return GreedyReply(tokens_N, logits_NV.float())


def _compare(one: GreedyReply, other: GreedyReply) -> ReplyMatch:
    gap = float((one.logits_NV - other.logits_NV).abs().max())
    equal = torch.equal(one.tokens_N, other.tokens_N)
    return ReplyMatch(1, int(equal), gap if math.isfinite(gap) else math.inf, float(one.logits_NV.abs().max()))


def _agree(agreements: Iterable[ReplyMatch]) -> ReplyMatch:
    """The agreement on all questions."""
    every = list(agreements)
    return ReplyMatch(
        len(every),
        sum(a.equal_answers for a in every),
        max(a.largest_difference for a in every),
        max(a.largest_logit for a in every),
    )
