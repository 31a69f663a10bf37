"""Words to calls, errors to one line. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from clinkd.config import RunConfig
    from clinkd.pipeline import Run
    from clinkd.records import Sample, Table

SAMPLES = "samples.jsonl"
FAILED, WRONG, STOPPED, ENDED = 1, 2, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 2 wrong input, 130 stopped, 1 a fault of ours."""
    args = _parser().parse_args(arguments)
    try:
        status: int = args.verb(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _tell("stopped; the same command goes on where it was", STOPPED)
    except BrokenPipeError:  # `clinkd table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if args.debug:
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    from clinkd.records import BadInput

    if isinstance(error, BadInput):
        return _tell(str(error), WRONG)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return _tell(f"{place}{error.strerror or error}", WRONG)
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="clinkd-error-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    what = f"{type(error).__name__}: {error}"
    return _tell(f"{what[:200]} (a fault of the program; the traceback is in {file.name}, or give --debug)", FAILED)


def _tell(line: str, status: int) -> int:
    print("clinkd:", " ".join(line.split()), file=sys.stderr)
    return status


# ---- the words ------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="clinkd",
        description="Teach a vision-language model medical refer-and-ground question answering from little data: "
        "teacher, distillation, reflective correction, selective generation. Research use, not for clinical decisions.",
        epilog="example: clinkd run demo",
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.set_defaults(debug=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    runs = _Parser(add_help=False)
    runs.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")

    def verb(
        name: str,
        call: Callable[[argparse.Namespace], int],
        what: str,
        example: str,
        among: Any = verbs,
        of_runs: bool = True,
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = among.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog=f"example: {example}",
            parents=[runs] if of_runs else [],
        )
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.set_defaults(verb=call)
        return made

    for name, call, what, example in (
        ("run", _run, "do a whole run, or go on with one that was stopped", "clinkd run real --set data.path=DIR"),
        (
            "plan",
            _plan,
            "print the stages of a run, and what would be done",
            "clinkd plan demo --set distill.kd_weight=1",
        ),
    ):
        made = verb(name, call, what, example)
        made.add_argument("what", metavar="NAME|FILE.yaml", help="an experiment (see clinkd recipe), or a YAML file")
        made.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="settings", help="change a knob")
        made.add_argument("--name", help="folder under --runs, in the place of the experiment's")
        made.add_argument("--seed", type=int, help="of every random choice")
        if name == "run":
            made.add_argument("--replace", action="store_true", help="give a folder of another config to this one")

    made = verb("status", _status, "say how far a run is", "clinkd status demo")
    made.add_argument("run", nargs="?", help="a name under --runs, or a path; the newest by default")
    made = verb(
        "why", _why, "name what tells a stage from the nearest one made before", "clinkd why distill --run demo"
    )
    made.add_argument("stage")
    made.add_argument("--run", help="a name under --runs, or a path; the newest by default")
    made = verb(
        "recipe", _recipe, "print an experiment as YAML to edit", "clinkd recipe demo > mine.yaml", of_runs=False
    )
    made.add_argument("name", nargs="?", help="an experiment; without one, all are listed")
    made = verb("table", _table, "print the scores of a finished run", "clinkd table demo --json")
    made.add_argument("run", nargs="?", help="a name under --runs, or a path; the newest by default")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for a program, with the seconds of each stage")
    form.add_argument("--csv", action="store_true", help="for a spreadsheet")
    made = verb("ask", _ask, "ask a run's model about an image", 'clinkd ask scan.png "Where is the left lung?"')
    made.add_argument("image", type=Path)
    made.add_argument("question")
    made.add_argument("--run", help="a name under --runs, or a path; the newest by default")
    made.add_argument("--out", type=Path, metavar="PNG", help="where the picture with the boxes goes")
    verb("doctor", _doctor, "print versions, machine and optional parts, for a bug report", "clinkd doctor")

    data = verbs.add_parser(
        "data",
        help="look at data, or draw phantoms",
        description="Look at data, or draw phantoms.",
        epilog="example: clinkd data phantoms FOLDER",
    )
    kinds = data.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    made = verb(
        "phantoms",
        _data_phantoms,
        "draw phantoms with questions into a folder",
        "clinkd data phantoms phantoms --images 24",
        kinds,
        False,
    )
    made.add_argument("folder", type=Path)
    made.add_argument("--images", type=int, help="images to learn from (the demo's number)")
    made.add_argument("--seed", type=int, default=0)
    made = verb(
        "stats",
        _data_stats,
        "count a data folder and say what can be guessed without the images",
        "clinkd data stats FOLDER",
        kinds,
        False,
    )
    made.add_argument("folder", type=Path)
    made = verb("show", _data_show, "print one sample and draw its boxes", "clinkd data show FOLDER ID", kinds, False)
    made.add_argument("folder", type=Path)
    made.add_argument("id")
    made.add_argument("--out", type=Path, metavar="PNG", help="where the picture goes (ID.png)")
    return parser


def _version() -> str:
    from clinkd import __version__

    return f"clinkd {__version__}"


# ---- the verbs ------------------------------------------------------------------------------------------------------


def _config(args: argparse.Namespace) -> RunConfig:
    from clinkd.config import load, override
    from clinkd.experiments import EXPERIMENTS, check_given

    settings = list(args.settings)
    settings += [f"name={args.name}"] if args.name is not None else []
    settings += [f"seed={args.seed}"] if args.seed is not None else []
    if args.what in EXPERIMENTS:
        config = override(EXPERIMENTS[args.what](), settings)
        check_given(args.what, config)
        return config
    if Path(args.what).suffix in (".yaml", ".yml") or Path(args.what).is_file():
        config = override(load(Path(args.what)), settings)
        check_given(config.name, config)  # a recipe printed and not yet edited
        return config
    raise _no_experiment(args.what)


def _no_experiment(name: str) -> Exception:
    import difflib

    from clinkd.experiments import EXPERIMENTS
    from clinkd.records import BadInput

    near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EXPERIMENTS)}, and files ending in .yaml"
    return BadInput(f"{name}: no such experiment; {hint}")


def _run(args: argparse.Namespace) -> int:
    from clinkd import pipeline

    def end(*_: object) -> NoReturn:  # as Ctrl-C: drafts are closed in order
        sys.exit(ENDED)

    config = _config(args)
    with contextlib.suppress(ValueError):  # outside the main thread there is nothing to catch
        signal.signal(signal.SIGTERM, end)
    done = pipeline.run(config, args.runs, args.replace)
    _closing_screen(done, args.runs)
    return 0


def _closing_screen(run: Run, runs: Path) -> None:
    from clinkd import pipeline
    from clinkd.storage import spell_seconds

    scores = run.scores()
    seconds = sum(scores["wall_seconds"].values())
    _show(pipeline.table(scores, f"{run.folder.name}: test split, {spell_seconds(seconds)} of work"))
    where = "" if runs == Path("runs") else f" --runs {runs}"
    name = run.folder.name
    print(f"\nreport   {run.folder / run.report().name}")
    print(f"next     clinkd ask{where} --run {name} IMAGE QUESTION    ask the model about an image")
    print(f"         clinkd table {name}{where} --json    the scores for a program")
    print("         clinkd recipe demo > mine.yaml    every knob, to copy and edit")


def _plan(args: argparse.Namespace) -> int:
    from clinkd import pipeline
    from clinkd.records import Table
    from clinkd.storage import spell_seconds

    looks = pipeline.outlook(pipeline.plan(_config(args)), args.runs)
    words = {"done": "is done", "partial": "would go on", "missing": "would run"}
    rows = tuple(
        (
            look.status.name,
            words[look.status.state],
            spell_seconds(look.status.seconds) if look.status.state != "missing" else "",
            look.causes[0].partition(": ")[2] if look.causes else "",
        )
        for look in looks
    )
    _show(Table("plan", ("stage", "", "took", "because"), rows))
    return 0


def _status(args: argparse.Namespace) -> int:
    from clinkd import pipeline
    from clinkd.records import Table
    from clinkd.storage import spell_seconds

    run = pipeline.find(args.run, args.runs)
    found = run.status()
    rows = tuple((s.name, s.state, spell_seconds(s.seconds) if s.state != "missing" else "") for s in found)
    done = sum(s.state == "done" for s in found)
    notes = () if done == len(found) else (f"go on with: {run.command}",)
    _show(Table(f"{run.folder}: {done} of {len(found)} stages done", ("stage", "state", "seconds spent"), rows, notes))
    return 0


def _why(args: argparse.Namespace) -> int:
    from clinkd import pipeline

    for line in pipeline.find(args.run, args.runs).why(args.stage):
        print(line)
    return 0


def _recipe(args: argparse.Namespace) -> int:
    from clinkd.config import recipe_text
    from clinkd.experiments import EXPERIMENTS, REQUIRED

    if args.name is None:
        for name, make in EXPERIMENTS.items():
            print(f"{name:<10} {(make.__doc__ or '').splitlines()[0]}")
        return 0
    if args.name not in EXPERIMENTS:
        raise _no_experiment(args.name)
    heading = f"{EXPERIMENTS[args.name].__doc__}".strip().splitlines()[0]
    needs = REQUIRED.get(args.name, ())
    heading += f"\nGive it: {', '.join(needs)}" if needs else ""
    print(recipe_text(EXPERIMENTS[args.name](), f"{heading}\nCopy, edit, then: clinkd run FILE.yaml"), end="")
    return 0


def _table(args: argparse.Namespace) -> int:
    from clinkd import pipeline

    run = pipeline.find(args.run, args.runs)
    scores = run.scores()
    if args.json:
        print(json.dumps(scores, indent=1))
        return 0
    table = pipeline.table(scores, f"{run.folder.name}: test split")
    if args.csv:
        import csv

        csv.writer(sys.stdout).writerows([table.columns, *table.rows])
    else:
        _show(table)
    return 0


def _ask(args: argparse.Namespace) -> int:
    from clinkd import pipeline
    from clinkd.records import Table

    asked = pipeline.ask(pipeline.find(args.run, args.runs), args.image, args.question, args.out)
    prediction = asked.prediction
    print(prediction.answer.answer.text)
    for box in prediction.answer.answer.boxes:
        print(f"box      {box.x1:.3f} {box.y1:.3f} {box.x2:.3f} {box.y2:.3f}   (fractions of width and height)")
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
    _show(Table("candidates", ("", "as written", "log p a token", *names), rows))
    print(f"picture  {asked.overlay}")
    return 0


def _show(table: Table) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Drawn

    drawn = Drawn(title=escape(table.title), box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, column in enumerate(table.columns):
        drawn.add_column(escape(column), no_wrap=number == 0)
    for row in table.rows:
        drawn.add_row(*(escape(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(drawn)
    for note in table.notes:
        console.print(escape(note), style="dim")


# ---- data -----------------------------------------------------------------------------------------------------------


def _samples(folder: Path) -> list[Sample]:
    """The samples of a folder as `data phantoms` or a run left it (samples.jsonl), or of records with boxes."""
    from clinkd import data
    from clinkd.records import Sample
    from clinkd.storage import JsonLines

    if (folder / SAMPLES).is_file():
        return [Sample.from_json(record) for record in JsonLines(folder / SAMPLES).read()]
    reading = data.read(folder)
    for problem in reading.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return list(reading.samples)


def _data_phantoms(args: argparse.Namespace) -> int:
    from clinkd import data
    from clinkd.config import PhantomConfig
    from clinkd.data import phantoms
    from clinkd.records import BadInput
    from clinkd.storage import progress, write_atomic

    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        raise BadInput(f"{args.folder}: exists and is not empty; choose a new folder")
    config = PhantomConfig()
    if args.images is not None:
        if args.images < 1:
            raise BadInput(f"--images {args.images}: 1 or more are wanted")
        config = config.model_copy(update={"train_images": args.images})
    total = config.train_images + config.validation_images + config.test_images
    with progress(total, "phantoms", "image") as advance:
        samples = phantoms.write(args.folder, config, args.seed, workers=_cores(), advance=advance)
    lines = (json.dumps(sample.to_json(), ensure_ascii=False) for sample in samples)
    write_atomic(args.folder / SAMPLES, "".join(f"{line}\n" for line in lines))
    _show(data.counts(samples))
    return 0


def _data_stats(args: argparse.Namespace) -> int:
    from clinkd import data
    from clinkd.data import guessability
    from clinkd.records import Task

    samples = _samples(args.folder)
    _show(data.counts(samples))
    if any(sample.task is Task.ROC for sample in samples):
        _show(guessability.measure(guessability.sightings(samples, args.folder)).table())
    return 0


def _data_show(args: argparse.Namespace) -> int:
    import difflib

    from clinkd import data, viewer
    from clinkd.records import BadInput

    samples = {sample.id: sample for sample in _samples(args.folder)}
    sample = samples.get(args.id)
    if sample is None:
        near = difflib.get_close_matches(args.id, samples, n=3, cutoff=0.3)
        raise BadInput(f"{args.id}: no sample of that id in {args.folder}; near it: {', '.join(near) or 'none'}")
    print(json.dumps(sample.to_json(), indent=1, ensure_ascii=False))
    out = args.out or Path(f"{sample.id.replace('/', '_')}.png")
    asked, true = sample.question.boxes, sample.answer.boxes
    labels = ["asked"] * len(asked) + ["truth"] * len(true)
    colours = [viewer.ASKED] * len(asked) + [viewer.TRUTH] * len(true)
    picture = viewer.overlay(data.open_image(args.folder, sample.images[-1]), [*asked, *true], labels, colours)
    picture.save(out, format="PNG")
    print(f"picture  {out}")
    return 0


# ---- doctor ---------------------------------------------------------------------------------------------------------


def _doctor(_: argparse.Namespace) -> int:
    import platform
    from importlib import metadata

    lines = {
        "clinkd": _version().removeprefix("clinkd "),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cores": f"{_cores()} usable of {os.cpu_count()}",
        "memory": _memory(),
    }
    for package in (
        "torch",
        "transformers",
        "tokenizers",
        "accelerate",
        "numpy",
        "pillow",
        "pydantic",
        "pycocoevalcap",
    ):
        try:
            lines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            lines[package] = f"not installed: pip install {package}"
    lines["device"] = _device()
    lines["java"] = _java()
    later = "not installed; nothing in this version needs it"
    lines["SPICE jars"] = later
    browsers = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    lines["Chromium"] = next(filter(None, browsers), None) or later
    for name, value in lines.items():
        print(f"{name:<14} {value}")
    return 0


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    except (ValueError, OSError):
        return "unknown"
    return f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}"


def _device() -> str:
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            return "cpu"
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"cuda {torch.version.cuda}: {', '.join(names)}"
    except Exception as error:  # a broken torch is what a bug report is about
        return f"unknown: torch does not import ({' '.join(str(error).split())[:120]})"


def _java() -> str:
    from clinkd.evaluation.captions import NotComputed, find_java

    try:
        return find_java()
    except NotComputed as error:
        return str(error)
