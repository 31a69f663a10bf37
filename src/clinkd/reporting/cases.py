"""The same question answered by several systems, side by side with their boxes (the paper's Figure 4)."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from clinkd.data.images import open_image
from clinkd.records import BadInput, Modality, Prediction, Sample, Task
from clinkd.reporting.gallery import PLAIN_RULES, choose_gallery, judge_answer, list_answer_boxes
from clinkd.reporting.tables import TITLES
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.overlay import ANSWER, ASKED, TRUTH
from clinkd.reporting.viewer.shot import Html, boxed_words, repeated, thumbnail
from clinkd.scoring.measure import Rules

_SIDE = 320  # pixels of a picture


@dataclass(frozen=True)
class SharedCases:
    """Questions and their answers by system and id of the question, each question answered by two systems or more.

    `roots`: by id, the folder of the images, where it is known; other questions are shown without a picture. Every
    question, answer, truth and name of a system passes `shown`.
    """

    samples: Sequence[Sample]
    answers: Mapping[str, Mapping[str, Prediction]]
    roots: Mapping[str, Path]
    rules: Rules = PLAIN_RULES
    shown: Callable[[str], str] = str

    def choose_evenly(self, count: int) -> list[Sample]:
        """`count` questions in turns over tasks and modalities; the choice does not depend on what was answered."""
        everybody = [s for s in self.samples if all(s.id in by_id for by_id in self.answers.values())]
        if not self.answers or not everybody:
            names = ", ".join(self.answers) or "no systems"
            raise BadInput(f"{names}: no question that all of them answered; give answers to the same samples")
        return [
            sample for sample, _ in choose_gallery(everybody, list(next(iter(self.answers.values())).values()), count)
        ]

    def choose_differing(self, spread: Mapping[str, float], count: int) -> list[Sample]:
        """`count` questions in turns over tasks and modalities: of each those that most systems answered and, of these,
        whose answers differ most. `spread`: by id, the best figure less the worst."""
        piles: dict[tuple[Task, Modality], list[Sample]] = defaultdict(list)
        for sample in self.samples:
            piles[sample.task, sample.modality].append(sample)
        for pile in piles.values():
            pile.sort(key=lambda s: (-sum(s.id in by_id for by_id in self.answers.values()), -spread.get(s.id, 0.0)))
        ranked = [(rank, kind) for kind, pile in piles.items() for rank in range(len(pile))]
        kinds = list(piles)
        chosen = sorted(ranked, key=lambda place: (place[0], kinds.index(place[1])))[:count]
        return [piles[kind][rank] for rank, kind in chosen]

    def render(self, chosen: Iterable[Sample], notice: str) -> Html:
        """The chosen questions with the answers of all systems, and how they were chosen. Part of a page made by
        `page.document`; it needs no script. Raises BadInput on an unreadable image."""
        key = page.key((("truth", TRUTH), ("answer", ANSWER), ("asked about", ASKED)))
        return Html(key + "".join(map(self._render_case, chosen)) + page.note([notice]))

    def render_by_kind(self, chosen: Iterable[Sample], notice: str) -> Html:
        """As `render`, with the questions of each task and modality in a part that the reader opens."""
        piles: dict[tuple[Task, Modality], list[Sample]] = defaultdict(list)
        for sample in chosen:
            piles[sample.task, sample.modality].append(sample)
        ordered = sorted(piles, key=lambda kind: (list(Task).index(kind[0]), list(Modality).index(kind[1])))
        totals = Counter((s.task, s.modality) for s in self.samples)
        parts = []
        for task, modality in ordered:
            pile = piles[task, modality]
            title = f"{task.value} · {TITLES[modality]}: {len(pile)} of {totals[task, modality]} questions"
            parts.append(page.folded(title, [self._render_case(sample) for sample in pile]))
        return Html(self.render([], notice) + "".join(parts))

    def _render_case(self, sample: Sample) -> Html:
        answers = {name: by_id[sample.id] for name, by_id in self.answers.items() if sample.id in by_id}
        root = self.roots.get(sample.id)
        picture = thumbnail(open_image(root, sample.images[0]), _SIDE) if root else None
        name = f"case-{hashlib.sha256(repr((sample.id, *answers)).encode()).hexdigest()[:12]}"  # once on any page
        figures: list[str] = []
        for system, prediction in answers.items():
            drawing = ""
            if picture:
                counts = f"{len(sample.answer.boxes)} true and {len(prediction.answer.answer.boxes)} answered boxes"
                alt = f"Answer of {self.shown(system)}: {counts}"
                drawing = repeated(picture, list_answer_boxes(sample, prediction), alt, name, first=not figures)
            caption = self._write_caption(system, sample, prediction)
            figures.append(f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>")
        texts = (("Question", sample.question.text, "asked"), ("Truth", sample.answer.text, "truth"))
        definitions = "".join(f"<dt>{h}</dt><dd>{boxed_words(self.shown(text), kind)}</dd>" for h, text, kind in texts)
        title = f"{sample.task.value} · {TITLES[sample.modality]}"
        return page.article(title, [Html(f'<dl>{definitions}</dl><div class="shots">{"".join(figures)}</div>')])

    def _write_caption(self, system: str, sample: Sample, prediction: Prediction) -> str:
        mark = page.verdict_mark(judge_answer(sample, prediction, self.rules))
        answer_text = boxed_words(self.shown(prediction.answer.answer.text), "answer") or "(empty)"
        return f"<strong>{escape(self.shown(system))}</strong> {mark}<br>{answer_text}"
