"""The style sheet of every page: light and dark, readable on a phone, printable."""

from clinkd.viewer.overlay import ANSWER, ASKED, DASHES, LATER, TRUTH

_PLAIN = """\
:root {
  color-scheme: light dark;
  --back: #fbfbf9; --card: #ffffff; --ink: #1d2327; --soft: #59636b; --line: #dfe3e6; --accent: #0b6a9c;
  --bar: #0072b2; --twin: #b3a17a; --good: #00694d; --bad: #a83e00; --warn: #fff3d6; --warn-ink: #5c4300;
  --hover: #eef4f8; --edge: #8a949c; --twin-ink: #76663f; --second: #b34a00; --third: #00694d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14181b; --card: #1c2226; --ink: #e7ebee; --soft: #a3adb5; --line: #343c42; --accent: #6fc3f0;
    --bar: #56b4e9; --twin: #8d7c55; --good: #4cd6a9; --bad: #ff9a61; --warn: #3a3014; --warn-ink: #f3dda2;
    --hover: #26313a; --edge: #6d7880; --twin-ink: #b9a476; --second: #ff9a61; --third: #4cd6a9;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.1rem; }
header { padding-top: 1.8rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .7rem; padding-top: .4rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
a { color: var(--accent); }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--card); padding: .4rem .8rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; margin: .9rem 0 0; }
.soft, figcaption, .notes { color: var(--soft); }
.notice { background: var(--warn); color: var(--warn-ink); padding: .55rem .9rem; border-radius: .5rem;
  max-width: none; margin: 1rem 0 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .6rem; background: var(--card); }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .65rem .8rem .35rem; max-width: calc(100vw - 2.4rem); }
th, td { padding: .38rem .8rem; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
tbody tr + tr th, tbody tr + tr td { border-top: 1px solid var(--line); }
th[scope=row], thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--card);
  font-weight: 500; }
th.sub[scope=row] { padding-left: 1.9rem; color: var(--soft); font-weight: 400; }
table.words td, table.words thead th { text-align: left; white-space: normal; min-width: 7rem; }
.notes { font-size: .86rem; margin: .4rem 0 1.4rem; padding-left: 1.1rem; }
.charts { display: grid; margin: 1.2rem 0 .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem; align-items: start; }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .8rem .4rem; }
.chart figcaption { color: var(--ink); font-weight: 600; font-size: .95rem; }
svg.bars { width: 100%; height: auto; display: block; font-size: 12px; }
svg text { fill: var(--ink); } svg .label { text-anchor: end; } svg .axis { text-anchor: middle;
  fill: var(--soft); font-size: 10px; }
svg .small { fill: var(--soft); font-size: 10px; } svg .none { fill: var(--soft); font-style: italic; }
  svg .value { font-weight: 600; }
svg .bar { fill: var(--bar); } svg .twin { fill: var(--twin); } svg .grid { stroke: var(--line); }
  svg .whisker { stroke: var(--ink); stroke-width: 1.4; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19.5rem), 1fr)); gap: 1rem;
  align-items: start; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
.shot { position: relative; background: #000; }
.shot > :first-child { display: block; width: 100%; height: auto; }
.shot .small { image-rendering: pixelated; }
.shot .blank { background: #30363b; }
.over { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.over rect { fill: none; vector-effect: non-scaling-stroke; }
.over .edge { stroke: #000; stroke-width: 4.5; stroke-opacity: .75; } .over .line { stroke-width: 2.2; }
.no-truth .over .truth, .no-answer .over .answer, .no-asked .over .asked { display: none; }
.chip { border: 2px solid; border-radius: .2rem; padding: 0 .25rem; font-size: .78em;
  background: #20262b; color: #fff; margin: 0 .12rem; }
.card .body { padding: .6rem .9rem .8rem; }
.card h3 { margin: 0 0 .3rem; display: flex; justify-content: space-between; gap: .6rem; }
.card dl { margin: 0; font-size: .9rem; }
.card dt { color: var(--soft); font-size: .78rem; margin-top: .45rem; }
.card dd { margin: 0; overflow-wrap: anywhere; }
.card h3 .good, .card h3 .bad { white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.card:focus-visible, #count:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
#count { font-weight: 600; max-width: none; outline-offset: 4px; }
.figures { font-size: .84rem; color: var(--soft); margin: 0 0 .3rem; font-variant-numeric: tabular-nums; }
.foot { font-size: .8rem; margin: .7rem 0 0; }
.case { margin: 0 0 1rem; } .case .shots { display: grid; gap: .8rem; margin-top: .7rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.case figure { font-size: .9rem; } .case figcaption { color: var(--ink); margin-top: .35rem; }
.case .shot { border-radius: .4rem; overflow: hidden; }
.filters { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 7.6rem), 1fr)); gap: .6rem .8rem;
  align-items: end; margin: 0 0 .8rem; padding: .8rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
.filters label { display: block; font-size: .8rem; color: var(--soft); min-width: 0; }
.filters .wide { grid-column: span 2; }
select, input[type=search], button { font: inherit; font-size: .95rem; color: var(--ink); background: var(--back);
  border: 1px solid var(--edge); border-radius: .4rem; padding: .38rem .55rem; width: 100%; min-height: 2.4rem; }
button { width: auto; cursor: pointer; padding: .38rem .9rem; } button:hover { border-color: var(--accent); }
.filters button { width: 100%; }
button[aria-pressed=true] { border-color: var(--accent); color: var(--accent); }
:is(a, button, select, input, summary):focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
details li button { min-height: 0; padding: .15rem .6rem; font-size: .82rem; margin: .2rem 0 .3rem; }
details li p { margin: 0; overflow-wrap: anywhere; } .chosen > p:first-child { font-weight: 600; }
.raw { font-family: ui-monospace, monospace; font-size: .78rem; color: var(--soft); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.grid td { position: relative; padding: 0; } .grid td.gap { padding: .38rem .8rem; color: var(--soft); }
.grid th { vertical-align: middle; } .grid td { vertical-align: middle; }
.grid td a { display: block; padding: .38rem .8rem; text-decoration: none; color: inherit; }
.grid td a:hover, .grid td a:focus-visible { background: var(--hover); } .grid td a:hover b { color: var(--accent); }
.grid .corner { position: sticky; left: 0; background: var(--card); border-bottom: 1px solid var(--line); }
.grid tbody tr:first-child th { border-top: 0; }
.grid b { display: block; font-weight: 600; } .grid b.soft { font-weight: 400; }
.grid a b { text-decoration: underline; text-decoration-color: var(--edge); text-underline-offset: .2em; }
 .grid small { display: block; color: var(--twin-ink); font-size: .82rem; }
.apart { border: 2px dashed var(--line); border-radius: .8rem; padding: .8rem; min-width: 0; }
.apart > .chart { border: 0; background: none; padding: 0; }
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .c0 { stroke: var(--bar); } svg .c1 { stroke: var(--second); stroke-dasharray: 7 3; }
svg .c2 { stroke: var(--third); stroke-dasharray: 2 3; }
svg .c3 { stroke: var(--soft); } svg .c4 { stroke: var(--ink); }
details { margin-top: .6rem; font-size: .88rem; }
summary { cursor: pointer; color: var(--accent); }
details ol { padding-left: 1.2rem; margin: .4rem 0 0; }
details li { margin: .25rem 0; overflow-wrap: anywhere; }
.key { border: 0; min-width: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; padding: 0;
  margin: .4rem 0 .9rem; font-size: .9rem; }
.key input { margin: 0 .4rem 0 0; width: 1.05rem; height: 1.05rem; vertical-align: -2px; }
.key svg { vertical-align: -2px; margin-right: .35rem; }
footer { margin-top: 3rem; padding-bottom: 2.5rem; color: var(--soft); font-size: .88rem; }
@media (max-width: 34rem) { svg.bars { font-size: 16px; } svg .axis { font-size: 14px; } svg .value { font-size: 15px; }
  svg .small { font-size: 12.5px; } }
@media print { .card { break-inside: avoid; } .scroll { overflow: visible; }
  #filter, #more, nav, .skip { display: none; }
  body { font-size: 11pt; background: #fff; } a { color: inherit; } }
"""

_KINDS = (("truth", TRUTH), ("answer", ANSWER), ("asked", ASKED), ("later", LATER))


def _lines(kind: str, colour: str) -> str:
    """How a kind of boxes is drawn on pictures, and marked in texts."""
    dashes = f" stroke-dasharray: {' '.join(map(str, DASHES[colour]))};" if colour in DASHES else ""
    border = f"border-color: {colour}; border-style: {'dashed' if dashes else 'solid'};"
    return f".over .line.{kind} {{ stroke: {colour};{dashes} }} .chip.{kind} {{ {border} }}\n"


STYLE = _PLAIN + "".join(_lines(kind, colour) for kind, colour in _KINDS)
