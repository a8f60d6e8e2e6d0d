"""The deadlines that clients send in headers."""

from __future__ import annotations

import re

from samserve.errors import InvalidRequest

CONNECT, GRPC = "connect-timeout-ms", "grpc-timeout"

_MILLISECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)
_GRPC = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def connect_timeout(text: str) -> float | None:
    """Return the seconds in ``connect-timeout-ms``; None if it is empty."""
    if not text:
        return None
    if not _MILLISECONDS.fullmatch(text):
        raise InvalidRequest(CONNECT, "must be a number of milliseconds of up to 10 digits")
    return int(text) / 1000


def grpc_timeout(text: str) -> float | None:
    """Return the seconds in ``grpc-timeout``; None if it is empty."""
    if not text:
        return None
    match = _GRPC.fullmatch(text)
    if match is None:
        raise InvalidRequest(GRPC, "must be a number of up to 8 digits and one of H, M, S, m, u, n")
    return int(match[1]) * _UNITS[match[2]]
