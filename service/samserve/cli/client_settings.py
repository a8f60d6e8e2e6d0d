"""How commands reach a server, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ClientSettings(BaseSettings):
    """How commands reach the server that `--server` names, from the environment.

    `SAMSERVE_CLIENT_TOKEN` and so on; options of the commands win.
    """

    model_config = SettingsConfigDict(
        env_prefix="SAMSERVE_CLIENT_", frozen=True, hide_input_in_errors=True
    )

    tls: bool = False
    """Whether to use TLS; with the system's CAs, unless `ca_file` names others."""
    ca_file: Path | None = None
    """CAs of the server's certificate (PEM); turns TLS on."""
    server_cert_file: Path | None = None
    """The server's own certificate (PEM); turns TLS on, and trusts this one alone, whatever name it
    is for. Instead of `ca_file`."""
    server_name: str = ""
    """Name that the server's certificate has to be for; empty takes the host in `--server`."""
    cert_file: Path | None = None
    """Client certificate (PEM), with `key_file`."""
    key_file: Path | None = None
    """Private key of the client certificate (PEM)."""
    plaintext: bool = False
    """Whether a token may go to another machine without TLS."""
    token: SecretStr = SecretStr("")
    """API key or bearer token."""
    token_file: Path | None = None
    """File that holds one."""
