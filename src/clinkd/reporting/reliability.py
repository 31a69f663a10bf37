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
    by_task, by_kind = described.get("token_probability", {}), described.get("confidence")
    tokens = _draw("Token probability", "Task", TOKENS, by_task, (*_TOKENS, _MAIN_SCORE))
    if by_kind is None:
        older = "The answers were scored by an older version, which did not look at their confidence."
        return [*([page.note([older])] if tokens else []), *tokens]
    notes = (*_CONFIDENCE, *_TOKENS)
    drawn = _draw("Confidence on test answers", "Kind of question", "confidence", by_kind, notes)
    told = any("why" not in values for values in by_kind.values())
    return [*drawn, page.folded("Token probability by task", tokens)] if told and tokens else [*drawn, *tokens]


def _draw(title: str, head: str, said: str, by_name: Mapping[str, Any], notes: Sequence[str]) -> list[Html]:
    """Table and charts of one probability, by task or by kind of question, or the reasons why there are none."""
    computed = {name: values for name, values in by_name.items() if "why" not in values}
    reasons = [f"{said.capitalize()} of {names} is not drawn: {why}." for names, why in _join_reasons(by_name)]
    for name, values in computed.items():
        if missing := values["of"] - values["answers"]:
            why = f": {values['absence']}" if "absence" in values else ""
            reasons.append(f"{said.capitalize()} of {name}: {missing:,} of {values['of']:,} answers have none{why}.")
    if not computed:
        return [page.note(reasons)] if reasons else []
    rows, charts = [], []
    for name, values in computed.items():
        beside = {TOKENS: values["token_probability"]} if "token_probability" in values else {}
        rows.append(_tabulate(name, values["answers"], values))
        rows += [_tabulate(f" {other}", values["answers"], of) for other, of in beside.items()]
        charts += _draw_charts(name, said, values, beside)
    heads = (head, *_COLUMNS)
    table = Table(title, heads, tuple(rows), (*notes, *_FIGURES, *reasons))
    return [page.table(table, explain_columns(heads)), page.charts(charts)]


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
