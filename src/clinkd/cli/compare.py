"""The verb `compare`: runs and anybody's evaluated answers in one comparison."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from clinkd.cli.outputs import may_write
from clinkd.cli.screen import show
from clinkd.cli.words import Parser, add_verb

MADE = b"<title>ClinKD: systems side by side</title>"


def add(verbs: Any, runs: Parser) -> None:
    """Add `compare`; `runs` holds the options of every verb that looks for runs."""
    parser = add_verb(
        verbs,
        "compare",
        _compare,
        "compare runs and evaluated answers: the paper's tables, differences with p, the same questions side by side",
        "clinkd compare demo answers/BiRD --page systems.html",
        [runs],
    )
    parser.add_argument(
        "systems",
        nargs="+",
        metavar="FOLDER",
        help="a run (a name under --runs, or a path), or a folder of clinkd evaluate --out; folders of one system with "
        "different tasks are joined. The first is compared with each of the others",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="RUN",
        help="several seeds: as many others, in the order of their seeds",
    )
    parser.add_argument("--all-pairs", action="store_true", help="compare each with each, of up to 6 systems")
    parser.add_argument(
        "--mode",
        choices=["strict", "official"],
        default="strict",
        help="of the tables; differences are strict (strict)",
    )
    parser.add_argument(
        "--same-data",
        action="store_true",
        help="the test set is the paper's: with --mode official its printed rows stand among the systems",
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE.html", help="also write a page, with the same questions side by side"
    )
    parser.add_argument("--json", action="store_true", help="for a program")


def _compare(args: argparse.Namespace) -> int:
    from clinkd.reporting.printed import paper_tables
    from clinkd.reporting.systems import tabulate_differences
    from clinkd.workflows.compare import HowToCompare, compare

    may_write("--page", args.page, MADE)
    how = HowToCompare(args.against, args.all_pairs, args.mode, args.same_data)
    compared = compare(args.systems, args.runs, how, args.page)
    if args.json:
        print(json.dumps(compared.to_json(), indent=1, allow_nan=False))
        return 0
    matrix, tasks, details = tabulate_differences(compared.comparisons)
    first, *by_modality = compared.tables()
    few = len(compared.systems) <= 2  # of many the page shows the details
    show(first, *(by_modality if few else []), *matrix, *tasks, *(details if few else []))
    print(*(f"not compared: {why}" for why in compared.hindrances), sep="\n", end="\n" if compared.hindrances else "")
    if not compared.prints_among:
        print()
        show(*paper_tables()[:1])
    if args.page:
        print(f"page     {args.page}")
    return 0
