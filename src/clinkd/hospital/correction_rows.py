"""What people answered better than the model, as data to learn from."""

from __future__ import annotations

import io
from typing import Any

from clinkd.data.images import kind_of
from clinkd.hospital.object_kinds import PLACE
from clinkd.hospital.worklist import IMAGES, Worklist, WorklistEntry
from clinkd.records import BadInput, Modality

CORRECTIONS = "corrections.jsonl"  # in the folder of the worklist; `clinkd data import` reads it


def make_corrections(worklist: Worklist) -> list[dict[str, Any]]:
    """What people answered where they edited or rejected the model's answer, in the form `boxes` of `data import`: a
    row a frame. Boxes are named objects; an answer without boxes is a question with its answer. What has no right
    answer, or whose image is gone, teaches nothing and is left out."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in worklist.list_decided("edited", "rejected"):
        decision, key = entry.decision, (entry.instance, entry.frame)
        if decision is None or (right := decision.right_answer) is None:
            continue
        if key not in rows:
            try:
                rows[key] = _begin_row(entry, worklist.image(entry.id))
            except BadInput:
                continue
        width, height = rows[key]["width"], rows[key]["height"]
        named = [
            {"name": r.name, "box": [v * size for v, size in zip(r.box.corners, (width, height) * 2, strict=True)]}
            for r in decision.boxes
            if r.name.strip()
        ]
        rows[key]["objects"] += [one for one in named if one not in rows[key]["objects"]]
        if not decision.boxes:
            rows[key]["qa"].append({"question": entry.question, "answer": right.words})
    return [row for row in rows.values() if row["objects"] or row["qa"]]


def _begin_row(entry: WorklistEntry, image: bytes) -> dict[str, Any]:
    stream = io.BytesIO(image)
    facts = kind_of(stream).describe(stream, PLACE, entry.frame)
    return {
        "id": f"worklist_{entry.instance}_{entry.frame}",
        "image": f"{IMAGES}/{entry.instance}.dcm" + (f"#{entry.frame}" if facts.frames > 1 else ""),
        "modality": (facts.modality or Modality.OTHER).value,
        "width": facts.width,
        "height": facts.height,
        "objects": [],
        "qa": [],
    }
