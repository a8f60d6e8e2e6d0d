"""Advice for failures that gRPC itself reports."""

from __future__ import annotations

import grpc

# gRPC appends the location in its source code to some texts.
_TRACE = "=== Source Location Trace"

_REQUIRES_TLS = (
    "the server may require TLS: pass credentials, such as grpc.ssl_channel_credentials(ca) "
    "(commands: --ca FILE, or SAMSERVE_CLIENT_TLS=true)"
)
_REQUIRES_CERTIFICATE = (
    "the server may require a client certificate: pass one with "
    "grpc.ssl_channel_credentials(ca, key, certificate) "
    "(commands: SAMSERVE_CLIENT_CERT_FILE and SAMSERVE_CLIENT_KEY_FILE)"
)
_TOO_LARGE = (
    "a message exceeds the size limit: send a smaller image, or request less in one call, such as "
    "fewer prompts or no logits (limits.max_request_bytes is the server's limit)"
)

_CONNECTION_LOST = "the server, or a proxy in front of it, stopped during the call: retry it"

# By a substring of gRPC's text; for connections with TLS, without it, and both.
_ENCRYPTED = {
    "GOAWAY received": _CONNECTION_LOST,
    "Socket closed": _REQUIRES_CERTIFICATE,
    "Connection reset": _REQUIRES_CERTIFICATE,
    "WRONG_VERSION_NUMBER": (
        "the port does not use TLS: pass no credentials "
        "(commands: no --ca, no SAMSERVE_CLIENT_TLS), or use the port with TLS"
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "the server's certificate is not trusted, or not valid now: pass the CA that signed "
        "it, grpc.ssl_channel_credentials(ca) (commands: --ca FILE)"
    ),
    "Hostname Verification Check failed": (
        "the server's certificate is for other host names: connect to one of them"
    ),
    "Failed to create security handshaker": (
        "the CA, certificate or key of the credentials cannot be read: pass PEM files"
    ),
}
_PLAINTEXT = {
    # A server that requires TLS closes a connection before it has calls.
    "Stream removed": _CONNECTION_LOST,
    "GOAWAY received": _CONNECTION_LOST,
    "Socket closed": _REQUIRES_TLS,
    "Connection reset": _REQUIRES_TLS,
}
_ANY = {
    "Connection refused": "nothing listens at this address: start the server, or correct it",
    "lookup failed": "correct the host name",
    "lookup error": "correct the host name",
    "Failed parsing HTTP/2": "this is not a gRPC port: use the port of the API, not the admin port",
}
_BY_CODE = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "the call took longer than its deadline: raise timeout_s",
    grpc.StatusCode.RESOURCE_EXHAUSTED: _TOO_LARGE,
    grpc.StatusCode.UNIMPLEMENTED: (
        "this is not a samserve server, or one older than this client: check the address"
    ),
}


def advise(code: grpc.StatusCode, details: str, *, encrypted: bool) -> str:
    """Return gRPC's text without source locations, followed by advice if there is any.

    *encrypted* is whether the connection uses TLS.
    """
    text = details.partition(_TRACE)[0].strip() or code.name
    found = _BY_CODE.get(code, "")
    if code is grpc.StatusCode.UNAVAILABLE:
        table = {**(_ENCRYPTED if encrypted else _PLAINTEXT), **_ANY}
        found = next((advice for part, advice in table.items() if part in text), "")
    return f"{text}; {found}" if found else text
