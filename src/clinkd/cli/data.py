"""The verbs of data: import, check, export, split, sheet, stats, show, boxes, phantoms."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from clinkd.cli.outputs import CHECK_PAGE, PICTURE, QUARANTINE, end_in_order, may_write
from clinkd.cli.screen import cores, show, tell
from clinkd.cli.words import WRONG, Parser, Verb, add_verb
from clinkd.data.dataset import ABOUT
from clinkd.records import BadInput
from clinkd.storage import write_csv
from clinkd.version import spell_program

if TYPE_CHECKING:
    from PIL.Image import Image

    from clinkd.data.checks.check import Checks, Findings
    from clinkd.data.importing import Division
    from clinkd.data.readers import RowError
    from clinkd.data.readers.source import Flag, Source
    from clinkd.records import Sample

SHOWN = 20  # bad rows on the screen; the page, --json and the quarantine have all


def add(verbs: Any) -> None:
    """Add `data` and its verbs."""
    data = verbs.add_parser(
        "data",
        help="read, check, divide and write data, or draw phantoms",
        description="Read, check, divide and write data, or draw phantoms.",
        epilog="example: clinkd data check FOLDER",
    )
    data.set_defaults(stopped="nothing was written, and the same command begins anew")
    kinds = data.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    for add_one in (
        *(_add_import, _add_check, _add_export, _add_split, _add_sheet, _add_stats, _add_show, _add_boxes),
        _add_phantoms,
    ):
        add_one(kinds)


def _add_import(kinds: Any) -> None:
    what = "check data of any form, divide it by patient or image, and make a data set of it"
    example = "clinkd data import sheet.csv --images scans --out mydata"
    verb = add_verb(kinds, "import", _import, what, example, [_build_check_flags(), _build_share_flags()])
    verb.later = source_flags
    verb.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders; flags count for all")
    verb.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the new data set")
    splits = verb.add_mutually_exclusive_group()
    splits.add_argument("--anew", action="store_true", help="ignore the splits in the files, and divide all")
    splits.add_argument("--no-split", action="store_true", help="keep the splits as the files have them")
    verb.add_argument("--turn-to", choices=["patient", "image"], help="change all left and right words to this side")
    verb.set_defaults(stopped="no data set was made, and the same command begins anew")
    verb.add_argument("--copy", action="store_true", help="copy the images, too; DICOM as PNG, without its header")


def _add_reading_verb(
    kinds: Any, name: str, call: Verb, what: str, example: str, parents: Sequence[Parser] = ()
) -> Parser:
    """Add a verb that reads the data at one path."""
    verb = add_verb(kinds, name, call, what, example, parents)
    verb.later = source_flags
    verb.add_argument("path", type=Path)
    return verb


def _add_check(kinds: Any) -> None:
    what = "show what is wrong with data, row by row; the exit status is 0 only if nothing is"
    example = "clinkd data check FOLDER --page check.html"
    _add_reading_verb(kinds, "check", _check, what, example, [_build_check_flags()])


def _add_export(kinds: Any) -> None:
    example = "clinkd data export mydata --to sharegpt --out for-llama-factory"
    verb = _add_reading_verb(kinds, "export", _export, "write data for other programs", example)
    verb.add_argument("--to", choices=["sharegpt", "coco", "jsonl"], required=True)
    verb.add_argument("--out", type=Path, required=True, help="a folder; a file for coco and jsonl")
    verb.add_argument("--spell", default="qwen2-vl", metavar="FAMILY", help="how boxes are spelled in text (qwen2-vl)")


def _add_split(kinds: Any) -> None:
    example = "clinkd data split mydata --test 0.3 --seed 1"
    verb = add_verb(kinds, "split", _split, "divide an imported data set again", example, [_build_share_flags()])
    verb.add_argument("path", type=Path, metavar="FOLDER")
    verb.add_argument("--seed", type=int, default=0, help="of the division")


def _add_sheet(kinds: Any) -> None:
    what = "write a sheet with a line for each image, to be filled in with questions, names and boxes"
    verb = add_verb(kinds, "sheet", _sheet, what, "clinkd data sheet scans > sheet.csv")
    verb.add_argument("folder", type=Path)


def _add_stats(kinds: Any) -> None:
    what = "count data and show what can be guessed without the images"
    _add_reading_verb(kinds, "stats", _stats, what, "clinkd data stats FOLDER")


def _add_show(kinds: Any) -> None:
    what = "print one sample and draw its boxes"
    verb = _add_reading_verb(kinds, "show", _show, what, "clinkd data show FOLDER ID")
    verb.add_argument("id")
    verb.add_argument("--out", type=Path, metavar="PNG", help="where the picture goes (ID.png)")


def _add_boxes(kinds: Any) -> None:
    what = "draw a few boxes as the file has them and as the model will see them, to look whether they are right"
    verb = _add_reading_verb(kinds, "boxes", _boxes, what, "clinkd data boxes FOLDER --out boxes.png")
    verb.add_argument("--out", type=Path, default=Path("boxes.png"), metavar="PNG", help="the picture (boxes.png)")
    verb.add_argument("--count", type=int, default=9, help="boxes, of different images, sampled by the seed (9)")
    verb.add_argument(
        "--base", type=Path, metavar="FOLDER", help="the model that will see them (the tiny one of clinkd run real)"
    )


def _add_phantoms(kinds: Any) -> None:
    what = "draw phantoms with questions into a folder"
    verb = add_verb(kinds, "phantoms", _phantoms, what, "clinkd data phantoms phantoms --images 24")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--images", type=int, help="images to learn from (the demo's number)")
    verb.add_argument("--seed", type=int, default=0)


# ---- flags ----------------------------------------------------------------------------------------------------------


class _FormAction(argparse.Action):
    """Store the name of a form; for `help`, print all of them and leave, whatever else is wanted."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        from clinkd.data.readers.forms import describe_forms

        if values == "help":
            print(describe_forms())
            parser.exit(0)
        setattr(namespace, self.dest, values)


def source_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of `Source` except its path, and --workers."""
    group = parser.add_argument_group("where the data is, and what its rows do not state")
    for field, kind, flag in _list_source_fields():
        options = {"help": flag.help_text, "default": field.default, **flag.options}
        if field.name == "form":
            options["action"] = _FormAction
        for member in get_args(kind) if get_origin(kind) in (Union, UnionType) else [kind]:
            if member in (int, float, Path):
                options["type"] = member
            elif get_origin(member) is Literal:
                options["choices"] = get_args(member)
        group.add_argument(_flag_name(field, flag), **options)
    group.add_argument("--workers", type=int, default=cores(), help="processes that open images")


def _list_source_fields() -> Iterator[tuple[Field[Any], Any, Flag]]:
    """The fields of `Source` that have a flag, with their types."""
    from clinkd.data.readers.source import Source

    types = get_type_hints(Source, include_extras=True)
    for field in fields(Source):
        if get_origin(types[field.name]) is Annotated:
            kind, flag = get_args(types[field.name])
            yield field, kind, flag


def _flag_name(field: Field[Any], flag: Flag) -> str:
    return flag.name or f"--{field.name.replace('_', '-')}"


def _build_check_flags() -> Parser:
    parser = Parser(add_help=False)
    group = parser.add_argument_group("what is checked, and where the findings go")
    group.add_argument("--max-length", type=int, metavar="TOKENS", help="rows with more are bad")
    group.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="count with it (else estimated)")
    group.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="show, but do not count as bad: duplicate, split, near-duplicate, side, frame, length",
    )
    group.add_argument("--quarantine", type=Path, metavar="FILE", help="write bad rows there, with reasons")
    group.add_argument("--page", type=Path, metavar="HTML", help="write counts, maps and a gallery to look at")
    group.add_argument("--json", action="store_true", help="print the findings for a program")
    return parser


def _build_share_flags() -> Parser:
    parser = Parser(add_help=False)
    group = parser.add_argument_group("splits, by patient or image")
    group.add_argument("--validation", type=float, default=0.1, help="share of the groups (0.1)")
    group.add_argument("--test", type=float, default=0.2, help="share of the groups (0.2)")
    return parser


def source_of(args: argparse.Namespace, path: Path) -> Source:
    """The source at `path` that the flags describe. Raises BadInput with the flag if its value makes no sense."""
    from clinkd.data.readers.forms import require_form
    from clinkd.data.readers.source import Source

    if args.form is not None:
        require_form(args.form)
    values = {}
    for field, _, flag in _list_source_fields():
        value = getattr(args, _flag_name(field, flag).removeprefix("--").replace("-", "_"))
        values[field.name] = _read_flag(field, flag, value)
    return Source(path, **values)


def _read_flag(field: Field[Any], flag: Flag, value: Any) -> Any:
    """The value of a field, made of that of its flag. Raises BadInput that names the flag."""
    if flag.read is None or value is None:
        return value
    try:
        return flag.read(value)
    except BadInput as error:
        message = str(error)
        raise BadInput(
            message if message.startswith("--") else f"{_flag_name(field, flag)} {value}: {message}"
        ) from None


def _make_division(args: argparse.Namespace, seed: int, anew: bool) -> Division:
    from clinkd.data.importing import Division

    shares = args.validation, args.test
    if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
        flags = f"--validation {args.validation:g}, --test {args.test:g}"
        raise BadInput(f"{flags}: shares of the groups are wanted, from 0 to below 1, that leave something to train on")
    return Division(args.validation, args.test, seed, anew)


def _build_checks(args: argparse.Namespace) -> Checks:
    from clinkd.data.checks.check import Checks
    from clinkd.data.checks.lengths import TokenCounter, TokenEstimator

    if args.max_length is not None and args.max_length < 1:
        raise BadInput(f"--max-length {args.max_length}: 1 or more tokens are wanted")
    tokens = TokenCounter(args.tokenizer) if args.tokenizer else TokenEstimator()
    return Checks(args.max_length, tokens, frozenset(args.allow), args.workers)


# ---- verbs ----------------------------------------------------------------------------------------------------------


def _import(args: argparse.Namespace) -> int:
    from clinkd.data.importing import NotClean, import_data
    from clinkd.storage import first_free

    _require_writable(args)
    if args.page is not None and (args.out / ABOUT).is_file():  # a kill may have come before the page was written
        check = shlex.join(["data", "check", str(args.out), "--page", str(args.page)])
        raise BadInput(f"{args.out}: is there already; its page is written by `{spell_program()} {check}`")
    end_in_order()
    sources = [source_of(args, path) for path in args.paths]
    division = None if args.no_split else _make_division(args, args.seed, args.anew)
    checks = _build_checks(args)
    try:
        findings = import_data(sources, args.out, checks, division, args.quarantine, args.turn_to, args.copy)
    except NotClean as error:
        _print_findings(error.findings, args)
        tell(str(error))
        return WRONG
    args.stopped = f"the data set {args.out} is made"
    _print_findings(findings, args)
    if not args.json:
        print(f"\ndata     {args.out}: {findings.samples} samples of {findings.images} images")
        run = ["run", "real", "--set", f"data.path={args.out}"]
        if Path("runs", "real").exists():
            run += ["--name", first_free(f"real-{args.out.resolve().name}", Path("runs")).name]
        print(f"next     {spell_program()} data boxes {shlex.quote(str(args.out))}   # are my boxes right?")
        print(f"         {spell_program()} data stats {shlex.quote(str(args.out))}   # what is in it")
        print(f"         {spell_program()} {shlex.join(run)}   # learn from it")
    return 0


def _check(args: argparse.Namespace) -> int:
    from clinkd.data.checks.check import Findings, check, quarantine
    from clinkd.data.readers import RowError

    _require_writable(args)
    end_in_order()
    try:
        source = source_of(args, args.path)
        findings = check(source, _build_checks(args))
    except BadInput as error:
        if args.json:  # programs, too, learn what cannot be read at all
            problem = RowError(str(args.path), 0, "?", "file", "", str(error))
            print(json.dumps(Findings(bad=[problem]).to_json(), indent=1))
        raise
    if args.quarantine is not None:
        quarantine([source], findings, args.quarantine)
    _print_findings(findings, args)
    if not args.json:
        state = "clean" if findings.clean else f"{findings.bad_rows} of {findings.rows} rows are bad"
        print(f"\n{args.path}: {findings.rows} rows, {findings.samples} samples, {findings.images} images: {state}")
    return 0 if findings.clean else WRONG


def _require_writable(args: argparse.Namespace) -> None:
    may_write("--page", args.page, CHECK_PAGE)
    may_write("--quarantine", args.quarantine, QUARANTINE)
    if args.page is not None and args.quarantine is not None and args.page.absolute() == args.quarantine.absolute():
        raise BadInput(f"--page {args.page} and --quarantine are one file; give each its own")


def _print_findings(findings: Findings, args: argparse.Namespace) -> None:
    """Print the findings of a check, for people or for a program, and write the page."""
    from clinkd.data.checks.check import summarise_problems
    from clinkd.reporting import survey

    if args.page is not None:
        survey.write_survey_page(findings, args.page)
    if args.json:
        print(json.dumps(findings.to_json(), indent=1, ensure_ascii=False))
        return
    for line in summarise_problems(findings.bad, SHOWN):
        print(f"bad      {line}")
    for line in summarise_problems(findings.warnings, SHOWN):
        print(f"look at  {line}")
    for reason, count in findings.notes.most_common():
        print(f"note     {count} {reason}")
    if findings.turns:
        show(survey.tabulate_question_counts(findings))
    if findings.quarantined:
        print(f"wrote    {args.quarantine}: {findings.quarantined} rows that were set aside, with reasons")
    if args.page is not None:
        print(f"page     {args.page}")


def _export(args: argparse.Namespace) -> int:
    from clinkd.data import writers
    from clinkd.data.readers.forms import read_samples

    left_out: Counter[str] = Counter()
    if args.to != "sharegpt":
        may_write("--out", args.out)
    end_in_order()
    samples = read_samples(source_of(args, args.path), left_out)
    if args.to == "sharegpt":
        pixels = {"min_pixels": args.min_pixels, "max_pixels": args.max_pixels}
        left_out = writers.write_sharegpt(samples, args.out, args.spell, **pixels)
    elif args.to == "coco":
        left_out = writers.write_coco(samples, args.out)
    else:
        writers.write_jsonl(samples, args.out)
    print(f"wrote    {args.out}: {len(samples)} samples")
    for reason, count in left_out.items():
        print(f"note     {count} {reason}")
    return 0


def _split(args: argparse.Namespace) -> int:
    from clinkd.data.importing import split_again

    counts = split_again(args.path, _make_division(args, args.seed, anew=True))
    print(f"groups   {', '.join(f'{name} {counts[name]}' for name in ('train', 'validation', 'test'))}")
    print(f"note     {args.path} has changed: the next run on it starts anew; finished runs stay as they are")
    return 0


def _sheet(args: argparse.Namespace) -> int:
    from clinkd.data.readers.dicom_folder import list_sheet_lines

    head: list[str] = []
    wrong = 0
    for line in list_sheet_lines(args.folder):
        if problem := line.pop("problem", ""):
            wrong += 1
            tell(f"{line['image']}: {problem}")
            continue
        if not head:
            head = list(line)
            write_csv(sys.stdout, [head])
        write_csv(sys.stdout, [[line[name] for name in head]])
    if not head:
        raise BadInput(f"{args.folder}: no image that opens is there")
    return WRONG if wrong else 0


def _read_good_samples(args: argparse.Namespace) -> tuple[Source, list[Sample], int]:
    """A source with its form, its samples and the number of bad rows. The reasons go to stderr."""
    from clinkd.data.checks.check import summarise_problems
    from clinkd.data.readers.forms import read_rows, with_form

    source = with_form(source_of(args, args.path))
    notes: Counter[str] = Counter()
    samples: list[Sample] = []
    problems: list[RowError] = []
    for result in read_rows(source, notes):
        samples.extend(result.samples)
        problems += [result.problem] if result.problem is not None else []
    for line in summarise_problems(problems, SHOWN):
        print(f"left out: {line}", file=sys.stderr)
    if problems:
        print(f"note: clinkd data check {shlex.quote(str(args.path))} --json lists all bad rows", file=sys.stderr)
    for reason, count in notes.items():
        print(f"note: {count} {reason}", file=sys.stderr)
    return source, samples, len(problems)


def _stats(args: argparse.Namespace) -> int:
    from clinkd.data.checks import guessability
    from clinkd.data.checks.stats import count_samples
    from clinkd.records import Task

    source, samples, bad = _read_good_samples(args)
    show(count_samples(samples))
    if any(sample.task is Task.ROC for sample in samples) and not args.no_images:
        show(guessability.measure_guessability(guessability.find_sightings(samples, source.root)).table())
    return WRONG if bad else 0


def _show(args: argparse.Namespace) -> int:
    import difflib

    from clinkd.data.images import open_image
    from clinkd.reporting.viewer.overlay import draw_sample_boxes

    source, good, _ = _read_good_samples(args)
    samples = {sample.id: sample for sample in good}
    sample = samples.get(args.id)
    if sample is None:
        similar_ids = difflib.get_close_matches(args.id, samples, n=3, cutoff=0.3) or list(samples)[:3]
        raise BadInput(f"{args.id}: no sample of that id in {args.path}; there are {', '.join(similar_ids)} ...")
    print(json.dumps(sample.to_json(), indent=1, ensure_ascii=False))
    png = args.out or Path(f"{sample.id.replace('/', '_')}.png")
    may_write("--out", png, PICTURE)
    picture = open_image(source.root, sample.images[-1])
    _write_picture(png, draw_sample_boxes(picture, sample))
    return 0


def _boxes(args: argparse.Namespace) -> int:
    from clinkd.experiments import laptop, real
    from clinkd.reporting.box_sheet import ModelView, choose_boxes, draw_box_sheet

    if args.count < 1 or args.no_images:
        raise BadInput("--no-images: boxes are drawn on images" if args.no_images else "--count: 1 or more is wanted")
    may_write("--out", args.out, PICTURE)
    view = ModelView.from_config((laptop(base=args.base) if args.base else real()).model)
    source, samples, bad = _read_good_samples(args)
    chosen = choose_boxes(samples, args.count, args.seed)
    if not chosen:
        raise BadInput(f"{args.path}: no box in its {len(samples)} samples; clinkd data check says what is read there")
    sheet, boxes = draw_box_sheet(chosen, source.root, view)
    for box in boxes:
        where = f"{box.image.path}: {box.pixels} of {box.size.width}x{box.size.height} pixels"
        print(f"box      {box.name}, {where}; as {box.spelled} {box.difference:.1f} px off")
    worst = max(boxes, key=lambda box: box.difference)
    print(f"largest  {worst.difference:.1f} px between a box and what the model reads of it ({worst.image.path})")
    _write_picture(args.out, sheet)
    print("look     left the file's box, right the model's: are my boxes right?")
    return WRONG if bad else 0


def _write_picture(png: Path, picture: Image) -> None:
    """Write a picture of this command, which it may write over later, and say where."""
    from PIL.PngImagePlugin import PngInfo

    from clinkd.data.images import encode_picture
    from clinkd.storage import write_atomic

    png_info = PngInfo()
    png_info.add_text("Software", PICTURE.decode())
    write_atomic(png, encode_picture(picture, pnginfo=png_info))
    print(f"picture  {png}")


def _phantoms(args: argparse.Namespace) -> int:
    from clinkd.config import PhantomConfig
    from clinkd.data import phantoms
    from clinkd.data.checks.stats import count_samples
    from clinkd.data.writers import write_jsonl
    from clinkd.settings import change_knobs
    from clinkd.storage import new_folder, progress

    end_in_order()
    config = PhantomConfig()
    if args.images is not None:
        if args.images < 1:
            raise BadInput(f"--images {args.images}: 1 or more are wanted")
        config = change_knobs(config, train_images=args.images)
    total = config.train_images + config.validation_images + config.test_images
    with new_folder(args.folder) as draft:
        with progress(total, "phantoms", "image") as advance:
            samples = phantoms.write_phantoms(draft, config, args.seed, workers=cores(), advance=advance)
        write_jsonl(samples, draft / "samples.jsonl")
    show(count_samples(samples))
    return 0
