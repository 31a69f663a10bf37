"""The same question answered by several systems, side by side with their boxes (the paper's Figure 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from clinkd.data.images import open_image
from clinkd.records import BadInput, Prediction, Sample
from clinkd.reporting.gallery import PLAIN_RULES, choose_gallery, judge_answer, list_answer_boxes
from clinkd.reporting.tables import TITLES
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.overlay import ANSWER, ASKED, TRUTH
from clinkd.reporting.viewer.shot import Html, boxed_words, repeated, thumbnail
from clinkd.scoring.measure import Rules

_SIDE = 320  # pixels of a picture


def side_by_side(
    systems: Mapping[str, Sequence[Prediction]], samples: Sequence[Sample], image_root: Path,
    rules: Rules = PLAIN_RULES, shown: Callable[[str], str] = str, count: int = 8,
) -> Html:  # fmt: skip
    """`count` of the questions that all systems answered, each with the answers of all.

    They take turns over tasks and modalities, and do not depend on what was answered. Every question, answer, truth
    and name of a system passes `shown`. Part of a page made by `page.document`; it needs no script. Raises BadInput
    where no question was answered by all, and on an unreadable image.
    """
    answers = {name: {p.id: p for p in predictions} for name, predictions in systems.items()}
    common = [s for s in samples if all(s.id in by_id for by_id in answers.values())]
    if not systems or not common:
        raise BadInput(
            f"{', '.join(systems) or 'no systems'}: no question that all of them answered; give answers to the same "
            "samples"
        )
    articles = []
    for sample, _ in choose_gallery(common, next(iter(systems.values())), count):
        picture = thumbnail(open_image(image_root, sample.images[0]), _SIDE)
        name = f"case-{hashlib.sha256(repr((sample.id, *systems)).encode()).hexdigest()[:12]}"  # once on any page
        figures: list[str] = []
        for system, by_id in answers.items():
            marks = list_answer_boxes(sample, by_id[sample.id])
            answered = len(by_id[sample.id].answer.answer.boxes)
            alt = f"Answer of {shown(system)}: {len(sample.answer.boxes)} true and {answered} answered boxes"
            drawing = repeated(picture, marks, alt, name, first=not figures)
            caption = _write_caption(shown(system), sample, by_id[sample.id], rules, shown)
            figures.append(f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>")
        texts = (("Question", sample.question.text, "asked"), ("Truth", sample.answer.text, "truth"))
        definitions = "".join(f"<dt>{h}</dt><dd>{boxed_words(shown(text), kind)}</dd>" for h, text, kind in texts)
        title = f"{sample.task.value} · {TITLES[sample.modality]}"
        articles.append(
            page.article(title, [Html(f'<dl>{definitions}</dl><div class="shots">{"".join(figures)}</div>')])
        )
    key = page.key((("truth", TRUTH), ("answer", ANSWER), ("asked about", ASKED)))
    notice = "The questions take turns over tasks and modalities; they were chosen without a look at the answers."
    return Html(key + "".join(articles) + page.note([notice]))


def _write_caption(
    system: str, sample: Sample, prediction: Prediction, rules: Rules, shown: Callable[[str], str]
) -> str:
    mark = page.verdict_mark(judge_answer(sample, prediction, rules))
    answer_text = boxed_words(shown(prediction.answer.answer.text), "answer") or "(empty)"
    return f"<strong>{escape(system)}</strong> {mark}<br>{answer_text}"
