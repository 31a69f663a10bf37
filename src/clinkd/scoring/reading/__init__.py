"""Answers as anybody's model or harness writes them, read into predictions: files, rows of the papers, boxes."""
