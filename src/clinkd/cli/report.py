"""The verb that writes the page of a finished run again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clinkd.cli.choice import WHICH_RUN, choose_run
from clinkd.cli.outputs import REPORT, end_in_order, may_write
from clinkd.cli.words import Parser, add_verb


def add(verbs: Any, runs: Parser) -> None:
    """Add `report`."""
    parser = add_verb(
        verbs,
        "report",
        _report,
        "write the page of a finished run again, or one to be mailed",
        "clinkd report demo --share",
        [runs],
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help=WHICH_RUN)
    parser.add_argument(
        "--share",
        action="store_true",
        help="without pixels, questions, answers, names, identifiers and paths: figures and boxes alone",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (the run's folder)")
    parser.set_defaults(stopped="nothing was written")


def _report(args: argparse.Namespace) -> int:
    from clinkd.pipeline.report import report

    may_write("--out", args.out, REPORT)
    end_in_order()
    print(f"report   {report(choose_run(args.run, args.runs), args.out, args.share)}")
    return 0
