"""Start a server and leave it in order."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from clinkd.pipeline.runs import RUN_RECORD, RUNS, Run, find_run
from clinkd.records import BadInput
from clinkd.serving.access import AuthMiddleware
from clinkd.serving.limits import ServerLimits
from clinkd.workflows.review import Review

if TYPE_CHECKING:
    from clinkd.workflows.ask import Answerer

TOKEN_VARIABLE = "CLINKD_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")


@dataclass(frozen=True)
class ListenAddress:
    """Where a server listens; port 0 takes a free one. `token_file` holds the token that it wants."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None


def serve(
    wanted: str | None,
    runs: Path = RUNS,
    address: ListenAddress | None = None,
    limits: ServerLimits | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Serve a run (a name under `runs`, or a path), or a folder that holds a model, until it is stopped.

    Every route but `/healthz` wants a token: that of `token_file` or of the environment, or else one made for this
    time, which `say` is told with the address. Raises BadInput for another address than this machine's own without a
    token that was given, and where the port is taken.
    """
    limits, address = limits or ServerLimits(), address or ListenAddress()
    host, given = address.host, given_token(address.token_file)
    if not is_local(host) and given is None:
        raise BadInput(
            f"--host {host}: other machines could ask; give a token first, in the variable {TOKEN_VARIABLE} or by "
            "--token-file"
        )
    os.umask(0o077)
    run = _run_of(wanted, runs)
    listening = _listening(host, address.port)
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    token = given or secrets.token_urlsafe(24)
    say(f"page     http://{shown}:{port}/" + ("   (the token is the one given)" if given else f"?token={token}"))
    say(f"API      http://{shown}:{port}/v1   (the token is the API key; /openapi.json describes it)")
    say("stop     Ctrl-C")
    _go(wanted, run, listening, token, limits)


def given_token(file: Path | None) -> str | None:
    """The token that the user gave. Raises BadInput for one that is short or cannot be put into a header."""
    where = f"--token-file {file}" if file else TOKEN_VARIABLE
    try:
        token = file.read_text(encoding="ascii").strip() if file else os.environ.get(TOKEN_VARIABLE)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{where}: cannot be read ({type(error).__name__})") from None
    if token is not None and not _TOKEN.fullmatch(token):
        raise BadInput(f"{where}: 16 letters, digits or . _ ~ - at least are wanted (openssl rand -hex 24 makes one)")
    return token


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _run_of(wanted: str | None, runs: Path) -> Run | None:
    """The run that is meant; None where a folder with a model is. Raises BadInput where it is neither."""
    folder = Path(wanted).expanduser() if wanted else None
    is_model = folder and (folder / "config.json").is_file() and not (folder / RUN_RECORD).is_file()
    if is_model and wanted and not (runs / wanted / RUN_RECORD).is_file():
        return None
    run = find_run(wanted, runs)
    run.stage(run.last_trained)  # told here, and not by the model's thread
    return run


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"--host {host} --port {port}: cannot be taken ({why}); choose another") from None
    made.listen(128)
    return made


def _go(wanted: str | None, run: Run | None, listening: socket.socket, token: str, limits: ServerLimits) -> None:
    from clinkd.serving.app import Served, create
    from clinkd.serving.asking import RequestHandler
    from clinkd.serving.decoding import Decoders
    from clinkd.serving.engine import Engine

    def opened() -> Answerer:
        from clinkd.workflows.ask import Answerer

        return Answerer.of_run(run) if run else Answerer.of_folder(Path(wanted or ""))

    handler = RequestHandler(Engine(opened, limits.batch, limits.queue), Decoders(limits), limits)
    if run:
        report = None
        with contextlib.suppress(BadInput):  # a run that is not finished has none
            report = run.report()
        served = Served(run.folder.name, handler, report, Review(run))
    else:
        served = Served(Path(wanted or "").resolve().name, handler)
    port = listening.getsockname()[1]
    app = AuthMiddleware(create(served), token, limits, cookie=f"clinkd-{port}")
    uvicorn.Server(configured(app)).run(sockets=[listening])


def configured(app: AuthMiddleware) -> uvicorn.Config:
    """How the web server runs: its own log would hold paths and addresses."""
    return uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, date_header=False, lifespan="on",
        timeout_graceful_shutdown=5, timeout_keep_alive=30, limit_concurrency=1024, http="h11", ws="none",
    )  # fmt: skip
