"""The measures, a file for each kind of question; `clinkd.scoring.metrics` lists them."""
