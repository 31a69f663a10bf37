"""How often 95 % intervals of a share hold the truth, and how wide they are: the interval in use beside the percentile
bootstrap over images and Wilson's without groups.

    python -m benchmarks.coverage [--times 4000] [--rivals 400] [--json]

A cell is p, a number of questions, how many of them an image has, and how alike those are (intra-cluster correlation:
the share right in an image is drawn from a beta distribution). The rivals' replicates are slow, so they are drawn in
`--rivals` simulations a cell. A cell is marked where the coverage is outside of .93 to .98; above .98 is free for
p >= .95 with 30 questions. Of single questions at p = .99, no interval of 50 or 100 lies between: .91 or .99, and .92
or .982.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from benchmarks.report import Row, add_outputs, show
from numpy.typing import NDArray

from clinkd.scoring.intervals import share_interval, wilson_interval

Floats = NDArray[np.float64]
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
QUESTIONS = (30, 60, 120, 300)
ALIKE = (0.0, 0.2, 0.5)
MIXED = 0  # instead of a number of questions an image: 1 to 6, drawn
REPLICATES = 500


class Cell(NamedTuple):
    """One setting that is simulated."""

    share: float
    questions: int
    per_image: int
    alike: float

    @property
    def is_edge_free(self) -> bool:
        return self.share >= 0.95 and self.questions == 30

    def simulate(self, times: int) -> tuple[Floats, Floats]:
        """[times, G] right answers, and questions of each image."""
        rng = np.random.default_rng([self.questions, self.per_image, round(100 * self.share), round(100 * self.alike)])
        if self.per_image == MIXED:
            drawn = rng.integers(1, 7, size=(times, self.questions))
            before = np.cumsum(drawn, axis=1) - drawn
            items = np.clip(self.questions - before, 0, drawn)  # the last image has what is left
        else:
            items = np.full((times, self.questions // self.per_image), self.per_image)
        chances = np.full(items.shape, self.share)
        if self.alike:
            scale = 1 / self.alike - 1
            chances = rng.beta(self.share * scale, (1 - self.share) * scale, size=items.shape)
        return rng.binomial(items, chances).astype(float), items.astype(float)

    def __str__(self) -> str:
        a_time = "1-6" if self.per_image == MIXED else self.per_image
        return f"p {self.share:.2f}  {self.questions:3} questions, {a_time} an image, alike {self.alike:.1f}"


def list_cells() -> Iterator[Cell]:
    for per_image in (1, 2, 3, 6, MIXED):
        for questions in QUESTIONS:
            for alike in ALIKE if per_image != 1 else ALIKE[:1]:
                yield from (Cell(share, questions, per_image, alike) for share in SHARES)


def in_use(hits: Floats, items: Floats) -> Floats:
    return share_interval(hits[:, None], items[:, None])


def plain_wilson(hits: Floats, items: Floats) -> Floats:
    return np.array([wilson_interval(h, n) for h, n in zip(hits.sum(1), items.sum(1), strict=True)])


def percentile_bootstrap(hits: Floats, items: Floats) -> Floats:
    rng, ends = np.random.default_rng(0), []
    for part, whole in zip(hits, items, strict=True):
        number = int((whole > 0).sum())
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=REPLICATES).astype(float)
        shares = (drawn @ part[:number]) / (drawn @ whole[:number])
        ends.append(np.percentile(shares, [2.5, 97.5]))
    return np.array(ends)


def measure(cell: Cell, times: int, interval: Callable[[Floats, Floats], Floats]) -> tuple[float, float, float]:
    """Coverage, median width, and the smallest width of a perfect score (NaN where there is none)."""
    hits, items = cell.simulate(times)
    low, high = interval(hits, items).T
    covered = (low <= cell.share + 1e-12) & (high >= cell.share - 1e-12)
    perfect = (high - low)[hits.sum(1) == items.sum(1)]
    return float(covered.mean()), float(np.median(high - low)), float(perfect.min()) if len(perfect) else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=4000, help="simulations a cell (4000)")
    parser.add_argument("--rivals", type=int, default=400, help="simulations a cell of the rivals (400); 0: none")
    add_outputs(parser)
    args = parser.parse_args()
    methods = {"in use": in_use, "bootstrap": percentile_bootstrap, "Wilson": plain_wilson}
    rows, outside = [], dict.fromkeys(methods, 0)
    smallest = float("inf")
    for cell in list_cells():
        line = str(cell)
        for name, interval in methods.items():
            times = args.times if name == "in use" else args.rivals
            if not times:
                continue
            covered, width, of_perfect = measure(cell, times, interval)
            is_outside = covered < 0.93 or (covered > 0.98 and not cell.is_edge_free)
            outside[name] += is_outside
            line += f"  {name} {covered:.3f}{'*' if is_outside else ' '} width {width:.3f}"
            if name == "in use":
                ours, smallest = covered, np.fmin(smallest, of_perfect)
            else:
                rows.append(Row(str(cell), 100 * ours, 100 * covered, name, "% coverage"))
        print(line, flush=True)
    print(f"outside of .93 to .98: {outside}; the narrowest interval of a perfect score is {smallest:.4f} wide")
    show(rows, args)


if __name__ == "__main__":
    main()
