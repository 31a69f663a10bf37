"""The answer that a model gives at last: without its reasoning, the marks of its family, Markdown and repeats.

What is cut is named, so that it can be counted. A refusal, or reasoning that never ends, is no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = r"(?:think|thinking|thought|reasoning|reason|analysis|scratchpad|seed:think|rationale)"
_OPEN = rf"(?:<{_NAMES}>|◁think▷|<\|begin_of_thought\|>|<unused94>)"
_CLOSE = rf"(?:</{_NAMES}>|◁/think▷|<\|end_of_thought\|>|<unused95>)"
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\s*<\|message\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)\b.*", re.S)
_REASONING = re.compile(rf"{_OPEN}.*?{_CLOSE}", re.S | re.I)
_REASONED_BEFORE = re.compile(rf".*{_CLOSE}", re.S | re.I)
_NEVER_ENDS = re.compile(rf"{_OPEN}.*", re.S | re.I)
_ENDS = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|eom_id|end|end_of_text|return|eos|endofanswer)\|>|</s>|<eos>|<end_of_turn>"
    r"|<｜end▁of▁sentence｜>|\[/?INST\]|<\|(?:im_start|start|start_header_id)\|>"
)
_STARTS = re.compile(
    r"^\s*(?:<s>|<bos>|<\|im_start\|>|<\|begin_of_text\|>|<\|start\|>|<start_of_turn>)?"
    r"\s*(?:(?:assistant|model|ASSISTANT)\s*:?\s*\n)?"
)
_ANSWER_TAG = re.compile(r"<(answer|final_answer|response)>(.*?)(?:</\1>|\Z)", re.S | re.I)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_STATED = re.compile(
    r"(?:^|[\n.!?*:)]\s*)\**\s*(?:(?:so|thus|therefore|hence)[,:]?\s+)?(?:the\s+)?(?:final|correct|best)?\s*answer\s*"
    r"(?:\**\s*[:：]\s*\**|\s+(?:is|would be)\b:?)\s*",
    re.I,
)
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(\*\*|__|(?<![\w*])\*(?!\*)|(?<!`)`(?!`))(?=\S)(.+?)(?<=\S)\1(?![`\w])", re.S)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+", re.M)
_UNABLE = r"(?:can\s?not|can['’]t|could\s+not|(?:am|['’]m)\s+(?:not\s+able|unable)\s+to|won['’]t)"
_SERVE = r"(?:help|assist|answer|comply|provide|give|offer|diagnose|interpret|analy[sz]e|process|evaluate)"
_REFUSAL = re.compile(
    rf"\b(?:i|we)\s*{_UNABLE}\s+(?:\w+\s+){{0,2}}{_SERVE}\b"
    # "I cannot see the image" is a refusal, "I cannot see a mass in the image" a finding
    rf"|\b(?:i|we)\s*{_UNABLE}\s+(?:\w+\s+){{0,2}}(?:view|see|access|open|display|read)\s+(?:the|an|any|your|this)?\s*"
    r"(?:\w+\s+)?(?:images?|pictures?|files?|scans?)\b"
    r"|\bno\s+(?:\w+\s+)?image\s+(?:was|is|has\s+been)\s+(?:provided|attached|given|uploaded|shown|included)"
    r"|\b(?:provide|upload|attach|share)\s+(?:an|the|your)\s+(?:\w+\s+)?image\b",
    re.I,
)
_LEAST_REPEATS = 3  # of one sentence after another, which are a loop


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The text of an answer. `cut`: what was taken away, a few words each. `refused`: it declines to answer."""

    text: str
    cut: tuple[str, ...] = ()
    refused: bool = False


def find_final_answer(raw: str) -> FinalAnswer:
    """The last answer in what a model wrote; the text "" where there is none."""
    cut: list[str] = []
    text = _cut_reasoning(_STARTS.sub("", raw, count=1), cut)
    if end := _ENDS.search(text):
        if text[end.end() :].strip():
            cut.append("text behind the end of the answer")
        text = text[: end.start()]
    text = _choose_statement(text, cut)
    text = _cut_repeats(text, cut)
    plain = _HEADING.sub("", _EMPHASIS.sub(r"\2", _LATEX_TEXT.sub(r"\1", text)))
    if plain != text:
        cut.append("Markdown")
    refused = bool(_REFUSAL.search(plain))
    return FinalAnswer("" if refused else plain.strip(), tuple(cut), refused)


def _cut_reasoning(text: str, cut: list[str]) -> str:
    if channels := list(_FINAL_CHANNEL.finditer(text)):
        cut.append("reasoning")
        return text[channels[-1].end() :]
    shorter = _REASONED_BEFORE.sub("", _REASONING.sub("", text))
    if shorter != text:
        cut.append("reasoning")
    whole = _CHANNEL.sub("", _NEVER_ENDS.sub("", shorter))
    if whole != shorter:
        cut.append("reasoning that never ends")
    return whole


def _choose_statement(text: str, cut: list[str]) -> str:
    """What the model marks as its answer, by a tag, a box of LaTeX, or the words "the answer is"."""
    if tags := _ANSWER_TAG.findall(text):
        cut.append("text beside the answer")
        text = tags[-1][1]
    if boxed := _BOXED.findall(text):
        cut.append("text beside the answer")
        return str(boxed[-1])
    stated = list(_STATED.finditer(text))
    if stated and (after := text[stated[-1].end() :].strip()):
        if text[: stated[-1].start()].strip():
            cut.append("text before the answer")
        return after
    return text


def _cut_repeats(text: str, cut: list[str]) -> str:
    """The text with a sentence once that is written again and again."""
    sentences = re.split(r"(?<=[.!?\n])\s+", text.strip())
    kept: list[str] = []
    repeats = 1
    for sentence in sentences:
        repeats = repeats + 1 if kept and sentence == kept[-1] else 1
        if repeats < 2 or not sentence:
            kept.append(sentence)
    if len(sentences) - len(kept) >= _LEAST_REPEATS - 1:
        cut.append("repeats")
        return " ".join(kept)
    return text
