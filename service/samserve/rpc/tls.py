"""TLS of the API listener, with certificates that may be replaced while it runs."""

from __future__ import annotations

import grpc

from samserve.security.certificates import ServerCertificate
from samserve.system.reloading import ReloadableFile

Certificate = ReloadableFile[ServerCertificate]


def server_credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Build credentials that use a changed certificate from the next handshake on.

    Open connections keep theirs.  gRPC supports TLS 1.2 and newer only.
    """
    current = certificate.value

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called by a gRPC thread at every handshake; None keeps the current certificate.
        nonlocal current
        latest = certificate.value
        if latest is current:
            return None
        current = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(current),
        fetch,  # type: ignore[arg-type]  # None is what gRPC documents for "unchanged"
        require_client_authentication=current.client_ca is not None,
    )


def _configuration(certificate: ServerCertificate) -> grpc.ServerCertificateConfiguration:
    pair = (certificate.key, certificate.chain)
    return grpc.ssl_server_certificate_configuration([pair], certificate.client_ca)
