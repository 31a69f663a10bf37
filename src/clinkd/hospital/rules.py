"""Rules: which questions are asked about an image that arrives, by the modality and the body part of its header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import field_validator

from clinkd.hospital.worklist import ArrivedImage, RuledQuestion
from clinkd.records import BOX_MARK, RESERVED, BadInput
from clinkd.settings import MAX_BYTES, Knobs, knob, validate_stored
from clinkd.spelling import suggest

EXAMPLE = """\
# Questions about images that arrive. Every rule that fits an image asks its questions; an image that no rule fits is
# not kept. modality and body_part are the words of the DICOM header (Modality, BodyPartExamined); left out: any.
chest-ct:
  modality: CT
  body_part: [CHEST, THORAX]
  questions:
    - Where is the heart?
x-ray:
  modality: [CR, DX]
  questions:
    - What does this image show?
ultrasound:
  modality: US
  frames: middle   # of an image with several: first, middle (the default) or all
  questions:
    - Where is the kidney?
"""
MODALITIES = (  # PS3.3 C.7.3.1.1.1: those of images
    *("CT", "MR", "PT", "NM", "CR", "DX", "MG", "RF", "XA", "IO", "PX", "US", "IVUS", "ES", "DMS", "XC", "OP", "OPT"),
    *("OCT", "OPM", "SLIT", "GM", "SM", "BI", "DG", "LS", "PA", "TG", "OT"),
)
_SLIPS = {"MRI": "MR", "PET": "PT", "XR": "DX", "XRAY": "DX", "ULTRASOUND": "US"}
_NAME = re.compile(r"[\w .-]{1,64}")
_MOST = {"rules": 200, "questions": 50, "characters": 500}


class ArrivalRule(Knobs):
    """One rule."""

    modality: tuple[str, ...] = knob((), "of the header, as CT; left out: any")
    body_part: tuple[str, ...] = knob((), "of the header, as CHEST; left out: any, and images without one")
    frames: Literal["first", "middle", "all"] = knob("middle", "of an image with several frames")
    questions: tuple[str, ...] = knob((), "one at least")

    @field_validator("modality", "body_part", "questions", mode="before")
    @classmethod
    def _list_words(cls, value: Any) -> Any:
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise ValueError(f"{value!r} given; a text or a list of texts is wanted")
        return tuple(word.strip() for word in words)

    @field_validator("modality")
    @classmethod
    def _check_modality(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        words = tuple(word.upper() for word in words)
        for word in words:
            if word not in MODALITIES:
                hint = f"; did you mean {_SLIPS[word]}?" if word in _SLIPS else suggest(word, MODALITIES)
                raise ValueError(f"{word} is no modality of DICOM images{hint}")
        return words

    @field_validator("body_part")
    @classmethod
    def _fold_body_part(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word.upper() for word in words)

    @field_validator("questions")
    @classmethod
    def _check_questions(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        if len(questions) > _MOST["questions"]:
            raise ValueError(f"{len(questions)} questions of one rule, more than {_MOST['questions']}")
        for question in questions:
            if BOX_MARK in question or RESERVED.search(question) or len(question) > _MOST["characters"]:
                raise ValueError(f"{question[:60]!r} cannot be asked: no {BOX_MARK} and no mark of images or turns may "
                                 f"stand in it, and at most {_MOST['characters']} characters")  # fmt: skip
        return questions

    def fits(self, image: ArrivedImage) -> bool:
        modality = not self.modality or image.modality in self.modality
        return modality and (not self.body_part or image.body_part.upper() in self.body_part)

    def list_frames(self, frames: int) -> Sequence[int]:
        """The frames that are asked about, counted from 1."""
        return {"first": [1], "middle": [(frames + 1) // 2], "all": range(1, frames + 1)}[self.frames]


Rules = dict[str, ArrivalRule]  # by their names


def read_rules(file: Path) -> Rules:
    """The rules of a YAML file. Raises BadInput naming the rule and the key that is wrong."""
    place = f"--rules {file}"
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > MAX_BYTES:
            raise BadInput(f"{place}: more than {MAX_BYTES:,} bytes; check the path")
        tree = yaml.safe_load(text)
    except FileNotFoundError:
        raise BadInput(f"{place}: no such file; `clinkd pacs listen --example-rules` prints one") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else type(error).__name__
        raise BadInput(f"{place}: not readable as YAML ({where}); a question inside [] stands in quotes") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{place}: cannot be read ({type(error).__name__}); check the path") from None
    if not isinstance(tree, dict) or not tree or len(tree) > _MOST["rules"]:
        raise BadInput(f"{place}: 1 to {_MOST['rules']} rules are wanted, each a name with modality, body_part and "
                       "questions below it; `clinkd pacs listen --example-rules` prints some")  # fmt: skip
    return {str(name): _read_rule(name, rule, place) for name, rule in tree.items()}


def _read_rule(name: object, rule: object, place: str) -> ArrivalRule:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(f"{place}: {str(name)[:60]!r} is no name of a rule: letters, digits, blank, point and dash")
    if not isinstance(rule, dict) or "questions" not in rule:
        raise BadInput(f"{place}: {name}: its questions are missing")
    return validate_stored(rule, ArrivalRule, f"{place}: {name}: ", strict=True)[0]


def ask_by_rules(rules: Rules, image: ArrivedImage) -> list[RuledQuestion]:
    """The questions about an image, each once a frame, in the order of the rules."""
    asked: dict[tuple[str, int], RuledQuestion] = {}
    for name, rule in rules.items():
        for frame in rule.list_frames(image.frames) if rule.fits(image) else ():
            for question in rule.questions:
                asked.setdefault((question, frame), RuledQuestion(name, question, frame))
    return list(asked.values())
