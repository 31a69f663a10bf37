"""A real archive for tests: Orthanc with a configuration, free loopback ports and a storage of its own."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TITLE, USER, PASSWORD = "ORTHANC", "clinkd", "only-for-tests"
INSTALL = "make pacs"
_PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
_PLUGINS = [
    folder / "libOrthancDicomWeb.so" for folder in map(Path, ("/usr/share/orthanc/plugins", "/usr/local/lib/orthanc"))
]
_START_SECONDS = 30


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@dataclass
class Orthanc:
    """An Orthanc of our own. `options` are added to its configuration; it listens to this machine alone."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    http_port: int = field(default_factory=free_port)
    dicom_port: int = field(default_factory=free_port)
    receive_port: int = field(default_factory=free_port)  # where it sends what CLINKD moves to itself
    user: str = USER
    password: str = PASSWORD
    process: subprocess.Popen[bytes] | None = None

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    @property
    def dicom(self) -> str:
        return f"dicom://{TITLE}@127.0.0.1:{self.dicom_port}"

    def start(self) -> Orthanc:
        """Start it and wait until it answers. Skips the test where it is not installed."""
        plugin = next((path for path in _PLUGINS if path.exists()), None)
        if _PROGRAM is None or plugin is None:
            pytest.skip(f"no Orthanc with its DICOMweb plugin here: {INSTALL}")
        self.folder.mkdir(parents=True, exist_ok=True)
        config = {
            "Name": TITLE, "DicomAet": TITLE, "DicomCheckCalledAet": True,
            "HttpPort": self.http_port, "DicomPort": self.dicom_port, "RemoteAccessAllowed": False,
            "StorageDirectory": str(self.folder / "storage"), "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(plugin)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "AuthenticationEnabled": True, "RegisteredUsers": {self.user: self.password},
            "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True, "DicomAlwaysAllowMove": True,
            "DicomModalities": {"clinkd": ["CLINKD", "127.0.0.1", self.receive_port]},
            "OverwriteInstances": True, "StableAge": 1,
        } | self.options  # fmt: skip
        (self.folder / "orthanc.json").write_text(json.dumps(config))
        with (self.folder / "orthanc.log").open("ab") as log:
            command = [_PROGRAM, str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/system")
                return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        self.stop()
        raise AssertionError((self.folder / "orthanc.log").read_text()[-2000:])

    def get(self, path: str, body: bytes | None = None) -> Any:
        """The JSON that its own interface answers; `body`: to what is given to it (POST)."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", body)
        request.add_header(
            "Authorization", "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """End it at once, by its process alone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
