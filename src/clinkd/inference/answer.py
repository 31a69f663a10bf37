"""Answer samples with several candidates each, resumably."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clinkd import distributed
from clinkd.config import AnswerConfig
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import Prediction, Sample
from clinkd.storage import JsonLines, progress


def answer(  # noqa: PLR0913
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    config: AnswerConfig,
    *,
    file: Path,
    by: str,
    title: str,
    seed: int = 0,
) -> list[Prediction]:
    """One Prediction a sample with its best candidate chosen, in the order of `samples`; those in `file` are kept.

    All questions about an image stand together, so that it is read once; images stand in the order of their longest
    answer, so that few short answers wait for long ones. Each of several processes answers its part and returns all
    predictions. `seed` decides the samples under `answer.method=sampling`.
    """
    distributed.on_main_process(lambda: _merge_parts(file))
    predictions = _read_predictions(file)
    todo = group_by_images([s for s in samples if s.id not in predictions])
    todo.sort(key=lambda row: max(len(s.answer.text) for s in row))
    # in turns, so that the long answers come last in every process
    own_samples = [s for row in todo[distributed.rank() :: distributed.size()] for s in row]
    num_left = sum(map(len, todo))
    before, share = len(samples) - num_left, len(own_samples) / max(1, num_left)
    with JsonLines(_part_file(file)) as lines, progress(len(samples), title, "answers", done=before) as advance:
        for start in range(0, len(own_samples), config.batch):
            batch = own_samples[start : start + config.batch]
            for sample, candidates in zip(batch, model.generate(batch, config, seed), strict=True):
                predictions[sample.id] = Prediction(sample.id, tuple(candidates), chosen=0, by=by)
                lines.append(predictions[sample.id].to_json())
            advance(round(len(batch) / share))
    if distributed.size() > 1:
        distributed.wait_for_all()
        distributed.on_main_process(lambda: _merge_parts(file))
        predictions = _read_predictions(file)
    return [predictions[sample.id] for sample in samples]


def _part_file(file: Path) -> Path:
    """The file that this process writes."""
    return file if distributed.is_main() else file.with_name(f"{file.name}.{distributed.rank()}")


def _merge_parts(file: Path) -> None:
    """Move into `file` the predictions that other processes wrote, in this attempt or an earlier one."""
    parts = sorted(file.parent.glob(f"{file.name}.[0-9]*"))
    ids = JsonLines(file).ids() if parts else set()
    with JsonLines(file) as lines:
        for part in parts:
            for record in JsonLines(part).read():
                if record["id"] not in ids:
                    lines.append(record)
                    ids.add(record["id"])
            lines.close()  # on the disk before its source is deleted
            part.unlink()


def _read_predictions(file: Path) -> dict[str, Prediction]:
    return {record["id"]: Prediction.from_json(record) for record in JsonLines(file).read()}
