"""The verb ask: one question about an image, or many in one start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinkd.cli.choice import WHICH_RUN, choose_run
from clinkd.cli.outputs import end_in_order, may_write
from clinkd.cli.screen import show, tell
from clinkd.cli.words import FAILED, Parser, add_verb
from clinkd.records import BadInput, Table

if TYPE_CHECKING:
    from clinkd.pipeline.runs import Run
    from clinkd.records import Prediction
    from clinkd.workflows.ask import AskResult
    from clinkd.workflows.batch import QuestionList


def add(verbs: Any, runs: Parser) -> None:
    """Add `ask`."""
    parser = add_verb(
        verbs,
        "ask",
        _ask,
        "ask a run's model about an image, or many questions in one start",
        "clinkd ask scan.png Where is the left lung; clinkd ask FOLDER --questions sheet.csv --out answers.csv",
        [runs],
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="WORD",
        help="IMAGE QUESTION, the question with or without quotes; or a FOLDER of images; or a SHEET with the columns "
        "image and question (CSV, XLSX, JSONL). The name of a run may stand before them",
    )
    parser.add_argument("--run", metavar="RUN", help=WHICH_RUN)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="a new file: the .png or .jpg of one answer; the .csv or .jsonl of many",
    )
    many = parser.add_argument_group("many questions, with --out; the same command goes on after a stop")
    many.add_argument(
        "--questions", type=Path, metavar="SHEET", help="with the columns image (inside FOLDER), question, perhaps id"
    )
    many.add_argument(
        "--question", action="append", default=[], metavar="TEXT", help="about every image of FOLDER; may be repeated"
    )
    many.add_argument("--pictures", type=Path, metavar="DIR", help="a PNG of each answer, with its boxes, goes there")
    parser.set_defaults(stopped="of many questions, what was answered is kept, and the same command goes on from there")


def _ask(args: argparse.Namespace) -> int:
    from clinkd.data.readers.rows import ROW_FILES

    name, words = _part_words(args)
    if not words:
        raise BadInput(f"{args.words[0]}: is a run; give it an image and a question: clinkd ask {name} IMAGE QUESTION")
    place = Path(words[0])
    wants_many = args.questions or args.question or args.pictures
    if wants_many or place.is_dir() or place.suffix.lower() in ROW_FILES:
        questions = _find_questions(args, place, words[1:])
        return _ask_many(args, choose_run(name, args.runs), questions)
    if len(words) == 1:
        raise BadInput(f'{place}: what about it? give a question, as: clinkd ask {place} "Where is the kidney?"')
    if other := next((word for word in words[1:] if Path(word).is_file()), None):
        raise BadInput(
            f"{other}: a file among the words of the question; for many images: `clinkd ask FOLDER --question QUESTION "
            "--out answers.csv`"
        )
    may_write("--out", args.out)
    return _ask_one(args, choose_run(name, args.runs), place, " ".join(words[1:]))


def _part_words(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The run, if the first word names one under --runs, and the other words. Raises BadInput if it may also be meant
    as a file."""
    from clinkd.pipeline.runs import list_runs

    first, *others = args.words
    folder = next((folder for folder in list_runs(args.runs) if folder.name == first), None)
    if args.run is not None or folder is None:
        return args.run, args.words
    if Path(first).exists() and not folder.samefile(first):
        raise BadInput(
            f"{first}: is a run under {args.runs}, and a file here: `clinkd ask --run {first} IMAGE QUESTION` asks the "
            f"run, `clinkd ask ./{first} QUESTION` asks about the file"
        )
    return first, others


# ---- one question ---------------------------------------------------------------------------------------------------


def _ask_one(args: argparse.Namespace, run: Run, image: Path, question: str) -> int:
    from clinkd.workflows.ask import ask

    result = ask(run, image, question, args.out)
    prediction = result.prediction
    print(prediction.answer.answer.text)
    if result.uncertain:
        print(f"uncertain: {result.uncertain}")
    if result.confidence is not None:
        print(f"confidence: {result.confidence:.2f}, the probability that it is right, fitted to validation answers")
    for warning in result.warnings:
        print(f"warning: {warning.message}")
    _print_boxes(result)
    show(_candidate_table(prediction))
    print(f"picture  {result.overlay}")
    return 0


def _print_boxes(result: AskResult) -> None:
    from clinkd.workflows.batch import to_pixels

    for box in result.prediction.answer.answer.boxes:
        corners = " ".join(f"{fraction:.3f}" for fraction in box.corners)
        pixels = f"; in pixels: {' '.join(map(str, to_pixels(box, result.size)))}" if result.size else ""
        print(f"box      {corners}   (fractions of width and height{pixels})")


def _candidate_table(prediction: Prediction) -> Table:
    from clinkd.reporting.tables import SCORERS

    names = list(dict.fromkeys(name for candidate in prediction.candidates for name in candidate.scores))
    rows = tuple(
        (
            "*" if number == prediction.chosen else "",
            candidate.raw,
            "-" if candidate.logprob is None else f"{candidate.logprob:.3f}",
            *(f"{candidate.scores[n]:.3f}" if n in candidate.scores else "-" for n in names),
        )
        for number, candidate in enumerate(prediction.candidates)
    )
    notes = ("log p: how likely the model finds it (0 is best)", *(f"{n}: {SCORERS.get(n, n)}" for n in names))
    return Table("candidates", ("", "as written", "log p", *names), rows, notes)


# ---- many questions -------------------------------------------------------------------------------------------------


def _find_questions(args: argparse.Namespace, place: Path, more: list[str]) -> QuestionList:
    from clinkd.workflows.batch import ask_about_folder, journal_of, read_question_sheet

    if args.out is None:
        raise BadInput("many questions: say where the answers go, as --out answers.csv")
    if more:
        raise BadInput(f"{' '.join(more)}: a question about every image of a folder is given as --question TEXT")
    if args.questions and args.question:
        raise BadInput("--questions and --question: give a sheet of questions, or the same ones for every image")
    if not journal_of(args.out).exists():
        may_write("--out", args.out)
    if args.questions:
        if not place.is_dir():
            raise BadInput(f"{place}: is no folder; --questions names images inside a folder: clinkd ask FOLDER ...")
        return read_question_sheet(args.questions, place)
    if not place.is_dir():
        if args.question:
            raise BadInput(f"{place}: is no folder; --question asks about every image of one: clinkd ask FOLDER ...")
        return read_question_sheet(place)
    if not args.question:
        raise BadInput(f"{place}: a folder; give --question TEXT about every image of it, or --questions SHEET")
    besides = [args.out, journal_of(args.out), *([args.pictures] if args.pictures else [])]
    return ask_about_folder(place, args.question, besides)


def _ask_many(args: argparse.Namespace, run: Run, questions: QuestionList) -> int:
    from clinkd.workflows.batch import ask_many

    end_in_order()
    result = ask_many(run, questions, args.out, args.pictures)
    print(f"answers  {args.out}: {result.rows - result.errors} of {result.rows} questions are answered")
    if args.pictures:
        print(f"pictures {args.pictures}")
    if result.errors:
        tell(f"{result.errors} rows have no answer; the column error says why")
    return FAILED if result.errors else 0
