"""The code of our networks and processors: an exported folder gets copies, so nothing here wants the rest of clinkd."""
