"""Image-blind baselines: simple ones, learned ones, and the choice of the best before the test."""
