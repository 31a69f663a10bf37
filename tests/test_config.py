"""The control panel: what it takes, what it refuses and in which words, and that a printed recipe loads back."""

import re
import sys
from pathlib import Path

import pytest

from clinkd.cli import main
from clinkd.config import DistillConfig, FitConfig, RunConfig, TeacherConfig
from clinkd.experiments import CLAIMS, EXPERIMENTS, REQUIRED, demo, laptop, modern, paper, real, require_folders, small
from clinkd.experiments.rows import bird, matched, tuned
from clinkd.pipeline.machine import share_rows
from clinkd.records import BadInput
from clinkd.settings import Knobs, change_knobs, differences, dump, load, override, panel, recipe_text


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_printed_recipe_loads_back_equal_and_explains_every_knob(name, tmp_path):
    config = EXPERIMENTS[name]()
    text = recipe_text(config, f"{name}\nheading")
    assert load(write(tmp_path, text), RunConfig) == config
    assert RunConfig.model_validate(dump(config)) == config
    for line, following in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if re.match(r"\s*\w+:", following):
            assert line.strip().startswith("#"), following
    assert max(map(len, text.splitlines())) <= 120


def test_a_recipe_survives_values_that_yaml_could_misread(tmp_path):
    for value in ("2026", "null", "1e5", "no", "a-b_c.d"):
        config = RunConfig(name=value)
        assert load(write(tmp_path, recipe_text(config)), RunConfig) == config
    paths = RunConfig.model_validate(
        {"data": {"path": "/a b/é: #1/'x'"}, "model": {"base": "123", "positions": "native"}}
    )
    assert load(write(tmp_path, recipe_text(paths)), RunConfig) == paths
    tiny = override(RunConfig(), ["teacher.fit.learning_rate=1e-12", "evaluate.iou=0.30000000000000004"])
    assert load(write(tmp_path, recipe_text(tiny)), RunConfig) == tiny


def test_every_knob_has_a_meaning_and_the_papers_values_are_there():
    knobs = {knob.name: knob for knob in panel(RunConfig())}
    assert all(knob.what and knob.wants for knob in knobs.values())
    assert knobs["distill.kd_weight"].paper == 0.5 and knobs["teacher.share"].paper == 0.111
    assert knobs["model.positions"].wants == "tied | gap | mrope | sequential | native or a group of knobs"
    assert knobs["data.path"].wants == "a path or null"
    assert knobs["teacher.share"].wants == "a number > 0 and <= 1"
    assert knobs["threads"].speed_only and not knobs["seed"].speed_only
    text = recipe_text(RunConfig())
    assert "paper: 0.5" in text and "changes speed only" in text


GOOD = [
    ("distill.kd_weight=0.25", lambda c: c.distill.kd_weight == 0.25),
    ("distill.fit.learning_rate=2e-5", lambda c: c.distill.fit.learning_rate == 2e-5),
    ("select.tasks=RC,MIA", lambda c: c.select.tasks == ("RC", "MIA")),
    ("select.tasks=[RC]", lambda c: c.select.tasks == ("RC",)),
    ("teacher.fit.freeze=vision", lambda c: c.teacher.fit.freeze == ("vision",)),
    ("name=2026", lambda c: c.name == "2026"),
    ("data.path=~/data", lambda c: c.data.path == Path.home() / "data"),
    ("data.path=null", lambda c: c.data.path is None),
    ("reflect=null", lambda c: c.reflect is None),
    ("model.square=false", lambda c: c.model.square is False),
    ("teacher={share: 0.2}", lambda c: c.teacher == TeacherConfig(share=0.2)),
    (" seed = 7 ", lambda c: c.seed == 7),
]


@pytest.mark.parametrize(("setting", "holds"), GOOD, ids=[s for s, _ in GOOD])
def test_override_changes_what_it_names_and_nothing_else(setting, holds):
    changed = override(RunConfig(), [setting])
    assert holds(changed)
    name = setting.partition("=")[0].strip()
    before, after = dump(RunConfig()), dump(changed)
    assert all(d.startswith(name) for d in differences(after, before))


def test_settings_follow_one_another():
    both = override(RunConfig(), ["reflect=null", "reflect={rounds: 3}", "reflect.threshold=0.5"])
    assert both.reflect.rounds == 3 and both.reflect.threshold == 0.5 and both.reflect.fit.epochs == 1.0
    swapped = override(RunConfig(), ["answer.beams=1", "answer.candidates=1"])  # checked whole, not one by one
    assert swapped.answer.beams == 1


BAD = [
    ("distill.kd_wieght=1", "distill.kd_wieght: no such knob; did you mean distill.kd_weight?"),
    ("distil.kd_weight=1", "distil: no such knob; did you mean distill?"),
    ("temperature=1", "temperature: no such knob; did you mean distill.temperature?"),
    ("qqq=1", "qqq: no such knob; a run has name, seed"),
    ("teacher.qqq=1", "teacher.qqq: no such knob; teacher has share, size, base, view, fit"),
    ("teacher={fit: {epoch: 1}}", "teacher.fit.epoch: no such knob; did you mean teacher.fit.epochs?"),
    ("seed.x=1", "seed.x: seed is a single knob, with nothing under it"),
    ("xyz", "--set xyz: NAME=VALUE is wanted"),
    ("=1", "--set =1: NAME=VALUE is wanted"),
    ("teacher.fit.epochs=many", "teacher.fit.epochs: many given, a number > 0 wanted"),
    ("teacher.fit.epochs=true", "teacher.fit.epochs: true given, a number > 0 wanted"),
    ("teacher.fit.epochs=.nan", "teacher.fit.epochs: .nan given"),
    ("teacher.share=1.5", "teacher.share: 1.5 given, a number > 0 and <= 1 wanted"),
    ("teacher.fit.rows=0", "teacher.fit.rows: 0 given, a whole number >= 1 wanted"),
    ("seed=1.5", "seed: 1.5 given, a whole number >= 0 and < 9007199254740992 wanted"),
    ("seed=null", "seed: null given, a whole number >= 0 and < 9007199254740992 wanted"),
    ("model=3", "model: 3 given, a group of knobs wanted"),
    (
        "model.positions=tide",
        "model.positions: tide given, tied | gap | mrope | sequential | native or a group of knobs wanted",
    ),
    ("select.tasks=RC,MAI", "select.tasks: MAI given, a list of VG | ROC | RC | MIA | QA wanted"),
    ("name=../up", "name: ../up given, a folder's name of letters, digits and . _ - wanted"),
    ("teacher=null", "distill.kd_weight > 0 needs a teacher"),
    ("answer.beams=2", "answer.candidates=3 is more than answer.beams=2"),
    ("answer.temperature=0.7", "answer.temperature=0.7 does nothing under answer.method=beams: leave it out, or set"),
    ("answer={method: sampling, beams: 5}", "answer.beams=5 does nothing under answer.method=sampling"),
    ("answer={method: sampling, diversity: 1}", "or set answer.method=diverse"),
    ("answer={method: diverse, top_p: 0.9}", "or set answer.method=sampling"),
    ("answer.method=groups", "answer.method: groups given, beams | diverse | sampling wanted"),
    ("answer={method: sampling, temperature: 0}", "answer.temperature: 0 given, a number > 0 wanted"),
    ("data.test_share=0.95", "data.validation_share + data.test_share >= 1"),
    ("teacher.share=[", "teacher.share=[: not valid YAML"),
    ("reflect={rounds: 1, rounds: 2}", "stands twice"),
]


@pytest.mark.parametrize(("setting", "words"), BAD, ids=[s for s, _ in BAD])
def test_override_refuses_in_one_line_of_our_own_words(setting, words):
    with pytest.raises(BadInput) as caught:
        override(RunConfig(), [setting])
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 250
    assert not re.search(r"pydantic|validation error|Input should|https?:|type=", message)


def test_a_way_through_a_stage_left_out_says_how_to_bring_it_in():
    with pytest.raises(BadInput, match=r"reflect\.rounds: reflect is left out here .*--set reflect=\{\}"):
        override(RunConfig(), ["reflect=null", "reflect.rounds=1"])


def test_several_errors_are_all_named():
    with pytest.raises(BadInput, match="seed: -1 given.*; teacher.share: 7 given"):
        override(RunConfig(), ["seed=-1", "teacher.share=7"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("distill:\n  kd_wieght: 1\n", "distill.kd_wieght: no such knob; did you mean distill.kd_weight?"),
        ("1: 2\n", "1: no such knob"),
        ("seed: 1\nseed: 2\n", "line 2: 'seed' stands twice"),
        ("seed: [1\n", "not valid YAML: line"),
        ("- a\n", "knobs as `name: value` are wanted"),
        ("", "knobs as `name: value` are wanted"),
        ("seed: x\n", "seed: x given"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_load_names_file_and_knob(tmp_path, text, words):
    with pytest.raises(BadInput) as caught:
        load(write(tmp_path, text), RunConfig)
    assert words in str(caught.value) and "run.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_load_of_what_is_no_file(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        load(tmp_path / "none.yaml", RunConfig)
    with pytest.raises(BadInput, match="a folder"):
        load(tmp_path, RunConfig)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not a text file"):
        load(tmp_path / "b.yaml", RunConfig)


def test_a_part_of_a_file_is_enough(tmp_path):
    assert load(write(tmp_path, "reflect: null\ndistill: {kd_weight: 1}\n"), RunConfig) == override(
        RunConfig(), ["reflect=null", "distill.kd_weight=1"]
    )


def test_differences_are_named_with_dots_on_both_sides():
    ours, theirs = DistillConfig(kd_weight=0.25), DistillConfig()
    (found,) = differences(ours.identity(), theirs.identity())
    assert found == "kd_weight is 0.25 here and 0.5 there"
    left_out = override(RunConfig(), ["reflect=null"])
    assert differences(left_out.identity(), RunConfig().identity()) == ["reflect is left out here and not there"]
    assert differences({"a": 1}, {"b": 2}) == ["a is 1 here and null there", "b is null here and 2 there"]
    assert differences(ours.identity(), ours.identity()) == []


def test_identity_leaves_out_every_speed_only_knob_and_no_other():
    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    kept = set(flat(RunConfig().identity()))
    single = {knob.name: knob for knob in panel(RunConfig()) if not isinstance(knob.value, Knobs)}
    assert kept == {name for name, knob in single.items() if not knob.speed_only}


# ---- the experiments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_valid_named_after_itself_and_documented(name):
    config = EXPERIMENTS[name]()
    assert config.name == name and EXPERIMENTS[name].__doc__
    assert RunConfig.model_validate(config.model_dump()) == config
    if name in REQUIRED:
        with pytest.raises(BadInput, match=r"data\.path: .* needs a folder"):
            require_folders(name, config)
        settings = [f"{knob}=/somewhere" for knob in REQUIRED[name]]
        require_folders(name, override(config, settings))
        for knob in REQUIRED[name]:  # each by itself
            with pytest.raises(BadInput, match=rf"^{knob}: `{name}` needs a folder here; give it with --set {knob}="):
                require_folders(name, override(config, [s for s in settings if not s.startswith(knob)]))
    else:
        require_folders(name, config)


def test_the_paper_chooses_by_a_clip_that_was_trained_or_by_none():
    given = override(paper(), ["data.path=/d", "model.base=/b"])
    assert REQUIRED["paper"][-1] == "select.clip.base" and given.select.clip.base is None
    for by_none in ("select.scorer=first", "select.clip.eyes=true"):
        require_folders("paper", override(given, [by_none]))


def test_the_paper_recipe_holds_the_papers_values():
    """Every knob whose paper's value is a plain one of the knob's own kind has that value in `paper`."""
    for knob in panel(paper(Path("d"), Path("b"))):
        if isinstance(knob.paper, float | int) or (
            isinstance(knob.paper, str) and knob.paper in knob.wants.split(" | ")
        ):
            # the teacher's and a round's own passes are read from the text: two and one
            expected = 1 if knob.name == "reflect.fit.epochs" else knob.paper
            assert getattr(knob.value, "name", knob.value) == expected, knob.name


@pytest.mark.parametrize("start", [RunConfig(), demo(), real(), override(demo(), ["model.box_bins=8"])])
def test_a_pretrained_base_is_given_its_positions(start: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^model\.positions: .*native .*tied .*\+3\.3 \[\+0\.6, \+6\.0\]") as caught:
        override(start, ["model.base=/x"])
    assert len(str(caught.value)) < 300
    with pytest.raises(BadInput, match=r"run.yaml: model\.positions: "):
        load(write(tmp_path, "model: {base: /x, layout: sections}"), RunConfig)
    for given in ("model.positions=native", "model.positions=tied", "model.positions.stride=1"):
        config = override(override(start, [given]), ["model.base=/x"])
        assert change_knobs(config, name="other").model == config.model
    assert (paper().model.positions.name, laptop().model.positions.name) == ("tied", "native")
    assert override(laptop(), ["model.base=/x"]).model.layout == "sections"


def test_a_change_keeps_what_was_not_given_apart_from_what_was() -> None:
    changed = change_knobs(override(demo(), ["model.tiny.hidden=48", "model.layout=sections"]).model, box_bins=8)
    assert changed.model_fields_set == {"tiny", "layout", "box_bins"} and changed.tiny.pretrain
    assert override(RunConfig(), ["model.positions=mrope", "seed=3"]).model.positions.name == "mrope"


@pytest.mark.parametrize("processes", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("recipe", [paper(), laptop(), modern()], ids=lambda config: config.name)
def test_recipes_are_shared_by_any_number_of_processes(recipe: RunConfig, processes: int) -> None:
    shared, lines = share_rows(recipe, processes)
    for name, fit in shared.fits().items():
        fit.demand_even_shares(name, processes)
    changed = {d.rpartition(".")[2].split()[0] for d in differences(dump(shared), dump(recipe))}
    rows_fit = recipe.distill.fit.rows % processes == 0
    assert changed <= ({"accumulate"} if rows_fit else {"rows", "accumulate"})
    assert len(lines) == bool(changed) and all(line.startswith(f"{processes} processes: ") for line in lines)
    assert ("other steps" in " ".join(lines)) != rows_fit
    if rows_fit:
        assert shared.identity() == recipe.identity(), "the same run, so that it may go on with other processes"


@pytest.mark.parametrize(
    ("rows", "accumulate", "processes", "wanted"),
    [
        (48, 8, 1, (48, 8)),
        (48, 8, 2, (48, 8)),
        (48, 8, 4, (48, 6)),
        (48, 8, 6, (48, 8)),
        (48, 8, 8, (48, 6)),
        (8, 8, 6, (6, 1)),
        (25, 1, 2, (24, 1)),
        (27, 1, 2, (26, 1)),
        (3, 1, 8, (8, 1)),
        (15, 5, 2, (14, 7)),  # 7 rows of a process at once are more than the 3 of one process alone
    ],
)
def test_rows_are_shared_by_the_nearest_numbers(rows: int, accumulate: int, processes: int, wanted: tuple) -> None:
    shared = FitConfig(rows=rows, accumulate=accumulate, epochs=3).shared_by(processes)
    assert (shared.rows, shared.accumulate, shared.epochs) == (*wanted, 3)
    shared.demand_even_shares("fit", processes)


def test_trainings_that_are_shared_in_different_ways_have_a_line_each() -> None:
    shared, lines = share_rows(override(paper(), ["teacher.fit.rows=40"]), 4)
    assert shared.teacher and (shared.teacher.fit.rows, shared.teacher.fit.accumulate) == (40, 10)
    assert lines == [
        "4 processes: rows=40, accumulate=8 of teacher.fit become rows=40, accumulate=10",
        "4 processes: rows=48, accumulate=8 of distill.fit, reflect.fit become rows=48, accumulate=6",
    ]


ROWS = ("bird", "tuned", "positions", "distilled", "selected", "reflected", "matched")


def test_ablation_rows_change_only_what_their_name_says():
    rows = {name: EXPERIMENTS[name]().identity() for name in ROWS}
    changed = {
        name: {d.partition(" is ")[0] for d in differences(row, rows["bird"])} - {"name"} for name, row in rows.items()
    }
    assert changed["bird"] == set()
    of = {f"model.positions.{name}" for name in ("kind", "spatial_reset", "stride", "gap", "resume")}
    assert "model.positions.kind" in changed["tuned"] <= of
    assert {"model.positions.kind", "model.layout"} < changed["positions"] <= {*of, "model.layout"}
    assert changed["distilled"] == {"teacher", "distill.kd_weight"}
    assert changed["selected"] == {"select.scorer"}
    assert changed["reflected"] == {"reflect", "distill.fit.epochs"}
    assert changed["matched"] == changed["distilled"] | {"distill.fit.epochs"}
    control = {d.partition(" is ")[0] for d in differences(EXPERIMENTS["drawn"]().identity(), demo().identity())}
    assert control == {"name", "reflect.rewrite"}


def test_rows_make_as_many_passes_as_the_whole_method():
    whole = demo()
    passes = whole.distill.fit.epochs + whole.reflect.rounds * whole.reflect.fit.epochs
    for name in ("bird", "tuned", "positions", "distilled", "selected"):
        assert EXPERIMENTS[name]().distill.fit.epochs == passes
    reflected = EXPERIMENTS["reflected"]()
    assert reflected.distill.fit.epochs + reflected.reflect.rounds * reflected.reflect.fit.epochs == passes
    assert tuned(paper()).distill.fit.learning_rate == paper().distill.fit.learning_rate


@pytest.mark.parametrize(
    "base", [demo(), real(Path("d")), paper(), small(), override(demo(), ["reflect.objective=distill"])]
)
def test_arms_of_a_claim_take_equal_steps(base):
    """Least steps count for each training, so arms share its stages: a longer one would not have as many."""
    for claim in ("parts", "reflection", "selection"):
        arms = {name: row.make(base) for name, row in CLAIMS[claim].rows.items()}
        students = {name: (a.distill.fit, a.reflect and (a.reflect.rounds, a.reflect.fit)) for name, a in arms.items()}
        assert all(steps == next(iter(students.values())) for steps in students.values()), claim
        distinct = {repr(a.identity() | {"name": ""}) for a in arms.values()}
        assert len(distinct) == len(arms) or (claim == "parts" and base.reflect is None)  # nothing to leave out
        assert claim == "parts" or len({repr((a.data, a.model, a.teacher, a.distill)) for a in arms.values()}) == 1
    assert all(r.make(base).answer.candidates > 1 for r in CLAIMS["selection"].rows.values())
    paper_rule = CLAIMS["selection"].rows["text"].make(base).select.clip
    assert paper_rule.grounding == "text" and not paper_rule.eyes  # a CLIP, also where the run has a crop classifier


def test_the_row_of_equal_compute_counts_the_teachers_training():
    """In forward passes over the data: three for a trained one, one more where a teacher thinks beside it."""
    for base in (demo(), small()):
        plain, row = bird(base), matched(base)
        teacher = 3 * row.teacher.share * row.teacher.fit.epochs
        assert teacher + 4 * row.distill.fit.epochs == pytest.approx(3 * plain.distill.fit.epochs, abs=1e-3)
    with pytest.raises(BadInput, match=r"teacher.fit.epochs=40.*the teacher alone takes the compute"):
        matched(override(demo(), ["teacher.fit.epochs=40"]))


def test_the_control_panel_starts_without_torch():
    import subprocess

    code = "import sys, clinkd.experiments; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["teacher=null", "distill=null", "reflect.objective=distill"], "reflect.objective=distill needs `teacher`"),
        (["distill=null", "reflect.objective=distill"], "reflect.objective=distill needs"),
        (["teacher=null", "distill.kd_weight=0", "distill.targets=pseudo"], "distill.targets=pseudo needs a teacher"),
        (["model.positions.stride=40"], r"model.positions.stride=40 .* 4 x 4 patches .* below 5.67"),
        (["data.phantoms.tasks=[]"], "data.phantoms.tasks"),
        (["teacher.fit.accumulate=5"], r"teacher.fit.*rows=12 must be a multiple of accumulate=5"),
        (["teacher.fit.freeze=[vision,merger,text,head]"], r"teacher.fit.*freeze=.*no part of the model would learn"),
        (["model.tiny.pretrain={vision: {freeze: [vision]}}"], r"model.tiny.pretrain.*vision.freeze.*set it to \[\]"),
    ],
)
def test_what_cannot_go_together_is_refused_before_any_work(given, says):
    with pytest.raises(BadInput, match=says):
        override(RunConfig(), given)
    assert override(RunConfig(), ["teacher=null", "distill.kd_weight=0", "distill.targets=pseudo",
                                  "distill.pseudo_from=base"]).teacher is None  # fmt: skip


ODD_YAML = {
    "a key that is a list": "? [a, b]\n: 1\nname: x",
    "a key that is a group": "? {a: b}\n: 1\nname: x",
    "groups without end": "name: " + "[" * 5000 + "]" * 5000,
    "open groups without end": "[" * 500_000,
    "a number without end": "seed: " + "9" * 6000,
    "a list within itself": "name: &a [*a]",
    "a run within itself": "&a\ndata: *a",
    "a bomb": "b0: &b0 [x, x]\n" + "".join(f"b{n}: &b{n} [{f'*b{n - 1}, ' * 9}]\n" for n in range(1, 8)),
    "many values": "trackers: [" + "x, " * 20_000 + "]",
    "a zero byte": "name: x\0y",
    "a day that is none": "name: 2026-99-99",
    "an empty number": "seed: !!int ''",
    "a call": "seed: !!python/object/apply:os.system [exit]",
    "an unknown anchor": "name: *a",
    "a megabyte": "# " + "x" * (1 << 20),
    "half a character": 'name: "\\ud800"',
    "bytes": "name: !!binary x",
    "many keys": "\n".join(f"k{n}: 1" for n in range(5000)),
    "a long key": "k" * 900 + ": 1",
    "nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_YAML)
def test_odd_yaml_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(ODD_YAML[kind])
    assert main(["run", str(file), "--runs", str(tmp_path / "runs")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(file) in err and len(err) < 600 and "fault" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["seed", "threads", "data.workers", "answer.batch", "teacher.fit.rows"])
@pytest.mark.parametrize("value", [10**30, -1])
def test_a_number_that_no_stage_can_take_is_refused_before_any_work(name: str, value: int) -> None:
    with pytest.raises(BadInput, match=rf"{name}: .* given, a whole number >= \d.* wanted"):
        override(demo(), [f"{name}={value}"])


@pytest.mark.parametrize(("name", "limit"), [("threads", 1024), ("data.workers", 256), ("seed", 2**53 - 1)])
def test_the_most_of_a_number_is_told(name: str, limit: int) -> None:
    override(demo(), [f"{name}={limit}"])
    with pytest.raises(BadInput, match=rf"{name}: .* <=? \d+ wanted"):
        override(demo(), [f"{name}={limit + 1}"])


def test_anchors_may_be_used_in_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: {fit: &fit {rows: 4}}\ndistill: {fit: {<<: *fit, epochs: 3}}\nreflect: {fit: *fit}\n")
    config = load(file, RunConfig)
    assert config.distill and config.reflect and (config.distill.fit.rows, config.reflect.fit.rows) == (4, 4)
