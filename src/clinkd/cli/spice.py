"""The verbs of SPICE: install, status."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clinkd.cli.outputs import end_in_order
from clinkd.cli.words import FAILED, Parser, add_verb


def add(verbs: Any) -> None:
    """Add `spice` and its verbs."""
    spice = verbs.add_parser(
        "spice",
        help="install what the SPICE metric runs on, or say whether it is there",
        description="Install what the SPICE metric runs on, or say whether it is there.",
        epilog="example: clinkd spice install",
    )
    kinds = spice.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    install = add_verb(
        kinds,
        "install",
        _install,
        "fetch the four jars of SPICE (387 MB) by Maven into the user's cache, or $CLINKD_CACHE, and check them",
        "clinkd spice install --from DIR",
    )
    install.add_argument(
        "--from", type=Path, metavar="DIR", dest="source", help="a folder that holds the jars; nothing is fetched"
    )
    install.set_defaults(stopped="the same command goes on with the download")
    add_verb(
        kinds,
        "status",
        _status,
        "say whether SPICE can be computed here; the exit status is 0 only if it can",
        "clinkd spice status",
    )


def _install(args: argparse.Namespace) -> int:
    from clinkd.scoring import jars

    end_in_order()
    new = jars.install(args.source)
    print(f"SPICE    {jars.folder()}: {'installed' if new else 'was installed before'}")
    return 0


def _status(_: argparse.Namespace) -> int:
    from clinkd.scoring import jars
    from clinkd.scoring.captions import NotComputed
    from clinkd.scoring.spice import SpiceCache, find_program, scores_file

    try:
        program = find_program()
    except NotComputed as reason:
        print(reason)
        return FAILED
    print(f"jars     {jars.folder()}: the pinned ones")
    print(f"java     {program.java}, with a heap of {program.heap_mb:,} MB (as much as three quarters of what is free)")
    print(f"known    {SpiceCache(scores_file(), jars.version()).size():,} pairs in {scores_file()}")
    return 0
