"""The verbs of an archive of images: pull, push and listen."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinkd.cli.outputs import end_in_order
from clinkd.cli.screen import show, tell
from clinkd.cli.words import WRONG, Parser, add_verb
from clinkd.records import BadInput, Table
from clinkd.storage import find_readers, spell_bytes
from clinkd.version import spell_program

if TYPE_CHECKING:
    from clinkd.hospital.pull import PullPlan, PullResult
    from clinkd.pacs import Archive, ReceiverAddress, StudyQuery, TlsFiles

SHOWN = 20  # problems on the screen
_ADDRESS = "https://HOST/dicom-web, or dicom://TITLE@HOST:PORT (dicoms:// with TLS)"


def add(verbs: Any, runs: Parser) -> None:
    """Add `pacs` and its verbs."""
    pacs = verbs.add_parser(
        "pacs",
        help="bring studies from the archive of a hospital, send answers to it, or listen to it",
        description="Bring studies from the archive of a hospital (PACS), send answers to it, or listen to it, by "
        "DICOMweb or the DICOM network. A token stands in CLINKD_PACS_TOKEN, or user and password in CLINKD_PACS_USER "
        "and CLINKD_PACS_PASSWORD.",
        epilog="example: clinkd pacs pull https://pacs/dicom-web --out scans --accession A100",
    )
    kinds = pacs.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    _add_pull(kinds)
    _add_push(kinds)
    _add_listen(kinds, runs)


# ---- the archive ----------------------------------------------------------------------------------------------------


def _build_archive_flags(optional: bool = False) -> Parser:
    parser = Parser(add_help=False)
    parser.add_argument("address", nargs="?" if optional else None, metavar="ADDRESS", help=_ADDRESS)
    group = parser.add_argument_group("the connection")
    group.add_argument("--aet", default="CLINKD", metavar="TITLE", help="our title on the DICOM network (CLINKD)")
    group.add_argument(
        "--port", type=int, default=11112, help="where an archive without C-GET sends what we ask for (11112)"
    )
    group.add_argument("--ca", type=Path, metavar="PEM", help="who may vouch for the archive (as this machine trusts)")
    group.add_argument("--certificate", type=Path, metavar="PEM", help="who we are, where the archive asks")
    group.add_argument("--key", type=Path, metavar="PEM", help="of the certificate")
    group.add_argument("--timeout", type=float, default=60.0, metavar="S", help="without an answer (60)")
    return parser


def _connect(args: argparse.Namespace) -> Archive:
    from clinkd.pacs import connect

    if not 0 < args.timeout < 10**5:
        raise BadInput(f"--timeout {args.timeout:g}: a number above 0 and below 100,000 is wanted")
    return connect(args.address, args.aet, args.port, _read_tls(args), args.timeout)


def _read_tls(args: argparse.Namespace) -> TlsFiles:
    from clinkd.pacs import TlsFiles

    tls = TlsFiles(args.ca, args.certificate, args.key)
    if tls.key and (caution := find_readers(tls.key)):
        print(f"note     --key {caution}")
    return tls


# ---- pull -----------------------------------------------------------------------------------------------------------


def _add_pull(kinds: Any) -> None:
    what = "fetch the images of studies into a folder, with a sheet to be filled in; goes on where it was"
    example = "clinkd pacs pull https://pacs/dicom-web --out scans --modality MR --date 2026-11-01..2026-11-30"
    verb = add_verb(kinds, "pull", _pull, what, example, [_build_archive_flags()])
    verb.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets STUDY/SERIES/IMAGE.dcm")
    group = verb.add_argument_group("which studies: all that is given must match")
    group.add_argument("--study", metavar="UID", help="Study Instance UID")
    group.add_argument("--accession", metavar="NUMBER", help="accession number")
    group.add_argument("--patient", metavar="ID", help="patient ID")
    group.add_argument("--modality", metavar="CT", help="series of this modality alone; SEG or SR: these, too")
    group.add_argument("--date", metavar="DAY", help="of the study: 2026-11-30, or 2026-11-01..2026-11-30")
    group.add_argument("--limit", type=int, metavar="N", help="at most so many studies")
    verb.add_argument("--dry-run", action="store_true", help="print what would come, and fetch nothing")
    verb.set_defaults(stopped="what came is kept, and the same command goes on from there")


def _read_query(args: argparse.Namespace) -> StudyQuery:
    from clinkd.pacs import StudyQuery

    return StudyQuery(args.study, args.accession, args.patient, args.modality, args.date, args.limit)


def _pull(args: argparse.Namespace) -> int:
    from clinkd.hospital.image_sheet import add_to_sheet
    from clinkd.hospital.pull import plan_pull, pull

    if args.out.exists() and not args.out.is_dir():
        raise BadInput(f"--out {args.out}: is no folder; name one")
    end_in_order()
    archive = _connect(args)
    plan = plan_pull(archive, _read_query(args), args.out)
    _tell_plan(plan)
    if args.dry_run:
        _show_plan(plan)
        return 0
    result = pull(archive, plan, args.out)
    _tell_problems(result.problems)
    print(f"pulled   {args.out}: {_spell_pulled(plan, result)}")
    sheet = add_to_sheet(args.out)
    _tell_problems(sheet.problems)
    if sheet.annotations:
        told = "segmentations or reports have no line in the sheet; data import --form dicom reads them"
        print(f"note     {sheet.annotations} {told}")
    if sheet.others:
        print(f"note     {sheet.others} objects without an image, as a PDF, have no line in the sheet")
    if sheet.path.exists():
        print(f"sheet    {sheet.path}: {sheet.lines} lines added, to be filled in; lines that stay empty do not count")
        words = ["data", "import", str(sheet.path), "--images", str(args.out), "--out", "mydata"]
        print(f"next     {spell_program()} {shlex.join(words)}")
    return WRONG if result.problems or sheet.problems else 0


def _spell_pulled(plan: PullPlan, result: PullResult) -> str:
    came = f"{_count(result.files, 'file')} ({spell_bytes(result.size_bytes / 1e6)}) of {_count_series(plan)}"
    missing = f"; {_count(len(result.problems), 'problem')}, the same command tries again" if result.problems else ""
    return f"{came}; {plan.there} were there before{missing}"


def _count_series(plan: PullPlan) -> str:
    return f"{len(plan.series)} series in {_count(plan.studies, 'study', 'studies')}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _tell_plan(plan: PullPlan) -> None:
    if plan.cut:
        print("note     more studies match than --limit takes")
    for modality, number in Counter(series.modality for series in plan.left_out).items():
        print(f"note     left out: {number} series {modality}, which are no images; --modality {modality} fetches them")


def _show_plan(plan: PullPlan) -> None:
    def spell(number: int | None) -> str:
        return "?" if number is None else str(number)

    rows = [(s.study, s.series, s.modality, spell(s.instances), str(len(plan.present[s.series]))) for s in plan.series]
    show(Table("", ("study", "series", "modality", "files", "there"), tuple(rows)))
    total = "files (the archive does not say how many)" if plan.instances is None else _count(plan.instances, "file")
    print(f"would be {total} of {_count_series(plan)}; {plan.there} are there")


def _tell_problems(problems: list[str]) -> None:
    for problem in problems[:SHOWN]:
        tell(problem)
    if len(problems) > SHOWN:
        tell(f"and {len(problems) - SHOWN} more")


# ---- push -----------------------------------------------------------------------------------------------------------


def _add_push(kinds: Any) -> None:
    what = "send the answers of `clinkd ask` to an archive as DICOM structured reports; each is sent once"
    example = "clinkd pacs push https://pacs/dicom-web --answers answers.csv --images scans --seg"
    verb = add_verb(kinds, "push", _push, what, example, [_build_archive_flags(optional=True)])
    verb.add_argument(
        "--answers", type=Path, required=True, metavar="FILE", help="the .csv or .jsonl of many answers of `clinkd ask`"
    )
    verb.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="of the images that the questions were about"
    )
    verb.add_argument("--seg", action="store_true", help="send the boxes as a segmentation, too: filled rectangles")
    verb.add_argument("--codes", type=Path, metavar="YAML", help="codes of names and their sites, beside our own map")
    where = verb.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FOLDER", help="write the objects there instead of sending them")
    where.add_argument("--dry-run", action="store_true", help="make every object, and neither send nor write it")
    verb.set_defaults(stopped="what was sent is written down, and the same command goes on from there")


def _push(args: argparse.Namespace) -> int:
    from clinkd.data.dicom_objects import read_code_map
    from clinkd.hospital.push import Nowhere, ObjectFolder, PushPlan, push

    sends = not (args.out or args.dry_run)
    if (sends and not args.address) or (args.out and args.address):
        raise BadInput(f"ADDRESS: give that of the archive ({_ADDRESS}), or --out FOLDER instead, or --dry-run")
    if not args.images.is_dir():
        raise BadInput(f"--images {args.images}: is no folder; give that of the images that the questions were about")
    code_map = read_code_map(args.codes) if args.codes else None
    plan = PushPlan(args.answers, args.images, args.address if sends else "", args.seg, code_map)
    end_in_order()
    archive = _connect(args) if sends else ObjectFolder(args.out) if args.out else Nowhere()
    result = push(plan, archive)
    _tell_problems(result.problems)
    done = {"sent": sends, "written": args.out is not None, "would be sent": args.dry_run}
    verb = next(words for words, is_so in done.items() if is_so)
    before = f"; {result.before} were sent before" if result.before else ""
    print(f"pushed   {_count(result.sent, 'object')} {verb}, of {_count(result.rows, 'answer')}{before}")
    if result.problems:
        tell(f"{_count(len(result.problems), 'answer')} not sent; the same command tries again")
    return WRONG if result.problems else 0


# ---- listen ---------------------------------------------------------------------------------------------------------


def _add_listen(kinds: Any, runs: Parser) -> None:
    what = "receive images, ask the model about them by rules, and send back what a person accepts on the page"
    example = "clinkd pacs listen demo --rules rules.yaml --folder worklist --to dicom://ORTHANC@127.0.0.1:4242"
    verb = add_verb(kinds, "listen", _listen, what, example, [runs])
    verb.add_argument("run", nargs="?", metavar="RUN|MODEL", help="a run, by name or path, or a model's folder")
    verb.add_argument("--rules", type=Path, metavar="FILE", help="YAML: which questions are asked of which images")
    verb.add_argument("--example-rules", action="store_true", help="print rules to begin with, and end")
    verb.add_argument("--folder", type=Path, default=Path("worklist"), help="keeps images and answers (worklist)")
    group = verb.add_argument_group("who sends images: a receiver, or an archive that is polled")
    group.add_argument("--port", type=int, default=11112, help="of the receiver; 0 takes a free one (11112)")
    group.add_argument("--host", default="127.0.0.1", help="of the receiver (127.0.0.1: this machine alone)")
    group.add_argument("--aet", default="CLINKD", metavar="TITLE", help="our title on the DICOM network (CLINKD)")
    group.add_argument(
        "--allow", action="append", default=[], metavar="IP/TITLE", help="who may send, by address and title; repeat it"
    )
    group.add_argument("--poll", metavar="ADDRESS", help=f"ask an archive for new studies: {_ADDRESS}; no receiver")
    group.add_argument("--every", type=float, default=60.0, metavar="S", help="seconds between two polls (60)")
    group = verb.add_argument_group("where answers go")
    group.add_argument("--to", metavar="ADDRESS", help=f"the archive that gets structured reports: {_ADDRESS}")
    group.add_argument("--send", choices=("accepted", "all"), default="accepted", help="accepted: what a person "
                       "accepted on the page (the default); all: every answer, seen or not")  # fmt: skip
    group.add_argument(
        "--undo", type=float, default=30.0, metavar="S", help="seconds in which a decision can be taken back (30)"
    )
    group = verb.add_argument_group("TLS, of the receiver and towards the archives")
    group.add_argument("--ca", type=Path, metavar="PEM", help="who may vouch for the other side")
    group.add_argument("--certificate", type=Path, metavar="PEM", help="who we are")
    group.add_argument("--key", type=Path, metavar="PEM", help="of the certificate")
    group = verb.add_argument_group("the page, and limits")
    group.add_argument("--page-host", default="127.0.0.1", help="address of the page (127.0.0.1: this machine alone)")
    group.add_argument("--page-port", type=int, default=8000, help="0 takes a free one (8000)")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="holds the page's token; else CLINKD_TOKEN's")
    group.add_argument("--open", action="store_true", help="open the page in the browser, too")
    group.add_argument("--gigabytes", type=float, default=50.0, metavar="N", help="of images that are kept (50)")
    group.add_argument("--keep", type=float, metavar="DAYS", help="remove images so long after all about them was sent "
                       "or rejected; those of corrections stay (keep all)")  # fmt: skip
    group.add_argument("--waiting", type=int, default=10_000, metavar="N", help="questions that may wait (10000)")
    verb.set_defaults(stopped="what arrived, was answered and decided is kept, and the same command goes on from there")


def _listen(args: argparse.Namespace) -> int:
    from clinkd.hospital.rules import EXAMPLE, read_rules

    if args.example_rules:
        print(EXAMPLE, end="")
        return 0
    if args.rules is None:
        raise BadInput("--rules: a file is wanted; `clinkd pacs listen --example-rules` prints one to begin with")
    _demand_numbers(args)
    end_in_order()
    rules = read_rules(args.rules)
    from clinkd.cli.choice import choose_run
    from clinkd.hospital.polling import Polling
    from clinkd.hospital.worklist import WorklistLimits
    from clinkd.pacs import AllowedPeer, ReceiverAddress, connect
    from clinkd.serving.limits import ServerLimits
    from clinkd.serving.listening import ListenPlan, listening
    from clinkd.serving.server import ListenAddress, ModelSource, serve

    tls = _read_tls(args)
    receiver, polling, archive = None, None, None
    allowed = tuple(map(AllowedPeer.parse, args.allow))
    own = ReceiverAddress(args.host, args.port, args.aet, allowed, tls if tls.certificate else None)
    _demand_no_loop(own, poll=args.poll, to=args.to)
    if args.poll:
        polling = Polling(connect(args.poll, args.aet, args.port, tls), args.every)
    else:
        receiver = own
        receiver.demand_safe()
    if args.to:
        archive = connect(args.to, args.aet, tls=tls)
    elif args.send == "all":
        raise BadInput("--send all: to which archive? give --to ADDRESS")
    source = ModelSource.find(args.run, args.runs, choose_run)
    plan = ListenPlan(
        args.folder, rules, (source.name, source.fingerprint()), receiver, None, polling, archive, args.send,
        WorklistLimits(args.waiting, int(args.gigabytes * 1e9), args.undo, args.keep),
    )  # fmt: skip
    page = ListenAddress(args.page_host, args.page_port, args.token_file, args.open, "--page-")

    def say(line: str) -> None:
        print(line, flush=True)

    serve(lambda: source, page, ServerLimits(), say, partial(listening, plan, say))
    return 0


def _demand_no_loop(own: ReceiverAddress, **addresses: str | None) -> None:
    """Raises BadInput where images would be fetched from our own receiver, or answers sent to it."""
    for option, address in addresses.items():
        if address and own.is_reached_at(address):
            raise BadInput(
                f"--{option} {address}: that is this receiver itself; give the archive's port, or another by --port"
            )


def _demand_numbers(args: argparse.Namespace) -> None:
    """Raises BadInput for a number out of its range."""
    ranges = {"port": (0, 65535), "page_port": (0, 65535), "every": (1, 86400), "undo": (0, 86400),
              "gigabytes": (0.001, 10**6), "waiting": (1, 10**6), "keep": (1, 36500)}  # fmt: skip
    for name, (least, most) in ranges.items():
        if (value := getattr(args, name)) is not None and not least <= value <= most:
            raise BadInput(f"--{name.replace('_', '-')} {value:g}: {least:g} to {most:g} is wanted")
