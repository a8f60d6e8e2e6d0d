"""What a command needs to be let in by a running server."""

from __future__ import annotations

from pathlib import Path

import grpc
from pydantic import ValidationError

from samserve.cli.errors import UsageError
from samserve.settings import ClientSettings


def credentials(
    ca_file: Path | None, token_file: Path | None
) -> tuple[grpc.ChannelCredentials | None, str]:
    """Give TLS credentials, None for plaintext, and the token, empty if there is none.

    What is not given comes from the environment.  Raises `UsageError`, which never quotes a token,
    and `OSError`.
    """
    try:
        settings = ClientSettings()
    except ValidationError as error:
        names = ", ".join(f"SAMSERVE_CLIENT_{part['loc'][0]}".upper() for part in error.errors())
        raise UsageError(f"not valid: {names}") from None
    return _tls(settings, ca_file or settings.ca_file), _token(settings, token_file)


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
    if token_file is None and settings.token.get_secret_value():
        return settings.token.get_secret_value()
    content = _content(token_file or settings.token_file)
    if content is None:
        return ""
    try:
        token = content.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not token:
        raise UsageError(f"{token_file or settings.token_file}: holds no API key or token")
    return token


def _content(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
