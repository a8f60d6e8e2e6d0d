"""All settings, read from command line, environment and TOML file, in order of precedence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from samserve.settings.backends import (
    CacheSettings,
    EngineSettings,
    LocalCacheSettings,
    SharedCacheSettings,
    TritonSettings,
)
from samserve.settings.embedding_files import EmbeddingFileSettings
from samserve.settings.http import HttpSettings
from samserve.settings.listeners import (
    AdmissionSettings,
    AuthSettings,
    DeadlineSettings,
    LimitSettings,
    ServerSettings,
    TlsSettings,
)
from samserve.settings.loading import file_of_environment as file_of
from samserve.settings.loading import read
from samserve.settings.section import MIB
from samserve.settings.telemetry import LogSettings, TraceSettings
from samserve.system.addresses import ANY_PORT, is_loopback

__all__ = [
    "MIB",
    "AdmissionSettings",
    "AuthSettings",
    "CacheSettings",
    "DeadlineSettings",
    "EmbeddingFileSettings",
    "EngineSettings",
    "HttpSettings",
    "LimitSettings",
    "LocalCacheSettings",
    "LogSettings",
    "ServerSettings",
    "Settings",
    "SharedCacheSettings",
    "TlsSettings",
    "TraceSettings",
    "TritonSettings",
    "file_of_environment",
    "load",
]


class Settings(BaseSettings):
    """All settings.

    `SAMSERVE_CACHE__TTL_S=60` in the environment, `ttl_s = 60` under `[cache]` in the file of
    `--config` or `SAMSERVE_CONFIG`, and `--set cache.ttl_s=60` on the command line are equivalent.
    The command line overrides the environment, the environment overrides the file.
    """

    model_config = SettingsConfigDict(
        env_prefix="SAMSERVE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = ServerSettings()
    http: HttpSettings = HttpSettings()
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    admission: AdmissionSettings = AdmissionSettings()
    limits: LimitSettings = LimitSettings()
    engine: EngineSettings = EngineSettings()
    triton: TritonSettings = TritonSettings()
    cache: CacheSettings = CacheSettings()
    embedding_files: EmbeddingFileSettings = EmbeddingFileSettings()
    trace: TraceSettings = TraceSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check_plaintext(self) -> Settings:
        hosts = {"server.host": self.server.host}
        if self.http.enabled:
            hosts["http.host"] = self.http.host
        for name, host in hosts.items():
            exposed = not is_loopback(host) and not self.server.allow_plaintext
            if exposed and self.tls.cert_file is None:
                raise ValueError(
                    f"{name} {host} is not loopback: set tls.cert_file and tls.key_file, or "
                    "server.allow_plaintext=true if the network is trusted"
                )
        return self

    @model_validator(mode="after")
    def _check_web_page(self) -> Settings:
        host = self.http.host
        if self.http.web_page and not (self.has_credentials or is_loopback(host)):
            raise ValueError(
                f"http.web_page: http.host {host} is not loopback: set auth.api_keys_file, "
                "auth.jwks_file or tls.client_ca_file, so that not everyone may call"
            )
        return self

    @property
    def has_credentials(self) -> bool:
        """Whether every caller needs an API key, a token or a client certificate."""
        return not (
            self.auth.api_keys_file is None
            and self.auth.jwks_file is None
            and self.tls.client_ca_file is None
        )

    @model_validator(mode="after")
    def _check_ports(self) -> Settings:
        server, port = self.server, self.http.port
        ports = {"server.port": server.port, "server.admin_port": server.admin_port}
        for name, other in ports.items():
            if self.http.enabled and port == other != ANY_PORT:
                raise ValueError(f"http.port and {name} are both {port}: they must differ")
        return self


def file_of_environment() -> Path | None:
    """Return the settings file that `SAMSERVE_CONFIG` names, None if it is not set."""
    return file_of(Settings)


def load(
    overrides: dict[str, Any] | None = None,
    file: Path | None = None,
    defaults: dict[str, Any] | None = None,
) -> Settings:
    """Read the settings; see `samserve.settings.loading.read`."""
    return read(Settings, overrides, file, defaults)
