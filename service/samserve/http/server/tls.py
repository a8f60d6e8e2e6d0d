"""TLS of the HTTP listener, with certificates that may be replaced while it runs."""

from __future__ import annotations

import ssl

from samserve.security.certificates import ServerCertificate
from samserve.system.memfd import as_path
from samserve.system.reloading import ReloadableFile

Certificate = ReloadableFile[ServerCertificate]


class TlsContexts:
    """The context for the next handshake, made from the current files.

    A new context also forgets the sessions of the previous one, so that no client resumes one that
    was verified by a CA which is no longer trusted.
    """

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._used = certificate.value
        self._context = _context(self._used)

    def current(self) -> ssl.SSLContext:
        """Return the context; must be called on the event loop."""
        latest = self._certificate.value
        if latest is not self._used:
            self._context, self._used = _context(latest), latest
        return self._context


def _context(certificate: ServerCertificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with as_path(certificate.chain) as chain, as_path(certificate.key) as key:
        context.load_cert_chain(chain, key)
    if certificate.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # As gRPC: an intermediate certificate may be the CA.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=certificate.client_ca.decode("ascii", "ignore"))
    return context
