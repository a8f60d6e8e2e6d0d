"""What to do about failures that gRPC itself reports, in its own words."""

from __future__ import annotations

import grpc

# The place in gRPC's sources, which it adds to some of its texts.
_TRACE = "=== Source Location Trace"

_WANTS_TLS = (
    "the server may want TLS: give credentials, such as grpc.ssl_channel_credentials(ca) "
    "(commands: --ca FILE, or SAMSERVE_CLIENT_TLS=true)"
)
_WANTS_CERTIFICATE = (
    "the server may want a client certificate: give one with "
    "grpc.ssl_channel_credentials(ca, key, certificate) "
    "(commands: SAMSERVE_CLIENT_CERT_FILE and SAMSERVE_CLIENT_KEY_FILE)"
)
_TOO_LARGE = (
    "a message is over the size limit: send a smaller image, or ask for less in one call, such as "
    "fewer prompts or no logits (limits.request_bytes is the server's limit)"
)

_LOST = "the server, or a proxy before it, has ended during the call: repeat it"

# By a part of gRPC's text; for connections with TLS, without it, and both.
_ENCRYPTED = {
    "GOAWAY received": _LOST,
    "Socket closed": _WANTS_CERTIFICATE,
    "Connection reset": _WANTS_CERTIFICATE,
    "WRONG_VERSION_NUMBER": (
        "there is no TLS at this port: give no credentials "
        "(commands: no --ca, no SAMSERVE_CLIENT_TLS), or the port that has it"
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "the server's certificate is not trusted, or not valid now: give the CA that has signed "
        "it, grpc.ssl_channel_credentials(ca) (commands: --ca FILE)"
    ),
    "Hostname Verification Check failed": (
        "the server's certificate is for other names: connect by one of them"
    ),
    "Failed to create security handshaker": (
        "the CA, certificate or key of the credentials cannot be read: give PEM files"
    ),
}
_PLAINTEXT = {
    # A server that wants TLS ends a connection before it has calls.
    "Stream removed": _LOST,
    "GOAWAY received": _LOST,
    "Socket closed": _WANTS_TLS,
    "Connection reset": _WANTS_TLS,
}
_ANY = {
    "Connection refused": "nothing listens there: start the server, or correct host and port",
    "lookup failed": "correct the name of the host",
    "lookup error": "correct the name of the host",
    "Failed parsing HTTP/2": "this is no gRPC port: give the one of the API, not of admin pages",
}
_BY_CODE = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "the call took longer than its deadline: raise timeout_s",
    grpc.StatusCode.RESOURCE_EXHAUSTED: _TOO_LARGE,
    grpc.StatusCode.UNIMPLEMENTED: (
        "no samserve server is there, or one that is older than this client: check the address"
    ),
}


def advise(code: grpc.StatusCode, details: str, *, encrypted: bool) -> str:
    """Say what gRPC says, without its source locations, and what to do about it if that is known.

    *encrypted* is whether the connection has TLS.
    """
    said = details.partition(_TRACE)[0].strip() or code.name
    found = _BY_CODE.get(code, "")
    if code is grpc.StatusCode.UNAVAILABLE:
        table = {**(_ENCRYPTED if encrypted else _PLAINTEXT), **_ANY}
        found = next((advice for part, advice in table.items() if part in said), "")
    return f"{said}; {found}" if found else said
