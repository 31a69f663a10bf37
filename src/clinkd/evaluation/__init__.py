"""Predictions to scores, tables, figures, one HTML page. Never imports torch, and starts in a moment."""

from clinkd.evaluation.ablation import Finished, Grid, ablation_json, ablation_tables
from clinkd.evaluation.blind import IMAGES_SHUFFLED, TWINS, blind_twins, images_shuffled
from clinkd.evaluation.browse import MOST, Answered, spread
from clinkd.evaluation.captions import Caption, CaptionScorer, CaptionScores, NotComputed
from clinkd.evaluation.cases import side_by_side
from clinkd.evaluation.compare import (
    Comparison,
    compare_answers,
    compare_seeds,
    comparison_json,
    comparison_tables,
)
from clinkd.evaluation.figures import Curve
from clinkd.evaluation.gallery import Rewritten, choose_gallery, choose_rewritten, verdict
from clinkd.evaluation.metrics import FACTS, HEADLINE
from clinkd.evaluation.outcome import MODES, Mode, Outcome
from clinkd.evaluation.printed import paper_tables
from clinkd.evaluation.report import NOTICE, RunSummary, ShownAnswers, write_report, write_shared
from clinkd.evaluation.score import Gain, Judged, judge, score, score_by_source
from clinkd.evaluation.systems import Result, System, system_tables
from clinkd.evaluation.tables import (
    Again,
    effect_table,
    table_json,
    tabulate,
    to_markdown,
)

__all__ = [
    "FACTS",
    "HEADLINE",
    "IMAGES_SHUFFLED",
    "MODES",
    "MOST",
    "NOTICE",
    "TWINS",
    "Again",
    "Answered",
    "Caption",
    "CaptionScorer",
    "CaptionScores",
    "Comparison",
    "Curve",
    "Finished",
    "Gain",
    "Grid",
    "Judged",
    "Mode",
    "NotComputed",
    "Outcome",
    "Result",
    "Rewritten",
    "RunSummary",
    "ShownAnswers",
    "System",
    "ablation_json",
    "ablation_tables",
    "blind_twins",
    "choose_gallery",
    "choose_rewritten",
    "compare_answers",
    "compare_seeds",
    "comparison_json",
    "comparison_tables",
    "effect_table",
    "images_shuffled",
    "judge",
    "paper_tables",
    "score",
    "score_by_source",
    "side_by_side",
    "spread",
    "system_tables",
    "table_json",
    "tabulate",
    "to_markdown",
    "verdict",
    "write_report",
    "write_shared",
]
