"""Credentials and TLS for the connection of a command to a running server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from pydantic import ValidationError

from samserve.cli.client_settings import ClientSettings
from samserve.cli.errors import UsageError
from samserve.client import Client
from samserve.security import pem
from samserve.settings.validation import describe


@dataclass(frozen=True, slots=True, repr=False)
class Connection:
    """All that a client of a running server needs, with the content of files.

    Picklable, for processes on other machines; without a representation, since it has secrets.
    """

    target: str
    roots: bytes | None
    private_key: bytes | None
    certificate_chain: bytes | None
    tls: bool
    server_name: str
    token: str
    plaintext: bool

    def client(self) -> Client:
        """Return a client.  Raises `UsageError`, which never contains a token."""
        try:
            return Client(
                self.target,
                credentials=self._credentials(),
                server_name=self.server_name,
                token=self.token,
                plaintext=self.plaintext,
            )
        except ValueError:
            raise UsageError(
                f"the token would be sent to {self.target} without TLS: set --ca, "
                "SAMSERVE_CLIENT_TLS=true or SAMSERVE_CLIENT_PLAINTEXT=true on a trusted network"
            ) from None

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not (self.tls or self.roots or self.certificate_chain):
            return None
        return grpc.ssl_channel_credentials(self.roots, self.private_key, self.certificate_chain)


def client(target: str, ca_file: Path | None, token_file: Path | None) -> Client:
    """Return a client of a running server, as `connection`."""
    return connection(target, ca_file, token_file).client()


def connection(target: str, ca_file: Path | None, token_file: Path | None) -> Connection:
    """Read what a client needs; missing arguments come from the environment.

    Raises `UsageError`, which never contains a token, and `OSError`.
    """
    try:
        settings = ClientSettings()
    except ValidationError as error:
        raise UsageError(
            *(
                f"SAMSERVE_CLIENT_{str(part['loc'][0]).upper()}: {describe(part)}"
                for part in error.errors(include_url=False, include_input=False)
            )
        ) from None
    if (settings.cert_file is None) != (settings.key_file is None):
        raise UsageError(
            "SAMSERVE_CLIENT_CERT_FILE and SAMSERVE_CLIENT_KEY_FILE require each other"
        )
    roots, name = _trusted(settings, ca_file)
    return Connection(
        target,
        roots,
        _content(settings.key_file),
        _certificates(settings.cert_file),
        settings.tls,
        settings.server_name or name,
        _token(settings, token_file),
        settings.plaintext,
    )


def _trusted(settings: ClientSettings, ca_file: Path | None) -> tuple[bytes | None, str]:
    """Return the trusted certificates and the name that the server's certificate must have."""
    if ca_file is None and settings.server_cert_file is not None:
        if settings.ca_file is not None:
            raise UsageError(
                "SAMSERVE_CLIENT_CA_FILE and SAMSERVE_CLIENT_SERVER_CERT_FILE exclude each other"
            )
        return _server_certificate(settings.server_cert_file)
    return _certificates(ca_file or settings.ca_file), ""


def _server_certificate(path: Path) -> tuple[bytes, str]:
    """Return the first certificate of a file, the server's own, and a name in it."""
    try:
        return pem.first_certificate(path.read_bytes())
    except pem.InvalidPem:
        raise UsageError(f"{path}: contains no PEM certificate") from None


def _token(settings: ClientSettings, token_file: Path | None) -> str:
    token = settings.token.get_secret_value()
    file = token_file or settings.token_file
    if token_file is None and token:
        return _validated(token, "SAMSERVE_CLIENT_TOKEN")
    if file is None:
        return ""
    return _validated(file.read_bytes().decode("utf-8", "replace"), str(file))


def _validated(text: str, origin: str) -> str:
    token = text.strip()
    if not token or not (token.isascii() and token.isprintable()):
        raise UsageError(f"{origin}: contains no API key or token")
    return token


def _certificates(path: Path | None) -> bytes | None:
    content = _content(path)
    if content is not None and b"-----BEGIN CERTIFICATE-----" not in content:
        # gRPC would accept it and fail every connection.
        raise UsageError(f"{path}: contains no PEM certificate")
    return content


def _content(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
