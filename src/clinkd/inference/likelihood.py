"""How likely the true answers are under a model, by kind of token (`clinkd.scoring.likelihood`), resumably."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel
from clinkd.objectives import compute_log_probs
from clinkd.records import Sample
from clinkd.scoring.likelihood import TOKEN_KINDS, TokenKind, describe_truth
from clinkd.storage import JsonLines, progress


def measure_likelihoods(
    model: VisionLanguageModel, samples: Sequence[Sample], *, file: Path, batch: int, title: str
) -> None:
    """Write to `file` a line a sample: the summed log-probability of its true answer, and the tokens, by kind.

    What stands in `file` is kept. Questions about an image go through the model together, about `batch` at a time.
    """
    with JsonLines(file) as lines, progress(len(samples), title, "answers", done=len(lines.ids())) as advance:
        done = lines.ids()
        for rows in _take_rows([s for s in samples if s.id not in done], batch):
            part = [s for row in rows for s in row]
            for sample, log_probs, kinds in zip(part, *_look_up_truths(model, rows), strict=True):
                tokens: dict[TokenKind, int] = {kind: n for kind in TOKEN_KINDS if (n := kinds.count(kind))}
                sums = {k: sum(v for v, of in zip(log_probs, kinds, strict=True) if of == k) for k in tokens}
                lines.append(describe_truth(sample, sums, tokens))
            advance(len(part))


def _take_rows(samples: Sequence[Sample], batch: int) -> Iterator[list[list[Sample]]]:
    """Rows of one image each, short answers first, so that there is little padding; about `batch` samples at a time."""
    rows = sorted(group_by_images(samples, batch), key=lambda row: max(len(s.answer.text) for s in row))
    taken: list[list[Sample]] = []
    for row in rows:
        if taken and sum(map(len, taken)) + len(row) > batch:
            yield taken
            taken = []
        taken.append(row)
    if taken:
        yield taken


@torch.inference_mode()
def _look_up_truths(
    model: VisionLanguageModel, rows: Sequence[Sequence[Sample]]
) -> tuple[list[list[float]], list[list[TokenKind]]]:
    """For each sample of the rows, in their order, the log-probability of each token of its true answer in nats, and
    the kind of each token. Earlier turns of a conversation are context and do not count."""
    batch = model.encode(rows).to(model.device)
    log_probs_N = compute_log_probs(model.hidden_states(batch), model.head.weight_VH, batch.labels_N).cpu()
    by_sample = torch.split(log_probs_N, [number for _, number in batch.spans])
    kinds = [find_token_kinds(model, s) for row in rows for s in row]
    return [part[-len(of) :].tolist() for part, of in zip(by_sample, kinds, strict=True)], kinds


def find_token_kinds(model: VisionLanguageModel, sample: Sample) -> list[TokenKind]:
    """The kind of each token of a true answer, its end mark included. A token that only touches a box or a name, as
    ` kidney` with its blank does, counts as part of it."""
    text = model.text
    spelled, boxes = text.codec.encode_with_places(sample.answer, text.box_frame(sample.images))
    names = [
        match.span() for name in sample.names for match in re.finditer(rf"(?i)\b{re.escape(name)}(?:e?s)?\b", spelled)
    ]
    encoded = model.tokenizer(spelled + text.chat.end, add_special_tokens=False, return_offsets_mapping=True)
    return [
        "box" if _overlaps(token, boxes) else "name" if _overlaps(token, names) else "rest"
        for token in encoded["offset_mapping"]
    ]


def _overlaps(token: tuple[int, int], places: Sequence[tuple[int, int]]) -> bool:
    return any(token[0] < end and start < token[1] for start, end in places)
