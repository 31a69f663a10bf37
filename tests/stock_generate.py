"""Answers by transformers' own `generate`, for tests of ours, and how a written folder differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clinkd.config import AnswerConfig
from clinkd.model.encode import encode_prompts
from clinkd.model.exported.written import compare_folder, give_replies
from clinkd.model.generate import DecodeLimits, Hypothesis, beams, run_to_end
from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import Candidate, Sample


def generate_stock(
    model: VisionLanguageModel, samples: Sequence[Sample], config: AnswerConfig, network: Any = None
) -> list[list[Candidate]]:
    """What `generate` of a network (None: the model's) makes of pixels and left-padded prompts."""
    alone = [encode_prompts([s], model.text, model.images).whole()[0][0].tolist() for s in samples]
    longest = max(map(len, alone))
    ids_BS = torch.tensor([[model.text.pad] * (longest - len(ids)) + ids for ids in alone])
    seen_BS = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in alone])
    pixels_TD, grids_I3 = model.images.patches([ref for s in samples for ref in s.images])
    image_BS = ids_BS == model.text.image_token
    shown = model.family.pixel_inputs(image_BS, pixels_TD.to(model.dtype), grids_I3) if len(grids_I3) else {}
    with torch.inference_mode():
        made = (network or model.network).generate(
            input_ids=ids_BS, attention_mask=seen_BS, **shown,
            max_new_tokens=config.max_new_tokens, num_beams=config.beams, num_return_sequences=config.candidates,
            do_sample=False, length_penalty=1.0, early_stopping=False, eos_token_id=model.text.end,
            pad_token_id=model.text.pad, suppress_tokens=model.suppressed_tokens, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
    said = made.sequences[:, longest:].tolist()
    scores = made.sequences_scores.tolist() if config.beams > 1 else [None] * len(said)
    sizes = [model.text.box_frame(s.images) for s in samples for _ in range(config.candidates)]
    read = [model._read(*one) for one in zip(said, scores, sizes, strict=True)]
    return [read[k : k + config.candidates] for k in range(0, len(read), config.candidates)]


def list_hypotheses(
    model: VisionLanguageModel, samples: Sequence[Sample], config: AnswerConfig
) -> list[list[Hypothesis]]:
    """The beams of our own decoding, as tokens."""
    with torch.inference_mode():
        limits = DecodeLimits(model.text.end, config.max_new_tokens, model.suppressed_tokens)
        rows = model.start_rows(encode_prompts(samples, model.text, model.images))
        return run_to_end(beams(rows, config.beams, limits))


def end_here_and_there(model: VisionLanguageModel, samples: Sequence[Sample], most: int = 20) -> None:
    """Make a token that answers of `most` tokens hold often, though not at once, their end mark."""
    model.text.end = 10**6
    said = list_hypotheses(model, samples, AnswerConfig(beams=3, candidates=3, max_new_tokens=most))
    late = Counter(t for one in said for w in one for t in set(w.ids[2:]) - set(w.ids[:2]))
    model.text.end = late.most_common(1)[0][0]


def difference(model: VisionLanguageModel, folder: Path, questions: Sequence[Sample]) -> float:
    """The largest difference of a logit between a model and what lies in a folder, along the model's own answers."""
    match = compare_folder(model, folder, questions, give_replies(model, questions)).same_type
    assert match.questions == len(questions)
    return match.largest_difference
