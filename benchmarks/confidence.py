"""Is the confidence of an answer worth more than the share of right ones? Of finished runs, by kind of question.

    python -m benchmarks.confidence RUN RUN ...            fitted to validation answers, judged on test answers
    python -m benchmarks.confidence RUN RUN ... --halves   rivals: fitted to one half of the test patients, judged on
                                                           the other, and the other way round, twice

A RUN is a folder under runs/, which is only read. Skill: by how much of the Brier score of the share of right answers a
confidence is better, with a 95 % interval over patients; ECE: of ten bins of as many answers.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.report import Row, add_outputs, show
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoTokenizer

from clinkd.inference import rerank
from clinkd.inference.confidence import ConfidenceRow, describe_answer, fit_confidence, name_kind
from clinkd.inference.self_consistency import self_consistency
from clinkd.language.agreement import is_wrong
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.models import make_scorer
from clinkd.pipeline.prepared import read_data, read_predictions, read_split
from clinkd.pipeline.runs import open_run
from clinkd.pipeline.steps import ANSWER_FILES
from clinkd.records import Split
from clinkd.scoring.calibration import compute_ece, find_equal_mass_edges

Rows = list[ConfidenceRow]
Method = Callable[[Rows, Rows], list[float | None]]


def read_rows(folder: Path, split: Split) -> dict[str, Rows]:
    """By kind of question, the answers of a split, chosen as the run chose."""
    run = open_run(folder)
    stages = {str(s["name"]): s for s in run.stages}
    recorded = stage_record(run.stage("select"))["recorded"]
    open_image, lexicon = read_data(run.stage("prepare"))
    clip = run.stage("clip") if "clip" in stages else None
    scorer = make_scorer(run.config.select, clip, open_image, lexicon, run.config.seed, recorded)
    tokenizer = AutoTokenizer.from_pretrained(run.stage(run.last_trained) / "model")
    samples = {s.id: s for s in read_split(run.stage("prepare"), split)}
    answers = read_predictions(run.stage("answer"), ANSWER_FILES[split])
    rows = defaultdict(list)
    for p in rerank(samples, answers, scorer, recorded["reordered_tasks"]):
        sample, text = samples[p.id], p.answer.answer
        lengths = [
            max(1, len(tokenizer.encode(c.raw, add_special_tokens=False)) + (not c.truncated)) for c in p.candidates
        ]
        support = self_consistency(p, lengths, lexicon.names).value
        features = describe_answer(p, support, scorer.name)
        right = not is_wrong(text, sample.answer, lexicon.names)
        assert features
        rows[name_kind(sample.question, text)].append(ConfidenceRow(features, right, sample.group))
    return rows


# ---- rivals ---------------------------------------------------------------------------------------------------------


def share(known: Rows, asked: Rows) -> list[float | None]:
    return [(sum(r.right for r in known) + 1) / (len(known) + 2)] * len(asked)


def support(known: Rows, asked: Rows) -> list[float | None]:
    return [float(1 / (1 + np.exp(-r.features[0]))) for r in asked]


def isotonic(known: Rows, asked: Rows) -> list[float | None]:
    model = IsotonicRegression(out_of_bounds="clip", y_min=1 / (len(known) + 2), y_max=1 - 1 / (len(known) + 2))
    model.fit([r.features[0] for r in known], [r.right for r in known])
    return list(model.predict([r.features[0] for r in asked]))


def shipped(known: Rows, asked: Rows) -> list[float | None]:
    fitted = fit_confidence(known)
    return [fitted.estimate(r.features) for r in asked]


def logistic(*columns: int) -> Method:
    def estimate(known: Rows, asked: Rows) -> list[float | None]:
        if len({r.right for r in known}) == 1:
            return share(known, asked)
        known_NF, asked_NF = (np.array([r.features for r in rows])[:, columns] for rows in (known, asked))
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(known_NF, [r.right for r in known])
        return list(model.predict_proba(asked_NF)[:, 1])

    return estimate


METHODS: dict[str, Method] = {
    "share": share, "support": support, "isotonic": isotonic, "Platt": logistic(0), "and logprob": logistic(0, 1),
    "and lead": logistic(0, 1, 2), "and length": logistic(0, 1, 2, 3), "and score": logistic(0, 1, 2, 3, 4),
    "as shipped": shipped,
}  # fmt: skip


# ---- figures --------------------------------------------------------------------------------------------------------


def halve(rows: Rows) -> list[tuple[Rows, Rows]]:
    pairs = []
    for seed in range(2):
        groups = np.random.default_rng(seed).permutation(sorted({r.group for r in rows}))
        chosen = set(groups[: len(groups) // 2])
        one, other = [r for r in rows if r.group in chosen], [r for r in rows if r.group not in chosen]
        pairs += [(one, other), (other, one)]
    return pairs


def judge(told: Sequence[float | None], shares: Sequence[Any], rows: Rows) -> tuple[Row, str] | None:
    """The Brier score of what was told beside that of the share on the same answers, and what else is to be said."""
    known = [(p, base, r.right, r.group) for p, base, r in zip(told, shares, rows, strict=True) if p is not None]
    if not known:
        return None
    p_N, base_N, right_N = np.array([k[:3] for k in known], float).T
    _, group_N = np.unique([k[3] for k in known], return_inverse=True)
    gain_G = np.bincount(group_N, (base_N - right_N) ** 2 - (p_N - right_N) ** 2)
    loss_G = np.bincount(group_N, (base_N - right_N) ** 2)
    weights_RG = np.random.default_rng(0).multinomial(len(loss_G), np.full(len(loss_G), 1 / len(loss_G)), 1000)
    low, high = np.percentile(100 * (weights_RG @ gain_G) / (weights_RG @ loss_G), [2.5, 97.5])
    brier, log = float(np.mean((p_N - right_N) ** 2)), -np.mean(np.log(np.where(right_N > 0, p_N, 1 - p_N)))
    ece = compute_ece(p_N, right_N > 0, find_equal_mass_edges(p_N, 10))
    gain = f"skill {100 * gain_G.sum() / loss_G.sum():.1f} % [{low:.1f}, {high:.1f}]"
    row = Row(f"told {len(known)} of {len(rows)}", brier, float(np.mean((base_N - right_N) ** 2)), "share", "Brier")
    return row, f"{gain}, log score {log:.3f}, ECE {ece:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--halves", action="store_true", help="compare rivals on halves of the test patients")
    add_outputs(parser)
    args = parser.parse_args()
    pairs: dict[str, list[tuple[Rows, Rows]]] = defaultdict(list)
    for run in args.runs:
        known, asked = ({} if args.halves else read_rows(run, "validation")), read_rows(run, "test")
        for kind, rows in asked.items():
            pairs[kind] += halve(rows) if args.halves else [(known.get(kind, []), rows)]
    shown = []
    for kind, of_kind in pairs.items():
        of_kind = [(known, asked) for known, asked in of_kind if known and asked]
        rows = [r for _, asked in of_kind for r in asked]
        told = {name: [p for pair in of_kind for p in method(*pair)] for name, method in METHODS.items()}
        for name in METHODS:
            if judged := judge(told[name], told["share"], rows):
                row, more = judged
                shown.append(replace(row, what=f"{kind}, {name}: {row.what}, {more}"))
    show(shown, args)


if __name__ == "__main__":
    main()
