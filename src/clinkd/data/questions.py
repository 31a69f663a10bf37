"""The sentences of the tasks: several ways to ask, one way to answer. Also bare pairs of name and box, crop views, and
questions for structures that are not there."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from clinkd.data.split import compute_hash_rank
from clinkd.language.negation import mentioned_names
from clinkd.language.words import normalise, singular
from clinkd.records import BOX_MARK, Box, BoxedText, ImageRef, Sample, Task, Turn, Variant

MARGINS = (0.1, 1.0)  # least and most of the margin around a box that is shown alone, in sides of the box
WHERE = (
    "Where is the {name} in the image?",
    "Can you locate the {name}?",
    "Please point out the {name}.",
    "In which place does the image show the {name}?",
)
WHAT = (
    "What is at [box]?",
    "Which structure do you see at [box]?",
    "Please name the structure at [box].",
    "What does the region [box] show?",
)
DESCRIBE = (
    "Can you describe the content within the [box]?",
    "Please describe the region [box].",
    "What can you say about [box]?",
    "How does [box] look?",
)
OVERALL = (
    "What can you interpret from the overall image?",
    "Please describe the whole image.",
    "What does this image show?",
    "Can you give a summary of the image?",
)
LABELS = (
    "What is found in this image?",
    "Which finding or findings does this image show?",
    "What would a reader of this image report?",
    "Which diagnosis belongs to this image?",
)
SENTENCES = (  # the verb belongs to the box, not to the name, so that "the lungs" fits as well as "the liver"
    "This region shows the {name}, centred in the {third} third of the picture, and takes up {share} of it.",
    "Here one sees the {name}; the box is centred in the {third} third of the picture and covers {share} of it.",
    "The box holds the {name}, has its centre in the {third} third of the picture and fills {share} of it.",
    "Centred in the {third} third of the picture, on {share} of its area, this box shows the {name}.",
)
SHARES = (  # of boxes below this share of the area; in words, because digits would read as a number of structures
    (0.01, "less than a hundredth"),
    (0.035, "a few hundredths"),
    (0.075, "about a twentieth"),
    (0.175, "about a tenth"),
    (0.29, "about a quarter"),
    (0.415, "about a third"),
    (0.6, "about half"),
    (0.85, "most"),
)


def ask_where(name: str, boxes: Sequence[Box], rng: random.Random) -> Turn:
    """Visual grounding: all boxes of `name`, in the given order.

    The first box follows its name directly, as in the grounding data of Qwen-VL. The token that predicts the first
    coordinate is then the name itself, so that a small model finds the right one of two structures (LOG.md).
    """
    answer = f"Here is the {name}{_join_words(['[box]'] * len(boxes))}."
    return Turn(Task.VG, BoxedText(rng.choice(WHERE).format(name=name)), BoxedText(answer, tuple(boxes)))


def ask_absent(name: str, rng: random.Random) -> Turn:
    """Visual grounding of what the image does not show: an answer without a box."""
    return Turn(Task.VG, BoxedText(rng.choice(WHERE).format(name=name)), BoxedText(f"There is no {name} in the image."))


def ask_what(box: Box, name: str, rng: random.Random) -> Turn:
    """Referring object classification: the answer is the bare name, as in Med-GRIT."""
    return Turn(Task.ROC, BoxedText(rng.choice(WHAT), (box,)), BoxedText(name))


def ask_description(box: Box, sentence: str, rng: random.Random) -> Turn:
    """Referring captioning: one sentence about the box."""
    return Turn(Task.RC, BoxedText(rng.choice(DESCRIBE), (box,)), BoxedText(sentence))


def write_box_sentence(name: str, box: Box, rng: random.Random) -> str:
    """Describe a box by its name, the height of its centre, and its share of the area.

    Left and right are left out, because it is not known whose left it would be.
    """
    middle = box.centre[1]
    third = "upper" if middle < 1 / 3 else "middle" if middle < 2 / 3 else "lower"
    share = next((words for bound, words in SHARES if box.area < bound), "nearly all")
    return rng.choice(SENTENCES).format(name=name, third=third, share=share)


def ask_overall(text: str, rng: random.Random) -> Turn:
    """Medical image analysis: a few sentences about the whole image."""
    return Turn(Task.MIA, BoxedText(rng.choice(OVERALL)), BoxedText(text))


def ask_label(label: str, rng: random.Random) -> Turn:
    """A question about the whole image, which its label answers."""
    return Turn(Task.QA, BoxedText(rng.choice(LABELS)), BoxedText(label))


def _join_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def make_bare_pairs(samples: Sequence[Sample]) -> list[Sample]:
    """Make pairs without sentences: "the NAME" -> name and boxes for each VG sample, box -> name for each ROC sample.

    A general model has seen millions of such pairs before it meets the questions of a hospital. Equal pairs of an image
    are kept once. Other tasks have no pair, and neither has a VG sample without `names` or boxes.
    """
    pairs: dict[tuple[str, Variant | None, BoxedText, BoxedText], Sample] = {}
    for s in samples:
        name = s.names[0] if s.names else s.answer.words if s.task is Task.ROC else ""
        if s.task is Task.VG and name and s.answer.boxes:
            marks = " ".join([BOX_MARK] * len(s.answer.boxes))
            phrase = f"the {name}"
            turn = Turn(Task.VG, BoxedText(phrase), BoxedText(phrase + marks, s.answer.boxes))
        elif s.task is Task.ROC and name and len(s.question.boxes) == 1:
            turn = Turn(Task.ROC, BoxedText(BOX_MARK, s.question.boxes), BoxedText(name))
        else:
            continue
        key = s.images[0].path, s.images[0].variant, turn.question, turn.answer
        pairs.setdefault(key, replace(s, id=f"{s.id}-bare", turns=(turn,), names=(name,), facts=()))
    return list(pairs.values())


def show_boxes_only(sample: Sample, seed: int) -> Sample:
    """The sample with only the boxes of its question and answer shown in its last image, each with a margin.

    A crop-view teacher sees it so. The rest is grey and the image keeps its size, so that the boxes of the answer stay
    where they are. Each of the four margins is drawn between `MARGINS` by seed and id: with equal ones the edge of the
    grey would tell the box to the pixel. A sample without boxes, or without images, stays as it is.
    """
    boxes = (*sample.question.boxes, *sample.answer.boxes)
    if not boxes or not sample.images:
        return sample
    shown = tuple(_widen(box, seed, f"{sample.id} {number}") for number, box in enumerate(boxes))
    return replace(sample, images=(*sample.images[:-1], replace(sample.images[-1], shown=shown)))


def _widen(box: Box, seed: int, name: str) -> Box:
    least, most = MARGINS
    left, up, right, down = (least + (most - least) * compute_hash_rank(seed, f"crop {k}", name) for k in range(4))
    return Box(
        max(0.0, box.x1 - left * box.width), max(0.0, box.y1 - up * box.height),
        min(1.0, box.x2 + right * box.width), min(1.0, box.y2 + down * box.height),
    )  # fmt: skip


# ---- structures that are not there ----------------------------------------------------------------------------------

_ADDED = "+absent"  # in the id, behind that of the image's first sample

Kind = tuple[str, str]  # collection and modality: images of one kind have boxes of the same names
Images = tuple[ImageRef, ...]


def ask_absent_names(
    samples: Sequence[Sample], share: float, seed: int, drawn: Mapping[str, Collection[str]] | None = None
) -> list[Sample]:
    """Questions for structures that an image does not show, which other images of its collection and modality do.

    Each name is asked for so many times: `share` of the times that it is asked for where it is, so that a name alone
    tells little of whether it is there. Among the images without it, those with fewest such questions come first, then
    a hash by seed decides. No image is asked for a name that shares all its words with one that it shows ("lung", "left
    lung"), or that one of its texts mentions. `drawn`: by path, names that images show beyond those of their samples.
    """
    images: dict[Images, list[Sample]] = defaultdict(list)
    for sample in samples if share else ():
        if len(sample.images) == 1:
            images[sample.images].append(sample)
    asked: dict[Kind, Counter[str]] = defaultdict(Counter)
    candidates: dict[Kind, list[Images]] = defaultdict(list)
    for refs, row in images.items():
        candidates[_get_kind(row[0])].append(refs)
        asked[_get_kind(row[0])].update(s.names[0] for s in row if _asks_where(s))
    shown = {refs: _collect_names(row, (drawn or {}).get(refs[0].path, ())) for refs, row in images.items()}
    added: dict[Images, list[Sample]] = defaultdict(list)
    for kind, counts in asked.items():
        for name in sorted(counts):
            wanted = math.floor(share * counts[name] + _compute_hash(seed, "number", *kind, name))
            free = [r for r in candidates[kind] if shown[r] and _is_absent(name, shown[r], images[r])]
            free.sort(key=lambda r: (len(added[r]), _compute_hash(seed, "image", name, r[0].path)))
            for refs in free[:wanted]:
                added[refs].append(_make_absent_question(images[refs][0], name, len(added[refs]) + 1, seed))
    return [sample for refs in images for sample in added[refs]]


def drop_added(samples: Sequence[Sample]) -> list[Sample]:
    """The samples of the data alone. Image-blind baselines learn from these: the test questions are the data's, too,
    and answers that a structure is not there would only make a baseline weaker than it can be."""
    return [s for s in samples if not re.search(rf"{re.escape(_ADDED)}\d+$", s.id)]


def _get_kind(sample: Sample) -> Kind:
    return sample.source, sample.modality.value


def _asks_where(sample: Sample) -> bool:
    return sample.task is Task.VG and len(sample.names) == 1 and bool(sample.answer.boxes)


def _collect_names(row: Sequence[Sample], drawn: Collection[str]) -> set[str]:
    """The names of the boxes of an image; none if it has no boxes: then nobody looked for any."""
    return {name for s in row for name in s.names} | set(drawn)


def _is_absent(name: str, shown: Collection[str], row: Sequence[Sample]) -> bool:
    words = _split_words(name)
    if any(words <= other or other <= words for other in map(_split_words, shown)):
        return False
    texts = (text.words for s in row for turn in s.turns for text in (turn.question, turn.answer))
    return not any(mentioned_names(text, (name,)) for text in texts)


def _split_words(name: str) -> set[str]:
    return {singular(word) for word in normalise(name).split()}


def _make_absent_question(first: Sample, name: str, number: int, seed: int) -> Sample:
    turn = ask_absent(name, random.Random(f"{seed} absent {name} {first.images[0].path}"))
    return replace(first, id=f"{first.id}{_ADDED}{number}", turns=(turn,), names=(name,), facts=())


def _compute_hash(seed: int, *words: str) -> float:
    """A number in [0, 1) that depends only on the arguments."""
    digest = hashlib.sha256("\n".join([str(seed), "absent", *words]).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
