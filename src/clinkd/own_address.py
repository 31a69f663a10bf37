"""Addresses at which this machine listens: whether others reach them, and why one cannot be taken."""

from __future__ import annotations

import errno
import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as nobody else can reach or hear it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def explain_bind(error: OSError | OverflowError, host: str, port: int, options: str = "--") -> str:
    """Why an address cannot be taken, and what to try. `options`: how those of host and port begin."""
    cure = f"{options}port 0 takes a free one"
    if isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
        cure = "give an address of this machine: 127.0.0.1 is for itself alone, 0.0.0.0 for all its networks"
    why = getattr(error, "strerror", None) or error
    return f"{options}host {host} {options}port {port}: cannot be taken ({why}); {cure}"
