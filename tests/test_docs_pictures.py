"""The pictures of the documentation are drawn from a run as it is stored today."""

from __future__ import annotations

import numpy as np
from docs.picture import COLUMNS, GAP, LEGEND, SIDE, WIDTH, draw_sheet
from PIL import ImageColor

from clinkd.pipeline.runs import open_run
from clinkd.reporting.viewer.overlay import ANSWER, TRUTH


def test_the_picture_of_the_readme_says_which_box_is_the_truth(small_run):
    sheet = np.asarray(draw_sheet(open_run(small_run)))
    rows = (sheet.shape[0] - LEGEND) // (SIDE + GAP)
    assert sheet.shape == (rows * (SIDE + GAP) + LEGEND, WIDTH, 3) and 1 <= rows <= 8 // COLUMNS
    truth, answer = ((sheet == ImageColor.getrgb(colour)).all(-1) for colour in (TRUTH, ANSWER))
    assert truth[:-LEGEND].any() and truth[-LEGEND:].any() and answer[-LEGEND:].any()
