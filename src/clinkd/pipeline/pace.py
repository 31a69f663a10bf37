"""How long the rest of a run takes, by what the same work took before. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clinkd.pipeline.damage import RECORD
from clinkd.pipeline.graph import Stage, describe_stages, draft_of, stage_record, trace_lineage
from clinkd.records import SPLITS, BadInput
from clinkd.storage import read_json, write_json

FORECAST = "forecast.json"  # beside the stages: seconds by name of a stage's folder, as `clinkd plan --measure` found
MOST_SCALED = 2.0  # times for so many times as many questions, or as few, say nothing


def estimate_left(stages: Sequence[Stage], number: int, cache: Path) -> float | None:
    """Seconds that a run still takes from its stage `number` on (0 is the first); None where that is not known.

    A stage takes as long as the newest finished one that did the same work in this folder of runs: of the same kind,
    code and knobs, from a base with the same knobs, seeds apart; times the ratio of their numbers of questions. Rounds
    of reflection count as the same work. For a stage without such a one the last forecast counts, if it has it.
    """
    by_name = {stage.name: stage for stage in stages}
    own_size = _count_questions(cache / by_name["prepare"].key) if "prepare" in by_name else None
    forecast: dict[str, float] = read_json(cache / FORECAST) if (cache / FORECAST).is_file() else {}
    left = 0.0
    for stage in stages[number:]:
        if (cache / stage.key).is_dir():
            continue
        known = own_size and _find_seconds(stage, by_name.get("base"), own_size, cache)
        seconds = known or forecast.get(stage.key)
        if not seconds:
            return None
        draft = draft_of(cache / stage.key)
        spent = stage_record(draft)["seconds"] if (draft / RECORD).is_file() else 0.0
        left += max(0.0, seconds - spent)
    return left


def remember_forecast(cache: Path, seconds: Mapping[str, float]) -> None:
    """Keep the seconds that stages will take, by the names of their folders, so that a first run can say how long it
    takes."""
    write_json(cache / FORECAST, seconds)


def _find_seconds(stage: Stage, base: Stage | None, own_size: int, cache: Path) -> float | None:
    own, kind = describe_stages([stage])[0], _name_kind(stage.name)
    records = [path for path in cache.glob(f"{kind}*-*/{RECORD}") if path.parent.suffix != ".part"]
    for path in sorted(records, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            record = stage_record(path.parent)
            if not _is_same_work(stage, own, record):
                continue
            lineage = trace_lineage({stage.name: path.parent})
            size = _count_questions(lineage["prepare"])
            if base and not _is_same_work(base, describe_stages([base])[0], stage_record(lineage["base"])):
                continue
            if size and 1 / MOST_SCALED <= own_size / size <= MOST_SCALED:
                return float(record["seconds"]) * own_size / size
        except (BadInput, KeyError, TypeError):
            continue  # of an older version, or damaged
    return None


def _name_kind(name: str) -> str:
    return "reflect" if name.startswith("reflect-") else name


def _is_same_work(stage: Stage, own: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    if _name_kind(record["name"]) != _name_kind(stage.name) or record["version"] != own["version"]:
        return False
    ours, theirs = ({**stage.essence(value["config"]), "round": 0} for value in (own, record))
    return ours == theirs


def _count_questions(prepared: Path) -> int | None:
    """Questions of all splits; None where the stage is not finished."""
    if not (prepared / RECORD).is_file():
        return None
    recorded = stage_record(prepared)["recorded"]
    return sum(int(recorded[split]["questions"]) for split in SPLITS if split in recorded)


def spell_left(seconds: float | None) -> str:
    """As ", about 2 min left", no finer than it is known; "" where nothing is known."""
    if seconds is None:
        return ""
    if seconds < 10:
        return ", less than 10 s left"
    minutes = round(seconds / 60)
    about = f"{round(seconds / 10) * 10} s" if seconds < 95 else f"{minutes} min"
    return f", about {about if minutes < 120 else f'{round(seconds / 3600)} h'} left"
