"""`clinkd compare`: is one system better than another."""

from __future__ import annotations

import argparse
import json
from typing import Any

from clinkd.cli.screen import show
from clinkd.cli.words import Parser, add_verb


def add(verbs: Any, runs: Parser) -> None:
    """The verb, among others; `runs` holds the options of every verb that looks for runs."""
    made = add_verb(
        verbs,
        "compare",
        _compare,
        "tell whether one run is better than another: over the images of one test set, or over several seeds",
        "clinkd compare tuned-0 tuned-1 tuned-2 --against plain-0 plain-1 plain-2",
        [runs],
    )
    made.add_argument(
        "ours",
        nargs="+",
        metavar="RUN",
        help="a name under --runs, a path, or a folder of clinkd evaluate --out; without --against the first stands "
        "beside each of the others",
    )
    made.add_argument(
        "--against", nargs="+", default=[], metavar="RUN", help="as many others, in the order of their seeds"
    )
    made.add_argument("--json", action="store_true", help="for a program")


def _compare(args: argparse.Namespace) -> int:
    from clinkd import evaluation
    from clinkd.pipeline.comparing import compare

    each = compare(args.ours, args.against, args.runs)
    if args.json:
        print(json.dumps([evaluation.comparison_json(c) for c in each], indent=1, allow_nan=False))
        return 0
    for compared in each:
        for table in evaluation.comparison_tables(compared):
            show(table)
    return 0
