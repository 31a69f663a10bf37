"""Are answers whose candidates differ wrong more often? Of a finished run's test answers, by task.

    python -m benchmarks.doubt RUN [--json]

Wrong is as `clinkd.language.agreement.is_wrong` says; a run records the same of its validation answers. AUC: how well
the support tells right answers from wrong ones, 0.5 being chance.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from benchmarks.report import Row, add_outputs, show
from transformers import AutoTokenizer

from clinkd.inference.self_consistency import CERTAIN, self_consistency
from clinkd.language.agreement import is_wrong
from clinkd.pipeline.prepared import read_data_source, read_predictions, read_split
from clinkd.pipeline.runs import find_run
from clinkd.records import Candidate


def auc(right: list[float], missed: list[float]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in missed]
    return sum(pairs) / len(pairs) if pairs else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    add_outputs(parser)
    args = parser.parse_args()
    run = find_run(args.run, args.runs)
    prepared = run.stage("prepare")
    names = read_data_source(prepared).lexicon.names
    tokenizer = AutoTokenizer.from_pretrained(run.stage(run.last_trained) / "model")
    test = {s.id: s for s in read_split(prepared, "test")}

    def length(candidate: Candidate) -> int:
        return max(1, len(tokenizer.encode(candidate.raw, add_special_tokens=False)) + (not candidate.truncated))

    support: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    for prediction in read_predictions(run.stage("select")):
        sample = test[prediction.id]
        found = self_consistency(prediction, [length(c) for c in prediction.candidates], names)
        support[sample.task.value][is_wrong(prediction.answer.answer, sample.answer, names)].append(found.value)
    rows = []
    for task, by in support.items():
        unsure, sure = ([sum(v < CERTAIN for v in by[w]) for w in (True, False)],
                        [sum(v >= CERTAIN for v in by[w]) for w in (True, False)])  # fmt: skip
        shares = [100 * missed / max(1, missed + right) for missed, right in (unsure, sure)]
        differing, answers = sum(unsure), sum(unsure) + sum(sure)
        print(f"{task}: candidates differ in {differing} of {answers}; AUC {auc(by[False], by[True]):.2f}")
        rows.append(Row(f"{task}, wrong where candidates differ", shares[0], shares[1], "of the others", "%"))
    show(rows, args)


if __name__ == "__main__":
    main()
