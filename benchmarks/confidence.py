"""Is the confidence of an answer worth more than the share of right ones? Of finished runs, by kind of question.

    python -m benchmarks.confidence RUN RUN ...            fitted to validation answers, judged on test answers
    python -m benchmarks.confidence RUN RUN ... --halves   rivals: fitted to one half of the test patients, judged on
                                                           the other, and the other way round, twice

A RUN is a folder under runs/, which is only read. Skill is that of the report (`scoring.calibration`); ECE is of ten
bins of as many answers, and beside it what chance gives if every probability is true. With rivals stands, less what is
shipped, their Brier score and ECE on all answers, each with a 95 % interval over patients.
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
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoTokenizer

from clinkd.inference import rerank
from clinkd.inference.confidence import FOLDS, ConfidenceRow, describe_answer, fit_confidence
from clinkd.inference.self_consistency import self_consistency
from clinkd.language.agreement import is_wrong
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.models import make_scorer
from clinkd.pipeline.prepared import read_data, read_predictions, read_split
from clinkd.pipeline.runs import open_run
from clinkd.pipeline.steps import ANSWER_FILES
from clinkd.records import Split, name_kind
from clinkd.scoring.bootstrap import draw_group_weights, replicate
from clinkd.scoring.calibration import (
    DRAWN,
    Probabilities,
    describe_probabilities,
    find_equal_mass_edges,
    simulate_calibrated_ece,
    sum_by_bin,
)

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


def token_probability(known: Rows, asked: Rows) -> list[float | None]:
    return [float(np.exp(r.features[1])) for r in asked]


ALL = (0, 1, 2, 3, 4)


def logistic(*columns: int, strength: float = 1.0) -> Method:
    """A ridge on some of the features; scikit-learn's default `strength` is 1, and less is a stronger ridge."""

    def estimate(known: Rows, asked: Rows) -> list[float | None]:
        if len({r.right for r in known}) == 1:
            return share(known, asked)
        known_NF, asked_NF = (np.array([r.features for r in rows])[:, columns] for rows in (known, asked))
        model = make_ridge(strength).fit(known_NF, [r.right for r in known])
        return list(model.predict_proba(asked_NF)[:, 1])

    return estimate


def make_ridge(strength: float = 1.0) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength))


def recalibrate(kind: str) -> Method:
    """The ridge on all features, whose probabilities of patients left out are mapped to what is right: by isotonic
    steps (Zadrozny and Elkan 2002), by a beta curve (Kull et al. 2017), or by Platt's line."""

    def estimate(known: Rows, asked: Rows) -> list[float | None]:
        right, groups = [r.right for r in known], [r.group for r in known]
        if min(sum(right), len(right) - sum(right), len(set(groups))) < FOLDS:
            return share(known, asked)
        features = [r.features for r in known]
        left_out = cross_val_predict(make_ridge(), features, right, groups=groups, cv=GroupKFold(FOLDS),
                                     method="predict_proba")[:, 1]  # fmt: skip
        said = make_ridge().fit(features, right).predict_proba([r.features for r in asked])[:, 1]
        if kind == "isotonic":
            least = 1 / (len(known) + 2)
            steps = IsotonicRegression(out_of_bounds="clip", y_min=least, y_max=1 - least).fit(left_out, right)
            return list(steps.predict(said))
        known_NF, asked_NF = (_spell_logs(p, kind) for p in (left_out, said))
        return list(LogisticRegression().fit(known_NF, right).predict_proba(asked_NF)[:, 1])

    return estimate


def _spell_logs(p_N: Any, kind: str) -> Any:
    p_N = np.clip(p_N, 1e-4, 1 - 1e-4)
    logs = np.log(p_N), -np.log(1 - p_N)
    return np.stack(logs if kind == "beta" else [sum(logs)], axis=1)


def cross_fitted(known: Rows, asked: Rows) -> list[float | None]:
    """The mean of the fits to four fifths of the patients each."""
    right, groups = [r.right for r in known], [r.group for r in known]
    features = np.array([r.features for r in known])
    parts = [p for p, _ in GroupKFold(min(FOLDS, len(set(groups)))).split(features, right, groups)]
    if any(len({right[n] for n in part}) == 1 for part in parts):
        return share(known, asked)
    fits = [make_ridge().fit(features[part], [right[n] for n in part]) for part in parts]
    return list(np.mean([f.predict_proba([r.features for r in asked])[:, 1] for f in fits], axis=0))


SHIPPED = "and score"  # what is shipped where it is told, told here everywhere
METHODS: dict[str, Method] = {
    "share": share, "support": support, "token probability": token_probability, "isotonic": isotonic,
    "Platt": logistic(0), "and logprob": logistic(0, 1), "and lead": logistic(0, 1, 2),
    "and length": logistic(0, 1, 2, 3), SHIPPED: logistic(*ALL), "ridge of a tenth": logistic(*ALL, strength=0.1),
    "ridge of a hundredth": logistic(*ALL, strength=0.01), "then isotonic": recalibrate("isotonic"),
    "then beta": recalibrate("beta"), "then Platt": recalibrate("Platt"), "cross-fitted": cross_fitted,
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


def judge(told: Sequence[float | None], told_shipped: Sequence[Any], rows: Rows) -> tuple[Row, str] | None:
    """The figures of what was told, and where it is told of all answers how far from those of what is shipped."""
    known = [(p, q, r) for p, q, r in zip(told, told_shipped, rows, strict=True) if p is not None]
    if not known:
        return None
    p_N, right_N = np.array([p for p, *_ in known]), np.array([r.right for *_, r in known])
    groups = [r.group for *_, r in known]
    found = describe_probabilities(Probabilities(p_N, right_N, groups), 1000)
    edges, rate = find_equal_mass_edges(p_N, DRAWN), right_N.mean()
    skill = 100 * (found["brier_skill"] or 0)
    low, high = (100 * end for end in found["brier_skill_interval"] or (np.nan, np.nan))
    ece, chance = measure_ece(sum_by_bin(p_N, right_N, edges)), simulate_calibrated_ece(p_N, edges)
    more = f"skill {skill:.1f} % [{low:.1f}, {high:.1f}], ECE {ece:.3f}, by chance {chance:.3f}"
    row = Row(f"told {len(known)} of {len(rows)}", found["brier"], float(rate * (1 - rate)), "best constant", "Brier")
    if len(known) == len(rows) and told != told_shipped:
        more += compare(p_N, np.array([q for _, q, _ in known]), right_N, groups)
    return row, more


def measure_ece(sums: Any) -> Any:
    """[..., 3, B] sums by bin, some bins perhaps empty."""
    return np.abs(sums[..., 1, :] - sums[..., 2, :]).sum(-1) / sums[..., 0, :].sum(-1)


def compare(p_N: Any, shipped_N: Any, right_N: Any, groups: Sequence[str]) -> str:
    """Brier score and ECE less those of what is shipped."""
    _, codes_N = np.unique(groups, return_inverse=True)
    number = int(codes_N.max()) + 1
    weights_RG = draw_group_weights(np.random.default_rng(0), number, 1000)
    briers, eces = [], []
    for said_N in (p_N, shipped_N):
        edges = find_equal_mass_edges(said_N, DRAWN)
        sums_G = np.array([sum_by_bin(said_N[codes_N == g], right_N[codes_N == g], edges) for g in range(number)])
        loss_G = np.bincount(codes_N, (said_N - right_N) ** 2) / len(said_N)
        briers.append((loss_G.sum(), (weights_RG @ loss_G) * len(said_N) / (weights_RG @ sums_G[:, 0].sum(-1))))
        eces.append((measure_ece(sums_G.sum(0)), replicate(measure_ece, sums_G, weights_RG)))
    return "".join(
        f", {name} {1000 * (ours - theirs):+.1f} "
        + "[{:+.1f}, {:+.1f}]".format(*(1000 * np.percentile(ours_R - theirs_R, [2.5, 97.5])))
        for name, ((ours, ours_R), (theirs, theirs_R)) in (("Brier x1000", briers), ("ECE x1000", eces))
    )


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
            if judged := judge(told[name], told[SHIPPED], rows):
                row, more = judged
                shown.append(replace(row, what=f"{kind}, {name}: {row.what}, {more}"))
    show(shown, args)


if __name__ == "__main__":
    main()
