"""Where a receiver listens, who may send to it, and which addresses are this machine's own."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from clinkd.own_address import is_loopback
from clinkd.pacs.archive import TlsFiles
from clinkd.records import BadInput

OWN_TITLE, RECEIVE_PORT = "CLINKD", 11112


class AllowedPeer(NamedTuple):
    """Who may send: the IP address and the application entity title."""

    address: str
    title: str

    @classmethod
    def parse(cls, text: str) -> AllowedPeer:
        """Of ADDRESS/TITLE. Raises BadInput for another text."""
        address, _, title = text.partition("/")
        try:
            return cls(str(ipaddress.ip_address(address.strip())), check_title(title))
        except ValueError as error:
            why = error if isinstance(error, BadInput) else "no IP address"
            raise BadInput(f"--allow {text}: {why}; 10.0.0.5/ORTHANC is the form") from None


@dataclass(frozen=True, slots=True)
class ReceiverAddress:
    """Where a receiver listens, under which title, and who may send; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = RECEIVE_PORT
    title: str = OWN_TITLE
    allowed: tuple[AllowedPeer, ...] = ()
    tls: TlsFiles | None = None

    def demand_safe(self) -> None:
        """Raises BadInput where other machines can reach the address and nothing says which of them may send."""
        if is_loopback(self.host):
            return
        if not (self.tls and self.tls.certificate and self.tls.ca) and not self.allowed:
            raise BadInput(
                f"--host {self.host}: any machine of the network could send; say who may, by --allow ADDRESS/TITLE, "
                "or take client certificates, by --certificate, --key and --ca"
            )

    def is_reached_at(self, address: str) -> bool:
        """Whether an address, dicom://TITLE@HOST:PORT, leads to this receiver, however its host is spelled. At another
        address of this machine than the one listened at, the same port is another receiver, unless the title is ours,
        too."""
        try:
            parts = urlsplit(address)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        if parts.scheme not in ("dicom", "dicoms") or port != self.port or not port:
            return False
        reached, own = _resolve(host), _resolve(self.host)
        if reached & own:
            return True
        everywhere = any(ipaddress.ip_address(one).is_unspecified for one in own)
        return any(map(_is_of_this_machine, reached)) and (everywhere or parts.username == self.title)


def _resolve(host: str) -> set[str]:
    """The IP addresses of a host; empty where there are none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {plain_address(str(place[0])) for *_, place in found}


def _is_of_this_machine(address: str) -> bool:
    """Whether a connection to an IP address ends here: only then a socket can have it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def plain_address(address: str) -> str:
    """An IP address in its shortest form, IPv4 where it is mapped into IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def check_title(title: str) -> str:
    """An application entity title without blanks around it. Raises BadInput where it is none."""
    title = title.strip()
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise BadInput(f"{title[:20]!r} is no application entity title: 1 to 16 plain characters are wanted")
    return title
