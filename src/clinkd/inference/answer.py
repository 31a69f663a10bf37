"""Answer samples with several candidates each, resumably."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clinkd import distributed
from clinkd.config import AnswerConfig
from clinkd.model.encode import rows_of
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
    """One Prediction a sample, best candidate chosen, in the order of `samples`; those in `file` are not redone.

    All questions about an image stand together, so that it is seen once; images stand in the order of their longest
    answer, so that few short answers are left alone with long ones. Of several processes each answers its part; all
    return all. `seed` decides what is drawn under `answer.method=sampling`.
    """
    distributed.on_main_process(lambda: _collect(file))
    known = _known(file)
    todo = rows_of([s for s in samples if s.id not in known])
    todo.sort(key=lambda row: max(len(s.answer.text) for s in row))
    # in turns: what is long comes last, for every process
    mine = [s for row in todo[distributed.rank() :: distributed.size()] for s in row]
    left = sum(map(len, todo))
    before, share = len(samples) - left, len(mine) / max(1, left)
    with JsonLines(_part(file)) as lines, progress(len(samples), title, "answers", done=before) as advance:
        for start in range(0, len(mine), config.batch):
            batch = mine[start : start + config.batch]
            for sample, candidates in zip(batch, model.generate(batch, config, seed), strict=True):
                known[sample.id] = Prediction(sample.id, tuple(candidates), chosen=0, by=by)
                lines.append(known[sample.id].to_json())
            advance(round(len(batch) / share))
    if distributed.size() > 1:
        distributed.wait_for_all()
        distributed.on_main_process(lambda: _collect(file))
        known = _known(file)
    return [known[sample.id] for sample in samples]


def _part(file: Path) -> Path:
    """Where this process writes."""
    return file if distributed.is_main() else file.with_name(f"{file.name}.{distributed.rank()}")


def _collect(file: Path) -> None:
    """Bring into `file` what other processes wrote, of this attempt or of one before it."""
    parts = sorted(file.parent.glob(f"{file.name}.[0-9]*"))
    known = JsonLines(file).ids() if parts else set()
    with JsonLines(file) as lines:
        for part in parts:
            for record in JsonLines(part).read():
                if record["id"] not in known:
                    lines.append(record)
                    known.add(record["id"])
            lines.close()  # on the disk before its source goes
            part.unlink()


def _known(file: Path) -> dict[str, Prediction]:
    return {record["id"]: Prediction.from_json(record) for record in JsonLines(file).read()}
