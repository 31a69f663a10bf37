"""Start a server, and stop it in order."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from clinkd.pipeline.runs import RUN_RECORD, Run
from clinkd.records import BadInput
from clinkd.serving.access import AuthMiddleware
from clinkd.serving.connections import BACKLOG, BoundedConnection
from clinkd.serving.limits import ServerLimits
from clinkd.workflows.review import Review

if TYPE_CHECKING:
    from clinkd.serving.engine import Engine
    from clinkd.workflows.ask import Answerer

TOKEN_VARIABLE = "CLINKD_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")


@dataclass(frozen=True)
class ListenAddress:
    """Where a server listens; port 0 takes a free one. `token_file` holds the token for its routes. `open_page`: in a
    browser of this machine, too."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    open_page: bool = False


def serve(
    wanted: str | None,
    runs: Path,
    address: ListenAddress,
    limits: ServerLimits,
    say: Callable[[str], object],
    choose: Callable[[str | None, Path], Run],
) -> None:
    """Serve a run (a name under `runs`, or a path), or a folder with a model, until it is stopped. `choose` finds the
    run, also where none is named.

    Every route but `/healthz` needs a token: from `token_file` or the environment, or else a new one, which `say`
    prints with the address. Raises BadInput if other machines can reach the address and no token was given, and if
    the port is taken.
    """
    host, user_token = address.host, read_user_token(address.token_file)
    if not is_local(host) and user_token is None:
        raise BadInput(
            f"--host {host}: other machines could ask; give a token first, in the variable {TOKEN_VARIABLE} or by "
            "--token-file"
        )
    run = None if _is_model(wanted, runs) else choose(wanted, runs)
    if run:
        for stage in run.answering_stages:
            run.stage(stage)  # raises its errors here, not in the model's thread
    listener = _open_socket(host, address.port)
    port = listener.getsockname()[1]
    url_host = f"[{host}]" if ":" in host else host
    token = user_token or secrets.token_urlsafe(24)
    suffix = "   (the token is the one given)" if user_token else f"?token={token}"
    page = f"http://{url_host}:{port}/"
    say(f"page     {page}{suffix}")
    say(f"API      http://{url_host}:{port}/v1   (the token is the API key; /openapi.json describes it)")
    say("stop     Ctrl-C")
    if address.open_page:
        url = page if user_token else f"{page}{suffix}"
        # in a thread: some browsers return only when they are closed
        threading.Thread(target=open_browser, args=(url, say), name="browser", daemon=True).start()
    _run_server(wanted, run, listener, token, limits)


def open_browser(url: str, say: Callable[[str], object]) -> None:
    """Open an address in the user's browser; `say` is told where there is none."""
    if not webbrowser.open(url):
        say("browser  none could be started here; open the address of the page by hand")


def read_user_token(file: Path | None) -> str | None:
    """The token that the user gave. Raises BadInput for a token that is short or does not fit into a header."""
    where = f"--token-file {file}" if file else TOKEN_VARIABLE
    try:
        token = file.read_text(encoding="ascii").strip() if file else os.environ.get(TOKEN_VARIABLE)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{where}: cannot be read ({type(error).__name__})") from None
    if token is not None and not _TOKEN.fullmatch(token):
        raise BadInput(f"{where}: 16 letters, digits or . _ ~ - at least are wanted (openssl rand -hex 24 makes one)")
    return token


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _is_model(wanted: str | None, runs: Path) -> bool:
    """Whether what is to be served is a folder with a model, and no run."""
    folder = Path(wanted or "").expanduser()
    named_run = any((place / RUN_RECORD).is_file() for place in (folder, runs / folder))
    return wanted is not None and (folder / "config.json").is_file() and not named_run


def _open_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"--host {host} --port {port}: cannot be taken ({why}); --port 0 takes a free one") from None
    listener.listen(BACKLOG)
    return listener


def _run_server(wanted: str | None, run: Run | None, listener: socket.socket, token: str, limits: ServerLimits) -> None:
    from clinkd.serving.app import Served, create
    from clinkd.serving.asking import RequestHandler
    from clinkd.serving.decoding import Decoders
    from clinkd.serving.engine import Engine

    def open_answerer() -> Answerer:
        from clinkd.workflows.ask import Answerer

        return Answerer.of_run(run) if run else Answerer.of_folder(Path(wanted or ""))

    handler = RequestHandler(Engine(open_answerer, limits), Decoders(limits), limits)
    if run:
        report = None
        with contextlib.suppress(BadInput):  # an unfinished run has none
            report = run.report()
        served = Served(run.folder.name, handler, report, Review(run))
    else:
        served = Served(Path(wanted or "").resolve().name, handler)
    port = listener.getsockname()[1]
    app = AuthMiddleware(create(served), token, limits, cookie=f"clinkd-{port}")
    _Server(make_server_config(app), handler.engine).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Stops its engine first, so that every client is told before its connection ends."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.engine.stop()
        await super().shutdown(sockets)


def make_server_config(app: AuthMiddleware) -> uvicorn.Config:
    """The config of the web server, without its own log, which would hold paths and addresses."""
    return uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, date_header=False, lifespan="on",
        timeout_graceful_shutdown=5, timeout_keep_alive=app.limits.keep_seconds, http=BoundedConnection, ws="none",
        backlog=BACKLOG,
    )  # fmt: skip
