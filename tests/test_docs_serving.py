"""docs/SERVING.md: its routes and figures those there are."""

from __future__ import annotations

import re
from pathlib import Path

from clinkd.inference.self_consistency import CERTAIN
from clinkd.serving.app import Served, create
from clinkd.serving.asking import RequestHandler
from clinkd.serving.decoding import Decoders
from clinkd.serving.engine import Engine
from clinkd.serving.limits import NOTICE, ServerLimits
from clinkd.workflows.review import FILE

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "SERVING.md").read_text()


def test_every_route_is_told() -> None:
    limits = ServerLimits()

    def never() -> None:
        raise AssertionError

    class Review:
        rounds = (1,)

    handler = RequestHandler(Engine(never, limits), Decoders(limits), limits)
    described = create(Served("x", handler, None, Review(), object())).openapi()["paths"]
    told = {m for cell in re.findall(r"^\| (`.*?) \|", TEXT, re.M) for m in re.findall(r"(/[\w/{}]+)", cell)}
    assert told == set(described)


def test_figures_and_pictures_are_those_there_are() -> None:
    limits = ServerLimits()
    assert NOTICE.rstrip(".").lower() in " ".join(TEXT.split()).lower()
    assert f"below {CERTAIN:g}" in TEXT and FILE in TEXT
    for said in (
        f"{limits.body_bytes >> 20} MB", f"{limits.held_bytes >> 20} MB", f"{limits.pixels // 10**6} million pixels",
        f"{limits.frames:,} frames", f"{limits.decoder_bytes >> 30} GB", f"{limits.decoder_seconds:g} s each",
    ):  # fmt: skip
        assert said in " ".join(TEXT.split()), said
    for picture in re.findall(r"!\[.+?\]\((\S+?)\)", TEXT):
        assert (DOCS / picture).is_file()
