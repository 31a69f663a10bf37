"""The verbs `compare` and `systems`: runs and evaluated answers beside each other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from clinkd.cli.outputs import may_write
from clinkd.cli.screen import show
from clinkd.cli.words import Parser, add_verb

MADE = b"<title>ClinKD: systems side by side</title>"


def add_compare(verbs: Any, runs: Parser) -> None:
    """Add `compare`; `runs` holds the options of every verb that looks for runs."""
    parser = add_verb(
        verbs,
        "compare",
        _compare,
        "test whether one run is better than another: over the images of one test set, or over several seeds",
        "clinkd compare tuned-0 tuned-1 tuned-2 --against plain-0 plain-1 plain-2",
        [runs],
    )
    parser.add_argument(
        "ours",
        nargs="+",
        metavar="RUN",
        help="a name under --runs, a path, or a folder of clinkd evaluate --out; without --against the first is "
        "compared with each of the others",
    )
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="RUN", help="as many others, in the order of their seeds"
    )
    parser.add_argument("--json", action="store_true", help="for a program")


def add_systems(verbs: Any, runs: Parser) -> None:
    """Add `systems`: the paper's Tables 1, 3 and 4 of runs and of anybody's evaluated answers."""
    parser = add_verb(
        verbs,
        "systems",
        _systems,
        "show runs and evaluated answers beside each other, in the form of the paper's Tables 1, 3 and 4",
        "clinkd systems demo answers/BiRD --mode official --page systems.html",
        [runs],
    )
    parser.add_argument("systems", nargs="+", metavar="RUN", help="a run, or a folder of clinkd evaluate --out")
    parser.add_argument("--mode", choices=["strict", "official"], default="strict", help="mode of the scores (strict)")
    parser.add_argument(
        "--same-data",
        action="store_true",
        help="the test set is the paper's: the tables also show its printed rows",
    )
    parser.add_argument(
        "--page", type=Path, metavar="HTML", help="also write a page, with the same questions side by side"
    )
    parser.add_argument("--json", action="store_true", help="for a program")


def _compare(args: argparse.Namespace) -> int:
    from clinkd.reporting.compare import comparison_json, comparison_tables
    from clinkd.workflows.compare import compare

    comparisons = compare(args.ours, args.against, args.runs)
    if args.json:
        print(json.dumps([comparison_json(c) for c in comparisons], indent=1, allow_nan=False))
        return 0
    show(*(table for comparison in comparisons for table in comparison_tables(comparison)))
    return 0


def _systems(args: argparse.Namespace) -> int:
    from clinkd.reporting.printed import paper_tables
    from clinkd.workflows.compare import tabulate_systems

    may_write("--page", args.page, MADE)
    systems, tables = tabulate_systems(args.systems, args.runs, args.mode, args.same_data, args.page)
    if args.json:
        rows = [{"system": s.name, "test_set": s.test_set, "mode": args.mode, **s.to_json()} for s in systems]
        print(json.dumps(rows, indent=1, allow_nan=False))
        return 0
    show(*tables, *([] if args.same_data else paper_tables()[:1]))
    if args.page:
        print(f"page     {args.page}")
    return 0
