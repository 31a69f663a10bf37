"""The verbs of runs: list, verify, rm, pack, open."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinkd.cli.outputs import end_in_order
from clinkd.cli.screen import show, tell
from clinkd.cli.words import FAILED, Parser, add_verb
from clinkd.records import BadInput, Table, Task
from clinkd.storage import clear_drafts, spell_bytes
from clinkd.version import spell_program

if TYPE_CHECKING:
    from clinkd.workflows.inventory import Removal, RunEntry
    from clinkd.workflows.packing import PackManifest
    from clinkd.workflows.verify import VerifiedStage


def add(verbs: Any, runs: Parser) -> None:
    """Add `runs` and its verbs."""
    what = "list runs, remove them, or carry them away as one file"
    group = verbs.add_parser(
        "runs", help=what, description=f"{what[0].upper()}{what[1:]}.", epilog="example: clinkd runs list"
    )
    kinds = group.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    command = add_verb(
        kinds, "list", _list, "say how large and old each run is, and its scores", "clinkd runs list", [runs]
    )
    command.add_argument("--json", action="store_true", help="for a program, with sizes in bytes")
    what = "read every file of a run and compare it with its checksum; status 1 if one is damaged"
    command = add_verb(kinds, "verify", _verify, what, "clinkd runs verify demo", [runs])
    command.add_argument("name", metavar="RUN", help="a name under --runs, or a path")
    command.set_defaults(stopped="nothing was changed")
    command = add_verb(
        kinds, "rm", _remove, "remove runs, and the stages that no other run uses", "clinkd runs rm demo", [runs]
    )
    command.add_argument("names", nargs="*", metavar="NAME", help="a run under --runs")
    command.add_argument("--unused", action="store_true", help="also remove stages that no run uses any more")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.set_defaults(stopped="the same command goes on where it was")
    command = add_verb(
        kinds,
        "pack",
        _pack,
        "write a finished run as one file that you alone may read",
        "clinkd runs pack demo --out demo.tar",
        [runs],
    )
    command.add_argument("name", metavar="RUN", help="a name under --runs, or a path")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")
    command.add_argument(
        "--without-images", action="store_true", help="leave out images and features of images; the page without pixels"
    )
    command.set_defaults(stopped="nothing was written")
    command = add_verb(
        kinds, "open", _open, "make a packed file a run again", "clinkd runs open demo.tar --name other", [runs]
    )
    command.add_argument("file", type=Path, metavar="FILE", help="as clinkd runs pack wrote it")
    command.add_argument("--name", help="name of the run here (its own)")
    command.set_defaults(stopped="nothing was opened")


def _list(args: argparse.Namespace) -> int:
    from clinkd.workflows.inventory import take_inventory

    clear_drafts(args.runs)
    inventory = take_inventory(args.runs)
    if args.json:
        print(json.dumps(inventory.to_json(), indent=1))
        return 0
    tasks = [task for task in Task if any(entry.scores.get(task) is not None for entry in inventory.runs)]
    rows = tuple(_make_row(entry, tasks) for entry in inventory.runs)
    notes = [f"{spell_bytes(inventory.total / 1e6)} in all; own: what `clinkd runs rm` frees; shared: with other runs"]
    if inventory.unused:
        size = spell_bytes(inventory.unused / 1e6)
        notes.append(f"{size} are of stages that no run uses: `clinkd runs rm --unused` frees them")
    notes += [f"{e.folder.name} is damaged: {e.damage}" for e in inventory.runs if e.damage]
    if not rows:
        notes[:1] = [f"{args.runs}: no runs yet; `clinkd run demo` makes one"]
    columns = ("run", "state", "started", "own", "shared", *(task.value for task in tasks))
    show(Table(f"runs in {args.runs}", columns, rows, tuple(notes)))
    return 0


def _make_row(entry: RunEntry, tasks: list[Task]) -> tuple[str, ...]:
    sizes = (spell_bytes(size / 1e6) for size in (entry.own, entry.shared))
    scores = (entry.scores.get(task) for task in tasks)
    cells = ("-" if score is None else f"{score:.1f}" for score in scores)
    return (entry.folder.name, entry.state, f"{_spell_age(time.time() - entry.started)} ago", *sizes, *cells)


def _spell_age(seconds: float) -> str:
    """A time in one unit: "4 min", "3 h", "12 d"."""
    minutes = max(0, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} d"


def _verify(args: argparse.Namespace) -> int:
    from clinkd.pipeline.runs import find_run, open_run
    from clinkd.workflows.verify import verify_run

    run = find_run(args.name, args.runs)
    parts = [*(open_run(folder) for folder in run.folds if folder.is_dir()), run]
    verified = [(part, stage) for part in parts for stage in verify_run(part)]
    rows = tuple(
        (f"{part.folder.name}/{v.status.name}" if part is not run else v.status.name, *_spell_verified(v))
        for part, v in verified
    )
    notes = [f"{path}: no file of the stage, and nothing reads it" for _, v in verified for path in v.extra]
    if any(v.status.state == "done" and not v.read for _, v in verified):
        notes.append("sizes only: made by an older version, which recorded no checksums")
    show(Table(f"{run.folder}, verified", ("stage", "state", "damaged files"), rows, tuple(notes)))
    for part, v in verified:
        for damage in v.damages:
            tell(damage.describe(v.status.name, f"`{part.command}`"))
    return FAILED if any(v.damages for _, v in verified) else 0


def _spell_verified(stage: VerifiedStage) -> tuple[str, str]:
    if stage.damages:
        return "damaged", f"{len(stage.damages):,}"
    if stage.status.state == "done":
        return "whole" if stage.read else "sizes only", ""
    return "not done", ""


def _remove(args: argparse.Namespace) -> int:
    from clinkd.workflows.inventory import remove_runs

    if not args.names and not args.unused:
        raise BadInput("which runs? give their names; `clinkd runs list` shows them")
    if not args.yes and not sys.stdin.isatty():
        raise BadInput("nobody can be asked here whether to remove; give --yes")
    removal = remove_runs(args.names, args.runs, _agree if not args.yes else lambda removal: True, args.unused)
    if removal is None:
        tell("nothing was removed")
        return FAILED
    print(f"removed  {_spell_removal(removal)}")
    return 0


def _agree(removal: Removal) -> bool:
    print(f"remove {_spell_removal(removal)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _spell_removal(removal: Removal) -> str:
    names = [*(folder.name for folder in removal.runs), f"{len(removal.stages)} stages"]
    stay = f"; {removal.kept} stages stay, since other runs use them" if removal.kept else ""
    return f"{', '.join(names)}: {spell_bytes(removal.size / 1e6)}{stay}"


def _pack(args: argparse.Namespace) -> int:
    from clinkd.pipeline.runs import find_run
    from clinkd.workflows.packing import pack_run

    end_in_order()
    run = find_run(args.name, args.runs)
    manifest = pack_run(run, args.out, images=not args.without_images)
    _show_contents("packed", args.out, manifest)
    if base := run.config.model.base:
        print(f"base     not inside: {base}, the pretrained model, which `clinkd status` looks for")
    if data := run.config.data.path:
        print(f"data     not inside: {data}, whose images `clinkd report` looks for")
    print(f"next     {spell_program()} runs open {args.out}")
    return 0


def _show_contents(heading: str, file: Path, manifest: PackManifest) -> None:
    whose = "(of patients: to be kept as safe as the data)" if manifest.patients else "(drawn, of no patient)"
    print(f"{heading:<9}{file}: {spell_bytes(manifest.size / 1e6)}, {len(manifest.files):,} files")
    print(f"images   {f'inside {whose}' if manifest.images else 'not inside'}")
    print(f"words    {f'inside: questions, answers and corrections {whose}' if manifest.words else 'not inside'}")


def _open(args: argparse.Namespace) -> int:
    from clinkd.workflows.packing import open_pack

    end_in_order()
    opened = open_pack(args.file, args.runs, args.name)
    _show_contents("opened", opened.run.folder, opened.manifest)
    if opened.reused:
        print(f"stages   {opened.reused} of {len(opened.run.stages)} were there already and are used as they are")
    if not opened.manifest.images:
        print(f"report   the page without pixels; `{opened.run.command}` makes the rest again, where the data are")
    return 0
