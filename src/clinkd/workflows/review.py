"""A person accepts, edits or rejects the corrections of a finished run. The next run trains on the result.

Imports no torch.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from PIL import Image

from clinkd.correction.correctors import HUMAN
from clinkd.correction.verify import presentable
from clinkd.data.images import open_image
from clinkd.pipeline.correcting import CORRECTIONS
from clinkd.pipeline.damage import name_runs, read_stage_lines
from clinkd.pipeline.prepared import read_data_source
from clinkd.pipeline.runs import Run
from clinkd.records import BadInput, BoxedText, Correction, Sample
from clinkd.storage import JsonLines, write_lines
from clinkd.version import spell_program

FILE = "corrections-human.jsonl"  # in the folder of a run
Verdict = Literal["accept", "edit", "reject"]
_REJECTED = "rejected by a person"


@dataclass(frozen=True)
class ReviewedAnswer:
    """A wrong answer, the correction by the run, and the decision of a person, if there is one."""

    sample: Sample
    correction: Correction
    decided: Correction | None

    @property
    def verdict(self) -> Verdict | None:
        """The decision of the person in a word."""
        if self.decided is None:
            return None
        if self.decided.after is None:
            return "reject"
        return "accept" if self.decided.after == self.correction.after else "edit"


class Review:
    """The wrong answers of all rounds of a run, in their order. Each decision goes into a file at once. Another run
    that gets this file by `reflect.replay` uses it before other corrections. No other file is ever written."""

    def __init__(self, run: Run) -> None:
        """Raises BadInput where a file of that name exists and holds no corrections."""
        self.run, self.file = run, run.folder / FILE
        done = [s for s in run.status() if s.name.startswith("reflect-") and s.state == "done"]
        self._stages = {int(s.name.removeprefix("reflect-")): s.folder for s in done}
        self._prepared = run.stage("prepare")
        self._decisions = self._read_decisions()
        self._lock = threading.Lock()

    @property
    def rounds(self) -> list[int]:
        """The rounds of reflection that are done."""
        return sorted(self._stages)

    @cached_property
    def _wrong_answers(self) -> dict[tuple[str, int], Correction]:
        """Read at the first use: this takes seconds in a large run."""
        lines = (r for n in self.rounds for r in read_stage_lines(self._stages[n] / CORRECTIONS) if r["reasons"])
        return {(c.id, c.round): c for c in map(Correction.from_json, lines)}

    @cached_property
    def _samples(self) -> dict[str, Sample]:
        wanted = {id for id, _ in self._wrong_answers}
        lines = (r for r in read_stage_lines(self._prepared / "train.jsonl") if r["id"] in wanted)
        return {s.id: s for s in map(Sample.from_json, lines)}

    @cached_property
    def _image_root(self) -> Path:
        return read_data_source(self._prepared).root

    def _read_decisions(self) -> dict[tuple[str, int], Correction]:
        try:
            lines = [Correction.from_json(r) for r in JsonLines(self.file).read()]
        except ValueError as error:
            raise BadInput(f"{self.file}: not a file of corrections ({error}); move it away") from None
        return {(c.id, c.round): c for c in lines}

    @property
    def command(self) -> str:
        """The command that trains on the decisions, for the folder where the server was started; for the folder that
        holds the run, where that lies elsewhere: no page may name folders of this machine."""
        folder = Path(os.path.relpath(self.run.folder))
        if folder.parts[:1] == (os.pardir,):
            folder = Path(folder.name)
        program = spell_program()
        words = ["run", str(folder / "config.yaml"), "--name", f"{folder.name}-corrected", *name_runs(folder.parent)]
        words += ["--set", f"reflect.replay={folder / FILE}"]
        return f"{'clinkd' if program.startswith('/') else program} {shlex.join(words)}"

    def list_answers(self, round: int) -> list[ReviewedAnswer]:
        """All wrong answers of a round. Raises BadInput for a round that the run does not have."""
        if round not in self.rounds:
            rounds = ", ".join(map(str, self.rounds)) or "none"
            raise BadInput(f"round {round}: the run's rounds of reflection are {rounds}")
        return [self._build_answer(key) for key in self._wrong_answers if key[1] == round]

    def get_answer(self, id: str, round: int) -> ReviewedAnswer:
        """Raises BadInput where no such answer was wrong."""
        if (id, round) not in self._wrong_answers:
            raise BadInput("no wrong answer of that sample and round")
        return self._build_answer((id, round))

    def picture(self, id: str, round: int) -> Image.Image:
        """The image of the question. Raises BadInput where there is none, or it cannot be opened."""
        return open_image(self._image_root, self.get_answer(id, round).sample.images[0])

    def decide(self, id: str, round: int, verdict: Verdict, after: BoxedText | None = None) -> ReviewedAnswer:
        """Store a decision in the place of an earlier one. `after` is the new text of an edit, else None.

        Raises BadInput where there is nothing to accept, and for a text that a run may not train on.
        """
        answer = self.get_answer(id, round)
        if (verdict == "edit") != (after is not None):
            raise BadInput(f"{verdict}: {'the new text is missing' if after is None else 'takes no text'}")
        if verdict == "accept" and answer.correction.after is None:
            raise BadInput("accept: there is no rewrite to accept; edit or reject it")
        if after is not None and (fault := presentable(answer.sample.answer, after)):
            raise BadInput(f"the text: {fault}")
        rewrite = {"accept": answer.correction.after, "edit": after, "reject": None}[verdict]
        rejected = _REJECTED if verdict == "reject" else None
        self._store({(id, round): replace(answer.correction, after=rewrite, by=HUMAN, rejected=rejected)})
        return self.get_answer(id, round)

    def undo(self, id: str, round: int) -> ReviewedAnswer:
        """Take a decision back."""
        self.get_answer(id, round)
        self._store({(id, round): None})
        return self.get_answer(id, round)

    def _build_answer(self, key: tuple[str, int]) -> ReviewedAnswer:
        return ReviewedAnswer(self._samples[key[0]], self._wrong_answers[key], self._decisions.get(key))

    def _store(self, changed: Mapping[tuple[str, int], Correction | None]) -> None:
        with self._lock:
            kept = {key: c for key, c in {**self._decisions, **changed}.items() if c is not None}
            write_lines(self.file, (c.to_json() for c in sorted(kept.values(), key=lambda c: (c.round, c.id))))
            self._decisions = kept
