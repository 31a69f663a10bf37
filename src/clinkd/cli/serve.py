"""The verb serve: the page and the API."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clinkd.cli.choice import choose_run
from clinkd.cli.words import Parser, add_verb


def add(verbs: Any, runs: Parser) -> None:
    """Add `serve`."""
    parser = add_verb(
        verbs,
        "serve",
        _serve,
        "look at a run and ask its model: a page in the browser, and an API as OpenAI's, with boxes",
        "clinkd serve demo",
        [runs],
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN|MODEL",
        help="a run, by name or path, or a model's folder; the newest finished run by default",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser, too")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (8000)")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="holds the token; else that of CLINKD_TOKEN, or a new one"
    )
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="questions answered together (16)")
    parser.add_argument("--queue", type=int, default=64, metavar="N", help="questions that may wait (64)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=4096, metavar="N",
        help="of one question with its image and the conversation before it (4096)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-tokens", type=int, default=32768, metavar="N",
        help="of all questions answered together, their beams and longest answers; they decide the memory (32768)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="within which an answer is given (60)")
    parser.set_defaults(stopped="nothing was kept but what was decided on corrections")


def _serve(args: argparse.Namespace) -> int:
    from clinkd.records import BadInput
    from clinkd.serving.limits import ServerLimits
    from clinkd.serving.server import ListenAddress, ModelSource, serve

    limits = {name: getattr(args, name) for name in ("batch", "queue", "prompt_tokens", "batch_tokens", "seconds")}
    for name, value in limits.items():
        if not 0 < value < 10**6:
            raise BadInput(f"--{name.replace('_', '-')} {value:g}: a number above 0 and below 1,000,000 is wanted")
    if not 0 <= args.port < 65536:
        raise BadInput(f"--port {args.port}: 0 to 65535 is wanted")
    address = ListenAddress(args.host, args.port, args.token_file, args.open)
    source = ModelSource.find(args.run, args.runs, choose_run)
    serve(source, address, ServerLimits(**limits), lambda line: print(line, flush=True))
    return 0
