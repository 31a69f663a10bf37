"""200 wrong answers corrected over a chat API, as a program of its own: URL JOURNAL OUT BUDGET CONCURRENCY."""

from __future__ import annotations

import sys
from pathlib import Path

from clinkd.config import ChatConfig
from clinkd.correction.chat import ChatCorrector
from clinkd.correction.correctors import correct
from clinkd.correction.similarity import LexicalSimilarity
from clinkd.language.facts import Lexicon
from clinkd.records import Box, BoxedText, Correction, Modality, Sample, Task, Turn
from clinkd.remote import Chat, Journal, Scrubber
from clinkd.storage import write_lines

LEXICON = Lexicon(("kidney", "liver", "spleen"))
NAMES = LEXICON.names
PRICES = {"input_price": 2.5, "output_price": 10.0}


def rows(count: int = 200) -> tuple[list[Sample], list[Correction]]:
    """Grounding questions, no two alike, whose answers are at another place."""
    samples, wrong = [], []
    for n in range(count):
        box = Box(0.1, 0.1, 0.2 + n / 1000, 0.5)
        turn = Turn(Task.VG, BoxedText("Where is it?"), BoxedText(f"The {NAMES[n % 3]} is seen at [box].", (box,)))
        samples.append(Sample(f"s{n}", (), Modality.CT, (turn,), group=f"s{n}"))
        before = BoxedText(f"The {NAMES[n % 3]} is at [box].", (Box(0.6, 0.6, 0.9, 0.9),))
        wrong.append(Correction(f"s{n}", 1, before, samples[-1].answer, 0.9, ("box",)))
    return samples, wrong


def config(url: str, **more: object) -> ChatConfig:
    plain = {"base_url": url, "model": "m", "budget": 5.0, "max_tokens": 100, "concurrency": 4, **PRICES}
    return ChatConfig.model_validate({**plain, **more})


def main(url: str, journal: str, out: str, budget: str, concurrency: str) -> None:
    samples, wrong = rows()
    knobs = config(url, budget=float(budget), concurrency=int(concurrency))
    with Journal(Path(journal)) as kept:
        similarity = LexicalSimilarity(s.answer.words for s in samples)
        corrector = ChatCorrector(Chat(knobs, kept), similarity, lambda sample: Scrubber())
        found = correct(wrong, samples, corrector, LEXICON)
    write_lines(Path(out), (c.to_json() for c in found))


if __name__ == "__main__":
    main(*sys.argv[1:])
