"""Parse the command line, call the verb, and print errors as one line. A verb imports what is heavy."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clinkd import distributed
from clinkd.cli import ablate, ask, compare, data, evaluate, manage, pacs, report, serve, spice
from clinkd.cli.choice import WHICH_RUN, choose_run
from clinkd.cli.doctor import doctor
from clinkd.cli.outputs import ENDED, end_in_order, may_write
from clinkd.cli.screen import GO_ON, cores, show, show_leaving, split_modalities, tell
from clinkd.cli.words import FAILED, WRONG, Parser, add_verb
from clinkd.records import BadInput, Table
from clinkd.spelling import find_near
from clinkd.storage import VisibleStream, first_free, spell_bytes, spell_seconds, write_csv
from clinkd.version import __version__, spell_program

__all__ = ["main"]

if TYPE_CHECKING:
    from clinkd.config import RunConfig
    from clinkd.pipeline.graph import StagePlan, StageStatus
    from clinkd.pipeline.runs import Run
    from clinkd.workflows.forecast import Forecast, LeastCost

STOPPED = 130
ECHO_SECONDS = 3.0
# what the system, torch and its loader say
_NO_MEMORY = re.compile(r"failed to map segment|[Cc]annot allocate memory|can't allocate memory")
BUSY = 0.25  # a plan tells it if other work has more than this share of the cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 2 wrong input, 130 stopped, 1 a fault of ours."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: a file opened later would take its place, and get what is printed
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    with _showing_controls():
        return _call(_parser().parse_args(arguments))


@contextlib.contextmanager
def _showing_controls() -> Iterator[None]:
    """Whatever is printed inside goes through one gate: texts of others cannot steer the terminal."""
    with contextlib.redirect_stdout(VisibleStream(sys.stdout)), contextlib.redirect_stderr(VisibleStream(sys.stderr)):
        yield


def _call(args: argparse.Namespace) -> int:
    before = os.umask(0o077)  # what libraries and other programs write for it is for its owner alone, too
    try:
        status: int = args.verb(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _exit_with(f"stopped; {args.stopped}", STOPPED) if distributed.is_main() else STOPPED
    except SystemExit as ending:
        if ending.code == ENDED and distributed.is_main():
            tell(f"asked to end; {args.stopped}")
        raise
    except BrokenPipeError:  # `clinkd table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if args.debug:
            raise
        return _report_error(error)
    finally:
        os.umask(before)


def _report_error(error: Exception) -> int:
    if isinstance(error, distributed.PeerLost):
        message = "another process of this run has ended; the same command goes on where it was"
        return _exit_with(message, FAILED) if distributed.is_main() else FAILED
    if not distributed.is_main():
        # The launcher ends this process as soon as the main one has failed: an error that both met is printed once.
        time.sleep(ECHO_SECONDS)
    if isinstance(error, BadInput):
        return _exit_with(str(error), WRONG)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        message = "not enough memory (or a limit on it, see ulimit -v): free some, or raise the limit"
        return _exit_with(f"{message}; {_spell_first_line(error)}", FAILED)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        locked = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        way_out = "; give a folder that can be written, with --runs or --out" if locked else ""
        return _exit_with(f"{place}{error.strerror or error}{way_out}", WRONG)
    with tempfile.NamedTemporaryFile("w", prefix="clinkd-error-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    summary = f"{type(error).__name__}: {error}"
    return _exit_with(
        f"{summary[:200]} (a fault of the program; the traceback is in {file.name}, or give --debug)", FAILED
    )


def _spell_first_line(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:200]


def _exit_with(line: str, status: int) -> int:
    tell(line)
    return status


# ---- the words ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="clinkd",
        description="Teach a vision-language model medical refer-and-ground question answering from little data: "
        "teacher, distillation, reflective correction, selective generation. Research use, not for clinical decisions.",
        epilog="example: clinkd run demo",
    )
    parser.add_argument("--version", action="version", version=f"clinkd {__version__}")
    parser.set_defaults(debug=False, stopped="the same command goes on where it was")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    runs = _shared("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")
    settings = _shared("--set", action="append", default=[], metavar="A.B=C", dest="settings", help="change a knob")
    _add_verbs_of_a_config(verbs, [runs, settings])
    _add_verbs_of_a_run(verbs, runs, settings)
    add_verb(verbs, "doctor", doctor, "print versions, machine and optional parts, for a bug report", "clinkd doctor")
    ablate.add(verbs, runs, _config)
    ask.add(verbs, runs)
    compare.add(verbs, runs)
    data.add(verbs)
    evaluate.add(verbs)
    manage.add(verbs, runs)
    pacs.add(verbs, runs)
    report.add(verbs, runs)
    serve.add(verbs, runs)
    spice.add(verbs)
    return parser


def _shared(*names: str, **options: Any) -> Parser:
    """An argument of several verbs."""
    parser = Parser(add_help=False)
    parser.add_argument(*names, **options)
    return parser


def _add_verbs_of_a_config(verbs: Any, shared: Sequence[Parser]) -> None:
    what = _shared("what", metavar="NAME|FILE.yaml", help="an experiment (see clinkd recipe), or a YAML file")
    name = _shared("--name", help="folder under --runs, instead of the experiment's name")
    seed = _shared("--seed", type=int, help="seed of every random choice")
    add = partial(add_verb, verbs, parents=[*shared, what, name, seed])
    command = add(
        "run", _run, "do a whole run, or go on with one that was stopped", "clinkd run real --set data.path=DIR"
    )
    command.add_argument("--replace", action="store_true", help="give a folder of another config to this one")
    command = add(
        "plan", _plan, "print the stages of a run, what would be done, and what it takes", "clinkd plan demo --measure"
    )
    command.add_argument("--measure", action="store_true", help="take a few steps of every stage: time, memory, disk")
    command.add_argument("--json", action="store_true", help="for a program")
    command.add_argument("--gpus", metavar="NxGB", help="memory by part on such GPUs: 1x80,6x40 (a pretrained base)")
    command = add_verb(
        verbs, "recipe", _recipe, "print an experiment as YAML to edit", "clinkd recipe demo > mine.yaml"
    )
    command.add_argument("name", nargs="?", help="an experiment, or the run.json of a run; without one, all are listed")


def _add_verbs_of_a_run(verbs: Any, runs: Parser, settings: Parser) -> None:
    newest = _shared("run", nargs="?", metavar="RUN", help="a name under --runs, or a path; the newest by default")
    add_verb(verbs, "status", _status, "say how far a run is", "clinkd status demo", [runs, newest])
    of_run = [runs, _shared("run", nargs="?", metavar="RUN", help=WHICH_RUN)]
    add = partial(add_verb, verbs, parents=of_run)
    command = add("why", _why, "name what tells a stage from the nearest one made before", "clinkd why demo distill")
    command.add_argument("stage", metavar="STAGE")
    command.add_argument("--run", dest="run_flag", metavar="RUN", help="the run, where only STAGE is given")
    command = add("table", _table, "print the scores of a finished run", "clinkd table demo --json")
    format_choice = command.add_mutually_exclusive_group()
    format_choice.add_argument("--json", action="store_true", help="for a program, with the seconds of each stage")
    format_choice.add_argument("--csv", action="store_true", help="for a spreadsheet")
    command = add(
        "correct",
        _correct,
        "correct the answers of a run's round once more, or print what would leave this machine for that",
        "clinkd correct --set reflect.corrector=chat --set reflect.chat.model=M ... --dry-run",
        parents=[*of_run, settings],
    )
    command.add_argument("--round", type=int, default=1, metavar="N", help="round of reflection (1)")
    output_choice = command.add_mutually_exclusive_group(required=True)
    output_choice.add_argument("--dry-run", action="store_true", help="print each call's bytes; the cost is on stderr")
    output_choice.add_argument(
        "--out", type=Path, metavar="FILE", help="write the corrections there, to read, edit and replay"
    )
    command.set_defaults(stopped="what came back is kept in the journal, and the same command goes on from there")

    add = partial(add_verb, verbs, parents=[runs, _shared("--run", metavar="RUN", help=WHICH_RUN)])
    command = add(
        "export", _export, "write a run's model as a folder to carry away, with a card", "clinkd export --run demo DIR"
    )
    command.add_argument("folder", type=Path)
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of the weights (that of the base's weights)"
    )
    command.add_argument(
        "--max-drift", type=float, metavar="PERCENT",
        help="most answers that rounding to the type may change, of 20 validation questions; without it they are told",
    )  # fmt: skip
    command.add_argument(
        "--adapter", action="store_true", help="write the LoRA of the run for peft, too, into the subfolder adapter"
    )
    command.add_argument(
        "--positions", choices=("doubled",),
        help="doubled: positions that are halves become whole numbers, for programs that look them up; same logits",
    )  # fmt: skip


# ---- the verbs ------------------------------------------------------------------------------------------------------


def _config(args: argparse.Namespace) -> RunConfig:
    from clinkd.experiments import EXPERIMENTS, require_folders
    from clinkd.pipeline.runs import load_config
    from clinkd.settings import override

    flags = [f"{flag}={value}" for flag in ("name", "seed") if (value := getattr(args, flag)) is not None]
    settings = [*args.settings, *flags]
    if args.what in EXPERIMENTS:
        config = override(EXPERIMENTS[args.what](), settings)
    elif Path(args.what).suffix in (".yaml", ".yml") or Path(args.what).is_file():
        config = override(load_config(Path(args.what), strict=True), settings)
    else:
        raise _no_experiment(args.what, args.runs, args.parser.prog)
    # the name of the config: it may be a recipe printed and not yet edited
    require_folders(args.what if args.what in EXPERIMENTS else config.name, config)
    return config


def _no_experiment(name: str, runs: Path | None = None, command: str = "") -> Exception:
    from clinkd.experiments import EXPERIMENTS

    if runs and (config := runs / name / "config.yaml").is_file():
        return BadInput(f"{name}: a run, no experiment; give its config, as: {command} {shlex.quote(str(config))}")
    near = find_near(name, EXPERIMENTS)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(EXPERIMENTS)}, and files ending in .yaml"
    return BadInput(f"{name}: no such experiment; {hint}")


def _run(args: argparse.Namespace) -> int:
    from clinkd import pipeline
    from clinkd.experiments import describe_missing

    config = _config(args)
    if (line := describe_missing(config)) and distributed.is_main():
        print(line)
    end_in_order()
    finished_run = pipeline.run(config, args.runs, args.replace)
    if distributed.is_main():
        _show_closing(finished_run, args.runs)
    return 0


def _show_closing(run: Run, runs: Path) -> None:
    from clinkd.pipeline.cautions import read_cautions
    from clinkd.pipeline.runs import score_table

    scores, name = run.scores(), run.folder.name
    work = spell_seconds(sum(scores["wall_seconds"].values()))
    show(*split_modalities(score_table(scores, f"{name}: {run.tested_on}, {work} of work")))
    print("", *read_cautions(scores), sep="\n")
    print(f"report   {run.folder / run.report().name}")
    for number, (words, purpose) in enumerate(_suggest_commands(run, runs)):
        print(f"{'' if number else 'next':<9}{spell_program()} {shlex.join(words)}   # {purpose}")


def _suggest_commands(run: Run, runs: Path) -> Iterator[tuple[list[str], str]]:
    """What may be done with a finished run: commands that work as they stand, each with its purpose."""
    from clinkd.experiments import EXPERIMENTS
    from clinkd.pipeline.damage import name_runs
    from clinkd.pipeline.runs import open_run
    from clinkd.workflows.examples import SHEET, write_examples

    name, where = run.folder.name, name_runs(runs)
    asked_run, its = (open_run(run.folds[0]), "the first fold's") if run.folds else (run, "the")
    examples = []
    with contextlib.suppress(BadInput):  # images that were moved away
        examples = write_examples(asked_run)
    asked = [str(examples[0].image), examples[0].question] if examples else ["IMAGE", "QUESTION"]
    yield ["ask", *where, "--run", asked_run.folder.name, *asked], f"ask {its} model about a test image"
    yield ["serve", asked_run.folder.name, *where], "the same in the browser; Ctrl-C ends it"
    if examples:
        folder = examples[0].image.parent
        sheet = ["data", "import", str(folder / SHEET), "--images", str(folder), "--out", str(first_free("mydata"))]
        yield sheet, "read images and a sheet, as yours"
    yield ["table", name, *where, "--json"], "the scores for a program"
    yield ["recipe", name if name in EXPERIMENTS else "demo"], "every knob, to copy and edit"


def _plan(args: argparse.Namespace) -> int:
    from clinkd import pipeline
    from clinkd.pipeline.cautions import caution_bases
    from clinkd.pipeline.graph import CACHE, plan_stages
    from clinkd.pipeline.pace import remember_forecast
    from clinkd.workflows.forecast import count_least, forecast, tabulate_gpus

    config = _config(args)
    folds = config.fold_runs()
    if folds and args.measure:
        raise BadInput("--measure: measures one fold, and the others take about as much; add --set data.fold=1")
    if config.teachers and args.measure:
        raise BadInput("--measure: its few rows may have no question of one of `teachers`; plan without it")
    if args.gpus and args.measure:
        raise BadInput("--gpus counts for other machines, --measure takes steps on this one: give one of them")
    for line in caution_bases(config):
        print(f"caution  {line}", file=sys.stderr)
    on_gpus = tabulate_gpus(config, args.gpus) if args.gpus else None
    parts = [(part, plan_stages(pipeline.plan(part), args.runs)) for part in (*folds, config)]
    counted, counted_stages = parts[-2 if folds else -1]  # the last fold: it is done after the others
    least_cost = count_least(counted, [stage.status for stage in counted_stages])
    stages = [stage if part is config else _name_fold(stage, part) for part, stages in parts for stage in stages]
    states = [stage.status for stage in stages]
    if args.measure:
        if least_cost:
            least_cost.demand_room(config, args.runs)  # before the trial meets it in its own way
        end_in_order()
        costs = forecast(config, states, args.runs)
        _show_forecast(costs, args.json, config.threads or cores())
        seconds = {estimate.stage: estimate.seconds for estimate in costs.stages if estimate.state != "done"}
        remember_forecast(args.runs / CACHE, {s.folder.name: seconds[s.name] for s in states if s.name in seconds})
        costs.demand_room(config)
        return 0
    if args.json:
        unknown = dict.fromkeys(("steps", "seconds", "memory_mb", "disk_mb"))
        rows = [{"stage": s.name, "state": s.state, **unknown, "measured": False} for s in states]
        machines = {"gpus": asdict(on_gpus)} if on_gpus else {}
        print(json.dumps({"stages": rows, "least": least_cost and asdict(least_cost), **machines}, indent=1))
    else:
        _show_plan(stages, least_cost, " of a fold" if folds else "")
    if on_gpus and not args.json:
        show(on_gpus)
    if least_cost and not on_gpus:
        least_cost.demand_room(config, args.runs)
    return 0


def _name_fold(stage: StagePlan, part: RunConfig) -> StagePlan:
    return replace(stage, status=replace(stage.status, name=f"fold-{part.data.fold}/{stage.status.name}"))


def _show_plan(stages: Sequence[StagePlan], least_cost: LeastCost | None, of_a_fold: str) -> None:
    words = {"done": "is done", "partial": "would go on", "missing": "would run", "damaged": "is damaged"}
    rows = tuple(
        (
            stage.status.name,
            words[stage.status.state],
            stage.status.spell_time(),
            stage.causes[0].partition(": ")[2] if stage.causes else "",
        )
        for stage in stages
    )
    notes = ["--measure takes a few steps of every stage, and tells time, memory and disk"]
    if least_cost:
        notes.insert(0, f"by its weights alone{of_a_fold}: {least_cost}")
    show(Table("plan", ("stage", "", "took", "because"), rows, tuple(notes)))


def _show_forecast(costs: Forecast, as_json: bool, threads: int) -> None:
    totals = {"seconds": costs.seconds, "memory_mb": costs.memory_mb, "disk_mb": costs.disk_mb}
    if as_json:
        free = {"memory_mb": costs.free_memory_mb, "disk_mb": costs.free_disk_mb}
        entries = [{**asdict(e), "measured": e.state != "done"} for e in costs.stages]
        told = {"stages": entries, "whole": totals, "free": free, "load": costs.load, "extrapolated": costs.copies}
        print(json.dumps(told, indent=1))
        return
    whole = {"stage": "whole", "state": "", "steps": sum(e.steps for e in costs.todo), **totals}
    rows = tuple(
        (
            row["stage"],
            row["state"],
            f"{row['steps']:,}" if row["steps"] else "",
            spell_seconds(row["seconds"]) if row["state"] != "done" else "",
            spell_bytes(row["memory_mb"]) if row["state"] != "done" else "",
            spell_bytes(row["disk_mb"]) if row["state"] != "done" else "",
        )
        for row in (*map(asdict, costs.stages), whole)
    )
    measured = sum(e.measured_steps for e in costs.stages)
    notes = [
        f"free: {spell_bytes(costs.free_memory_mb)} of memory, {spell_bytes(costs.free_disk_mb)} of disk",
        "disk of the whole: with what is there for a while, such as checkpoints",
        f"from a run in small on {threads} threads: {measured:,} steps of all trainings, answers of two lengths",
    ]
    if costs.copies:
        notes.append(f"time and memory are extrapolated, not measured: from copies of the base with {costs.copies}")
    if costs.load > BUSY * cores():
        notes.append(
            f"other work had {costs.load:.1f} of the {cores()} cores before: without it the run takes less time"
        )
    show(Table("plan, measured in small", ("stage", "", "steps", "time", "memory", "disk"), rows, tuple(notes)))


def _status(args: argparse.Namespace) -> int:
    from clinkd.pipeline.runs import RUN_RECORD, open_run

    run = choose_run(args.run, args.runs, unfinished=True)
    folds = [open_run(folder) for folder in run.folds if (folder / RUN_RECORD).is_file()]
    stages = [(fold, stage) for fold in (*folds, run) for stage in fold.status()]
    states = [_spell_state(stage) for _, stage in stages]
    # of a cross-validation, the stages of each fold come before those that pool them
    rows = tuple(
        (s.name if part is run else f"fold-{part.config.data.fold}/{s.name}", state, s.spell_time())
        for (part, s), state in zip(stages, states, strict=True)
    )
    begun = f", {len(folds)} of {len(run.folds)} folds begun" if run.folds else ""
    done = states.count("done")
    can_go_on = done < len(states) and not {"at work", "damaged", "missing"} & set(states)
    notes = (f"{GO_ON}{run.command}",) if can_go_on else ()
    moved = all(s.damage and not s.folder.is_dir() for _, s in stages)
    counted = f"none of its {len(states)} stages is here" if moved else f"{done} of {len(states)} stages done"
    title = f"{run.folder}: {counted}{begun}"
    show(Table(title, ("stage", "state", "time spent"), rows, notes))
    for part in (*folds, run):
        part.demand_whole()
    return 0


def _spell_state(stage: StageStatus) -> str:
    from clinkd.pipeline.graph import is_at_work

    if stage.state != "done" and is_at_work(stage.folder):
        return "at work"
    if stage.damage and not stage.folder.is_dir():
        return "missing"
    return {"partial": "stopped", "missing": "not begun"}.get(stage.state, stage.state)


def _why(args: argparse.Namespace) -> int:
    if args.run and args.run_flag:
        raise BadInput(f"{args.run} and --run {args.run_flag}: name one run")
    print(*choose_run(args.run or args.run_flag, args.runs).why(args.stage), sep="\n")
    return 0


def _recipe(args: argparse.Namespace) -> int:
    from clinkd.experiments import EXPERIMENTS, REQUIRED
    from clinkd.settings import recipe_text

    titles = {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in EXPERIMENTS.items()}
    if args.name is None:
        for name, title in titles.items():
            print(f"{name:<10} {title}")
        return 0
    if Path(args.name).name == "run.json" and Path(args.name).is_file():
        from clinkd.pipeline.runs import read_recorded_config

        config = read_recorded_config(Path(args.name))
        print(recipe_text(config, "A ClinKD run. Copy, edit, then: clinkd run FILE.yaml"), end="")
        return 0
    if args.name not in EXPERIMENTS:
        raise _no_experiment(args.name)
    needs = REQUIRED.get(args.name, ())
    heading = titles[args.name] + (f"\nGive it: {', '.join(needs)}" if needs else "")
    print(recipe_text(EXPERIMENTS[args.name](), f"{heading}\nCopy, edit, then: clinkd run FILE.yaml"), end="")
    return 0


def _table(args: argparse.Namespace) -> int:
    from clinkd.pipeline.cautions import read_cautions
    from clinkd.pipeline.runs import score_table

    run = choose_run(args.run, args.runs)
    scores = run.scores()
    table = score_table(scores, f"{run.folder.name}: {run.tested_on}")
    if args.json:
        print(json.dumps(scores, indent=1))
    elif args.csv:
        write_csv(sys.stdout, [table.columns, *table.rows])
    else:
        show(*split_modalities(table))
        for line in read_cautions(scores):
            print(line)
    return 0


def _correct(args: argparse.Namespace) -> int:
    from clinkd.workflows.correct import OutgoingPreview, correct_round

    may_write("--out", args.out)  # it may hold what a person decided
    run = choose_run(args.run, args.runs)
    end_in_order()
    result = correct_round(run, args.round, args.settings, args.out)
    if isinstance(result, OutgoingPreview):
        show_leaving(result, f"{result.wrong} wrong answers")
        return 0
    show(result.table)
    print(f"corrections  {result.file}")
    print(f'             edit `after`, put "human" into `by`, then: {run.command} --name NEW')
    print(f"             --set reflect.corrector=replay --set reflect.replay={result.file}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from clinkd.workflows.export import ADAPTER_FOLDER, CARD, CHECKS, ExportOptions, export

    end_in_order()
    options = ExportOptions(args.dtype, args.max_drift, args.adapter, args.positions == "doubled")
    model = export(choose_run(args.run, args.runs), args.folder, options)
    loader = f"transformers' own {model.family} class" if model.stock else "transformers (trust_remote_code=True)"
    loader = loader if model.stock or model.code else "clinkd alone (its eyes exist in no stock class)"
    print(f"model    {model.folder}: of stage {model.stage}, in {model.checks.dtype}, loaded by {loader}")
    for line in model.checks.describe():
        print(f"checked  {line}")
    if args.adapter:
        print(f"adapter  {model.folder / ADAPTER_FOLDER}: for peft, on the base of the run")
    print(f"card     {model.folder / CARD}; the checks as figures: {CHECKS}")
    return 0
