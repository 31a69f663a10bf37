"""A person accepts, edits or rejects the corrections of a finished run. The next run trains on the result.

Imports no torch.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from clinkd.correction.correctors import HUMAN
from clinkd.correction.verify import presentable
from clinkd.data.images import open_image
from clinkd.pipeline.correcting import CORRECTIONS
from clinkd.pipeline.damage import name_runs, read_stage_lines
from clinkd.pipeline.prepared import read_data_source
from clinkd.pipeline.runs import Run
from clinkd.records import BadInput, BoxedText, Correction, Sample
from clinkd.storage import locked, write_lines
from clinkd.version import spell_program

FILE = "corrections-human.jsonl"  # in the folder of a run
Verdict = Literal["accept", "edit", "reject"]
Shown = tuple[Verdict, BoxedText | None] | None  # a decision, with the text of its rewrite; None: not decided
Last = Literal["last"]  # in the place of a decision: the one that was shown last
Key = tuple[str, int]  # id and round
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

    @property
    def shown(self) -> Shown:
        """The decision as a page shows it."""
        return (self.verdict, self.decided.after) if self.decided and self.verdict else None


class DecisionConflict(BadInput):
    """A decision was taken meanwhile, elsewhere, that whoever decides has not seen."""

    def __init__(self, where: str, other: str) -> None:
        super().__init__(f"{where}: meanwhile {other}; decide once more to overrule that")


class Review:
    """The wrong answers of all rounds of a run, in their order. Each decision goes into a file at once. Another run
    that gets this file by `reflect.replay` uses it before other corrections. No other file is ever written.

    Several servers, and a person with an editor, may write the file: it is read anew, under a lock, before each write.
    """

    def __init__(self, run: Run) -> None:
        """Raises BadInput where a file of that name exists and holds no corrections."""
        self.run, self.file = run, run.folder / FILE
        done = [s for s in run.status() if s.name.startswith("reflect-") and s.state == "done"]
        self._stages = {int(s.name.removeprefix("reflect-")): s.folder for s in done}
        self._prepared = run.stage("prepare")
        self._shown = self._read_decisions()  # of others, too

    @property
    def rounds(self) -> list[int]:
        """The rounds of reflection that are done."""
        return sorted(self._stages)

    @cached_property
    def _wrong_answers(self) -> dict[Key, Correction]:
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

    def _read_lines(self) -> dict[Key, dict[str, Any]]:
        """The lines of the file as they are, with all that a person may have added to them."""
        place = f"{self.run.folder.name}/{FILE}"  # no page may name folders of this machine
        try:
            text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
            read = {(c.id, c.round): line for line in lines for c in [Correction.from_json(line)]}
        except ValueError as error:
            raise BadInput(f"{place}: not a file of corrections ({error}); mend it, or move it away") from None
        if len(read) < len(lines):
            raise BadInput(
                f"{place}: {len(lines) - len(read)} of its lines decide what another line decides, too; "
                "keep one of each"
            )
        return read

    def _read_decisions(self) -> dict[Key, Correction | None]:
        return {key: Correction.from_json(line) for key, line in self._read_lines().items()}

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
        self._shown = self._read_decisions()
        return [self._build_answer(key) for key in self._wrong_answers if key[1] == round]

    def get_answer(self, id: str, round: int) -> ReviewedAnswer:
        """Raises BadInput where no such answer was wrong."""
        if (id, round) not in self._wrong_answers:
            raise BadInput("no wrong answer of that sample and round")
        return self._build_answer((id, round))

    def picture(self, id: str, round: int) -> Image.Image:
        """The image of the question. Raises BadInput where there is none, or it cannot be opened."""
        return open_image(self._image_root, self.get_answer(id, round).sample.images[0])

    def decide(
        self,
        id: str,
        round: int,
        verdict: Verdict,
        after: BoxedText | None = None,
        seen: Shown | Last = "last",
    ) -> ReviewedAnswer:
        """Store a decision in the place of an earlier one. `after` is the new text of an edit, else None.

        `seen`: the decision that the person has before them, by default what this object showed last. Raises
        DecisionConflict if another one stands in the file, and BadInput where there is nothing to accept, for a text
        that a run may not train on, and for a file that is broken.
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
        return self._store((id, round), replace(answer.correction, after=rewrite, by=HUMAN, rejected=rejected), seen)

    def undo(self, id: str, round: int, seen: Shown | Last = "last") -> ReviewedAnswer:
        """Take a decision back. Raises DecisionConflict as `decide`."""
        self.get_answer(id, round)
        return self._store((id, round), None, seen)

    def _build_answer(self, key: Key) -> ReviewedAnswer:
        return ReviewedAnswer(self._samples[key[0]], self._wrong_answers[key], self._shown.get(key))

    def _store(self, key: Key, decision: Correction | None, seen: Shown | Last) -> ReviewedAnswer:
        with locked(self.run.folder):
            lines = self._read_lines()
            last = self._build_answer(key)
            present = replace(last, decided=Correction.from_json(lines[key]) if key in lines else None)
            wanted = replace(last, decided=decision)
            self._shown[key] = present.decided  # as of now, in the reply or in the refusal
            if present.shown != wanted.shown:
                if present.shown != (last.shown if seen == "last" else seen):
                    where = f"{present.correction.id}, round {present.correction.round}"
                    raise DecisionConflict(where, _describe_decision(present))
                kept = {other: line for other, line in lines.items() if other != key}
                kept |= {key: decision.to_json()} if decision else {}
                write_lines(self.file, (kept[other] for other in sorted(kept, key=lambda key: (key[1], key[0]))))
                self._shown[key] = decision
            return wanted


def _describe_decision(answer: ReviewedAnswer) -> str:
    if answer.decided is None:
        return "the decision was taken back"
    text = f" ({json.dumps(answer.decided.after.to_json(), ensure_ascii=False)})" if answer.decided.after else ""
    return f"it was decided: {answer.verdict}{text}"
