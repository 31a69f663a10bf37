"""How to answer one question: one record that goes unchanged from the page to the engine."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clinkd.config import AnswerConfig
from clinkd.records import BadInput
from clinkd.settings import change_knobs

MOST_BEAMS = 8
MOST_TOKENS = 512


def _option(most: int, description: str) -> Any:
    """A field from 1 to `most`, null by default."""
    return Field(None, ge=1, le=most, description=description)


class AnswerOptions(BaseModel):
    """Knobs of `AnswerConfig` that a request may change for its own answer; null keeps the value of the model's run.

    A new option is a field here, named as the knob, and nothing more; in the page it is an input with `data-option`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    beams: int | None = _option(MOST_BEAMS, "width of the beam search; each beam gives a candidate")
    candidates: int | None = _option(MOST_BEAMS, "answers that are kept; as many as `beams`, if that is given")
    max_new_tokens: int | None = _option(MOST_TOKENS, "an answer is cut after these")

    @property
    def options(self) -> AnswerOptions:
        """Only the options, without the other fields of a request."""
        return AnswerOptions.model_validate({name: getattr(self, name) for name in AnswerOptions.model_fields})

    def change(self, config: AnswerConfig) -> AnswerConfig:
        """The model's config, changed by these options. Raises BadInput for options that do not fit it."""
        knobs = {name: value for name in AnswerOptions.model_fields if (value := getattr(self, name)) is not None}
        if self.beams is not None:
            if config.method != "beams":
                raise BadInput(f"beams={self.beams}: this model answers by {config.method}; leave beams out")
            knobs.setdefault("candidates", self.beams)
        try:
            return change_knobs(config, **knobs)
        except ValidationError as error:
            raise BadInput(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
