"""Connection settings of the commands, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ClientSettings(BaseSettings):
    """Settings of the connection to the server of `--server`, from the environment.

    The variables are `SAMSERVE_CLIENT_TOKEN` and so on; options of the commands take precedence.
    """

    model_config = SettingsConfigDict(
        env_prefix="SAMSERVE_CLIENT_", frozen=True, hide_input_in_errors=True
    )

    tls: bool = False
    """Whether to use TLS, with the system's CAs unless `ca_file` is set."""
    ca_file: Path | None = None
    """CAs that verify the server's certificate (PEM); enables TLS."""
    server_cert_file: Path | None = None
    """The server's own certificate (PEM); enables TLS and trusts only this certificate, for any
    server name. Excludes `ca_file`."""
    server_name: str = ""
    """Expected name in the server's certificate; empty uses the host of `--server`."""
    cert_file: Path | None = None
    """Client certificate (PEM); requires `key_file`."""
    key_file: Path | None = None
    """Private key of the client certificate (PEM)."""
    plaintext: bool = False
    """Whether a token may be sent to another machine without TLS."""
    token: SecretStr = SecretStr("")
    """API key or bearer token."""
    token_file: Path | None = None
    """File with an API key or bearer token."""
