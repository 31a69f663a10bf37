"""The answer that a model gives at last: without its reasoning, the marks of its family, Markdown and repeats.

What is cut is named, so that it can be counted. A refusal, or reasoning that never ends, is no answer.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass

_NAMES = r"(?:think|thinking|thought|reasoning|reason|analysis|scratchpad|seed:think|rationale|reflection)"
_OPEN = rf"(?:<{_NAMES}>|◁think▷|<\|begin_of_thought\|>|<unused94>|\[THINK\]|<\|think\|>|<\|channel>)"
_CLOSE = rf"(?:</{_NAMES}>|◁/think▷|<\|end_of_thought\|>|<unused95>|\[/THINK\]|<\|/think\|>|<channel\|>)"
# the latter: where tokens were dropped in decoding, and their words are left
_FINAL_CHANNEL = re.compile(
    r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|\A\s*analysis.*assistantfinal", re.S
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)\b.*|\A\s*analysis(?=[A-Z][a-z]).*", re.S)
_THOUGHT = re.compile(rf"(?P<open>{_OPEN})|{_CLOSE}", re.I)
_LAST_TOKEN = (
    r"(?:<\|(?:im_end|endoftext|eot_id|eom_id|end|end_of_text|return|eos|endofanswer)\|>|</s>|<eos>|<end_of_turn>"
    r"|<｜end▁of▁sentence｜>)"
)
_ENDS = re.compile(
    rf"{_LAST_TOKEN}|\[/?INST\]|<\|(?:im_start|start|start_header_id|user)\|>|<start_of_turn>"
    r"|\n[ \t]*+(?:#{1,4}[ \t]*+)?(?:Human|HUMAN|User|USER)[ \t]*+:"
)
_ENDS_WITH_TOKEN = re.compile(rf"{_LAST_TOKEN}\s*\Z")
_STARTS = re.compile(
    r"\s*(?:(?:<s>|<bos>|<pad>|<\|im_start\|>|<\|begin_of_text\|>|<\|start(?:_header_id)?\|>|<start_of_turn>|\[/INST\]"
    r"|<｜Assistant｜>|<\|assistant\|>)\s*)*+"
    r"(?:(?:assistant|model)[ \t]*+(?:<\|end_header_id\|>\s*|\n\s*)"
    r"|(?:#{1,4}[ \t]*+)?(?:assistant|response|output|prediction)\s*:\s*)?",
    re.I,
)
# the turns of a prompt that stands before its answer, up to the mark of the answer
_PROMPT = re.compile(
    r"\A\s*+(?:<s>|<bos>|<\|begin_of_text\|>)?+\s*+(?:"
    r"<\|im_start\|>\s*(?:system|user)\b.*<\|im_start\|>\s*assistant\b"
    r"|<\|start_header_id\|>\s*(?:system|user)\b.*<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>"
    r"|<start_of_turn>\s*user\b.*<start_of_turn>\s*model\b"
    r"|<\|(?:system|user)\|>.*<\|assistant\|>"
    r"|\[INST\].*\[/INST\]"
    r"|(?:system|user)\n.*\n(?:assistant|model)\n"
    r"|(?:A chat between.{0,400}?)?(?:USER|Human|User|###\s*Human)\s*:.*(?:ASSISTANT|Assistant|GPT)\s*:"
    r")",
    re.S,
)
_SPECIAL_TOKENS = re.compile(
    r"<(?:pad|unk|image)>|<\|(?:pad|unk|(?:begin|end)_of_solution|(?:image|vision|video)_\w+)\|>"
)
_ANSWER_TAGS = r"(?:answer|final_answer|response|conclusion|solution|output)"
_ANSWER_TAG = re.compile(
    rf"<({_ANSWER_TAGS})>(?P<inside>.*?)(?:</\1>|\Z)|<\|begin_of_box\|>(?P<boxed>.*?)(?:<\|end_of_box\|>|\Z)",
    re.S | re.I,
)
_ANSWER_END = re.compile(rf"</{_ANSWER_TAGS}>", re.I)
_ANSWER_LAST = re.compile(r"<(answer|final_answer)>\s*[^\s<](?:(?!<\1>).)*</\1>\s*\Z", re.S | re.I)
_MEMBERS = ("final_answer", "answer", "response", "prediction", "output", "result", "conclusion", "choice", "option")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_STATED = re.compile(
    r"(?:^|[\n.!?*:)#]\s{0,4}+)\*{0,3}+\s{0,4}+(?:(?:so|thus|therefore|hence)[,:]?\s+)?(?:the\s+)?"
    r"(?:(?:final|correct|best)\s+)?answer\s{0,4}"
    r"(?:\*{0,3}\s{0,4}[:：]\s{0,4}\*{0,3}|\*{0,3}\s{0,4}\n|\s(?:is|would be)\b:?"
    r"(?!\s+(?:based|given|found|derived|supported|determined|obtained|provided|because|not|clear|unclear)\b))\s*"
    r"|\bhere\s+is\s+my\s+response\s*:\s*|\n####\s+(?=[^\n]+\Z)",
    re.I,
)
_ENTITY = re.compile(r"&(?:#\d{1,6}|#x[0-9a-f]{1,5}|[a-z]{2,8});", re.I)
_UNSEEN = re.compile("[\ufeff\u200b-\u200f\u2060\u00ad]")  # marks without width, which would be a part of a word
# marks around the whole answer: a block of code, quotes; or before its only line
_AROUND = re.compile(
    r"""```\w*\n(?P<code>(?:(?!```).)*)\n```|"(?P<double>[^"]*)"|“(?P<curved>[^“”]*)”|'(?P<single>[^']*)'"""
    r"""|(?:1[.)]|[-*•])[ \t]+(?P<line>[^\W\d](?:(?!\s2[.)]\s)[^\n])*)""",
    re.S,
)
_FENCE = re.compile(r"```(?:json)?")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(\*\*|__|(?<![\w*])\*(?!\*)|(?<!`)`(?!`))(?=\S)(.{1,400}?)(?<=\S)\1(?![`\w])", re.S)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+", re.M)
_UNABLE = r"(?:can\s?not|can['’]t|could\s+not|(?:am|['’]m)\s+(?:not\s+able|unable)\s+to|won['’]t|must\s+decline\s+to)"
_SERVE = (
    r"(?:help|assist|answer|comply|provide|give|offer|diagnose|interpret|analy[sz]e|process|evaluate|assess|fulfil+"
    r"|make\s+(?:a\s+)?(?:\w+\s+)?diagnos[ei]s)"
)
_IMAGE = r"(?:\w+\s+)?(?:images?|pictures?|files?|scans?|photos?|attachments?)"
_REFUSAL = re.compile(
    rf"\b(?:i|we)\s*{_UNABLE}\s+(?:\w+\s+){{0,2}}{_SERVE}\b|^\W*unable\s+to\s+(?:{_SERVE}|view|see|access|open)\b"
    # "I cannot see the image" is a refusal, "I cannot see a mass in the image" a finding
    rf"|\b(?:i|we)\s*{_UNABLE}\s+(?:\w+\s+){{0,2}}(?:view|see|access|open|display|read)\s+(?:the|an|any|your|this)?\s*"
    rf"{_IMAGE}\b"
    r"|\b(?:i|we)\s+(?:do\s+not|don['’]t)\s+(?:\w+\s+)?have\s+(?:access|the\s+(?:ability|capability|means))\b"
    rf"|\bno\s+{_IMAGE}\s+(?:was|is|were|has\s+been|have\s+been)?\s*(?:provided|attached|given|uploaded|shown|included)"
    rf"|\b{_IMAGE}\s+(?:(?:is|was|were|are)\s+(?:not|never)|(?:is|was)n['’]t|did\s+not|didn['’]t|has\s+not)\s+"
    rf"(?:been\s+)?(?:provided|attached|available|uploaded|included|load|loaded|shared|accessible)\b"
    rf"|\b{_IMAGE}\s+(?:is|are|was)\s+missing\b",
    re.I,
)
_UPLOAD = re.compile(rf"\b(?:provide|upload|attach|share|send)\s+(?:me\s+)?(?:an?|the|your)\s+{_IMAGE}\b", re.I)
_ADVICE = re.compile(
    r"\b(?:sorry|apologi[sz]e|as\s+an\s+ai|language\s+model|please|consult|seek|let\s+me\s+know|happy\s+to|feel\s+free|could\s+you"
    r"|if\s+you)\b",
    re.I,
)
# without one of these neither _REFUSAL nor _UPLOAD finds anything
_OF_REFUSALS = (
    *("unable", "not", "n't", "n’t", "decline", "no ", "no\n", "missing", "never"),
    *("provide", "upload", "attach", "share", "send"),
)
_CLAUSES = re.compile(r"[.!?;]+(?:\s|$)|\n|,?\s+(?:but|however|although|though|nevertheless|that\s+said)\b,?", re.I)
_LEAST_REPEATS = 3  # of one sentence after another, which are a loop


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The text of an answer. `cut`: what was taken away, a few words each. `refused`: it declines to answer."""

    text: str
    cut: tuple[str, ...] = ()
    refused: bool = False


def ends_whole(raw: str) -> bool:
    """Whether a raw answer ends with a token that a model writes at its end; a length limit cuts it off."""
    return bool(_ENDS_WITH_TOKEN.search(raw))


def find_final_answer(raw: str) -> FinalAnswer:
    """The last answer in what a model wrote; the text "" where there is none."""
    cut: list[str] = []
    raw = _ENTITY.sub(lambda entity: html.unescape(entity.group()), _UNSEEN.sub("", raw))
    if prompt := _PROMPT.match(raw):
        cut.append("the prompt")
        raw = raw[prompt.end() :]
    text = _cut_reasoning(_STARTS.sub("", raw, count=1), cut)
    if end := _ENDS.search(text):
        if text[end.end() :].strip():
            cut.append("text behind the end of the answer")
        text = text[: end.start()]
    text = _choose_statement(_SPECIAL_TOKENS.sub("", text), cut)
    text = _cut_repeats(text, cut)
    plain = _HEADING.sub("", _LATEX_TEXT.sub(r"\1", text))
    if any(mark in plain for mark in "*_`"):
        plain = _EMPHASIS.sub(r"\2", plain)
    if plain.count("**") % 2:  # a line in bold, of which the beginning is cut
        plain = plain.strip().removesuffix("**")
    if around := _AROUND.fullmatch(plain.strip()):
        plain = around[around.lastgroup or 0]
    if plain != text:
        cut.append("Markdown")
    refused = _refuses(plain)
    return FinalAnswer("" if refused else plain.strip(), tuple(cut), refused)


def _cut_reasoning(text: str, cut: list[str]) -> str:
    if channels := list(_FINAL_CHANNEL.finditer(text)):
        cut.append("reasoning")
        return text[channels[-1].end() :]
    kept: list[str] = []
    start, thinks = 0, False
    for mark in _THOUGHT.finditer(text):
        if mark["open"] and not thinks:
            kept.append(text[start : mark.start()])
            thinks = True
        elif not mark["open"]:
            kept = kept if thinks else []  # reasoning whose beginning stood in the prompt
            start, thinks = mark.end(), False
            cut.append("reasoning")
    if thinks and (last := _ANSWER_LAST.search(text, start)):  # it forgot to end its reasoning
        cut.append("reasoning")
        return last.group()
    shorter = "".join(kept) if thinks else "".join([*kept, text[start:]])
    whole = _CHANNEL.sub("", shorter)
    if thinks or whole != shorter:
        cut.append("reasoning that never ends")
    return whole


def _refuses(text: str) -> bool:
    """Whether a text declines to answer, and says nothing else but excuses and advice."""
    words = text.casefold()
    if not any(word in words for word in _OF_REFUSALS):  # a quick look, as the patterns take longer than all else
        return False
    if not _REFUSAL.search(text) and not _UPLOAD.search(text):
        return False
    clauses = [clause for clause in _CLAUSES.split(text) if any(map(str.isalnum, clause))]
    return all(_REFUSAL.search(c) or _ADVICE.search(c) for c in clauses)


def _choose_statement(text: str, cut: list[str]) -> str:
    """What the model marks as its answer, by a tag, a box of LaTeX, or the words "the answer is"."""
    for _ in range(2):  # one tag may be within another
        if not (tags := list(_ANSWER_TAG.finditer(text))):
            break
        cut.append("text beside the answer")
        text = tags[-1]["inside"] or tags[-1]["boxed"] or ""
    text = _ANSWER_END.sub("", text)
    if (member := _find_member(text)) is not None:
        cut.append("text beside the answer")
        return member
    if boxed := _BOXED.findall(text):
        cut.append("text beside the answer")
        return str(boxed[-1])
    quick = text.casefold()
    stated = [*_STATED.finditer(text)] if "answer" in quick or "response" in quick or "####" in quick else []
    if stated and (after := text[stated[-1].end() :].strip()):
        if text[: stated[-1].start()].strip():
            cut.append("text before the answer")
        return after
    return text


def _find_member(text: str) -> str | None:
    """The answer in an object of JSON that is all there is, by its key."""
    inside = _FENCE.sub("", text).strip()
    if not (inside.startswith("{") and inside.endswith("}")):
        return None
    try:
        members = {re.sub(r"[\s-]", "_", key.lower()): value for key, value in json.loads(inside).items()}
    except (ValueError, RecursionError):
        return None
    answer = next((members[key] for key in _MEMBERS if key in members), None)
    if any(value and ("box" in key or "coord" in key) for key, value in members.items()):
        return None  # the box is a part of the answer
    if isinstance(answer, list) and answer and all(isinstance(part, str) for part in answer):
        return ", ".join(answer)
    return json.dumps(answer) if isinstance(answer, int | float) else answer if isinstance(answer, str) else None


def _cut_repeats(text: str, cut: list[str]) -> str:
    """The text with a sentence once that is written again and again."""
    sentences = re.split(r"(?<=[.!?])\s+|\n\s*", text.strip())
    for length in range(1, len(sentences) // 2 + 1):  # of all that is said, several times
        if len(sentences) % length == 0 and sentences == sentences[:length] * (len(sentences) // length):
            cut.append("repeats")
            return " ".join(sentences[:length])
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
