"""`clinkd pacs listen` in a process of its own, the HTTP routes of its worklist, and an archive that gets reports."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
from benchmarks.patience import Deadline, patience
from pydicom import Dataset, dcmread

from arrivals import RULES
from orthanc import PASSWORD, USER, free_port

TOKEN_OF_THE_PAGE = "a-token-for-these-tests"


class ListenCommand:
    """The verb with a run or a model. `out`: what it printed, when it has ended; `code`: its status then."""

    def __init__(self, run: Path, folder: Path, *words: str, rules: str = RULES, undo: str = "0") -> None:
        (folder / "rules.yaml").write_text(rules)
        self.page, self.out, self.log, self.code = free_port(), "", folder / "listener.log", 0
        command = [sys.executable, "-m", "clinkd", "pacs", "listen", str(run), "--rules", "rules.yaml"]
        command += ["--undo", undo, "--page-port", str(self.page), *words]
        known = {"CLINKD_TOKEN": TOKEN_OF_THE_PAGE, "CLINKD_PACS_USER": USER, "CLINKD_PACS_PASSWORD": PASSWORD}
        with self.log.open("w") as log:
            environment = {**os.environ, **known}
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        headers = {"authorization": f"Bearer {TOKEN_OF_THE_PAGE}"}
        address = f"http://127.0.0.1:{self.page}"
        self.client = httpx2.Client(base_url=address, headers=headers, timeout=patience(60))

    def counts(self) -> dict[str, int]:
        """Entries by state; none while the page does not answer yet."""
        try:
            return dict(self.client.get("/v1/worklist").json()["counts"])
        except httpx2.TransportError:
            return {}

    def entries(self, state: str) -> list[dict[str, Any]]:
        """All entries in a state, in the order of their arrival."""
        reply = self.client.get("/v1/worklist", params={"state": state, "limit": 500}).json()
        assert reply["after"] is None
        return list(reply["entries"])

    def until(self, **counts: int) -> None:
        end = Deadline(patience(90))
        while not counts.items() <= self.counts().items():
            assert self.process.poll() is None and not end.passed(), (self.counts(), self.log.read_text())
            time.sleep(0.2)

    def until_open(self, port: int) -> None:
        """Wait until its receiver takes connections."""
        end = Deadline(patience(90))
        while not _is_open(port):
            assert self.process.poll() is None and not end.passed(), self.log.read_text()
            time.sleep(0.05)

    def accept(self, entry: dict[str, Any] | None = None) -> None:
        """Accept the answer of an entry, of the first that has one by default."""
        self.decide(entry or self.entries("answered")[0], "accepted")

    def decide(self, entry: dict[str, Any], kind: str) -> None:
        body = {"kind": kind, "revision": entry["revision"]}
        assert self.client.post(f"/v1/worklist/{entry['id']}/decision", json=body).status_code == 200

    def __enter__(self) -> Self:
        return self

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal, and wait until it has ended."""
        self.process.send_signal(number)
        self.code = self.process.wait(patience(40))

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.end()
        self.out = self.log.read_text()
        assert "Traceback" not in self.out


def _is_open(port: int) -> bool:
    with socket.socket() as own:
        return own.connect_ex(("127.0.0.1", port)) == 0


class ReportArchive:
    """Takes reports, and answers only from `go_on` on."""

    def __init__(self) -> None:
        self.stored, self.begun, self.go_on = list[Dataset](), threading.Event(), threading.Event()

    @contextmanager
    def running(self) -> Iterator[int]:
        from pynetdicom import AE, evt
        from pynetdicom.sop_class import ComprehensiveSRStorage

        entity = AE("ORTHANC")
        entity.add_supported_context(ComprehensiveSRStorage)
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        try:
            yield server.server_address[1]
        finally:
            self.go_on.set()
            server.shutdown()

    def _store(self, event: Any) -> int:
        self.stored.append(dcmread(io.BytesIO(event.encoded_dataset())))
        self.begun.set()
        self.go_on.wait()
        return 0
