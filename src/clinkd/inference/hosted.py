"""Ask a model behind a chat API: questions are scrubbed, answers come in the spelling that the question names.

The question with its boxes is sent, and the picture if `picture` gives one; never an answer, an id or a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from clinkd.data.codecs import make_codec
from clinkd.records import BadInput, BoxedText, Candidate, Prediction, Sample, Task
from clinkd.remote import Chat, Masked, Message, Reply, Scrubber, user_message
from clinkd.scoring.reading.answer_files import HowToRead, read_candidate
from clinkd.storage import progress

PROMPT_VERSION = 1  # raised where the words below change
BOXES = make_codec("qwen-vl")
_BOX_FORM = (
    "A box is written <box>(x1,y1),(x2,y2)</box>: upper left and lower right corner in thousandths of the width and "
    "the height of the image, from its upper left corner."
)
_INSTRUCTIONS = {
    Task.VG: "Answer with one box for each place that is asked for, and nothing else.",
    Task.ROC: "Answer with the name of what the box shows, and nothing else.",
    Task.RC: "Answer with one sentence on what the box shows.",
    Task.MIA: "Answer with a few plain sentences, without markup.",
    Task.QA: "Answer in as few words as possible; yes or no where that is an answer.",
}
_SEEN, _BLIND = (
    "You are asked about a medical image.",
    "You are asked about a medical image that you cannot see. Guess.",
)


class Hosted:
    """A model behind `chat`. `scrubber` finds what may identify a person in the texts of a sample; `picture` gives its
    image as a data URI. If `picture` is None, the model answers blindly: a guess from the question."""

    def __init__(
        self, chat: Chat, scrubber: Callable[[Sample], Scrubber], picture: Callable[[Sample], str] | None = None
    ) -> None:
        assert chat.config.replies_as == "text"
        self.chat, self._scrubber, self._picture = chat, scrubber, picture

    def body(self, sample: Sample) -> dict[str, Any] | None:
        """The JSON of the call for a sample; None if its words hold text like a box, which is not sent."""
        return self._make_request(sample)[0]

    def answer(self, samples: Sequence[Sample], notes: Counter[str]) -> list[Prediction]:
        """One prediction a sample; replies in the journal are not asked for again.

        An answer that was lost or refused is empty, and counted in `notes`. Raises BadInput as `Chat.replies`.
        """
        requests = [self._make_request(s) for s in samples]
        replies = self.chat.replies([body for body, _ in requests])
        predictions = []
        with progress(len(samples), f"ask {self.chat.model}", "answers") as advance:
            for sample, (_, masked), reply in zip(samples, requests, replies, strict=True):
                if not reply.texts and not reply.cut:
                    notes[f"questions without an answer ({reply.why}), which count as wrong"] += 1
                predictions.append(
                    Prediction(sample.id, (_read_candidate(sample, reply, masked, notes),), by=self.chat.model)
                )
                advance()
        return predictions

    def _make_request(self, sample: Sample) -> tuple[dict[str, Any] | None, Masked]:
        masked = self._scrubber(sample).masked()
        sent_texts = [text for turn in sample.turns for text in (turn.question, turn.answer)][:-1]  # all but the truth
        try:
            texts = [BOXES.encode(BoxedText(masked.hide(text.text), text.boxes)) for text in sent_texts]
        except BadInput:
            return None, masked
        picture = self._picture(sample) if self._picture is not None else None
        opening = _BLIND if self._picture is None else _SEEN
        messages: list[Message] = [
            {"role": "system", "content": f"{opening} {_INSTRUCTIONS[sample.task]} {_BOX_FORM}"},
            user_message(texts[0], picture),
            *({"role": "user" if n % 2 else "assistant", "content": text} for n, text in enumerate(texts[1:])),
        ]
        return self.chat.body(messages, {}), masked


def _read_candidate(sample: Sample, reply: Reply, masked: Masked, notes: Counter[str]) -> Candidate:
    """The answer with the hidden words put back; `raw` keeps them hidden."""
    raw, cut = next(iter((*reply.texts, *reply.cut)), ""), not reply.texts and bool(reply.cut)
    read = read_candidate(masked.show(raw), sample.task, HowToRead(BOXES.name), None, notes, cut)
    return replace(read, raw=raw)
