"""How far confidences and token probabilities can be believed: a table, reliability diagrams, and risk by coverage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clinkd.records import Table
from clinkd.reporting.columns import explain_columns
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.curves import render_line_chart
from clinkd.reporting.viewer.shot import Html
from clinkd.scoring.score import spell_interval

TOKENS = "token probability"
_AIDS = {
    "reliability": "What can be believed lies on the dashed line: of answers with a {} of .8, eight of ten are right; "
    "below the line it is surer than it is right. {}Upright lines are 95 % intervals (Wilson).",
    "risk": "From the left, the model answers only where it is surest, and further right it answers more; a useful {} "
    "keeps the share of wrong answers low at first. Its mean height is AURC.",
}
_NOT_TOLD = "It is not told with a question for an unknown name, an unseen modality or a training image."
_CONFIDENCE = (
    "Confidence: the probability that an answer is right, as clinkd ask, its page and DICOM reports tell it, fitted to "
    f"validation answers and judged here on test answers. {_NOT_TOLD}",
    "An answer is right, as for the fit, with a box of IoU 0.5 at least, the same structures without a contradiction, "
    "or else the same words. Kinds of question: answered by a box (VG), about a box (ROC or RC), and others (MIA or "
    "QA), which is all that is known of the task of a free question.",
)
_TOKENS = (
    "Token probability: the geometric mean of the probabilities of the answer's tokens, exp(mean log-probability). It "
    "is no probability of the answer.",
)
_MAIN_SCORE = "An answer is right if its main score is 100: in VG every box found and none to spare."
_FIGURES = (
    "Skill: how much smaller the Brier score is than that of the best constant, the share of right ones of these same "
    "answers. That constant has an ECE of 0 and a skill of 0, and tells no answer from another: a low ECE alone says "
    "nothing of worth. The interval of the skill is by bootstrap over patients or images.",
    "ECE: the mean distance of probability and share of right answers, over 15 bins of equal width (Guo et al. 2017). "
    "Few answers raise it even if every probability is true: how far, says the column by chance. Brier: mean squared "
    "distance, 0 is best. AURC: mean share of wrong answers over the coverages (Geifman and El-Yaniv 2017); excess: "
    "above the best possible order.",
)
_COLUMNS = (
    "Answers", "% right", "Mean, %", "Brier", "Skill, %", "95 %", "ECE, %", "by chance", "AURC", "Excess AURC",
)  # fmt: skip


def draw_reliability(described: Mapping[str, Any]) -> list[Html]:
    """Of the numbers of `scoring.plotted`: the confidence by kind of question, beside the token probability of the same
    answers, then the token probability by task; where they have a reason, the reason."""
    tokens = _draw_token_probability(described.get("token_probability", {}))
    if "confidence" not in described:
        older = "The answers were scored by an older version, which did not look at their confidence."
        return [*([page.note([older])] if tokens else []), *tokens]
    drawn = _draw_confidence(described["confidence"])
    told = any("why" not in values for values in described["confidence"].values())
    return [*drawn, page.folded("Token probability by task", tokens)] if told and tokens else [*drawn, *tokens]


def _draw_confidence(by_kind: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    computed = {kind: values for kind, values in by_kind.items() if "why" not in values}
    reasons = [f"Confidence of {kind} is not drawn: {why}." for kind, why in _join_reasons(by_kind)]
    reasons += [
        f"Confidence of {kind}: {v['of'] - v['answers']:,} of {v['of']:,} answers have none: {v['absence']}."
        for kind, v in computed.items() if "absence" in v
    ]  # fmt: skip
    if not computed:
        return [page.note(reasons)] if reasons else []
    rows, charts = [], []
    for kind, values in computed.items():
        beside = values.get("token_probability")
        rows.append(_tabulate(kind, values["answers"], values))
        rows += [_tabulate(f" {TOKENS}", values["answers"], beside)] if beside else []
        charts += _draw_charts(kind, "confidence", values, {TOKENS: beside} if beside else {})
    heads, notes = ("Kind of question", *_COLUMNS), (*_CONFIDENCE, *_TOKENS, *_FIGURES, *reasons)
    return _show("Confidence on test answers", heads, rows, notes, charts)


def _draw_token_probability(by_task: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    computed = {task: values for task, values in by_task.items() if "why" not in values}
    reasons = [f"Token probability of {task} is not drawn: {why}." for task, why in _join_reasons(by_task)]
    reasons += [
        f"{task}: {v['of'] - v['answers']:,} of {v['of']:,} answers bring no probability and are left out."
        for task, v in computed.items() if v["answers"] < v["of"]
    ]  # fmt: skip
    if not computed:
        return [page.note(reasons)] if reasons else []
    rows = [_tabulate(task, values["answers"], values) for task, values in computed.items()]
    charts = [chart for task, values in computed.items() for chart in _draw_charts(task, TOKENS, values, {})]
    heads, notes = ("Task", *_COLUMNS), (*_TOKENS, _MAIN_SCORE, *_FIGURES, *reasons)
    return _show("Token probability", heads, rows, notes, charts)


def _join_reasons(described: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """The names of what was not computed, those of one reason together, and the reason."""
    names: dict[str, list[str]] = {}
    for name, values in described.items():
        if "why" in values:
            names.setdefault(values["why"], []).append(name)
    return ((", ".join(of_reason), why) for why, of_reason in names.items())


def _tabulate(name: str, answers: int, values: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table. Numbers of an older version have no skill."""

    def spell_percent(key: str) -> str:
        return "-" if values.get(key) is None else f"{100 * values[key]:.1f}"

    ends = values.get("brier_skill_interval")
    shares = f"{100 * values['right'] / answers:.1f}", spell_percent("mean_probability"), f"{values['brier']:.3f}"
    skill = spell_percent("brier_skill"), spell_interval((100 * ends[0], 100 * ends[1]) if ends else None)
    ece = spell_percent("ece"), spell_percent("ece_if_calibrated")
    risks = f"{values['aurc']:.3f}", f"{values['excess_aurc']:.3f}"
    return (name, f"{answers:,}", *shares, *skill, *ece, *risks)


def _draw_charts(
    title: str, said: str, values: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]
) -> list[Html]:
    """Reliability and risk of a probability and, for comparison, of others of the same answers."""
    wrong = 1 - values["right"] / values["answers"]
    observed = {said: _list_points(values["bins"]), "as said": [(0.0, 0.0), (1.0, 1.0)]}
    risks = {said: _list_risks(values), "any order": [(0.0, wrong), (1.0, wrong)]}
    observed |= {name: _list_points(of["bins"]) for name, of in beside.items()}
    risks |= {name: _list_risks(of) for name, of in beside.items()}
    whiskers = [(b["probability"], *b["interval"]) for b in values["bins"]]
    across, up = "probability said", "share of right answers"
    drawn = {
        "reliability": render_line_chart(f"{title}: reliability diagram", observed, across, up, whiskers),
        "risk": render_line_chart(f"{title}: risk by coverage", risks, "share answered", "share of these wrong"),
    }
    tenths = "Each point is a tenth of the answers. " if "brier_skill" in values else ""  # unlike in an older version
    return [page.explained(figure, _AIDS[kind].format(said, tenths)) for kind, figure in drawn.items()]


def _list_points(bins: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [(b["probability"], b["accuracy"]) for b in bins]


def _list_risks(values: Mapping[str, Any]) -> list[tuple[float, float]]:
    return list(zip(values["risk_coverage"]["coverage"], values["risk_coverage"]["risk"], strict=True))


def _show(
    title: str, heads: Sequence[str], rows: Sequence[tuple[str, ...]], notes: Sequence[str], charts: Sequence[Html]
) -> list[Html]:
    table = Table(title, tuple(heads), tuple(rows), tuple(notes))
    return [page.table(table, explain_columns(heads)), page.charts(charts)]
