"""TLS on the API listener, with certificates that may be exchanged while it runs."""

from __future__ import annotations

import grpc

from samserve.security.certificates import ServerCertificate
from samserve.system.reloading import ReloadableFile

Certificate = ReloadableFile[ServerCertificate]


def server_credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Build credentials that take up a changed certificate at the next handshake.

    Connections that are open keep theirs.  gRPC speaks TLS 1.2 and newer only.
    """
    given = certificate.value

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called by a thread of gRPC's at every handshake; None keeps what it had.
        nonlocal given
        latest = certificate.value
        if latest is given:
            return None
        given = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        fetch,  # type: ignore[arg-type]  # None is what gRPC documents for "as before"
        require_client_authentication=given.client_ca is not None,
    )


def _configuration(certificate: ServerCertificate) -> grpc.ServerCertificateConfiguration:
    pair = (certificate.key, certificate.chain)
    return grpc.ssl_server_certificate_configuration([pair], certificate.client_ca)
