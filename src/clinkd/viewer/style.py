"""The style sheet of every page: light and dark, readable on a phone, printable."""

STYLE = """\
:root {
  color-scheme: light dark;
  --back: #fbfbf9; --card: #ffffff; --ink: #1d2327; --soft: #59636b; --line: #dfe3e6; --accent: #0b6a9c;
  --bar: #0072b2; --twin: #b3a17a; --good: #00694d; --bad: #a83e00; --warn: #fff3d6; --warn-ink: #5c4300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14181b; --card: #1c2226; --ink: #e7ebee; --soft: #a3adb5; --line: #343c42; --accent: #6fc3f0;
    --bar: #56b4e9; --twin: #8d7c55; --good: #4cd6a9; --bad: #ff9a61; --warn: #3a3014; --warn-ink: #f3dda2;
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
caption { text-align: left; font-weight: 600; padding: .65rem .8rem .35rem; }
th, td { padding: .38rem .8rem; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
tbody tr + tr th, tbody tr + tr td { border-top: 1px solid var(--line); }
th[scope=row], thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--card);
  font-weight: 500; }
th.sub[scope=row] { padding-left: 1.9rem; color: var(--soft); font-weight: 400; }
table.words td, table.words thead th { text-align: left; white-space: normal; min-width: 7rem; }
.notes { font-size: .86rem; margin: .4rem 0 1.4rem; padding-left: 1.1rem; }
.charts { display: grid; margin: 1.2rem 0 .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem; }
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
.card img { display: block; width: 100%; height: auto; background: #000; image-rendering: auto; }
.card .body { padding: .6rem .9rem .8rem; }
.card h3 { margin: 0 0 .3rem; display: flex; justify-content: space-between; gap: .6rem; }
.card dl { margin: 0; font-size: .9rem; }
.card dt { color: var(--soft); font-size: .78rem; margin-top: .45rem; }
.card dd { margin: 0; overflow-wrap: anywhere; }
.card h3 .good, .card h3 .bad { white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
details { margin-top: .6rem; font-size: .88rem; }
summary { cursor: pointer; color: var(--accent); }
details ol { padding-left: 1.2rem; margin: .4rem 0 0; }
details li { margin: .25rem 0; overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; padding: 0; margin: .4rem 0 .9rem;
  font-size: .9rem; }
.key svg { vertical-align: -2px; margin-right: .35rem; }
footer { margin-top: 3rem; padding-bottom: 2.5rem; color: var(--soft); font-size: .88rem; }
@media print { .card { break-inside: avoid; } .scroll { overflow: visible; } }
"""
