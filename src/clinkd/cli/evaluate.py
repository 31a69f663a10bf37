"""The verb evaluate: answers from a file, a run, a model or an API, scored by the papers' scripts and strictly."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinkd.cli.data import source_flags, source_of
from clinkd.cli.outputs import QUARANTINE, end_in_order, may_write
from clinkd.cli.screen import show, show_leaving, tell
from clinkd.cli.words import add_verb
from clinkd.records import BadInput, Task
from clinkd.spelling import suggest

if TYPE_CHECKING:
    from clinkd.config import ChatConfig
    from clinkd.scoring.outcome import Mode
    from clinkd.scoring.reading.answer_files import HowToRead
    from clinkd.workflows.answer import Answers, ReleasedFiles, TestSet

_CHAT_KNOBS = (  # knobs with a flag of the same name
    *("model", "key_variable", "input_price", "output_price", "budget"),
    *("max_tokens", "limit_as", "concurrency", "journal"),
)
_OF_ROWS = frozenset(  # flags of data that rows in the papers' form have, too
    ("task", "boxes", "column", "images", "no_images", "group", "prefix", "min_pixels", "max_pixels", "workers")
)
RELEASED = "qwen-vl"  # how the papers' files write boxes; marks of Qwen2-VL are read, too


def add(verbs: Any) -> None:
    """Add `evaluate`."""
    parser = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "score answers as the papers' scripts do and strictly, with intervals, beside image-blind answers",
        "clinkd evaluate --predictions answers.jsonl --task VG",
    )
    parser.later = _add_source_flags
    _add_answers(parser.add_argument_group("whose answers, one of these four"))
    _add_endpoint(parser.add_argument_group("a model behind an API (--endpoint)"))
    _add_scores(parser.add_argument_group("how they are scored"))
    parser.set_defaults(stopped="what was answered is kept, and the same command goes on from there")


def _add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Those of the data, of which some are of the answers here."""
    source_flags(parser)
    flags = {action.dest: action for action in parser._actions}
    flags["task"].nargs, flags["task"].metavar = "+", "TASK"
    flags["task"].help = f"{flags['task'].help}; of rows in the papers' form, one for each file"
    flags["boxes"].help = "how the answers write boxes: gemini, qwen2.5-vl, llava, pixels ... (qwen-vl)"
    flags["column"].help = "a field of the answers with another name; OURS is id, response, question or image"
    flags["group"].help = (
        "whose questions are alike, for the intervals: a field of rows in the papers' form, such as patient, or an "
        "expression that finds the patient in an image path; a data set that was imported has its own"
    )


def _add_answers(group: Any) -> None:
    group.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="answers: with --data, of any harness (lmms-eval, VLMEvalKit, MedEvalKit, ms-swift, LLaMA-Factory, LLaVA, "
        "batches of OpenAI and vLLM, {id, response}), predictions.jsonl of a run, or COCO results; without it, the "
        "papers' rows {id, image, question, annotation, response}, with --task; several files are one system",
    )
    group.add_argument("--run", help="a run's final model answers --data: a name under --runs, or a path")
    group.add_argument(
        "--model", metavar="FOLDER|NAME", help="a folder with a model answers --data; with --endpoint, its name there"
    )
    group.add_argument("--endpoint", metavar="URL", help="a chat API answers --data, such as http://127.0.0.1:8000/v1")
    group.add_argument("--data", type=Path, metavar="PATH", help="data of any form, with the questions and truths")
    group.add_argument(
        "--split", choices=["test", "validation", "train", "all"], default="test", help="of --data (test)"
    )
    group.add_argument(
        "--missing",
        choices=["refuse", "wrong"],
        default="refuse",
        help="questions without an answer: refuse the file, or count them as wrong (refuse)",
    )
    group.add_argument(
        "--truth-boxes",
        metavar="FAMILY",
        help="how --data, or the truths of the papers' rows, write boxes (qwen-vl); --boxes: how the answers do",
    )
    group.add_argument("--least", type=float, default=0.0, help="COCO boxes with a lower score are left out")
    group.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="settings", help="a knob of answer")
    group.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")
    group.add_argument("--as", dest="system", metavar="NAME", help="the system's name in tables and comparisons")


def _add_endpoint(group: Any) -> None:
    group.add_argument("--input-price", type=float, metavar="USD", help="price of a million tokens sent; 0 = free")
    group.add_argument("--output-price", type=float, metavar="USD", help="price of a million tokens written")
    group.add_argument("--budget", type=float, metavar="USD", help="the most that all calls in the journal may cost")
    group.add_argument(
        "--pixels",
        nargs="?",
        const="safe",
        choices=["safe", "all"],
        help="send the images: only of CT, MR and PET, without burnt-in text; `all` sends every picture as it is, "
        "names of patients included. Without this flag the model answers blindly",
    )
    group.add_argument("--dry-run", action="store_true", help="print the bytes of each call; its cost goes to stderr")
    group.add_argument("--journal", type=Path, metavar="FILE", help="all calls and replies (chat.sqlite under --runs)")
    group.add_argument(
        "--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="it holds the key (OPENAI_API_KEY)"
    )
    group.add_argument(
        "--max-tokens", type=int, default=400, help="tokens of an answer; a longer one is cut and counted (400)"
    )
    group.add_argument(
        "--limit-as",
        choices=["max_tokens", "max_completion_tokens"],
        default="max_tokens",
        help="the API's name for --max-tokens (max_tokens)",
    )
    group.add_argument("--concurrency", type=int, default=4, help="calls at the same time (4)")


def _add_scores(group: Any) -> None:
    group.add_argument("--mode", choices=["official", "strict"], help="one way of scoring (both)")
    group.add_argument("--quarantine", type=Path, metavar="FILE", help="set bad rows aside there, and score the rest")
    group.add_argument(
        "--scorer",
        action="append",
        default=[],
        metavar="NAME=CMD",
        help="a program that gets each truth and answer as a line of JSON, and prints a number for each; it sees the "
        "texts of patients. May be given several times",
    )
    group.add_argument(
        "--scorer-timeout", type=float, default=3600.0, metavar="SECONDS", help="most time of one of them (3600)"
    )
    group.add_argument("--replicates", type=int, default=1000, metavar="N", help="bootstrap replicates (1000); 0: none")
    group.add_argument("--json", action="store_true", help="print the scores for a program")
    group.add_argument("--out", type=Path, metavar="DIR", help="write answers, scores, tables and a page there")


def _evaluate(args: argparse.Namespace) -> int:
    from clinkd.config import EvaluateConfig
    from clinkd.pipeline.cautions import read_cautions
    from clinkd.scoring.outcome import MODES
    from clinkd.scoring.outside import parse_scorers
    from clinkd.workflows import answer as answering
    from clinkd.workflows import evaluate as evaluating

    if args.replicates < 0:
        raise BadInput(f"--replicates {args.replicates}: 0 or more are wanted")
    scorers = parse_scorers(args.scorer, args.scorer_timeout)
    if scorers and args.mode == "official":
        raise BadInput("--scorer: the papers' scripts know no other program; leave out --mode official")
    may_write("--quarantine", args.quarantine, QUARANTINE)
    if args.out is not None:
        evaluating.may_write(args.out)
    if args.images is not None and not args.images.is_dir():
        raise BadInput(f"--images {args.images}: no such folder; give the one that the pictures lie in")
    end_in_order()
    modes: tuple[Mode, ...] = (args.mode,) if args.mode else MODES
    _require_one_system(args)
    if args.dry_run:
        config, test = _build_chat_config(args), _read_test_set(args)
        preview = answering.preview_outgoing(config, test, args.runs, args.pixels)
        show_leaving(preview, f"{preview.wrong} questions")
        return 0
    evaluation = evaluating.evaluate(
        _read_or_ask_answers(args, modes), modes, EvaluateConfig(replicates=args.replicates), outside=scorers
    )
    if args.out is not None:
        evaluating.write(evaluation, args.out, args.images)
    if args.json:
        print(json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False))
        return 0
    show(*evaluation.tables())
    print(*read_cautions({"cautions": evaluation.cautions}), sep="\n", end="\n" if evaluation.cautions else "")
    if args.out is not None:
        print(f"\npage     {args.out / 'report.html'}")
        print(f"data     {args.out}: samples, predictions and scores, a line each; table.json, table.md, table.csv")
    return 0


def _require_one_system(args: argparse.Namespace) -> None:
    """Raises BadInput if it is unclear whose answers to score, or which questions they answer."""
    systems = {"--predictions": args.predictions, "--run": args.run, "--endpoint": args.endpoint}
    if not args.endpoint:
        systems["--model"] = args.model
    flags = [flag for flag, value in systems.items() if value is not None]
    if len(flags) != 1:
        named = " and ".join(flags) or "none is given"
        raise BadInput(f"whose answers? give one of --predictions, --run, --model, --endpoint ({named})")
    if args.data is None and flags != ["--predictions"]:
        raise BadInput(f"{flags[0]}: what is to be answered? give --data PATH")
    if args.data is not None and args.quarantine is not None:
        raise BadInput("--quarantine is for answers in the papers' form; clinkd data check --quarantine is for data")
    if flags[0] in ("--run", "--model") and args.out is None:
        raise BadInput(f"{flags[0]}: answers take time, and are kept as they come; give --out DIR")
    if args.dry_run and args.endpoint is None:
        raise BadInput("--dry-run: nothing leaves this machine without --endpoint")


def _read_or_ask_answers(args: argparse.Namespace, modes: tuple[Mode, ...]) -> Answers:
    from clinkd.pipeline.runs import find_run
    from clinkd.workflows import answer as answering

    if args.data is None:
        return answering.read_released(_find_released(args), modes, args.system)
    test = _read_test_set(args)
    if args.predictions is not None:
        how = _read_how(args)
        return answering.read_answers(args.predictions, test, args.missing, args.least, how, args.system)
    if args.endpoint is not None:
        return answering.ask_endpoint(_build_chat_config(args), test, args.runs, args.pixels, args.system)
    if args.run is not None:
        return answering.answer_with_run(find_run(args.run, args.runs), test, args.settings, args.out, args.system)
    return answering.answer_with_model(Path(args.model), test, args.settings, args.out, args.system)


def _read_test_set(args: argparse.Namespace) -> TestSet:
    """The questions of --data. --boxes and --column are of the answers, --truth-boxes of the data."""
    from clinkd.data.dataset import read_about
    from clinkd.workflows import answer as answering

    if args.task and len(args.task) > 1:
        raise BadInput(
            f"--task {' '.join(args.task)}: several are for the papers' rows; --data has its own tasks, or one"
        )
    if args.group is not None and read_about(args.data) is not None:
        raise BadInput(
            f"--group {args.group}: {args.data} was imported with its patients, which are the groups; to change them "
            "give --group to clinkd data import, or a column patient"
        )
    task = args.task[0] if args.task else None
    of_data = argparse.Namespace(**{**vars(args), "boxes": args.truth_boxes, "column": [], "task": task})
    return answering.read_test_set(source_of(of_data, args.data), args.split)


def _read_how(args: argparse.Namespace) -> HowToRead:
    from clinkd.data.readers.source import parse_columns
    from clinkd.scoring.reading.answer_files import COLUMNS, HowToRead

    columns = parse_columns(args.column)
    if unknown := next((ours for ours in columns if ours not in COLUMNS), None):
        raise BadInput(f"--column {unknown}={columns[unknown]}: one of {', '.join(COLUMNS)} is wanted before the =")
    return HowToRead(args.boxes or RELEASED, columns, args.min_pixels, args.max_pixels)


def _find_released(args: argparse.Namespace) -> ReleasedFiles:
    """The files in the papers' form, with the task of each."""
    from clinkd.scoring.reading.answer_files import HowToRead
    from clinkd.workflows.answer import ReleasedFiles

    if args.column:
        raise BadInput("--column: rows in the papers' form have the papers' fields; give --data to name others")
    _refuse_flags_of_data(args)
    tasks = [_read_task(word) for word in args.task] if args.task else [_find_task(f) for f in args.predictions]
    if len(tasks) != len(args.predictions):
        raise BadInput(
            f"--task {' '.join(args.task)}: one for each file is wanted, in their order; --predictions has "
            f"{len(args.predictions)} files, which without --data are rows in the papers' form"
        )
    if twice := next((task for task in tasks if tasks.count(task) > 1), None):
        raise BadInput(f"--task {twice}: of two files; a system has one for each task, so join them to one")
    truth = HowToRead(args.truth_boxes or RELEASED, {}, args.min_pixels, args.max_pixels, "--truth-boxes")
    how = truth._replace(boxes=args.boxes or truth.boxes, flag="--boxes")
    images = args.images if not args.no_images else None
    files = dict(zip(tasks, args.predictions, strict=True))
    return ReleasedFiles(files, truth, how, images, args.group, args.quarantine, args.prefix)


def _refuse_flags_of_data(args: argparse.Namespace) -> None:
    """Raises BadInput for a flag that says how --data is written, where there is none: it would change nothing."""
    parser = argparse.ArgumentParser()
    source_flags(parser)
    defaults = {**vars(parser.parse_args([])), "missing": "refuse", "least": 0.0, "split": "test"}
    for name in defaults.keys() - _OF_ROWS:
        if getattr(args, name) != defaults[name]:
            raise BadInput(f"--{name.replace('_', '-')}: is for --data; rows in the papers' form are read without it")


def _build_chat_config(args: argparse.Namespace) -> ChatConfig:
    from pydantic import ValidationError

    from clinkd.config import ChatConfig

    if args.model is None:
        raise BadInput("--endpoint: which model there? give --model NAME")
    if args.input_price is None or args.output_price is None:
        raise BadInput(
            "--endpoint: give --input-price and --output-price, US dollars a million tokens; 0 if it is free"
        )
    if args.budget is None and (args.input_price or args.output_price):
        raise BadInput("--endpoint: it costs money; give --budget, in US dollars")
    if args.pixels == "all":
        tell("--pixels all: every picture is sent as it is, and whatever text is burnt into it, names included")
    if args.pixels is None:
        tell("without --pixels the model is asked blindly: what it scores is a guess from the questions")
    knobs = {name: getattr(args, name) for name in _CHAT_KNOBS}
    try:
        return ChatConfig(base_url=args.endpoint, temperature=0.0, replies_as="text", **knobs)
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"] else "--endpoint"
        raise BadInput(f"{flag} {first['input']}: {first['msg'].lower()}") from None


def _read_task(word: str) -> Task:
    try:
        return Task(word.strip().upper())
    except ValueError:
        raise BadInput(f"--task {word}: one of {', '.join(Task)} is wanted{suggest(word, Task)}") from None


def _find_task(file: Path) -> Task:
    """The task that the name of a file says, as Test_VG or mia."""
    from clinkd.data.readers.conversations import TESTS

    by_word = {**{task.value.lower(): task for task in Task}, **TESTS}
    found = {by_word[word] for word in re.split("[^a-z]+", file.stem.lower()) if word in by_word}
    if len(found) != 1:
        raise BadInput(f"--task: which task do the rows of {file.name} answer? one of {', '.join(Task)} for each file")
    [task] = found
    tell(f"{file.name}: taken as answers to {task}, as its name says; --task states it")
    return task
