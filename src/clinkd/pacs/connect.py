"""From an address to an archive: https://host/dicom-web for DICOMweb, dicom://TITLE@host:port for the DICOM network."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from clinkd.own_address import is_loopback
from clinkd.pacs.addresses import OWN_TITLE, RECEIVE_PORT, check_title
from clinkd.pacs.archive import Archive, TlsFiles
from clinkd.pacs.instance import demand_extra
from clinkd.records import BadInput

TOKEN, USER, PASSWORD = "CLINKD_PACS_TOKEN", "CLINKD_PACS_USER", "CLINKD_PACS_PASSWORD"
WANTED = "https://HOST/dicom-web is wanted (DICOMweb), or dicom://TITLE@HOST:PORT (dicoms:// with TLS)"


def connect(
    address: str,
    own_title: str = OWN_TITLE,
    receive_port: int = RECEIVE_PORT,
    tls: TlsFiles | None = None,
    timeout_seconds: float = 60.0,
) -> Archive:
    """The archive at an address; nothing is sent before its first call.

    `own_title` and `receive_port`: how the archive of a dicom:// address knows us, and where it sends images if it
    cannot hand them over on our own connection. Credentials of DICOMweb come from the environment: TOKEN, or USER and
    PASSWORD. Raises BadInput for an address that may not be used.
    """
    demand_extra()
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or not address.isprintable() or parts.query or parts.fragment or parts.password is not None:
        raise BadInput(f"address: {WANTED}; no password and no query in it: credentials come from {TOKEN}")
    tls = tls or TlsFiles()
    if parts.scheme in ("http", "https"):
        if parts.username is not None:
            raise BadInput(f"address: no name in it: give {USER} and {PASSWORD}, or {TOKEN}, in the environment")
        from clinkd.pacs.dicomweb import DicomWebArchive

        return DicomWebArchive(address.rstrip("/"), tls, timeout_seconds, _read_credentials(parts.scheme, host))
    if parts.scheme not in ("dicom", "dicoms") or parts.path.strip("/"):
        raise BadInput(f"address: {WANTED}")
    if not port or not parts.username:
        raise BadInput(f"address: the title and the port of the archive are missing; {WANTED}")
    for title in (parts.username, own_title):
        check_title(title)
    if not 0 < receive_port < 65536:
        raise BadInput(f"receive port = {receive_port}: 1 to 65535 is wanted")
    from clinkd.pacs.dimse import DicomNode, DimseArchive

    node = DicomNode(host, port, parts.username, tls if parts.scheme == "dicoms" else None)
    return DimseArchive(node, own_title, receive_port, timeout_seconds)


def _read_credentials(scheme: str, host: str) -> tuple[str, ...]:
    """A token, or a user and a password; nothing where none is set."""
    token, user, password = (os.environ.get(name, "").strip() for name in (TOKEN, USER, PASSWORD))
    given = (token,) if token else (user, password) if user or password else ()
    for value in given:
        if not value or not value.isascii() or not value.isprintable():
            raise BadInput(
                f"{TOKEN if token else f'{USER}, {PASSWORD}'}: empty, or a character that none has; set it anew"
            )
    if given and scheme == "http" and not is_loopback(host):
        raise BadInput(f"{TOKEN if token else PASSWORD} would go over the network in the clear; use https")
    return given
