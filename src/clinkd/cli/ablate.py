"""The verb `ablate`: one change a row, over seeds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinkd.cli.outputs import end_in_order
from clinkd.cli.screen import show, tell
from clinkd.cli.words import FAILED, add_verb
from clinkd.records import BadInput

if TYPE_CHECKING:
    from clinkd.config import RunConfig


def add(verbs: Any, runs: Any, config_of: Callable[[argparse.Namespace], RunConfig]) -> None:
    """Add `ablate`; `config_of` reads the config from its arguments."""

    def call(args: argparse.Namespace) -> int:
        return _ablate(args, config_of(args))

    parser = add_verb(
        verbs,
        "ablate",
        call,
        "make runs that differ by one change each, and show what each change did (the paper's Table 2)",
        "clinkd ablate demo --seeds 0,1,2",
        [runs],
    )
    parser.add_argument("what", metavar="NAME|FILE.yaml", help="the whole method: an experiment, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="settings", help="change a knob")
    parser.add_argument("--name", help="the name before each row's, in the place of the experiment's name")
    parser.add_argument("--rows", type=_split_names, metavar="A,B", help="rows (the paper's, and two controls)")
    parser.add_argument("--claim", metavar="NAME", help="the rows of a claim, with its comparison named beforehand")
    parser.add_argument(
        "--sweep", type=_split_names, default=(), metavar="A,B", help="values of one knob, beside the rows"
    )
    parser.add_argument("--seeds", type=_read_seeds, default=(0,), metavar="0,1,2", help="also as 0-19 (0)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time, each a process (1)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="CSV",
        help="a line a finished run; what stands there is not made again, and the tables show it (results.csv beside "
        "the tables)",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="begin no run that would end later; 0: show what is there"
    )
    parser.add_argument("--list", action="store_true", help="name the rows and sweeps, and do nothing")
    parser.add_argument("--json", action="store_true", help="for a program")
    parser.set_defaults(seed=None)


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _read_seeds(text: str) -> tuple[int, ...]:
    try:
        ranges = [[int(v) for v in part.split("-")] for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are wanted, as 0,1,2 or 0-19") from None
    return tuple(s for bounds in ranges for s in range(bounds[0], bounds[-1] + 1))


def _ablate(args: argparse.Namespace, base: RunConfig) -> int:
    import json

    from clinkd.experiments import CLAIMS, ROWS, SWEEPS, TABLE_2
    from clinkd.workflows.ablate import AblationPlan, ablate

    if args.list:
        for name, row in ROWS.items():
            print(f"{name:<12} {row.title}: {row.change}{f' (against {row.against})' if row.against else ''}")
        for name, claim in CLAIMS.items():
            print(f"{name:<12} --claim: {claim.question} {', '.join(claim.rows)}")
        for name, sweep in SWEEPS.items():
            print(f"{name:<12} --sweep: {sweep.knob} {', '.join(map(str, sweep.values))} on {sweep.row}")
        return 0
    if args.workers < 1:
        raise BadInput(f"--workers {args.workers}: give 1 or more")
    rows = args.rows
    if rows is None:
        rows = () if args.sweep or args.claim else TABLE_2
    end_in_order()
    plan = AblationPlan.of(base, rows, args.sweep, args.seeds, args.claim)
    result = ablate(plan, args.runs, args.workers, args.results, args.minutes, tell)
    if args.json:
        print(json.dumps(json.loads((result.folder / "ablation.json").read_text()), indent=1))
    else:
        show(*result.tables)
        print(f"page     {result.folder / 'ablation.html'}")
    for name, why in result.failed.items():
        tell(f"{name}: {why}")
    return FAILED if result.failed else 0
