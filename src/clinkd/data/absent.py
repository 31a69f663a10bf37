"""Training questions where a structure is that the image does not show."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from clinkd.data.questions import ask_absent
from clinkd.language.negation import mentioned_names
from clinkd.language.words import normalise, singular
from clinkd.records import ImageRef, Sample, Task

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
            wanted = math.floor(share * counts[name] + _hash(seed, "number", *kind, name))
            free = [r for r in candidates[kind] if shown[r] and _is_absent(name, shown[r], images[r])]
            free.sort(key=lambda r: (len(added[r]), _hash(seed, "image", name, r[0].path)))
            for refs in free[:wanted]:
                added[refs].append(_make_question(images[refs][0], name, len(added[refs]) + 1, seed))
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


def _make_question(first: Sample, name: str, number: int, seed: int) -> Sample:
    turn = ask_absent(name, random.Random(f"{seed} absent {name} {first.images[0].path}"))
    return replace(first, id=f"{first.id}{_ADDED}{number}", turns=(turn,), names=(name,), facts=())


def _hash(seed: int, *words: str) -> float:
    """A number in [0, 1) that depends only on the arguments."""
    digest = hashlib.sha256("\n".join([str(seed), "absent", *words]).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
