"""Rewrites: the offline ones always pass, corrupted ones never do, and what is fed back is what was verified."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clinkd.correction.correctors import (
    OfflineCorrector,
    ReplayCorrector,
    Rewrite,
    RewriteProposals,
    Wrong,
    correct,
    make_corrected_samples,
)
from clinkd.correction.verify import verify
from clinkd.language.facts import Lexicon, read_facts
from clinkd.records import BadInput, Box, BoxedText, Correction, Modality, Sample, Task, Turn
from clinkd.remote import Scrubber

LEXICON = Lexicon(
    names=("kidney", "liver", "lung", "left lung", "optic disc", "spleen", "adrenal gland", "polyps"),
    sizes=("small", "large"),
    sides=("left", "right"),
    brightness=("bright", "dark"),
)
BOXES = (Box(0.1, 0.1, 0.5, 0.5), Box(0.25, 0.5, 0.75, 1.0), Box(0.0, 0.0, 0.125, 0.25))
ODD = [
    *("Yes", "no", "No, the liver is normal.", "5.6cm focal, predominantly hypodense", "T2", "2", "one", "\u00c4rzte"),
    *("right sided pleural effusion", "There is no tumor.", "X-ray of the chest", "Not seen.", "<5 mm", "[box]", "?"),
    *(
        "See [box], then [box]; also [box]",
        "A. B. C.",
        "the lungs are clear",
        "E. coli & others",
        "both",
        "\u809d\u81d3",
    ),
    *("The liver is large. It is not bright. The spleen is small.", "without contrast", "Neither.", "Head of pancreas"),
    *("multiple lines\nof text", "An image with {braces} and {0}", "**bold** `code` http://a.b", "no no no", "left"),
]


def sample(id: str, text: str, task: Task, boxes: tuple[Box, ...] = BOXES) -> Sample:
    turn = Turn(task, BoxedText("What is it?"), BoxedText(text, boxes[: text.count("[box]")]))
    return Sample(id, (), Modality.CT, (turn,), group=id, names=("kidney",))


def wrong(one: Sample, round: int = 1) -> Correction:
    return Correction(one.id, round, BoxedText("something"), one.answer, 0.1, ("similarity",))


def offline(seed: int, one: Sample, wrong: Correction) -> list[Rewrite]:
    """All proposals of the offline corrector."""
    (found,) = OfflineCorrector(seed).rewrite([Wrong(one, wrong)])
    return list(found.proposals)


@pytest.mark.parametrize("task", [Task.QA, Task.ROC, Task.MIA])
@pytest.mark.parametrize(
    "text",
    [
        "Herr Quagga", "Frau Dr. Quagga", "Mme Quagga.", "A cyst, seen by Dr. Quagga.",
        "Quagga has a cyst in the liver.", "The scan shows Mrs Quagga's liver. A cyst is on the left.",
        "Quagga-7 in the liver", "Here is Prof Quagga",
    ],
)  # fmt: skip
def test_a_rewording_undoes_no_scrubbing(text: str, task: Task) -> None:
    """What is hidden in a truth before it leaves is hidden in each rewording, too: a name in small letters was not."""
    one = sample("a", text, task)
    scrubber = Scrubber(common=["cyst", "liver", "the", "left", "seen", "scan", "shows", "has", "here", "is", "in"])
    assert "quagga" not in scrubber.masked().hide(text).casefold()
    for seed in range(3):
        (found,) = OfflineCorrector(seed, scrubber).rewrite([Wrong(one, wrong(one))])
        texts = [proposal.answer.text for proposal in found.proposals]
        assert len(texts) > 1 and texts[-1] == text and all("Quagga" in t for t in texts)
        assert not [t for t in texts if "quagga" in scrubber.masked().hide(t).casefold()]
        for t in offline(seed, one, wrong(one)) if "has" not in text and "-7" not in text else ():
            assert "quagga" not in Scrubber().plain(t.answer.text).casefold()  # a title is enough for a page


def truths(count: int) -> Iterator[Sample]:
    """Truths as the phantoms state them, in all tasks, and odd ones."""
    draw = random.Random(0)
    for at in range(count):
        a, b = draw.sample(LEXICON.names, 2)
        side_a, side_b = draw.sample(LEXICON.sides, 2)
        first, second = (
            f"{draw.choice(['', *(s + ' ' for s in LEXICON.sizes)])}{draw.choice(['', 'bright ', 'dark '])}{n}"
            for n in (a, b)
        )
        task, text = draw.choice(
            [
                (Task.VG, f"The {a} is at [box]."),
                (Task.VG, f"The {a} is located at [box] and [box]."),
                (Task.VG, f"The {a} is at [box] and the {b} is at [box]."),
                (Task.ROC, a),
                (Task.ROC, f"The {a}."),
                (Task.RC, f"A {first} on the {side_a} side of the image."),
                (Task.RC, f"There is a {first} on the {side_a}."),
                (Task.MIA, f"A CT image with a single structure. On the {side_a} there is a {first}."),
                (
                    Task.MIA,
                    f"A CT image with two structures. On the {side_a} there is a {first}. "
                    f"On the {side_b} there is a {second}.",
                ),
                (Task.MIA, f"This X-ray shows two structures: a {first} on the {side_a} and a {second}. No mass."),
                (draw.choice([Task.QA, Task.ROC, Task.MIA]), draw.choice(ODD)),
            ]
        )
        yield sample(f"s{at}", text, task)


@pytest.mark.parametrize("number", [800, pytest.param(3000, marks=pytest.mark.slow)])
def test_offline_corrections_are_always_accepted_and_keep_every_fact(number: int) -> None:
    samples = list(truths(number))
    found = correct([wrong(s) for s in samples], samples, OfflineCorrector(1), LEXICON)
    changed = 0
    for one, correction in zip(samples, found, strict=True):
        assert correction.after is not None and correction.rejected is None, one.answer.text
        assert correction.by == "offline"
        assert correction.after.boxes == one.answer.boxes
        assert set(read_facts(correction.after.text, LEXICON)) == set(read_facts(one.answer.text, LEXICON))
        changed += correction.after != one.answer
    assert changed > 0.9 * len(samples)


@pytest.mark.parametrize("number", [400, pytest.param(1500, marks=pytest.mark.slow)])
def test_nearly_every_wording_of_a_phantom_truth_passes(number: int) -> None:
    """The rules are written for these truths; the check is not there to sift them."""
    tried, refused = 0, []
    for one in truths(number):
        if one.task is Task.QA or one.answer.text in ODD:
            continue
        for rewrite in offline(2, one, wrong(one)):
            tried += 1
            if why := verify(one, rewrite.answer, LEXICON):
                refused.append((one.answer.text, rewrite.answer.text, why))
    assert len(refused) < 0.02 * tried, random.Random(0).sample(refused, 10)


def test_offline_rewrites_depend_on_seed_sample_and_round_only() -> None:
    one = sample("s", "A CT image with two structures. On the left is a liver. A small kidney on the right.", Task.MIA)
    first = offline(0, one, wrong(one))
    assert first == offline(0, one, replace(wrong(one), before=BoxedText("x"), similarity=0.5))
    others = [
        offline(0, one, wrong(one, 2)),
        offline(3, one, wrong(one)),
        offline(0, replace(one, id="t"), wrong(one)),
    ]
    assert any(o != first for o in others)
    assert len({r.answer.text for o in [first, *others] for r in o}) > 6


def test_the_truth_itself_passes() -> None:
    for one in truths(500):
        assert verify(one, one.answer, LEXICON) is None


MIA = "A CT image with two structures. On the left there is a small kidney. On the right there is a dark liver."
VG = "The kidney is at [box] and the liver is at [box]."


@pytest.mark.parametrize(
    ("truth", "text", "boxes", "why"),
    [
        (VG, VG, (BOXES[1], BOXES[0]), "boxes"),
        (VG, VG, (BOXES[0], Box(0.25, 0.5, 0.75, 0.999)), "boxes"),
        (VG, "The kidney and the liver are at [box].", BOXES[:1], "boxes"),
        (VG, "The liver is at [box] and the kidney is at [box].", BOXES[:2], "order"),
        (VG, "The spleen is at [box] and the liver is at [box].", BOXES[:2], "spleen"),
        (VG, "The kidney is at [box] and the other at [box].", BOXES[:2], "leaves out: liver"),
        (MIA, MIA.replace("left", "right", 1), (), "laterality"),
        (MIA, MIA.replace("On the left there", "There"), (), "laterality"),
        (MIA, MIA.replace("left", "one side").replace("right", "other"), (), "left or right"),
        (MIA, MIA.replace("two", "three"), (), "count"),
        (MIA, MIA.replace("with two structures", "with structures"), (), "count"),
        (MIA, MIA.replace("there is a small kidney", "there is no small kidney"), (), "negation"),
        (MIA, MIA.replace("small", "large"), (), "attributes"),
        (MIA, MIA.replace("small", ""), (), "attributes"),
        (MIA, MIA.replace("kidney", "liver#").replace("dark liver", "dark kidney").replace("#", ""), (), "laterality"),
        (MIA, MIA.replace("small kidney", "dark kidney").replace("dark liver", "small liver"), (), "attributes"),
        (MIA, MIA + " No spleen.", (), "spleen"),
        (MIA, MIA * 3, (), "length"),
        ("kidney", "It is the kidney, as anyone who has looked at this before would say.", (), "length"),
        ("There is a tumor that has grown through the wall over many years.", "There is a tumor.", (), "length"),
        (MIA, MIA + " See http://example.org.", (), "link"),
        (MIA, MIA + " <b>bold</b>", (), "markup"),
        (MIA, MIA + " <|im_end|>", (), "markup"),
        (MIA, MIA.replace("CT", "**CT**"), (), "markup"),
        (MIA, MIA + "\x00", (), "control"),
        (MIA, MIA.replace(". ", ".\n"), (), "control"),
        (MIA, MIA.replace("kidney", "kid\u200bney"), (), "kidney"),
        (MIA, MIA + "\u202e", (), "control"),
        (VG, VG.replace(".", " (123,456)."), BOXES[:2], "figures"),
        ("There is no tumor.", "There is something.", (), "negation"),
        ("There is a tumor.", "There is no tumor.", (), "negation"),
        ("No", "The answer is yes.", (), "negation"),
        ("Yes", "It is.", (), "yes"),
        ("left lung", "the lung", (), "lung"),
        # letters that look like others
        ("There is a kidney.", "There is n\u043e kidney.", (), "alphabet"),
        ("The kidney is seen.", "The l\u0435ft kidney is seen.", (), "alphabet"),
        ("The kidney is seen.", "The r\u0131ght kidney is seen.", (), "alphabet"),
        ("The kidney is seen.", "The le\u034fft kidney is seen.", (), "alphabet"),
        ("The kidney is seen.", "The l\u00e9ft kidney is seen.", (), "left or right"),
        ("The kidney is seen.", "The le\u0301ft kidney is seen.", (), "left or right"),
        ("The kidney is seen.", "The \uff4ceft kidney is seen.", (), "left or right"),
        ("The kidney is seen.", "The kidney and the \u0455pleen.", (), "alphabet"),
        ("The kidney is seen.", "The \u216b kidneys are seen.", (), "alphabet"),
        ("The kidney is seen.", "The kidney is seen at \uff12.", (), "alphabet"),
        # the same names and boxes, but not to each other
        (
            "A kidney at [box], a liver at [box], a kidney at [box].",
            "A kidney at [box], a kidney at [box], a liver at [box].",
            BOXES,
            "order",
        ),
        (
            "Kidneys at [box], [box] and a liver at [box].",
            "Kidneys at [box] and a liver at [box], [box].",
            BOXES,
            "order",
        ),
        (
            "At [box] is a kidney, at [box] a liver, at [box] a kidney.",
            "At [box] is a kidney. A liver is at [box]. At [box], too.",
            BOXES,
            "order",
        ),
    ],
)
def test_corrupted_rewrites_are_refused(truth: str, text: str, boxes: tuple[Box, ...], why: str) -> None:
    one = sample("s", truth, Task.MIA)
    refused = verify(one, BoxedText(text, boxes), LEXICON)
    assert refused is not None and why in refused
    assert "\n" not in refused


@pytest.mark.parametrize(
    ("truth", "text"),
    [
        (VG, "You will find the kidney at [box]; the liver lies at [box]."),
        (MIA, "Two structures are seen in this CT: a small kidney on the left and a dark liver on the right."),
        ("There is no tumor.", "No tumor is seen."),
        ("No", "The answer is no."),
        ("left lung", "It is the left lung."),
        ("The kidney is enlarged.", "The kidney is h\u00e9 enlarged \u2013 \u201cclearly\u201d."),
        ("\u0141. kidney \u00bd seen, M\u00fcller.", "Seen: kidney \u00bd, \u0142. Mu\u0308ller."),
        (
            "A kidney at [box], a liver at [box], a kidney at [box].",
            "At [box] is a kidney. A liver is at [box]; there is a kidney at [box].",
        ),
        ("Kidneys at [box], [box] and a liver at [box].", "[box] and [box] are kidneys. It is a liver at [box]."),
        ("5.6cm focal, predominantly hypodense", "A focal, predominantly hypodense area of 5.6 cm"),
    ],
)
def test_honest_paraphrases_pass(truth: str, text: str) -> None:
    assert verify(sample("s", truth, Task.MIA), BoxedText(text, BOXES[: text.count("[box]")]), LEXICON) is None


def test_random_corruption_of_one_word_never_passes() -> None:
    swaps = {
        **{"left": "right", "right": "left", "small": "large", "large": "small", "bright": "dark", "dark": "bright"},
        **{"two": "three", "kidney": "spleen", "liver": "kidney", "spleen": "liver", "single": "two"},
    }
    draw, tried = random.Random(4), 0
    for one in truths(1500):
        words = offline(5, one, wrong(one))[0].answer.text.split(" ")
        places = [i for i, w in enumerate(words) if w.strip(".,").lower() in swaps]
        if places and one.answer.text not in ODD:
            at = draw.choice(places)
            core = words[at].strip(".,").lower()
            words[at] = words[at].lower().replace(core, swaps[core])
            text = BoxedText(" ".join(words), one.answer.boxes)
            assert verify(one, text, LEXICON) is not None, (one.answer.text, text.text)
            tried += 1
    assert tried > 800


class Says:
    """A corrector that proposes what it is told to."""

    name = "told"

    def __init__(self, *proposals: BoxedText) -> None:
        self.proposals = proposals

    def rewrite(self, wrong: Sequence[Wrong]) -> Iterator[RewriteProposals]:
        return (RewriteProposals(tuple(Rewrite(p, "someone") for p in self.proposals)) for _ in wrong)


def test_the_first_proposal_that_passes_is_taken() -> None:
    one = sample("s", "kidney", Task.ROC)
    spleen, right, also = BoxedText("spleen"), BoxedText("It is the kidney."), BoxedText("The kidney.")
    (found,) = correct([wrong(one)], [one], Says(spleen, right, also), LEXICON)
    assert (found.after, found.by, found.rejected) == (right, "someone", None)


def test_a_refused_rewrite_leaves_the_truth_and_says_why() -> None:
    one = sample("s", "kidney", Task.ROC)
    for corrector, why in ((Says(BoxedText("spleen"), BoxedText("")), "spleen"), (Says(), "no rewrite")):
        (found,) = correct([wrong(one)], [one], corrector, LEXICON)
        assert found.after is None and found.by == ("someone" if corrector.proposals else "told")
        assert found.rejected is not None and why in found.rejected
        assert make_corrected_samples([one], [found]) == []


def test_right_and_finished_answers_pass_through() -> None:
    one = sample("s", "kidney", Task.ROC)
    right = replace(wrong(one), reasons=())
    done = replace(wrong(one), after=one.answer, by="human")
    refused = replace(wrong(one), by="told", rejected="length")
    assert correct([right, done, refused], [one], OfflineCorrector(0), LEXICON) == [right, done, refused]


def test_corrected_pairs_are_fed_back_as_samples_of_their_own() -> None:
    samples = list(truths(50))
    found = correct([wrong(s, 2) for s in samples[::2]], samples, OfflineCorrector(0), LEXICON)
    fed = make_corrected_samples(samples, found)
    assert [f.id for f in fed] == [f"{s.id}+r2" for s in samples[::2]]
    for one, new, correction in zip(samples[::2], fed, found, strict=True):
        assert new.answer == correction.after
        assert (new.question, new.group, new.task, new.modality) == (one.question, one.group, one.task, one.modality)
        assert Correction.from_json(correction.to_json()) == correction


def test_a_correction_without_its_sample_is_refused() -> None:
    one = sample("s", "kidney", Task.ROC)
    with pytest.raises(BadInput, match="'s'"):
        correct([wrong(one)], [], OfflineCorrector(0), LEXICON)


# ---- replay of a file -----------------------------------------------------------------------------------------------


def lines(path: Path, *found: Correction | dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(f if isinstance(f, dict) else f.to_json()) + "\n" for f in found))
    return path


def test_a_file_that_a_person_edited_is_replayed_and_verified(tmp_path: Path) -> None:
    samples = [sample(i, "The kidney is at [box].", Task.VG) for i in ("good", "bad", "gone", "none", "later")]
    good = replace(wrong(samples[0]), after=BoxedText("Here, the kidney is at [box].", BOXES[:1]), by="human")
    bad = replace(wrong(samples[1]), after=BoxedText("Here, the kidney is at [box].", BOXES[1:2]), by="human")
    none = replace(wrong(samples[3]), by="gpt", rejected="length")
    later = replace(good, id="later", round=2)
    path = lines(tmp_path / "c.jsonl", good, bad, none, later)
    found = correct([wrong(s) for s in samples], samples, ReplayCorrector(path), LEXICON)
    assert (found[0].after, found[0].by, found[0].rejected) == (good.after, "human", None)
    assert found[1].after is None and found[1].by == "human" and "boxes differ" in str(found[1].rejected)
    assert [c.rejected for c in found[2:]] == ["the file has no line for it", "length", "the file has no line for it"]
    assert correct(found, samples, ReplayCorrector(path), LEXICON) == found


def with_after(text: str, boxes: list[list[float]]) -> str:
    return json.dumps({**wrong(sample("s", "x", Task.QA)).to_json(), "after": {"text": text, "boxes": boxes}})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not a correction"),
        ("[1]", "line 2: not a correction"),
        ('{"id": "a"}', "line 2: not a correction"),
        (with_after("[box]", []), "1 .box."),
        (with_after("[box]", [[9, 0, 1, 1]]), "empty or outside"),
        (json.dumps(wrong(sample("first", "kidney", Task.ROC)).to_json()), "'first' of round 1 stands twice"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_correction_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = lines(tmp_path / "c.jsonl", wrong(sample("first", "kidney", Task.ROC)))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadInput, match=says) as told:
        ReplayCorrector(path)
    assert "line 2" in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"reflect.replay=.*No such file"):
        ReplayCorrector(tmp_path / "none.jsonl")
