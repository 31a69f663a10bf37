"""Questions a second of `clinkd ask SHEET` beside the `answer` stage, of one run, and its memory over more rows.

    python -m benchmarks.batch --run RUNFOLDER [--rows 2000]

--run: a finished run on drawn images, such as `runs/demo`. Both ways answer the run's test questions in turns, three
times each; the model is loaded before the clock starts. `ask` also chooses among the candidates, as the run's `select`
does. Rates are by processor time, which other work does not slow.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

from benchmarks.report import Row, add_outputs, show

from clinkd.data.images import open_image
from clinkd.inference import answer, rerank
from clinkd.pipeline.models import load_model, make_scorer
from clinkd.pipeline.prepared import read_data_source, read_split
from clinkd.pipeline.runs import Run, open_run
from clinkd.records import Task
from clinkd.workflows.ask import Answerer
from clinkd.workflows.batch import ask_many, read_question_sheet

TURNS = 3  # the quickest counts


def write_sheet(run: Run, file: Path, rows: int | None = None) -> int:
    """The run's test questions, over and over until there are so many. Returns their number."""
    codec = Answerer.of_run(run).model.codec
    samples = [s for s in read_split(run.stage("prepare"), "test") if len(s.turns) == 1]
    cells = [(s.images[0].path, codec.encode(s.question)) for s in samples]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "question"))
        writer.writerows(itertools.islice(itertools.cycle(cells), rows or len(cells)))
    return rows or len(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000, help="of the long sheet (2000)")
    add_outputs(parser)
    args = parser.parse_args()
    run = open_run(args.run)
    root = read_data_source(run.stage("prepare")).root
    model = load_model(run.stage(run.last_trained), partial(open_image, root)).eval()
    opened, lexicon = Answerer.of_run(run), read_data_source(run.stage("prepare")).lexicon
    clip = run.stage("clip") if run.config.select.scorer == "clip" else None
    scorer = make_scorer(run.config.select, clip, partial(open_image, root), lexicon, run.config.seed)
    samples = read_split(run.stage("prepare"), "test")
    with tempfile.TemporaryDirectory() as name, mock.patch.object(Answerer, "of_run", lambda run: opened):
        folder = Path(name)
        short, long = folder / "short.csv", folder / "long.csv"
        num_short, num_long = write_sheet(run, short), write_sheet(run, long, args.rows)
        stage_seconds, select_seconds, ask_seconds = [], [], []
        for turn in range(TURNS):
            begin = time.process_time()
            answers = answer(model, samples, run.config.answer, file=folder / f"{turn}.jsonl", by="", title="stage")
            stage_seconds.append(time.process_time() - begin)
            if opened.scorer is not None:
                rerank({s.id: s for s in samples}, answers, scorer, [*Task])
            select_seconds.append(time.process_time() - begin)
            begin = time.process_time()
            ask_many(run, read_question_sheet(short, root), folder / f"{turn}.csv")
            ask_seconds.append(time.process_time() - begin)
        peak_short = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ask_many(run, read_question_sheet(long, root), folder / "long-answers.csv")
        peak_long = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = num_short / min(ask_seconds)
    show(
        [
            Row(f"rate of {num_short} questions", rate, len(samples) / min(stage_seconds), "answer stage", "1/s"),
            Row(f"rate of {num_short} questions", rate, len(samples) / min(select_seconds), "answer and select", "1/s"),
            Row(f"peak memory, {num_long} rows", peak_long, peak_short, f"{num_short} rows", "MiB"),
        ],
        args,
    )


if __name__ == "__main__":
    main()
