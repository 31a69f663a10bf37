"""Ask a model behind a chat API: questions scrubbed, answers in the spelling that the question names.

What is sent: the question with its boxes, and the picture where `picture` gives one; never an answer, an id or a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from clinkd.data.codecs import make_codec
from clinkd.data.loose import read_loosely
from clinkd.records import BadInput, BoxedText, Candidate, Prediction, Sample, Task
from clinkd.remote import Chat, Masked, Message, Reply, Scrubber, user_message
from clinkd.storage import progress

PROMPT_VERSION = 1  # raised where the words below change
BOXES = make_codec("qwen-vl")
_FORM = (
    "A box is written <box>(x1,y1),(x2,y2)</box>: upper left and lower right corner in thousandths of the width and "
    "the height of the image, from its upper left corner."
)
_WANTED = {
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
    """A model behind `chat`. `scrubber` finds what tells a person apart in the texts of a sample; `picture` gives its
    image as a data URI, or is None: then the model answers blindly, and what it says is a guess from the question."""

    def __init__(
        self, chat: Chat, scrubber: Callable[[Sample], Scrubber], picture: Callable[[Sample], str] | None = None
    ) -> None:
        assert chat.config.replies_as == "text"
        self.chat, self._scrubber, self._picture = chat, scrubber, picture

    def body(self, sample: Sample) -> dict[str, Any] | None:
        """The JSON of the call for a sample; None where its words hold what looks like a box, kept in the house."""
        return self._asked(sample)[0]

    def answer(self, samples: Sequence[Sample], told: Counter[str]) -> list[Prediction]:
        """One prediction a sample; what came back before is in the journal and not asked again.

        An answer that was lost or refused is empty, and counted in `told`. Raises BadInput as `Chat.replies`.
        """
        asked = [self._asked(s) for s in samples]
        replies = self.chat.replies([body for body, _ in asked if body is not None])
        found = []
        with progress(len(samples), f"ask {self.chat.model}", "answers") as advance:
            for sample, (body, masked) in zip(samples, asked, strict=True):
                reply = next(replies) if body is not None else _NOT_SENT
                if not reply.texts and not reply.cut:
                    told[f"questions without an answer ({reply.why}), which count as wrong"] += 1
                found.append(Prediction(sample.id, (_read(sample, reply, masked),), by=self.chat.model))
                advance()
        return found

    def _asked(self, sample: Sample) -> tuple[dict[str, Any] | None, Masked]:
        masked = self._scrubber(sample).masked()
        said = [text for turn in sample.turns for text in (turn.question, turn.answer)][:-1]  # the truth stays here
        try:
            texts = [BOXES.encode(BoxedText(masked.hide(text.text), text.boxes)) for text in said]
        except BadInput:
            return None, masked
        picture = self._picture(sample) if self._picture is not None else None
        opening = _BLIND if self._picture is None else _SEEN
        messages: list[Message] = [
            {"role": "system", "content": f"{opening} {_WANTED[sample.task]} {_FORM}"},
            user_message(texts[0], picture),
            *({"role": "user" if n % 2 else "assistant", "content": text} for n, text in enumerate(texts[1:])),
        ]
        return self.chat.body(messages, {}), masked


_NOT_SENT = Reply(why="not sent: its words hold what looks like a box")


def _read(sample: Sample, reply: Reply, masked: Masked) -> Candidate:
    """The answer with what was hidden put back, its boxes read in any spelling, as thousandths."""
    text = next(iter((*reply.texts, *reply.cut)), "")
    said = read_loosely(masked.show(text), BOXES, bare=sample.task is Task.VG)
    return Candidate(text, said.answer, unread=said.unread, truncated=not reply.texts and bool(reply.cut))
