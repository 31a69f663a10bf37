"""The same question answered by several systems, side by side with their boxes (the paper's Figure 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from clinkd import viewer
from clinkd.agreement import Lexicon
from clinkd.data import open_image
from clinkd.evaluation.gallery import boxes_of, choose_gallery, verdict
from clinkd.evaluation.metrics import Rules
from clinkd.evaluation.tables import TITLES
from clinkd.records import BadInput, Prediction, Sample
from clinkd.viewer import ANSWER, ASKED, TRUTH, Html, Picture

_NO_WORDS = Lexicon(())


def side_by_side(
    systems: Mapping[str, Sequence[Prediction]],
    samples: Sequence[Sample],
    image_root: Path,
    *,
    count: int = 8,
    lexicon: Lexicon = _NO_WORDS,
    iou: float = 0.5,
    shown: Callable[[str], str] = str,
    side_pixels: int = 320,
) -> Html:
    """`count` of the questions that all systems answered, each with the answers of all.

    They take turns over tasks and modalities, and do not depend on what was answered. Every question, answer, truth
    and name of a system passes `shown`. Part of a page made by `viewer.page`; it needs no script. Raises BadInput
    where no question was answered by all, and on an unreadable image.
    """
    answers = {name: {p.id: p for p in predictions} for name, predictions in systems.items()}
    common = [s for s in samples if all(s.id in known for known in answers.values())]
    if not systems or not common:
        raise BadInput(
            f"{', '.join(systems) or 'no systems'}: no question that all of them answered; give answers to the same "
            "samples"
        )
    first = next(iter(systems.values()))
    chosen = [s for s, _ in choose_gallery(common, first, count)]
    rules = Rules(iou, lexicon)
    articles = []
    for sample in chosen:
        picture = viewer.thumbnail(open_image(image_root, sample.images[0]), side_pixels)
        name = f"case-{hashlib.sha256(repr((sample.id, *systems)).encode()).hexdigest()[:12]}"  # once on any page
        figures = [
            _answer(shown(system), sample, known[sample.id], rules, picture, name, first=place == 0, shown=shown)
            for place, (system, known) in enumerate(answers.items())
        ]
        said = "".join(
            f"<dt>{heading}</dt><dd>{viewer.boxed_words(shown(text), kind)}</dd>"
            for heading, text, kind in (
                ("Question", sample.question.text, "asked"),
                ("Truth", sample.answer.text, "truth"),
            )
        )
        title = f"{sample.task.value} · {TITLES[sample.modality]}"
        articles.append(viewer.article(title, [Html(f'<dl>{said}</dl><div class="shots">{"".join(figures)}</div>')]))
    key = viewer.key((("truth", TRUTH), ("answer", ANSWER), ("asked about", ASKED)))
    told = viewer.note(
        ["The questions take turns over tasks and modalities; they were chosen without a look at the answers."]
    )
    return Html(key + "".join(articles) + told)


def _answer(
    system: str, sample: Sample, prediction: Prediction, rules: Rules, picture: Picture, name: str, first: bool,
    shown: Callable[[str], str],
) -> str:  # fmt: skip
    answer = prediction.answer.answer
    alt = f"Answer of {system}: {len(sample.answer.boxes)} true and {len(answer.boxes)} answered boxes"
    drawn = viewer.repeated(picture, boxes_of(sample, prediction), alt, name, first)
    right = verdict(sample, prediction, rules)
    mark = {True: '<span class="good">✓ right</span>', False: '<span class="bad">✗ wrong</span>', None: ""}[right]
    said = viewer.boxed_words(shown(answer.text), "answer") or "(empty)"
    return f"<figure>{drawn}<figcaption><strong>{escape(system)}</strong> {mark}<br>{said}</figcaption></figure>"
