"""The functions of `import clinkd`: load a model and ask it, read data, evaluate, and run a recipe.

What they return shows itself in a notebook. Wrong input is a BadInput of one line.
"""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_type_hints

from clinkd.records import SPLITS, BadInput, Box, Candidate, Modality, Sample, Score, Split, Table, Task
from clinkd.spelling import find_near

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL import Image

    from clinkd.config import RunConfig
    from clinkd.data.readers.rows import RowError
    from clinkd.data.readers.source import Source
    from clinkd.pipeline.runs import Run
    from clinkd.workflows.answer import Answers, TestSet
    from clinkd.workflows.ask import Answerer

SHOWN = 20  # bad rows in a notebook; `problems` has all

P = ParamSpec("P")
T = TypeVar("T")


def _one_kind_of_error(call: Callable[P, T]) -> Callable[P, T]:
    """The function with errors of files as BadInput, as on the command line."""

    @wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise BadInput(f"{place}{error.strerror or error}") from error

    return wrapped


# ---- a model and its answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxedAnswer:
    """The answer to one question about one image. A notebook shows it with its boxes drawn on the image.

    `boxes` are fractions of width and height; `pixels` the same as left, top, right and bottom, the last two exclusive.
    `uncertain` says in what the candidates differ and how often such answers were wrong on the validation split, None
    where they agree or the run does not show what it means.
    """

    question: str
    text: str
    boxes: tuple[Box, ...]
    candidates: tuple[Candidate, ...]
    uncertain: str | None
    image: Image.Image = field(repr=False, compare=False)
    warnings: tuple[str, ...] = ()

    @property
    def pixels(self) -> tuple[tuple[int, int, int, int], ...]:
        return tuple(_count_pixels(box, *self.image.size) for box in self.boxes)

    def picture(self, side_pixels: int = 448) -> Image.Image:
        """The image with its boxes, numbered in the order of the text: `answer.picture().save("answer.png")`."""
        from clinkd.reporting.viewer.overlay import draw_boxes

        labels = [str(n) for n in range(1, len(self.boxes) + 1)]
        return draw_boxes(self.image, self.boxes, labels, side_pixels=side_pixels)

    def _repr_png_(self) -> bytes:
        from clinkd.data.images import encode_picture

        return encode_picture(self.picture())

    def _repr_html_(self) -> str:
        lines = [f"<b>{html.escape(self.question)}</b>", html.escape(self.text)]
        lines += [f"uncertain: {html.escape(self.uncertain)}"] if self.uncertain else []
        lines += [f"warning: {html.escape(warning)}" for warning in self.warnings]
        png = base64.b64encode(self._repr_png_()).decode()
        return f'<p>{"<br>".join(lines)}</p><img src="data:image/png;base64,{png}">'


def _count_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    left, top = min(round(box.x1 * width), width - 1), min(round(box.y1 * height), height - 1)
    return left, top, max(left + 1, round(box.x2 * width)), max(top + 1, round(box.y2 * height))


@dataclass
class LoadedModel:
    """The model of a finished run, or one in a folder. Its weights are read at the first question."""

    name: str
    source: Run | Path = field(repr=False)
    _answerer: Answerer | None = field(default=None, repr=False)

    @property
    def run(self) -> TrainedRun:
        """The run that the model is from: `model.run.scores`. Raises BadInput for a model in a folder."""
        if isinstance(self.source, Path):
            raise BadInput(f"{self.source}: a model in a folder belongs to no run here; give the name of a run to load")
        return TrainedRun(self.source.folder)

    @_one_kind_of_error
    def ask(
        self,
        image: str | Path | Image.Image,
        question: str,
        *,
        beams: int | None = None,
        candidates: int | None = None,
        max_new_tokens: int | None = None,
    ) -> BoxedAnswer:
        """The answer about a file (`series.dcm#3`: its third frame) or a PIL image, chosen as the run chooses.

        `model.ask("scan.dcm", "Where is the liver?", beams=5)`; fewer beams than candidates keep as many as there are.
        """
        from clinkd.data.images import locate
        from clinkd.settings import override
        from clinkd.workflows.ask import Question, read_stated_modality

        picture = _open_picture(image)
        answerer = self._load_answerer()
        if beams is not None and candidates is None:
            candidates = min(beams, answerer.config.answer.candidates)
        knobs = {"beams": beams, "candidates": candidates, "max_new_tokens": max_new_tokens}
        how = override(answerer.config, [f"answer.{name}={n}" for name, n in knobs.items() if n is not None]).answer
        modality, file = Modality.OTHER, None
        if isinstance(image, str | Path):
            path = Path(image).expanduser()
            modality = read_stated_modality(path.parent, path.name)
            file, _ = locate(path.parent, path.name, f"image {path.name}")
        asked = Question.of(picture, answerer.read(question, picture), modality, file)
        [answer] = answerer.answers([asked], how)
        chosen, candidates_by_rank = answer.prediction.answer.answer, answer.prediction.candidates
        return BoxedAnswer(
            question, chosen.text, chosen.boxes, candidates_by_rank, answer.uncertain, picture,
            tuple(warning.message for warning in answer.warnings),
        )  # fmt: skip

    def _load_answerer(self) -> Answerer:
        from clinkd.workflows.ask import Answerer

        if self._answerer is None:
            source = self.source
            self._answerer = Answerer.of_folder(source) if isinstance(source, Path) else Answerer.of_run(source)
        return self._answerer

    def _answer_test(self, test: TestSet, out: Path) -> Answers:
        from clinkd.workflows.answer import answer_with_model, answer_with_run

        self._answerer = None  # the weights are read anew, and two copies of a large model may not fit
        if isinstance(self.source, Path):
            return answer_with_model(self.source, test, [], out, self.name)
        return answer_with_run(self.source, test, [], out, self.name)


def _open_picture(image: str | Path | Image.Image) -> Image.Image:
    from PIL import Image, ImageOps

    from clinkd.data.images import encode_picture, open_image
    from clinkd.data.images.limits import FileLimits
    from clinkd.data.images.upload import decode_frame

    if isinstance(image, Image.Image):  # through a file, so that grey levels and transparency become what they do there
        file = encode_picture(ImageOps.exif_transpose(image), "TIFF", icc_profile=image.info.get("icc_profile"))
        return decode_frame(file, limits=FileLimits()).picture
    path = Path(image).expanduser()
    return open_image(path.parent, path.name)


@_one_kind_of_error
def load(name: str | Path, runs: str | Path = "runs") -> LoadedModel:
    """The model of a finished run (its name under `runs`, or its path), of `clinkd export`, or a stock one in a folder.

    `clinkd.load("demo").ask("scan.dcm", "Where is the liver?")`. Raises BadInput that lists the runs there are.
    """
    from clinkd.pipeline.runs import RUN_RECORD, find_run

    folder, runs = Path(name).expanduser(), Path(runs).expanduser()
    is_run = any((place / RUN_RECORD).is_file() for place in (runs / name, folder))
    if not is_run and (folder / "config.json").is_file():
        return LoadedModel(folder.resolve().name, folder)
    run = find_run(str(name), runs)
    run.stage(run.last_trained)
    return LoadedModel(run.folder.name, run)


# ---- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Samples, the rows that could not be used, each with its reason, and counts of what was left out or changed."""

    name: str
    samples: tuple[Sample, ...] = field(repr=False)
    problems: tuple[RowError, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    root: Path = Path()  # of the paths of images
    pictured: bool = True  # the images were opened, so they exist

    def open(self, sample: Sample) -> Image.Image:
        """The first image of a sample: `data.open(data.samples[0])`."""
        from clinkd.data.images import open_image

        return open_image(self.root, sample.images[0])

    def _repr_html_(self) -> str:
        counts = Counter((s.split or "-", s.modality.value, s.task.value) for s in self.samples)
        rows = [(*key, str(n)) for key, n in sorted(counts.items())]
        bad = [(p.file, str(p.row), p.id, p.field, p.value, p.why) for p in self.problems[:SHOWN]]
        notes = [f"{n:,} {what}" for what, n in self.notes.items() if n]
        notes += [f"{len(self.problems) - SHOWN} more bad rows in .problems"] if len(self.problems) > SHOWN else []
        title = f"{self.name}: {len(self.samples)} questions, {len(self.problems)} bad rows"
        parts = [_spell_html(Table(title, ("split", "modality", "task", "questions"), tuple(rows)))]
        if bad:
            parts.append(_spell_html(Table("bad rows", ("file", "row", "id", "field", "value", "why"), tuple(bad))))
        return "".join(parts) + "".join(f"<p>{html.escape(note)}</p>" for note in notes)


@_one_kind_of_error
def read(path: str | Path, images: str | Path | None = None, **source: Any) -> Data:
    """Data of any form that `clinkd data import` reads. `source`: further fields of `clinkd.data.readers.Source`.

    `clinkd.read("sheet.csv", images="scans", modality="ct").problems` are the bad rows; nothing is written.
    """
    from clinkd.data.readers.forms import read_rows

    described = _make_source({"path": path, "images": images, **source})
    notes: Counter[str] = Counter()
    samples: list[Sample] = []
    problems: list[RowError] = []
    for row in read_rows(described, notes):
        samples += row.samples
        problems += [row.problem] if row.problem else []
    name, pictured = described.path.name, described.open_images
    return Data(name, tuple(samples), tuple(problems), dict(notes), described.root, pictured)


def _make_source(values: dict[str, Any]) -> Source:
    """A Source of plain values, words as the command line takes them. Raises BadInput naming the field."""
    from pydantic import TypeAdapter, ValidationError

    from clinkd.data.readers.source import Flag, Source

    names = [f.name for f in fields(Source)]
    if unknown := [name for name in values if name not in names]:
        near = find_near(unknown[0], names)
        raise BadInput(
            f"{unknown[0]}: no field of a source; " + (f"did you mean {near}?" if near else ", ".join(names))
        )
    for name, hint in get_type_hints(Source, include_extras=True).items():
        flag = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Flag)), None)
        if name in values and isinstance(values[name], str) and flag is not None and flag.read is not None:
            values[name] = flag.read(values[name])
        elif name in ("path", "images", "classes") and values.get(name) is not None:
            values[name] = Path(values[name]).expanduser()
    try:
        made: Source = TypeAdapter(Source).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":  # a BadInput of the class itself
            raise BadInput(str(first["ctx"]["error"])) from None
        raise BadInput(f"{first['loc'][0]}={first['input']!r}: {first['msg'].lower()}") from None
    return made


# ---- scores ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Strict scores x100, as `clinkd table` shows them: `scores["VG"]` is the mean over modalities.

    A score is None where it could not be computed; `to_json` gives the reason, and the best image-blind baseline.
    """

    name: str
    values: Mapping[str, Any] = field(repr=False)
    records: tuple[Score, ...] = field(repr=False)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks with questions."""
        return tuple(task for task in Task if any(s.task is task for s in self.records))

    def __getitem__(self, task: str) -> float | None:
        score: float | None = self.values[self._find_task(task)]["score"]
        return score

    @property
    def by_modality(self) -> dict[str, dict[str, float | None]]:
        """The score of each task in each modality with questions: `scores.by_modality["VG"]["ct"]`."""
        return {t.value: {m: of["score"] for m, of in self.values[t]["by_modality"].items()} for t in self.tasks}

    def to_json(self) -> dict[str, Any]:
        """What `clinkd table --json` prints: `json.dumps(scores.to_json())`."""
        return dict(self.values)

    def to_pandas(self) -> DataFrame:
        """Every figure as a row: who answered (the model, or an image-blind baseline), task, metric, modality, value.

        `scores.to_pandas().query("row == 'model'")`; the modality of a mean is "mean".
        """
        try:
            import pandas
        except ImportError:
            raise BadInput("to_pandas: pandas is not installed; pip install -c constraints.txt '.[notebook]'") from None
        rows = []
        for score in self.records:
            low, high = score.interval or (None, None)
            rows.append({
                "row": score.row, "task": score.task.value, "metric": score.metric,
                "modality": "mean" if score.modality is None else score.modality.value,
                "value": score.value, "low": low, "high": high, "count": score.count, "why": score.why,
            })  # fmt: skip
        return pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        from clinkd.pipeline.runs import score_table

        shown = {key: self.values.get(key) for key in (*self.tasks, "average")}
        return _spell_html(score_table(shown, self.name))

    def _find_task(self, task: str) -> Task:
        asked = _read_task(task)
        if asked not in self.tasks:
            raise BadInput(f"{task}: no such question was asked; asked were {', '.join(self.tasks)}")
        return asked


def _read_task(name: str) -> Task:
    try:
        return Task(name.strip().upper())
    except ValueError:
        raise BadInput(f"{name}: no such task; one of {', '.join(Task)} is wanted") from None


@_one_kind_of_error
def evaluate(
    model: LoadedModel,
    data: Data,
    *,
    tasks: Sequence[str] | None = None,
    split: Split | Literal["all"] = "test",
    out: str | Path | None = None,
) -> Scores:
    """Scores of the model's answers to the questions of `tasks` (all) in a split, beside image-blind baselines.

    `clinkd.evaluate(model, data, tasks=["VG"])["VG"]`. `out`: a folder that keeps the answers as they come, so that
    the same call goes on from there. Bad rows of the data are not asked. Raises BadInput where no question is left.
    """
    from clinkd.reporting.tables import describe_scores
    from clinkd.workflows.evaluate import evaluate as evaluate_answers
    from clinkd.workflows.evaluate import may_write

    test = _choose_questions(data, tasks, split)
    if out is not None:
        may_write(Path(out).expanduser())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if out is None else Path(out).expanduser()
        evaluation = evaluate_answers(model._answer_test(test, folder), ["strict"])
    values = describe_scores(evaluation.strict.scores, {}, evaluation.strict.gains)
    return Scores(f"{model.name} on {test.description}", values, tuple(evaluation.strict.scores))


def _choose_questions(data: Data, tasks: Sequence[str] | None, split: Split | Literal["all"]) -> TestSet:
    from clinkd.workflows.answer import TestSet

    if isinstance(tasks, str):
        tasks = [tasks]
    chosen = [*Task] if tasks is None else [_read_task(task) for task in tasks]
    if not data.samples:
        raise BadInput(
            f"{data.name}: no question could be read; data.problems tells why, {len(data.problems)} bad rows"
        )
    in_split = [s for s in data.samples if split in ("all", s.split)]
    questions = [s for s in in_split if s.task in chosen]
    if not in_split:
        splits = ", ".join(sorted({s.split or "none" for s in data.samples}))
        raise BadInput(
            f"split={split}: {data.name} has no question there (splits: {splits}); give split='all', or divide the "
            "data by `clinkd data import`"
        )
    if not questions:
        there = ", ".join(sorted({s.task.value for s in in_split}))
        raise BadInput(f"tasks={', '.join(chosen)}: {data.name} asks no such question in split={split}, but {there}")
    train = [s for s in data.samples if s.split == "train"] if split in ("test", "validation") else []
    validation = [s for s in data.samples if s.split == "validation"] if split == "test" else []
    notes = Counter(data.notes)
    return TestSet(data.name, split, questions, train, data.root, data.pictured, None, notes, validation)


# ---- runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its scores, its report and its model."""

    folder: Path

    @property
    def scores(self) -> Scores:
        """Of the test split: `run.scores["VG"]`."""
        from clinkd.pipeline.prepared import read_scores

        run = self._open()
        last = run.stage(run.stages[-1]["name"])
        return Scores(f"{self.folder.name}: test split", run.scores(), tuple(read_scores(last)))

    @property
    def report(self) -> Path:
        """The page with tables and pictures: `webbrowser.open(run.report.as_uri())`."""
        run = self._open()
        return run.folder.resolve() / run.report().name

    def model(self) -> LoadedModel:
        """The final model: `run.model().ask("scan.dcm", "Where is the liver?")`."""
        return load(self.folder, self.folder.parent)

    def data(self) -> Data:
        """The questions of all splits, as the run used them: `clinkd.evaluate(model, run.data(), tasks=["VG"])`."""
        from clinkd.pipeline.prepared import read_data_source, read_split

        prepared = self._open().stage("prepare")
        samples = tuple(sample for split in SPLITS for sample in read_split(prepared, split))
        return Data(self.folder.name, samples, root=read_data_source(prepared).root)

    def _open(self) -> Run:
        from clinkd.pipeline.runs import open_run

        return open_run(self.folder)

    def _repr_html_(self) -> str:
        return self.scores._repr_html_() + f"<p>report: {html.escape(str(self.report))}</p>"


def recipe(experiment: str, /, data: str | Path | None = None, **knobs: Any) -> RunConfig:
    """The config of an experiment with some knobs changed, to run: `clinkd.recipe("real", data="mydata", seed=1)`.

    Knobs of a group have their names in quotes: `**{"reflect.rounds": 1}`. `clinkd recipe real` prints all of them.
    """
    from clinkd.experiments import EXPERIMENTS, list_missing_folders
    from clinkd.settings import override

    if experiment not in EXPERIMENTS:
        near = find_near(experiment, EXPERIMENTS)
        raise BadInput(
            f"{experiment}: no such experiment; " + (f"did you mean {near}?" if near else ", ".join(EXPERIMENTS))
        )
    given = {**knobs, **({} if data is None else {"data.path": data})}
    config = override(EXPERIMENTS[experiment](), [f"{name}={json.dumps(v, default=str)}" for name, v in given.items()])
    for name in list_missing_folders(experiment, config):
        way_out = "data=FOLDER" if name == "data.path" else f'**{{"{name}": FOLDER}}'
        raise BadInput(f"{name}: `{experiment}` needs a folder here; give {way_out}")
    return config


@_one_kind_of_error
def run(config: RunConfig, runs: str | Path = "runs", *, replace: bool = False) -> TrainedRun:
    """Do a whole run in `runs/NAME`, or go on with one that was stopped; a finished one is opened at once.

    `clinkd.run(clinkd.recipe("demo")).scores["VG"]`. `replace`: the folder may hold a run of another config.
    """
    from clinkd import pipeline

    return TrainedRun(pipeline.run(config, Path(runs).expanduser(), replace).folder)


# ---- tables in a notebook -------------------------------------------------------------------------------------------


def _spell_html(table: Table) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "".join(row(cells, "td") for cells in table.rows)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return f"<table><caption>{html.escape(table.title)}</caption>{row(table.columns, 'th')}{rows}</table>{notes}"
