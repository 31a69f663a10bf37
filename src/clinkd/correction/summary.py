"""Tables of a review and its rewrites: by test, task, modality and author."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, TypeVar

from clinkd.correction.review import MISSES, find_misses
from clinkd.records import Correction, Modality, Sample, Table, Task

REASONS = ("similarity", "box", "laterality", "negation", "count")
CONFLICTS = REASONS[2:]  # the third of the three tests has three parts
_ALONE = tuple(f"{r} alone" for r in REASONS)
_COLUMNS = ("reviewed", "wrong", *REASONS, *_ALONE, "corrected", "rejected")
_CELL = tuple[int, Task, Modality]
PAPERS_THRESHOLD = 0.8  # of the paper's plain rule, which looks at nothing else
_SIMILARITIES = {
    "embedding": "cosine of the sentence embedding, as in the paper",
    "offline": "similarity of words by rules (reflect.similarity=offline), in the place of the paper's cosine, which "
    "was not computed",
}
T = TypeVar("T")


def summary(corrections: Iterable[Correction], samples: Sequence[Sample]) -> Table:
    """Counts by round, task and modality, and a last row with their sums. One answer may be wrong for several reasons;
    "box alone" are those that no other test would have found.

    A row is left out where nothing was reviewed.
    """
    counts = _count_corrections(corrections, samples)
    rows = [(str(r), t.value, m.value, *(str(counts[r, t, m][k]) for k in _COLUMNS)) for r, t, m in _sort_cells(counts)]
    total = sum(counts.values(), Counter[str]())
    rows.append(("all", "all", "all", *(str(total[k]) for k in _COLUMNS)))
    return Table("Reflection: answers reviewed and corrected", ("round", "task", "modality", *_COLUMNS), tuple(rows))


def reflection_tables(corrections: Sequence[Correction], samples: Sequence[Sample]) -> list[Table]:
    """For the report: the wrong answers by test, their rewrites, and both by round, task and modality."""
    return (
        [_tabulate_tests(corrections), _tabulate_outcomes(corrections), _tabulate_reviewed(corrections, samples)]
        if corrections
        else []
    )


def describe_review(corrections: Iterable[Correction], names: Sequence[str]) -> dict[str, Any]:
    """Counts of one round, for a program: reviewed, wrong, to be rewritten, rewritten and, by reason, refused answers,
    and as `passed` what the paper's plain rule lets pass.

    Of `passed`: the `answers` at least as similar to their truth as the paper's 0.8; those of them that are `wrong`;
    and how many of these by each kind of `MISSES` (an answer may be wrong in several). `names`: class names of the
    data.
    """
    reviewed = list(corrections)
    similar = [c for c in reviewed if c.similarity >= PAPERS_THRESHOLD]
    misses = [kinds for c in similar if (kinds := find_misses(c.before, c.truth, names))]
    by_kind = {kind: sum(kind in kinds for kinds in misses) for kind in MISSES}
    return {
        "reviewed": len(reviewed),
        "wrong": sum(c.wrong for c in reviewed),
        "to_rewrite": sum(c.to_rewrite for c in reviewed),
        "rewritten": sum(c.after is not None for c in reviewed),
        "refused": dict(Counter(_refusal_kind(c.rejected) for c in reviewed if c.rejected is not None).most_common()),
        "passed": {"answers": len(similar), "wrong": len(misses), **by_kind},
    }


def count_changes(wrong_before_after: Iterable[tuple[bool, bool]]) -> dict[str, int]:
    """Of answers asked again: those wrong before, of them `mended`, those right before, and of them `broken`."""
    counts = Counter(wrong_before_after)
    mended, broken = counts[True, False], counts[False, True]
    return {"wrong": counts[True, True] + mended, "mended": mended, "right": counts[False, False] + broken,
            "broken": broken}  # fmt: skip


def passed_table(corrections: Sequence[Correction], names: Sequence[str], similarity: str) -> Table:
    """The wrong answers that the paper's plain rule lets pass, by round and kind; `similarity`: that of the knobs."""
    rounds = sorted({c.round for c in corrections})
    passed = [describe_review([c for c in corrections if c.round == n], names)["passed"] for n in rounds]
    titles = {"answers": f"At least {PAPERS_THRESHOLD} similar to the truth", "wrong": "  of these wrong"}
    titles |= {kind: f"    {_MISSES[kind]}" for kind in MISSES}
    rows = tuple((title, *(f"{counts[key]:,}" for counts in passed)) for key, title in titles.items())
    notes = (
        f"Similarity: {_SIMILARITIES[similarity]}. The paper's plain rule takes all of these answers for right.",
        "An answer may be wrong in several ways.",
    )
    return Table("Wrong answers that similarity alone lets pass", ("", *(f"Round {n}" for n in rounds)), rows, notes)


_MISSES = {
    "box": "a box elsewhere (IoU below 0.5)", "name": "another structure named", "laterality": "another side",
    "negation": "denied, or affirmed, against the truth", "count": "another number",
}  # fmt: skip


def _count_corrections(corrections: Iterable[Correction], samples: Sequence[Sample]) -> dict[_CELL, Counter[str]]:
    task_and_modality = {s.id: (s.task, s.modality) for s in samples}
    counts: dict[_CELL, Counter[str]] = {}
    for c in corrections:
        cell = counts.setdefault((c.round, *task_and_modality[c.id]), Counter())
        cell.update(["reviewed", *c.reasons, *(f"{r} alone" for r in c.reasons if len(c.reasons) == 1)])
        cell.update({"wrong": int(c.wrong), "corrected": int(c.after is not None), "rejected": int(bool(c.rejected))})
    return counts


def _sort_cells(cells: Iterable[_CELL]) -> list[_CELL]:
    tasks, modalities = list(Task), list(Modality)
    return sorted(cells, key=lambda key: (key[0], tasks.index(key[1]), modalities.index(key[2])))


def _tabulate_tests(corrections: Sequence[Correction]) -> Table:
    """The wrong answers that each of the three tests, and each part of the third, found in a round."""
    rounds = sorted({c.round for c in corrections})
    wrong = {n: [c for c in corrections if c.round == n and c.wrong] for n in rounds}
    tests = [
        ("Words: similarity", ("similarity",)),
        ("Boxes: IoU", ("box",)),
        ("Contradictions", CONFLICTS),
        *((f"  {part}", (part,)) for part in CONFLICTS),
    ]
    rows = []
    for name, reasons in tests:
        row = [name]
        for n in rounds:
            matching = [c for c in wrong[n] if set(c.reasons) & set(reasons)]
            alone = sum(set(c.reasons) <= set(reasons) for c in matching)
            row += [str(len(matching)), _spell_percent(len(matching), len(wrong[n])), str(alone)]
        rows.append(tuple(row))
    heads = tuple(head for n in rounds for head in (f"Round {n}: found", "% of wrong", "Alone"))
    text = "; ".join(
        f"round {n}: {len(wrong[n]):,} of {sum(c.round == n for c in corrections):,} answers were wrong" for n in rounds
    )
    notes = (f"{text[:1].upper()}{text[1:]}.", "Alone: no other test would have found it.")
    return Table("Which test found the wrong answers", ("", *heads), tuple(rows), notes)


def _tabulate_outcomes(corrections: Sequence[Correction]) -> Table:
    """The numbers of rewrites by author, and of refused rewrites by reason and author."""
    rounds = sorted({c.round for c in corrections})
    chosen = [c for c in corrections if c.to_rewrite]
    drawn = any(c.drawn is not None for c in corrections)

    def row(name: str, corrections_of_row: Iterable[Correction]) -> tuple[str, ...]:
        counts = Counter(c.round for c in corrections_of_row)
        return (name, *(f"{counts[n]:,}" for n in rounds))

    rows = [row("Answers drawn, wrong or right" if drawn else "Wrong answers", chosen)]
    for by, rewritten in _group_pairs((c.by, c) for c in chosen if c.after is not None):
        rows.append(row(f"Rewritten by {by or '?'}", rewritten))
    refused = [c for c in chosen if c.rejected is not None]
    rows.append(row("Refused: the truth stays", refused))
    for kind, group in _group_pairs((f"{_refusal_kind(c.rejected or '')} ({c.by or '?'})", c) for c in refused):
        rows.append(row(f"  {kind}", group))
    untouched = [c for c in chosen if c.after is None and c.rejected is None]
    rows += [row("Left as they were", untouched)] if untouched else []
    notes = (
        "Code refuses a rewriting that does not keep the truth's boxes, names and meaning; in brackets, who wrote it.",
    )
    title = "What became of the answers drawn" if drawn else "What became of the wrong answers"
    return Table(title, ("", *(f"Round {n}" for n in rounds)), tuple(rows), notes)


def _group_pairs(pairs: Iterable[tuple[str, T]]) -> list[tuple[str, list[T]]]:
    """Values by name, the largest group first."""
    groups: dict[str, list[T]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def _refusal_kind(rejected: str) -> str:
    """The kind of a refusal, without the details of one answer: the part before a colon, without figures."""
    return re.sub(r"\d+(?:\.\d+)?", "…", rejected.partition(":")[0]).strip()[:60] or "no reason given"


def _tabulate_reviewed(corrections: Sequence[Correction], samples: Sequence[Sample]) -> Table:
    counts = _count_corrections(corrections, samples)
    rows = []
    for (number, task), cells in groupby(_sort_cells(counts), key=lambda cell: cell[:2]):
        by_modality = [(modality, counts[number, task, modality]) for _, _, modality in cells]
        total = sum((c for _, c in by_modality), Counter[str]())
        rows.append((f"Round {number}, {task.value}", *_count_cells(total)))
        rows += [(f"  {modality.value}", *_count_cells(c)) for modality, c in by_modality]
    columns = ("", "Reviewed", "Wrong", "% wrong", *(r.capitalize() for r in REASONS), "Rewritten", "Refused")
    notes = ("Under each test: how many it found, and in brackets how many it alone.",)
    return Table("Reviewed answers by task and modality", columns, tuple(rows), notes)


def _count_cells(counts: Counter[str]) -> tuple[str, ...]:
    by_reason = (f"{counts[r]} ({counts[alone]})" for r, alone in zip(REASONS, _ALONE, strict=True))
    share = _spell_percent(counts["wrong"], counts["reviewed"])
    return (
        f"{counts['reviewed']:,}", f"{counts['wrong']:,}", share, *by_reason,
        f"{counts['corrected']:,}", f"{counts['rejected']:,}",
    )  # fmt: skip


def _spell_percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
