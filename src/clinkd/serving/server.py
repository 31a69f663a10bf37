"""Start a server, and stop it in order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import uvicorn

from clinkd.own_address import explain_bind, is_loopback
from clinkd.pipeline.runs import RUN_RECORD, Run
from clinkd.records import BadInput
from clinkd.serving.access import AuthMiddleware
from clinkd.serving.connections import BACKLOG, BoundedConnection
from clinkd.serving.limits import ServerLimits
from clinkd.storage import find_readers, sha256_file
from clinkd.workflows.review import Review

if TYPE_CHECKING:
    from clinkd.hospital.worklist import Worklist
    from clinkd.serving.engine import Engine
    from clinkd.workflows.ask import Answerer

TOKEN_VARIABLE = "CLINKD_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")


@dataclass(frozen=True)
class ListenAddress:
    """Where a server listens; port 0 takes a free one. `token_file` holds the token for its routes. `open_page`: in a
    browser of this machine, too. `options`: how those of host and port begin, for messages."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    open_page: bool = False
    options: str = "--"


class ModelSource(NamedTuple):
    """The model to serve: that of a run, or a folder with one."""

    wanted: str | None
    run: Run | None

    @classmethod
    def find(cls, wanted: str | None, runs: Path, choose: Callable[[str | None, Path], Run]) -> Self:
        """A run (a name under `runs`, or a path), or a folder with a model. `choose` finds the run, also where none is
        named. Raises BadInput where it cannot answer yet."""
        run = None if _is_model(wanted, runs) else choose(wanted, runs)
        if run:
            for stage in run.answering_stages:
                run.stage(stage)  # raises its errors here, not in the model's thread
        return cls(wanted, run)

    @property
    def name(self) -> str:
        return self.run.folder.name if self.run else Path(self.wanted or "").resolve().name

    def open(self) -> Answerer:
        from clinkd.workflows.ask import Answerer

        return Answerer.of_run(self.run) if self.run else Answerer.of_folder(Path(self.wanted or ""))

    def fingerprint(self) -> str:
        """What tells this model from every other one: of a run by its stages, of a folder by the bytes of its files."""
        if self.run:
            stages = set(self.run.answering_stages)
            parts = [f"{s['name']}-{s['identity']}" for s in self.run.stages if s["name"] in stages]
        else:
            files = sorted(path for path in Path(self.wanted or "").rglob("*") if path.is_file())
            parts = [f"{path.name}-{sha256_file(path)}" for path in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


Beside = Callable[["Engine"], contextlib.AbstractContextManager["Worklist | None"]]


def serve(
    find: Callable[[], ModelSource],
    address: ListenAddress,
    limits: ServerLimits,
    say: Callable[[str], object],
    beside: Beside | None = None,
) -> None:
    """Serve the model that `find` finds, until it is stopped. `beside` runs with it and makes the worklist of the page.

    Every route but `/healthz` needs a token: from `token_file` or the environment, or else a new one, which `say`
    prints with the address. Raises BadInput if other machines can reach the address and no token was given, and if
    the port is taken.
    """
    host, user_token = address.host, read_user_token(address.token_file)
    if not is_loopback(host) and user_token is None:
        raise BadInput(
            f"{address.options}host {host}: other machines could ask; give a token first, in the variable "
            f"{TOKEN_VARIABLE} or by --token-file"
        )
    if address.token_file and (caution := find_readers(address.token_file)):
        say(f"note     --token-file {caution}")
    source = find()
    token = user_token or secrets.token_urlsafe(24)
    with _open_socket(address) as listener:
        port = listener.getsockname()[1]

        def announce() -> None:
            url_host = f"[{host}]" if ":" in host else host
            suffix = "   (the token is the one given)" if user_token else f"?token={token}"
            page = f"http://{url_host}:{port}/"
            say(f"page     {page}{suffix}")
            say(f"API      http://{url_host}:{port}/v1   (the token is the API key; /openapi.json describes it)")
            say("stop     Ctrl-C")
            if address.open_page:
                url = page if user_token else f"{page}{suffix}"
                # in a thread: some browsers return only when they are closed
                threading.Thread(target=open_browser, args=(url, say), name="browser", daemon=True).start()

        _run_server(source, listener, token, limits, beside, announce)


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


def _is_model(wanted: str | None, runs: Path) -> bool:
    """Whether what is to be served is a folder with a model, and no run."""
    folder = Path(wanted or "").expanduser()
    named_run = any((place / RUN_RECORD).is_file() for place in (folder, runs / folder))
    return wanted is not None and (folder / "config.json").is_file() and not named_run


def _open_socket(address: ListenAddress) -> socket.socket:
    host, port = address.host, address.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInput(explain_bind(error, host, port, address.options)) from None
    listener.listen(BACKLOG)
    return listener


def _run_server(
    source: ModelSource, listener: socket.socket, token: str, limits: ServerLimits, beside: Beside | None,
    announce: Callable[[], object],
) -> None:  # fmt: skip
    """Serve on a socket; `announce` is called when all that is needed is there."""
    from clinkd.serving.app import Served, create
    from clinkd.serving.asking import RequestHandler
    from clinkd.serving.decoding import Decoders
    from clinkd.serving.engine import Engine

    run = source.run
    handler = RequestHandler(Engine(source.open, limits), Decoders(limits), limits)
    report = None
    with contextlib.suppress(BadInput):  # an unfinished run has none
        report = run.report() if run else None
    with beside(handler.engine) if beside else contextlib.nullcontext() as worklist:
        announce()
        served = Served(source.name, handler, report, Review(run) if run else None, worklist)
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
