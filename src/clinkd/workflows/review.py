"""A person looks through the corrections of a finished run: accepts, edits or rejects them, for the next run to train
on. Imports no torch."""

from __future__ import annotations

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
from clinkd.pipeline.prepared import read_data_source
from clinkd.pipeline.runs import RUNS, Run
from clinkd.records import BadInput, BoxedText, Correction, Sample
from clinkd.storage import JsonLines, write_lines

FILE = "corrections-human.jsonl"  # in the folder of a run
Verdict = Literal["accept", "edit", "reject"]
_REJECTED = "rejected by a person"


@dataclass(frozen=True)
class ReviewedAnswer:
    """A wrong answer with what the run made of it, and what a person made of that, if anything."""

    sample: Sample
    correction: Correction
    decided: Correction | None

    @property
    def verdict(self) -> Verdict | None:
        """What the person's line amounts to."""
        if self.decided is None:
            return None
        if self.decided.after is None:
            return "reject"
        return "accept" if self.decided.after == self.correction.after else "edit"


class Review:
    """The wrong answers of all rounds of a run, in their order. Decisions are kept in a file at once, and come first
    where another run is told of it by `reflect.replay`. Only that file is ever written."""

    def __init__(self, run: Run) -> None:
        """Raises BadInput where a file that is there already is none of ours."""
        self.run, self.file = run, run.folder / FILE
        done = [s for s in run.status() if s.name.startswith("reflect-") and s.state == "done"]
        self._stages = {int(s.name.removeprefix("reflect-")): s.folder for s in done}
        self._prepared = run.stage("prepare")
        self._decided = self._read()
        self._lock = threading.Lock()

    @property
    def rounds(self) -> list[int]:
        """Of reflection, those that are done."""
        return sorted(self._stages)

    @cached_property
    def _wrong(self) -> dict[tuple[str, int], Correction]:
        """Read when somebody looks: seconds, in a large run."""
        lines = (r for n in self.rounds for r in JsonLines(self._stages[n] / CORRECTIONS).read() if r["reasons"])
        return {(c.id, c.round): c for c in map(Correction.from_json, lines)}

    @cached_property
    def _samples(self) -> dict[str, Sample]:
        wanted = {id for id, _ in self._wrong}
        lines = (r for r in JsonLines(self._prepared / "train.jsonl").read() if r["id"] in wanted)
        return {s.id: s for s in map(Sample.from_json, lines)}

    def _read(self) -> dict[tuple[str, int], Correction]:
        try:
            lines = [Correction.from_json(r) for r in JsonLines(self.file).read()]
        except ValueError as error:
            raise BadInput(f"{self.file}: not a file of corrections ({error}); move it away") from None
        return {(c.id, c.round): c for c in lines}

    @property
    def command(self) -> str:
        """What trains on the decisions, to be given where the server was started; or, where the run was named by an
        absolute path, which is nobody's business, in the folder of the runs."""
        folder = Path(self.run.folder.name) if self.run.folder.is_absolute() else self.run.folder
        words = ["clinkd", "run", str(folder / "config.yaml"), "--name", f"{folder.name}-corrected"]
        words += [] if folder.parent == RUNS else ["--runs", str(folder.parent)]
        return shlex.join([*words, "--set", f"reflect.replay={folder / FILE}"])

    def of_round(self, round: int) -> list[ReviewedAnswer]:
        """All wrong answers of a round. Raises BadInput for a round that the run does not have."""
        if round not in self.rounds:
            there = ", ".join(map(str, self.rounds)) or "none"
            raise BadInput(f"round {round}: the run's rounds of reflection are {there}")
        return [self._reviewed(key) for key in self._wrong if key[1] == round]

    def one(self, id: str, round: int) -> ReviewedAnswer:
        """Raises BadInput where no such answer was wrong."""
        if (id, round) not in self._wrong:
            raise BadInput("no wrong answer of that sample and round")
        return self._reviewed((id, round))

    def picture(self, id: str, round: int) -> Image.Image:
        """What the question is about. Raises BadInput where there is none, or it cannot be opened."""
        return open_image(read_data_source(self._prepared).root, self.one(id, round).sample.images[0])

    def decide(self, id: str, round: int, verdict: Verdict, after: BoxedText | None = None) -> ReviewedAnswer:
        """Keep a decision, in the place of an earlier one; `after` is wanted for an edit, and for it alone.

        Raises BadInput where there is nothing to accept, and for a text that may not be learned from.
        """
        found = self.one(id, round)
        if (verdict == "edit") != (after is not None):
            raise BadInput(f"{verdict}: {'the new text is missing' if after is None else 'takes no text'}")
        if verdict == "accept" and found.correction.after is None:
            raise BadInput("accept: there is no rewrite to accept; edit or reject it")
        if after is not None and (fault := presentable(found.sample.answer, after)):
            raise BadInput(f"the text: {fault}")
        rewrite = {"accept": found.correction.after, "edit": after, "reject": None}[verdict]
        rejected = _REJECTED if verdict == "reject" else None
        self._keep({(id, round): replace(found.correction, after=rewrite, by=HUMAN, rejected=rejected)})
        return self.one(id, round)

    def undo(self, id: str, round: int) -> ReviewedAnswer:
        """Take a decision back."""
        self.one(id, round)
        self._keep({(id, round): None})
        return self.one(id, round)

    def _reviewed(self, key: tuple[str, int]) -> ReviewedAnswer:
        return ReviewedAnswer(self._samples[key[0]], self._wrong[key], self._decided.get(key))

    def _keep(self, changed: Mapping[tuple[str, int], Correction | None]) -> None:
        with self._lock:
            kept = {key: c for key, c in {**self._decided, **changed}.items() if c is not None}
            write_lines(self.file, (c.to_json() for c in sorted(kept.values(), key=lambda c: (c.round, c.id))))
            self._decided = kept
