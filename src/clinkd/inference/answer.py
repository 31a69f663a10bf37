"""Answer samples with several candidates each, resumably."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clinkd.config import AnswerConfig
from clinkd.model import VisionLanguageModel
from clinkd.records import Prediction, Sample
from clinkd.storage import JsonLines, progress


def answer(
    model: VisionLanguageModel, samples: Sequence[Sample], config: AnswerConfig, *, file: Path, by: str, title: str
) -> list[Prediction]:
    """One Prediction a sample, first beam chosen, in the order of `samples`; those already in `file` are not redone.

    Samples are batched by task and question length, so that short answers do not wait for long ones.
    """
    lines = JsonLines(file)
    known = {record["id"]: Prediction.from_json(record) for record in lines.read()}
    todo = sorted(
        (s for s in samples if s.id not in known),
        key=lambda s: (s.task.value, len(s.answer.text), len(s.question.text)),
    )
    with lines, progress(len(samples), title, "answers", done=len(samples) - len(todo)) as advance:
        for start in range(0, len(todo), config.batch):
            batch = todo[start : start + config.batch]
            for sample, candidates in zip(batch, model.generate(batch, config), strict=True):
                known[sample.id] = Prediction(sample.id, tuple(candidates), chosen=0, by=by)
                lines.append(known[sample.id].to_json())
            advance(len(batch))
    return [known[sample.id] for sample in samples]
