"""Read conversations: Med-GRIT and Qwen-VL files, ShareGPT and LLaVA, ms-swift.

    Med-GRIT   {"id", "conversations": [[question, answer], ...]}, <img>path</img> and <box> or <|box_start|> in it
    Qwen-VL    {"id", "conversations": [{"from": "user", "value"}, ...]}, the same marks
    ShareGPT   {"images": [...] or "image", "conversations": [{"from": "human", "value"}, ...]}, <image> in it
    ms-swift   {"images", "messages": [{"role", "content"}], "objects": {"ref", "bbox", "bbox_type"}}, <bbox> in it

Each question becomes a sample (`Source.turns` "split"), or each conversation. The name of a Med-GRIT test file states
the task of its questions. Otherwise boxes decide: a box in the answer means VG. A box in the question means ROC if the
answer is a bare name, RC if it is a sentence. Without boxes the task is MIA in Med-GRIT and QA elsewhere. Boxes belong
to the last image of a row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.data import grids
from clinkd.data.codecs import make_codec
from clinkd.data.modality import read_modality
from clinkd.data.readers.annotated import find_split_group, parse_pixel_box, require_four_numbers, resolve_modality
from clinkd.data.readers.choices import count_letter_answer, find_choice_keys, read_closed
from clinkd.data.readers.record_files import list_record_files, record_rows
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    check_unicode,
    convert_rows,
    count_unused_keys,
    get_list,
)
from clinkd.data.readers.samples import assemble_sample, parse_closed, parse_options
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.data.readers.split_words import find_split_in_name
from clinkd.language.negation import denies
from clinkd.records import BOX_MARK, RESERVED, BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn

TESTS = {"vg": Task.VG, "ro": Task.ROC, "gc": Task.RC, "mii": Task.MIA}  # Med-GRIT's Test_{VG,RO,GC,MII}.json
CONVERSATION_EXTRA_KEY = "clinkd"  # our writers store here what a conversation does not hold
MISSPELT = "conversatons"  # in files that LLaVA-Med released
BARE_WORDS = 6  # an answer of at most so many words, without a full stop, is a name
KEYS = {"id", "image", "images", "conversations", "messages", "objects", "modality", "system", CONVERSATION_EXTRA_KEY}

MESSAGE_KEYS = {"from", "role", "value", "content"}
EXTRA_KEYS = {"boxes", "closed", "facts", "group", "modality", "names", "options", "side", "source", "split", "tasks"}
OBJECTS_KEYS = {"ref", "bbox", "bbox_type", "image_id"}

_IMG = re.compile(r"(?:Picture \d+:\s*)?<img>(.*?)</img>\s*", re.S)
_IMAGE = re.compile(r"[ \t]*\n?<image>\n?[ \t]*")
_REF = re.compile(r"<ref>(.*?)</ref>|<\|object_ref_start\|>(.*?)<\|object_ref_end\|>", re.S)
_MAYBE_A_BOX = re.compile(r"[<(\[]|bbox_2d")
_OBJECT_MARK = re.compile(
    r"(?:<box>|<\|box_start\|>)?<bbox>(?:</box>|<\|box_end\|>)?"
    r"|(?:<ref>|<\|object_ref_start\|>)?<ref-object>(?:</ref>|<\|object_ref_end\|>)?"
)
_QUESTION_ROLES, _ANSWER_ROLES = ("human", "user"), ("gpt", "assistant")
_get_codec = cache(make_codec)


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row has a conversation that is no list of messages alone."""
    return bool(row.get("conversations") or row.get(MISSPELT))


def is_row_of_pairs(row: Mapping[str, Any]) -> bool:
    """Whether a row has pairs of question and answer, as Med-GRIT."""
    turns = row.get("conversations") or row.get(MISSPELT)
    return bool(turns) and isinstance(turns, list) and isinstance(turns[0], list)


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Read a file, or all JSON files of a folder, in any of the four forms."""
    images = ImageResolver(source, notes)
    for file in list_record_files(source.path):
        make = partial(_convert_row, source=_apply_file_name(file, source), images=images, notes=notes)
        yield from convert_rows(record_rows(file, source.encoding), make)


def _apply_file_name(file: Path, source: Source) -> Source:
    """The source with the split and the task that the name of the file states."""
    split = find_split_in_name(file.stem)
    words = re.split(r"[^a-z]+", file.stem.lower())
    task = next((TESTS[word] for word in words if word in TESTS), None) if split == "test" else None
    return replace(source, task=source.task or task, split=source.split or split)


def _convert_row(row: SourceRow, source: Source, images: ImageResolver, notes: Counter[str]) -> list[Sample]:
    value, file_name = row.value, row.file.stem.lower()
    if MISSPELT in value and "conversations" not in value:
        notes[f"rows with {MISSPELT!r}, read as 'conversations'"] += 1
        value = {"conversations" if key == MISSPELT else key: entry for key, entry in value.items()}
    closed = find_choice_keys(tuple(value)).closed
    count_unused_keys(value, KEYS | {closed}, notes)
    pairs, paths = _parse_conversation(value, notes)
    refs = tuple([images.ref(path, f"images[{i}]" if i else "image") for i, path in enumerate(paths)])
    writer_keys = value.get(CONVERSATION_EXTRA_KEY)
    if writer_keys is not None:
        source = _apply_writer_keys(writer_keys, source)
    objects = None if value.get("objects") is None else _ObjectsReader(value["objects"], refs)
    read_text: ReadText = objects or partial(_decode_boxes, source, refs[-1])
    turns_and_names = [_make_turn(k, pair, read_text, source) for k, pair in enumerate(pairs, start=1)]
    if objects:
        objects.check_used_up()
        count_unused_keys(value["objects"], OBJECTS_KEYS, notes, "objects.")
    turns = tuple([turn for turn, _ in turns_and_names])
    if len(turns) == 1:  # of several turns the row does not say which is meant
        turns = (replace(turns[0], closed=read_closed(value, closed, notes)),)
    else:
        count_unused_keys({closed: value.get(closed)}, (), notes)
    for turn in turns:
        count_letter_answer(turn.answer.text, notes)
    if writer_keys is not None:
        count_unused_keys(writer_keys, EXTRA_KEYS, notes, f"{CONVERSATION_EXTRA_KEY}.")
        return [_restore_sample(value, writer_keys, refs, turns)]
    path = refs[0].path
    parts = _split_file_name(path)
    whole = Sample(
        id=f"{_make_id_prefix(value)}{file_name}-{row.number}",
        images=refs,
        modality=_find_modality(value, path, source),
        turns=turns,
        group=find_split_group(source, path, images.header(source.prefix + path))
        if source.group or len(parts) < 3
        else f"{parts[1]}--{parts[2]}",
        source=parts[1] if len(parts) > 2 else file_name,
        names=turns_and_names[-1][1],
        side=source.side or "patient",
        split=source.split,
    )
    if source.conversation == "keep" or len(turns) == 1:
        return [whole]
    return [
        replace(whole, id=f"{whole.id}-{k}", turns=(turn,), names=names)
        for k, (turn, names) in enumerate(turns_and_names, start=1)
    ]


def _make_id_prefix(value: dict[str, Any]) -> str:
    """The id of the row and a hyphen. The row number must follow, because the questions of Med-GRIT repeat ids."""
    stated_id = value.get("id")
    if stated_id is None:
        return ""
    if not isinstance(stated_id, str | int) or stated_id == "":
        raise FieldError("id", stated_id, "text or a number is wanted")
    check_unicode(str(stated_id), "id")
    return f"{stated_id}-"


# ---- what our own writer stored -------------------------------------------------------------------------------------


def _apply_writer_keys(writer_keys: Any, source: Source) -> Source:
    """The source with the codec that our writer used, and without a task."""
    if not isinstance(writer_keys, dict) or not isinstance(writer_keys.get("tasks"), list):
        why = "not as the writer leaves it (an object with tasks); write the data anew"
        raise FieldError(CONVERSATION_EXTRA_KEY, writer_keys, why)
    name = writer_keys.get("boxes", "qwen2-vl")
    if source.boxes and source.boxes != name:
        why = f"boxes={source.boxes} is said of the source; leave that away"
        raise FieldError(f"{CONVERSATION_EXTRA_KEY}.boxes", name, why)
    try:
        make_codec(name)
        return replace(source, boxes=name, task=None)
    except BadInput as error:
        raise FieldError(f"{CONVERSATION_EXTRA_KEY}.boxes", name, str(error)) from None


def _restore_sample(
    value: dict[str, Any], writer_keys: dict[str, Any], refs: tuple[ImageRef, ...], turns: tuple[Turn, ...]
) -> Sample:
    """The sample with all that our writer stored beside the conversation."""
    tasks = writer_keys["tasks"]
    if len(tasks) != len(turns):
        why = f"{len(turns)} turns and {len(tasks)} tasks; give each turn its task"
        raise FieldError(f"{CONVERSATION_EXTRA_KEY}.tasks", tasks, why)
    for task in tasks:
        if task not in list(Task):
            raise FieldError(f"{CONVERSATION_EXTRA_KEY}.tasks", task, f"one of {', '.join(Task)} is wanted")
    lists = {key: get_list(writer_keys, key) or [None] * len(turns) for key in ("options", "closed")}
    for key, entries in lists.items():
        if len(entries) != len(turns):
            why = f"{len(turns)} turns and {len(entries)} entries of {key}; give each turn its own"
            raise FieldError(f"{CONVERSATION_EXTRA_KEY}.{key}", entries, why)
    restored_turns = tuple(
        replace(
            turn,
            task=Task(task),
            options=parse_options(options, turn.answer, f"{CONVERSATION_EXTRA_KEY}.options"),
            closed=parse_closed(closed, f"{CONVERSATION_EXTRA_KEY}.closed"),
        )
        for turn, task, options, closed in zip(turns, tasks, *lists.values(), strict=True)
    )
    return assemble_sample(value.get("id"), refs, restored_turns, writer_keys, f"{CONVERSATION_EXTRA_KEY}.")


# ---- turns and images -----------------------------------------------------------------------------------------------


def _parse_conversation(value: dict[str, Any], notes: Counter[str]) -> tuple[list[tuple[str, str]], list[Any]]:
    """Questions and answers without image marks, and the paths of the images."""
    key = "messages" if "messages" in value else "conversations"
    if key not in value:
        raise FieldError("conversations", None, "no conversations and no messages; give the question and its answer")
    if key == "messages" and "conversations" in value:
        raise FieldError("messages", value[key], "the row has conversations, too; keep one of them")
    messages = get_list(value, key)
    is_pairs = messages and isinstance(messages[0], list)
    turns = _parse_pairs(messages, key) if is_pairs else _parse_alternating(messages, key, notes)
    if value.get("system"):
        notes[_SYSTEM_NOTE] += 1
    listed = _list_images(value)
    first_question = turns[0][0]
    marked = _IMG.findall(first_question) if "<img>" in first_question else []
    if marked and listed:
        raise FieldError("images", listed, "images stand both in the text (<img>) and in a list; keep one of them")
    if not marked:
        marks = sum(question.count("<image>") for question, _ in turns)
        if listed and not marks and key == "messages":
            notes["images without a mark in the text, taken as before the question (as ms-swift does)"] += 1
        elif marks != len(listed):
            why = f"{marks} <image> marks for {len(listed)} images; there must be one mark an image"
            raise FieldError("images", listed, why)
        elif not listed:
            raise FieldError("image", None, "the row names no image (or its <img> mark is torn); give one")
    stripped_turns = [
        (_strip_image_marks(question, k, key, marked, notes), answer) for k, (question, answer) in enumerate(turns)
    ]
    for question, answer in stripped_turns:
        for text in (question, answer):
            if "<" in text and (mark := RESERVED.search(text)):
                why = "a mark that is kept for images and turns stands in the text; remove it, or write it otherwise"
                raise FieldError(key, text, f"{mark.group()}: {why}")
    return stripped_turns, marked or listed


_SYSTEM_NOTE = "system prompts, which a sample does not keep"


def _list_images(value: dict[str, Any]) -> list[Any]:
    """The images that the row lists beside the text."""
    image = value.get("image")
    images = get_list(value, "images")
    if image is None:
        return images
    if images:
        raise FieldError("images", images, "the row has image, too; keep one of them")
    return image if isinstance(image, list) else [image]


def _strip_image_marks(question: str, turn: int, key: str, first_images: list[str], notes: Counter[str]) -> str:
    """The question without image marks. Marks must stand at its front or end, as a sample has its images in front."""
    if "<im" not in question:
        return question
    marks = list(_IMG.finditer(question)) or list(_IMAGE.finditer(question))
    if not marks:
        return question
    if turn > 0:
        repeated = [m[1] for m in marks if m.re is _IMG]
        if len(repeated) != len(marks) or not set(repeated) <= set(first_images):
            raise FieldError(f"{key}[{turn}]", question, "an image after the first question; make it a row of its own")
        notes["marks of an image that an earlier question of the row named already"] += 1
    front, rest = question[: marks[-1].end()], question[marks[-1].end() :]
    text_before = marks[0].re.sub("", front)
    if not text_before.strip():
        return rest
    if not rest.strip():
        notes["images moved from behind the question to its front"] += 1
        return text_before
    why = "an image inside a sentence; put all images before the question, or behind it"
    raise FieldError(f"{key}[{turn}]", question, why)


def _parse_pairs(messages: list[Any], key: str) -> list[tuple[str, str]]:
    turns = []
    for k, pair in enumerate(messages):
        if not isinstance(pair, list) or len(pair) != 2:
            raise FieldError(f"{key}[{k}]", pair, "[question, answer] is wanted")
        turns.append((_parse_text(pair[0], f"{key}[{k}][0]"), _parse_text(pair[1], f"{key}[{k}][1]")))
    return turns


def _parse_alternating(messages: list[Any], key: str, notes: Counter[str]) -> list[tuple[str, str]]:
    turns: list[tuple[str, str]] = []
    question: str | None = None
    for k, message in enumerate(messages):
        field = f"{key}[{k}]"
        if not isinstance(message, dict):
            raise FieldError(field, message, "an object with who speaks and what is said is wanted")
        count_unused_keys(message, MESSAGE_KEYS, notes, f"{key}.")
        role, text = message.get("from", message.get("role")), message.get("value", message.get("content"))
        if role == "system":
            notes[_SYSTEM_NOTE] += 1
        elif role in _QUESTION_ROLES and question is None:
            question = _parse_text(text, field)
        elif role in _ANSWER_ROLES and question is not None:
            turns.append((question, _parse_text(text, field)))
            question = None
        elif role in _QUESTION_ROLES or role in _ANSWER_ROLES:
            raise FieldError(field, role, "question and answer must alternate, a question first")
        else:
            roles = ", ".join((*_QUESTION_ROLES, *_ANSWER_ROLES, "system"))
            raise FieldError(field, role, f"who speaks? one of {roles} is wanted")
    if question is not None:
        why = "the last question has no answer; add it, or remove the question"
        raise FieldError(f"{key}[{len(messages) - 1}]", question, why)
    if not turns:
        raise FieldError(key, messages, "empty; give a question and its answer")
    return turns


def _parse_text(value: Any, field: str) -> str:
    """The text of a message; inner blanks and lines stay. OpenAI's parts are joined, with images as marks."""
    if isinstance(value, list):
        value = "".join([_parse_content_part(p, field) for p in value])
    if not isinstance(value, str) or not (text := value.strip()):
        raise FieldError(field, value, "empty or not text; fill it in, or remove the turn")
    check_unicode(text, field)
    return text


def _parse_content_part(part: Any, field: str) -> str:
    """A part of OpenAI's content: {"type": "text", "text"}, {"type": "image"} with or without a path, "image_url"."""
    if isinstance(part, dict):
        kind, text = part.get("type"), part.get("text")
        image = part.get(kind) if kind in ("image", "image_url") else None
        path = image.get("url") if isinstance(image, dict) else image
        if kind == "text" and isinstance(text, str):
            return text
        if kind == "image" and path is None:
            return "<image>"
        if isinstance(path, str) and ":" not in path:
            return f"<img>{path}</img>"
    raise FieldError(field, part, "a part of type text, or image with the path of a file, is wanted")


# ---- boxes ----------------------------------------------------------------------------------------------------------


class _ParsedText(NamedTuple):
    """A text, and the names between its marks."""

    text: BoxedText
    names: tuple[str, ...] = ()


ReadText = Callable[[str, str], _ParsedText]


def _decode_boxes(source: Source, image: ImageRef, text: str, field: str) -> _ParsedText:
    """Decode a text that spells out its boxes as the model family does."""
    if not _MAYBE_A_BOX.search(text):
        return _ParsedText(BoxedText(text))
    codec = _get_codec(source.boxes or ("qwen2-vl" if "<|box_start|>" in text else "qwen-vl"))
    size = _compute_resized_size(image, source, field) if codec.needs_size else None
    decoded = codec.decode(text, size)
    if decoded.unparsed_boxes:
        piece = decoded.unparsed_boxes[0]
        raise FieldError(field, text if len(text) < 60 else piece, f"box {piece}: {codec.explain_unread(piece, size)}")
    refs = _REF.findall(text) if "ref" in text else ()
    names = tuple([a or b for a, b in refs])
    boxed = decoded.answer
    stripped = boxed.text.strip()
    return _ParsedText(boxed if boxed.text == stripped else BoxedText(stripped, boxed.boxes), names)


def _compute_resized_size(image: ImageRef, source: Source, field: str) -> grids.Size:
    if image.width is None or image.height is None:
        raise FieldError(field, image.path, "boxes in pixels need the size of the image: let the images be opened")
    try:
        return grids.smart_resize(image.width, image.height, grids.FACTOR, source.min_pixels, source.max_pixels)
    except BadInput as error:
        raise FieldError("image", image.path, str(error)) from None


class _ObjectsReader:
    """Reads the texts of ms-swift, in which `<bbox>` and `<ref-object>` stand for the objects in their order."""

    def __init__(self, objects: Any, refs: Sequence[ImageRef]) -> None:
        if not isinstance(objects, dict):
            raise FieldError("objects", objects, "an object with ref and bbox is wanted")
        kind = objects.get("bbox_type", "real")
        if kind not in ("real", "norm1"):
            raise FieldError("objects.bbox_type", kind, "real (pixels of the image) or norm1 (fractions) is wanted")
        fields = {f"objects.{key}": member for key, member in objects.items()}  # keys as errors name them
        boxes, names = get_list(fields, "objects.bbox"), get_list(fields, "objects.ref")
        image_ids = get_list(fields, "objects.image_id") or [0] * len(boxes)  # by default the first image
        if any(i != len(refs) - 1 for i in image_ids):
            why = "boxes must be of the last image; make each image a row of its own"
            raise FieldError("objects.image_id", image_ids, why)
        parse_box: Callable[[Any, str], Box] = (
            _parse_fraction_box if kind == "norm1" else partial(parse_pixel_box, image=refs[-1])
        )
        self.boxes = [parse_box(v, f"objects.bbox[{i}]") for i, v in enumerate(boxes)]
        self.names = [_parse_text(v, f"objects.ref[{i}]") for i, v in enumerate(names)]
        self.boxes_used = self.names_used = 0

    def __call__(self, text: str, field: str) -> _ParsedText:
        for piece in _OBJECT_MARK.split(text):
            decoded = _get_codec("qwen2-vl").decode(piece)
            if decoded.answer.boxes or decoded.unparsed_boxes:
                shown = decoded.unparsed_boxes[0] if decoded.unparsed_boxes else piece
                raise FieldError(field, text, f"{shown}: a box written out, while the row has objects; write <bbox>")
        names_before, boxes_before = self.names_used, self.boxes_used
        marked_text = _OBJECT_MARK.sub(partial(self._fill_mark, text, field), text)
        boxes = self.boxes[boxes_before : self.boxes_used]
        return _ParsedText(BoxedText(marked_text, tuple(boxes)), tuple(self.names[names_before : self.names_used]))

    def _fill_mark(self, text: str, field: str, mark: re.Match[str]) -> str:
        if "bbox" in mark.group():
            self.boxes_used += 1
            if self.boxes_used > len(self.boxes):
                raise FieldError(field, text, f"more <bbox> marks than the {len(self.boxes)} boxes of objects.bbox")
            return BOX_MARK
        self.names_used += 1
        if self.names_used > len(self.names):
            raise FieldError(field, text, f"more <ref-object> marks than the {len(self.names)} names of objects.ref")
        return self.names[self.names_used - 1]

    def check_used_up(self) -> None:
        """Raise FieldError if an object has no mark in the texts."""
        for key, used, total in ("bbox", self.boxes_used, len(self.boxes)), ("ref", self.names_used, len(self.names)):
            if used < total:
                why = f"{total} are given and {used} marks in the text ask for them; add marks, or remove the rest"
                raise FieldError(f"objects.{key}", total, why)


def _parse_fraction_box(value: Any, field: str) -> Box:
    corners = require_four_numbers(value, field, "[x1, y1, x2, y2], fractions of the image,")
    if max(corners) > 1:
        raise FieldError(field, value, "beyond 1 where fractions are declared; bbox_type real is pixels")
    try:
        return Box(*corners)
    except BadInput as error:
        raise FieldError(field, value, str(error)) from None


# ---- turns and their tasks ------------------------------------------------------------------------------------------


def _make_turn(number: int, pair: tuple[str, str], read_text: ReadText, source: Source) -> tuple[Turn, tuple[str, ...]]:
    """The turn, and the names that its marks or its answer state."""
    question_field, answer_field = f"question {number}", f"answer {number}"
    question, answer = read_text(pair[0], question_field), read_text(pair[1], answer_field)
    for field, parsed, raw_text in ((question_field, question, pair[0]), (answer_field, answer, pair[1])):
        if not parsed.text.text:
            raise FieldError(field, raw_text, "empty but for marks; fill it in, or remove the turn")
    names = question.names + answer.names
    if len(names) > 1:
        names = tuple(dict.fromkeys(names))
    without_boxes = Task.MIA if source.form == "med-grit" else Task.QA
    task = source.task or infer_task_from_boxes(question.text, answer.text, without_boxes)
    if task is Task.VG and not answer.text.boxes and not denies(answer.text.text):  # "not there" has no box
        raise FieldError(answer_field, pair[1], "no box in an answer of visual grounding; add it")
    if task in (Task.ROC, Task.RC) and not question.text.boxes:
        raise FieldError(question_field, pair[0], f"no box in a question of {task}; add it")
    if task is Task.ROC and not names:
        names = (answer.text.words,)
    return Turn(task, question.text, answer.text), names


def infer_task_from_boxes(question: BoxedText, answer: BoxedText, without: Task) -> Task:
    """The task, from the side that has boxes; `without` if no side has any."""
    if answer.boxes:
        return Task.VG
    if question.boxes:
        is_name = len(answer.text.split()) <= BARE_WORDS and answer.text[-1] not in ".!?"
        return Task.ROC if is_name else Task.RC
    return without


def _split_file_name(path: str) -> list[str]:
    """The parts of a SA-Med2D name: modality_sub, dataset, case, slice."""
    return path.rpartition("/")[2].split("--")


def _find_modality(value: dict[str, Any], path: str, source: Source) -> Modality:
    """The modality of the row, else of the source, else of the SA-Med2D file name."""
    if "modality" in value or source.modality is not None:
        return resolve_modality(value.get("modality"), source)
    return infer_modality_from_name(_split_file_name(path)[0], path.rpartition("/")[2])


def infer_modality_from_name(front: str, name: str) -> Modality:
    """The modality at the front of a SA-Med2D name. Raises FieldError with `name` as value if there is none."""
    try:
        return read_modality(front.split("_")[0])
    except BadInput:
        why = "the name does not begin with a modality, as SA-Med2D's do; give one for all with --modality"
        raise FieldError("modality", name, why) from None
