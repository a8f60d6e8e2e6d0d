"""What a command needs to be let in by a running server."""

from __future__ import annotations

from pathlib import Path

import grpc
from pydantic import ValidationError

from samserve.cli.errors import UsageError
from samserve.client import Client
from samserve.client_settings import ClientSettings


def client(target: str, ca_file: Path | None, token_file: Path | None) -> Client:
    """Make a client of a running server; what is not given comes from the environment.

    Raises `UsageError`, which never quotes a token, and `OSError`.
    """
    try:
        settings = ClientSettings()
    except ValidationError as error:
        names = ", ".join(f"SAMSERVE_CLIENT_{part['loc'][0]}".upper() for part in error.errors())
        raise UsageError(f"not valid: {names}") from None
    try:
        return Client(
            target,
            credentials=_tls(settings, ca_file or settings.ca_file),
            token=_token(settings, token_file),
            plaintext=settings.plaintext,
        )
    except ValueError:
        raise UsageError(
            f"the token would go to {target} without TLS: give --ca or SAMSERVE_CLIENT_TLS=true, "
            "or SAMSERVE_CLIENT_PLAINTEXT=true where the network is trusted"
        ) from None


def _tls(settings: ClientSettings, ca_file: Path | None) -> grpc.ChannelCredentials | None:
    if (settings.cert_file is None) != (settings.key_file is None):
        raise UsageError("SAMSERVE_CLIENT_CERT_FILE and SAMSERVE_CLIENT_KEY_FILE need each other")
    if not (settings.tls or ca_file or settings.cert_file):
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_content(ca_file),
        private_key=_content(settings.key_file),
        certificate_chain=_content(settings.cert_file),
    )


def _token(settings: ClientSettings, token_file: Path | None) -> str:
    given = settings.token.get_secret_value()
    file = token_file or settings.token_file
    if token_file is None and given:
        return _checked(given, "SAMSERVE_CLIENT_TOKEN")
    if file is None:
        return ""
    return _checked(file.read_bytes().decode("utf-8", "replace"), str(file))


def _checked(text: str, place: str) -> str:
    token = text.strip()
    if not token or not (token.isascii() and token.isprintable()):
        raise UsageError(f"{place}: holds no API key or token")
    return token


def _content(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
