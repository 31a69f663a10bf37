"""Ablations: rows that are what they say, figures by hand, failures told, stages shared."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

from clinkd.cli import main
from clinkd.experiments import CLAIMS, ROWS, SWEEPS, TABLE_2, Claim, Primary, small
from clinkd.records import BadInput, Modality, Score, Task
from clinkd.reporting.ablation import (
    AVERAGE,
    COLUMNS,
    AblationGrid,
    FinishedRun,
    PrimaryResult,
    ablation_json,
    ablation_tables,
    compare_primary,
)
from clinkd.reporting.compare import count_pairs_needed
from clinkd.reporting.tables import ScoreIndex
from clinkd.scoring.likelihood import LogLikelihood
from clinkd.settings import override
from clinkd.workflows.ablate import AblationPlan, RunKey, ablate
from clinkd.workflows.results_file import ResultLine, add_result, identify_code, identify_knobs, read_results

QUICK = [
    "name=quick", "data.phantoms.train_images=24", "data.phantoms.validation_images=8", "data.phantoms.test_images=8",
    "model.tiny.pretrain=null", "model.tiny.hidden=24", "model.tiny.vision_hidden=32", "model.tiny.layers=1",
    "model.tiny.vision_layers=1", "model.tiny.mlp=24", "teacher.share=0.5", "teacher.fit.rows=4",
    "teacher.fit.epochs=1", "distill.fit.rows=4", "distill.fit.epochs=2", "answer.max_new_tokens=4",
    "evaluate.replicates=20", "threads=1",
]  # fmt: skip


def score(task: Task, metric: str, value: float | None, row: str = "model") -> Score:
    return Score(row, task, metric, None, value, 10, None if value is not None else "no jars")


def finished(row: str, seed: int, vg: float, **more: float | None) -> FinishedRun:
    others = [score(Task(t), {"ROC": "Recall", "RC": "SPICE", "MIA": "mBMR"}[t], v) for t, v in more.items()]
    blind = [score(Task.VG, "F1", 5.0 + seed, "constant")]
    return FinishedRun.of(row, seed, 100, 7.2, ScoreIndex([score(Task.VG, "F1", vg), *others, *blind]))


def table(tables, title):
    return next(t for t in tables if t.title == title)


def test_means_differences_and_the_smallest_seen_are_those_of_the_seeds():
    bird, kd = [10.0, 12.0, 17.0], [13.0, 18.0, 19.0]
    runs = [finished("bird", s, v) for s, v in enumerate(bird)] + [
        finished("distilled", s, v) for s, v in enumerate(kd)
    ]
    grid = AblationGrid(ROWS, runs)
    tables = ablation_tables(grid, {"Rows": ("bird", "distilled", "whole")})
    scores, gains, beside = tables
    assert scores.columns == ("", "Seeds", "VG F1", "Steps", "Passes")
    assert not any(t.title == "Primary comparison" for t in tables)  # none was named
    rows = {r[0]: r for r in scores.rows}
    assert rows["BiRD-like"][1:] == ("3", "13.0", "100", "7.2") and rows["+ KD"][2] == "16.7"
    assert rows["Best blind baseline"][2] == "6.0" and "ClinKD" not in rows
    gain = [b - a for a, b in zip(bird, kd, strict=True)]  # 3, 6, 2
    half = 4.302653 * statistics.stdev(gain) / 3**0.5
    mean = statistics.fmean(gain)
    assert gains.rows[0] == ("+ KD - BiRD-like", f"{mean:+.1f}")
    assert gains.rows[1][1] == f"[{mean - half:+.1f}, {mean + half:+.1f}]"
    smallest = 3.264044 * statistics.stdev(gain)  # by the noncentral t with 2 degrees of freedom
    assert gains.rows[2] == ("  p, Holm", "0.093")  # one test: as it is
    assert gains.rows[3][1] == f"{smallest:.1f}"
    assert gains.notes[0] == "+ KD - BiRD-like: no difference seen."
    steady = [finished("bird", s, 10.0 + s) for s in range(3)] + [
        finished("tuned", s, 9.0 + s + s / 9) for s in range(3)
    ]
    told = ablation_tables(AblationGrid(ROWS, steady), {"Rows": ("bird", "tuned")})[1]
    assert told.notes[0] == "Qwen2-VL, tuned - BiRD-like: worse in VG F1 -0.9."
    assert beside.rows == (("+ KD", "+9.19", "+14.19", "+11.98", "+12.15", "+3.7", "-", "-", "-"),)
    found = ablation_json(grid)["distilled"]["scores"]["VG F1"]
    assert found["by_seed"] == {0: 13.0, 1: 18.0, 2: 19.0} and found["difference"]["mean"] == pytest.approx(mean)


def test_an_average_stands_only_where_all_four_tasks_were_judged():
    four = {"ROC": 20.0, "RC": 30.0, "MIA": 40.0}
    whole = AblationGrid(ROWS, [finished("bird", 0, 10.0, **four)])
    assert whole.columns()[-1] == AVERAGE and whole.values("bird", AVERAGE) == {0: 25.0}
    gap = AblationGrid(ROWS, [finished("bird", 0, 10.0, **(four | {"RC": None}))])
    assert AVERAGE not in gap.columns() and gap.values("bird", AVERAGE) == {}
    assert "RC SPICE" not in gap.columns()  # unscored is no zero


def test_pairs_are_of_the_seeds_that_both_rows_have():
    runs = [
        finished("bird", 0, 10.0),
        finished("bird", 1, 10.0),
        finished("tuned", 1, 14.0),
        finished("tuned", 2, 99.0),
    ]
    found = AblationGrid(ROWS, runs).paired("tuned", "VG F1")
    assert found.mean == 4.0 and found.pairs == 1 and found.interval is None
    assert AblationGrid(ROWS, runs[2:]).paired("tuned", "VG F1") is None  # its rival was not run


def test_every_row_is_told_against_another_and_the_papers_rows_are_its_own():
    from clinkd.reporting.printed import PRINTED

    assert set(TABLE_2) <= set(ROWS) and len(TABLE_2) == 8
    for row in ROWS.values():
        assert row.against is None or row.against in ROWS
        assert row.printed is None or (row.printed in PRINTED and row.against in (None, "bird"))
    for sweep in SWEEPS.values():
        assert sweep.row in ROWS


def test_a_sweep_is_told_against_the_value_of_the_run_itself():
    plan = AblationPlan.of(small(), ["bird"], ["alpha"], [0])
    swept = {n: r.against for n, r in plan.rows.items() if n.startswith("alpha")}
    assert swept == {"alpha-1": "alpha-2", "alpha-2": None, "alpha-4": "alpha-2"}
    assert (swept := plan.config(RunKey("alpha-4", 3))).model.positions.stride == 4 and swept.name == "small-alpha-4-s3"
    assert list(plan.groups) == ["Rows", "Step between patches"]


@pytest.mark.parametrize(
    ("rows", "sweeps", "seeds", "says"),
    [
        (["brid"], [], [0], r"--rows brid: not known; did you mean bird\?"),
        ([], ["alfa"], [0], r"--sweep alfa: not known; did you mean alpha\?"),
        (["bird"], [], [0, 0], "a seed stands twice"),
        (["drawn"], [], [0], "reflect"),  # this run has no reflection
    ],
)
def test_what_no_row_can_be_made_of_is_refused_before_any_work(rows, sweeps, seeds, says, tmp_path):
    with pytest.raises(BadInput, match=says):
        ablate(AblationPlan.of(small(), rows, sweeps, seeds), tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_rows_are_made_told_and_their_stages_shared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["ablate", "small", "--runs", str(tmp_path), *(w for s in QUICK for w in ("--set", s))]
    assert main([*words, "--rows", "bird,distilled,matched", "--seeds", "0"]) == 0
    said = capsys.readouterr()
    assert "[3/3] quick-matched-s0: done" in said.err and "differences" in said.out
    folder = tmp_path / "quick-ablation"
    found = json.loads((folder / "ablation.json").read_text())
    assert found["bird"]["seeds"] == [0] and found["failed"] == {}
    assert found["bird"]["steps"] == found["distilled"]["steps"] == [12]  # 24 images, 2 passes, 4 a step
    assert found["bird"]["scores"]["VG log-likelihood box"]["mean"] < 0 and found["primary"] is None
    run = tmp_path / "quick-bird-s0"
    told = json.loads((run / "table.json").read_text())["log_likelihood"]["VG"]["box"]
    assert told["questions"] == 8 and told["tokens"] == 32  # eight images of one structure, four locations a box
    assert "Likelihood of the truth" in (run / "report.html").read_text()
    assert found["bird"]["passes"] == [6.0] and found["distilled"]["passes"] == [9.5]
    assert max(found["matched"]["passes"]) <= 6.6  # no more than plain tuning, up to whole steps
    assert {len(list((tmp_path / ".stages").glob(f"{s}-*"))) for s in ("prepare", "base", "teacher")} == {1}
    page = (folder / "ablation.html").read_text()
    assert "BiRD-like" in page and "Content-Security-Policy" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert main([*words, "--rows", "bird", "--seeds", "0", "--json"]) == 0  # all there: told again at once
    assert json.loads(capsys.readouterr().out)["bird"]["seeds"] == [0]


# ---- the file of results --------------------------------------------------------------------------------------------


def test_a_line_reads_back_as_it_was_written_and_columns_join(tmp_path: Path):
    file = tmp_path / "results" / "small.csv"
    first = finished("bird", 0, 12.34567)
    more = FinishedRun.of("bird", 1, 90, 6.0, ScoreIndex([score(Task.ROC, "Recall", 50.0, "first beam")]))
    for run in (first, more):
        add_result(file, ResultLine("abc", identify_code(), run))
    back = read_results(file)
    assert [line.run for line in back] == [first._replace(scores={"VG F1": 12.3457}), more]
    assert file.read_text().splitlines()[0] == (
        "base,row,seed,fold,config,knobs,code,steps,passes,VG F1,first beam ROC Recall,blind VG F1"
    )
    assert read_results(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("row,seed\nbird,0\n", "no column config"),
        ("row,seed,config,code,steps,passes,VG F2\n", "column VG F2 is none of a results file"),
        ("row,seed,config,code,steps,passes,VG F1\nbird,0,a,b,1,1,high\n", "line 2: .*'high'"),
        ("row,seed,config,code,steps,passes,VG F1\nbird,0,a\n", "line 2: "),
    ],
)
def test_a_file_that_holds_no_results_is_refused_by_its_line(text: str, says: str, tmp_path: Path):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(BadInput, match=says):
        read_results(tmp_path / "r.csv")


def test_what_stands_in_the_file_is_not_made_again_and_short_rows_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from clinkd import pipeline
    from clinkd.pipeline.stages import identify_config
    from clinkd.workflows import ablate as workflow

    made: list[str] = []
    monkeypatch.setattr(pipeline, "run", lambda config, runs: made.append(config.name))
    monkeypatch.setattr(workflow, "open_run", lambda folder: folder)
    monkeypatch.setattr(workflow, "_read_finished_run", lambda key, run: finished(key.row, key.seed, 10.0 + key.seed))
    file, runs = tmp_path / "r.csv", tmp_path / "runs"
    plan = AblationPlan.of(override(small(), QUICK), ["bird", "tuned"], [], [0, 1])
    identity = identify_config(plan.config(RunKey("bird", 1)))
    add_result(file, ResultLine(identity, "0.0+older", finished("bird", 1, 42.0)))
    add_result(file, ResultLine("otherknobs", identify_code(), finished("tuned", 1, 99.0)))
    said: list[str] = []
    with pytest.raises(BadInput, match="no run is done; give more --minutes"):
        ablate(AblationPlan.of(plan.base, ["bird"], [], [5]), runs, 1, file, 0.0, said.append)
    shown = ablate(plan, runs, 1, file, 0.0, said.append).tables[0]
    assert [r[:3] for r in shown.rows if r[0] == "BiRD-like"] == [("BiRD-like", "1 of 2", "42.0")] and made == []
    told = " ".join(said)
    for words in ("1 lines of these rows and seeds are of other data or knobs", "1 lines were made by other code",
                  "3 runs are left for another time"):  # fmt: skip
        assert words in told
    ablate(plan, runs, 1, file, None, said.append)
    assert made == ["quick-bird-s0", "quick-tuned-s0", "quick-tuned-s1"]
    shown = ablate(plan, runs, 1, file, None, said.append).tables[0]
    assert len(made) == 3 and ("BiRD-like", "2", "26.0") in [r[:3] for r in shown.rows]
    assert len(read_results(file)) == 5  # what is left out of the tables is kept


def test_a_config_is_known_by_what_decides_its_result():
    from clinkd.pipeline.stages import identify_config

    base = override(small(), QUICK)
    same = override(base, ["name=other", "threads=2"])
    assert identify_config(base) == identify_config(same)
    assert (
        len({identify_config(override(base, [s])) for s in ("seed=1", "distill.kd_weight=0", "model.box_bins=9")}) == 3
    )


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    blocked = tmp_path / "quick-bird-s0"
    blocked.mkdir()
    (blocked / "mine.txt").write_text("not a run")
    words = ["ablate", "small", "--runs", str(tmp_path), *(w for s in QUICK for w in ("--set", s))]
    assert main([*words, "--rows", "bird,positions", "--workers", "2"]) == 1
    said = capsys.readouterr().err
    assert "quick-bird-s0: failed:" in said and "is no run of ours" in said and "quick-positions-s0: done" in said
    assert (blocked / "mine.txt").read_text() == "not a run"
    assert not list(tmp_path.glob("quick-positions-s0.*"))  # the log of one that went well is not kept
    assert "quick-bird-s0" in json.loads((tmp_path / "quick-ablation" / "ablation.json").read_text())["failed"]


def test_a_control_draws_as_many_answers_whatever_was_found_wrong():
    from clinkd.correction.review import choose_for_control
    from clinkd.records import BoxedText, Correction

    text = BoxedText("a")
    found = [Correction(f"s{i}", 1, text, text, 0.5, ("similarity",) if i % 5 == 0 else ()) for i in range(100)]
    drawn = choose_for_control(found, "random", seed=0)
    assert [(c.id, c.reasons) for c in drawn] == [(c.id, c.reasons) for c in found]  # still known right or wrong
    picked = {c.id for c in drawn if c.to_rewrite}
    assert len(picked) == sum(c.wrong for c in drawn) == 20
    assert picked != {c.id for c in found if c.wrong}  # it does not aim at mistakes
    assert choose_for_control(found, "random", 0) == drawn and choose_for_control(found, "random", 1) != drawn
    assert not any(c.to_rewrite for c in choose_for_control(found, "none", 0))
    assert [Correction.from_json(c.to_json()) for c in drawn] == drawn and "drawn" not in found[0].to_json()


def test_phantoms_ask_some_tasks_alone(tmp_path):
    from clinkd.data import phantoms

    config = override(small(), QUICK).data.phantoms
    found = phantoms.write_phantoms(tmp_path, config, 0)
    assert {s.task for s in found} == {Task.VG} and len({s.modality for s in found} & set(Modality)) == 8


# ---- the primary comparison -----------------------------------------------------------------------------------------

CLAIM = Claim("Does KD help?", ROWS, Primary("distilled", "bird", "VG mIoU", 4.0))


def with_miou(row: str, values: list[float]) -> list[FinishedRun]:
    return [
        FinishedRun(row, s, 100, 7.0, {"VG mIoU": v, "VG log-likelihood box": v / 100}) for s, v in enumerate(values)
    ]


def primary_of(gains: list[float], claim: Claim = CLAIM) -> PrimaryResult:
    bird = [10.0 + 3 * n for n in range(len(gains))]
    runs = with_miou("bird", bird) + with_miou("distilled", [b + g for b, g in zip(bird, gains, strict=True)])
    return compare_primary(AblationGrid(ROWS, runs, claim=claim))


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_pairs_needed_are_those_of_a_paired_t_test_of_that_power(effect: float, pairs: int):
    assert count_pairs_needed(7.0, 7.0 * effect) == pairs  # G*Power 3.1: two-sided, 5 %, power .8


def test_without_a_spread_or_with_a_tiny_effect_the_pairs_needed_are_not_known():
    assert count_pairs_needed(0.0, 1.0) is None and count_pairs_needed(1.0, 1e-6) is None


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ([5.0, 6.0, 7.0, 5.5], r"Seen: \+ KD is above BiRD-like \(\+5.9 \[\+4.\d, \+7.\d\] in VG mIoU, p = 0.00"),
        ([-5.0, -6.0, -7.0], "Seen: \\+ KD is below BiRD-like"),
        ([0.5, -0.5, 0.2, -0.1, 0.1], "Not seen .*: a true difference of 4 or more would have been seen four times in"),
        ([5.0, -5.0, 3.0, -2.0], r"Not seen .*A difference of 4 or more needs 13 seeds; here are 4"),
        ([50.0, -50.0, 30.0, -20.0], r"Not seen .*needs [\d,]+ seeds: out of reach"),
        ([1.0], "One seed tells no difference from chance"),
        ([4.0, 4.0], "All 2 seeds differ by the same amount"),
        ([], "No run of distilled and bird is finished"),
    ],
)
def test_a_primary_comparison_is_told_in_a_sentence(gains: list[float], says: str):
    assert re.match(says, primary_of(gains).sentence)


def test_nothing_is_concluded_from_fewer_pairs_than_were_fixed():
    gains = [5.0, 6.0, 7.0, 5.5]
    early, done = (CLAIM._replace(primary=CLAIM.primary._replace(fixed=n)) for n in (5, 4))
    says = primary_of(gains, early).sentence
    assert says.startswith("4 of 5 seeds that were fixed beforehand: no conclusion yet (+5.9 [")
    assert primary_of(gains, done).sentence.startswith("Seen")


def test_where_no_run_has_the_named_measure_the_other_one_counts():
    primary = Primary("distilled", "bird", "Average of four", 4.0, "VG mIoU")
    assert primary_of([5.0, 6.0, 7.0], CLAIM._replace(primary=primary)).primary.column == "VG mIoU"
    averaged = [run._replace(scores={"Average of four": 1.0}) for run in with_miou("bird", [1.0])]
    assert AblationGrid(ROWS, averaged, claim=CLAIM._replace(primary=primary)).named == primary


def test_the_primary_comparison_stands_first_and_all_others_are_adjusted_by_holm():
    bird, kd, tuned = [10.0, 12.0, 17.0, 11.0], [15.0, 18.0, 22.5, 17.0], [11.0, 14.0, 19.5, 14.0]
    runs = with_miou("bird", bird) + with_miou("distilled", kd) + with_miou("tuned", tuned)
    grid = AblationGrid(ROWS, runs, 6, CLAIM)
    first, scores, gains, nats, nats_gains, *_ = ablation_tables(grid, {"Rows": ("bird", "distilled", "tuned")})
    assert first.title == "Primary comparison" and first.rows[0][:3] == ("distilled - bird", "4", "+5.6")
    assert first.rows[0][6:] == ("4", "3") and "Does KD help? Seen" in first.notes[0]
    assert [r[1] for r in scores.rows if r[0] == "BiRD-like"] == ["4 of 6"] and scores.columns[2:3] == ("VG mIoU",)
    assert "exploratory, Holm" in gains.title and gains.rows[2] == ("  p, Holm", "primary")
    raw = [grid.paired(*key).p for key in grid.adjusted]  # three: the primary one is not among them
    assert len(raw) == 3 and ("distilled", "VG mIoU") not in grid.adjusted
    assert min(grid.adjusted.values()) == pytest.approx(3 * min(raw)) and max(grid.adjusted.values()) >= max(raw)
    assert nats.columns[2] == "VG log-likelihood box" and nats.rows[0][2] == "0.125"  # nats are not x100
    assert nats_gains.rows[0][1] == "+0.056"
    assert (
        ablation_json(grid)["tuned"]["scores"]["VG mIoU"]["difference"]["p_holm"] == grid.adjusted["tuned", "VG mIoU"]
    )
    assert primary_of([5.0, 6.0, 7.0, 5.5]).to_json()["difference"]["pairs"] == 4
    unnamed = AblationGrid(ROWS, runs, claim=CLAIM._replace(primary=None))
    assert compare_primary(unnamed) is None and len(unnamed.adjusted) == 4
    assert ablation_tables(unnamed, {"Rows": ("bird", "distilled")})[0].title == "Rows"


def test_a_claims_primary_comparison_is_of_its_own_rows_and_of_a_column_there_is():
    for claim in CLAIMS.values():
        if primary := claim.primary:
            assert {primary.row, primary.against} <= claim.rows.keys() and primary.row != primary.against
            assert primary.column in COLUMNS and primary.smallest > 0


# ---- folds ----------------------------------------------------------------------------------------------------------


def test_each_fold_is_a_run_with_the_name_it_has_in_a_run_of_all(tmp_path: Path):
    base = override(small(), [f"data.path={tmp_path}", "data.folds=3"])
    plan = AblationPlan.of(base, ["bird", "tuned"], [], [0, 1])
    assert plan.keys[:3] == [RunKey("bird", 0, 1), RunKey("tuned", 0, 1), RunKey("bird", 0, 2)] and len(plan.keys) == 12
    of_all = override(base, ["name=small-bird-s1"]).fold_runs()
    configs = [plan.config(RunKey("bird", 1, fold)) for fold in (1, 2, 3)]
    assert [c.name for c in configs] == [c.name for c in of_all] and [c.data.fold for c in configs] == [1, 2, 3]
    assert all(not c.fold_runs() and c.evaluate.likelihood for c in configs)
    one = override(base, ["data.fold=2"])
    assert AblationPlan.of(one, ["bird"], [], [0]).keys == [RunKey("bird", 0, 2)]
    assert AblationPlan.of(small(), ["bird"], [], [4]).config(RunKey("bird", 4)).name == "small-bird-s4"


def test_pairs_of_folds_are_of_one_fold_and_the_table_says_so():
    runs = [r._replace(seed=0, fold=r.seed + 1) for r in with_miou("bird", [1, 2, 4]) + with_miou("tuned", [2, 4, 7])]
    grid = AblationGrid(ROWS, runs[:-1], 5)
    assert grid.values("bird", "VG mIoU") == {"0 fold 1": 1, "0 fold 2": 2, "0 fold 3": 4}
    assert grid.paired("tuned", "VG mIoU").pairs == 2
    scores, gains, *_ = ablation_tables(grid, {"Rows": ("bird", "tuned")})
    assert (
        scores.columns[1] == "Folds"
        and scores.rows[0][1] == "3 of 5"
        and "Pairs of runs with the same fold" in (gains.notes[1])
    )
    assert "Folds share training images" in scores.notes[-1]


# ---- what a line tells ----------------------------------------------------------------------------------------------


def test_a_line_tells_base_fold_knobs_likelihoods_and_modalities(tmp_path: Path):
    file = tmp_path / "r.csv"
    parts = [Score("model", Task.VG, m, k, v, 5) for m, k, v in (("F1", None, 10.0), ("F1", Modality.CT, 12.5),
             ("mIoU", Modality.MR, 30.25), ("Recall", Modality.CT, 7.0))]  # fmt: skip
    likelihoods = {(Task.VG, "box"): LogLikelihood(-1.23456, 9, 36), (Task.ROC, "name"): LogLikelihood(-0.5, 3, 6)}
    run = FinishedRun.of("bird", 0, 9, 1.5, ScoreIndex(parts)).add_likelihoods(likelihoods)._replace(fold=2)
    add_result(file, ResultLine("abc", "0.2+1", run, "real", "111111-222222"))
    (line,) = read_results(file)
    assert (line.base, line.knobs, line.run.fold) == ("real", "111111-222222", 2)
    assert line.run.scores == {"VG F1": 10.0, "VG log-likelihood box": -1.2346, "ROC log-likelihood name": -0.5}
    assert line.run.by_modality == {"ct VG F1": 12.5, "mr VG mIoU": 30.25}
    old = "row,seed,config,code,steps,passes,VG F1\nbird,0,abc,0.1,12,6.0,50.0\n"
    file.write_text(old)  # of a version that did not tell these
    (line,) = read_results(file)
    assert (line.base, line.knobs, line.run.fold, line.run.scores) == ("", "", 0, {"VG F1": 50.0})


def test_knobs_are_known_without_seed_fold_name_and_place_of_the_data():
    base = override(small(), QUICK)
    row = ROWS["bird"].make(base)
    knobs = identify_knobs(base, row)
    assert re.fullmatch("[0-9a-f]{6}-[0-9a-f]{6}", knobs)
    elsewhere = [override(c, ["seed=7", "name=x", "threads=2", "data.path=/a", "data.folds=3", "data.fold=2"])
                 for c in (base, row)]  # fmt: skip
    moved = [override(c, ["data.path=/b", "data.fold=1", "seed=1"]) for c in elsewhere]
    assert identify_knobs(*elsewhere) == identify_knobs(*moved)
    assert knobs == identify_knobs(override(base, ["seed=3"]), override(row, ["name=y"]))
    changed = identify_knobs(base, override(row, ["distill.fit.epochs=9"]))
    assert changed[:7] == knobs[:7] and changed[7:] != knobs[7:]


def test_lines_of_another_base_do_not_count(tmp_path: Path):
    plan = AblationPlan.of(override(small(), QUICK), ["bird"], [], [0])
    said: list[str] = []
    for base in ("demo", "quick"):
        line = ResultLine("other", identify_code(), finished("bird", 0, 42.0), base)
        add_result(tmp_path / "r.csv", line)
    with pytest.raises(BadInput, match="no run is done"):
        ablate(plan, tmp_path / "runs", 1, tmp_path / "r.csv", 0.0, said.append)
    assert any("1 lines of these rows and seeds are of other data or knobs" in text for text in said)
