"""Every setting, once: type, default and meaning; from flags, environment and a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from samserve.addresses import is_loopback
from samserve.settings.backends import (
    CacheSettings,
    EngineSettings,
    StoreSettings,
    TritonSettings,
)
from samserve.settings.listeners import (
    AdmissionSettings,
    AuthSettings,
    DeadlineSettings,
    LimitSettings,
    ServerSettings,
    TlsSettings,
)
from samserve.settings.section import MIB
from samserve.settings.telemetry import (
    LogSettings,
    TraceSettings,
)

__all__ = [
    "MIB",
    "AdmissionSettings",
    "AuthSettings",
    "CacheSettings",
    "DeadlineSettings",
    "EngineSettings",
    "LimitSettings",
    "LogSettings",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TlsSettings",
    "TraceSettings",
    "TritonSettings",
    "load",
]


class Settings(BaseSettings):
    """All settings.

    `SAMSERVE_STORE__TTL_S=60` in the environment, `ttl_s = 60` under `[store]` in the file that
    `--config` names, and `--set store.ttl_s=60` on the command line say the same thing; the
    command line wins over the environment, the environment over the file.
    """

    model_config = SettingsConfigDict(
        env_prefix="SAMSERVE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = ServerSettings()
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    admission: AdmissionSettings = AdmissionSettings()
    limits: LimitSettings = LimitSettings()
    engine: EngineSettings = EngineSettings()
    triton: TritonSettings = TritonSettings()
    store: StoreSettings = StoreSettings()
    cache: CacheSettings = CacheSettings()
    trace: TraceSettings = TraceSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _plaintext_is_wanted(self) -> Settings:
        open_to_others = not is_loopback(self.server.host) and not self.server.plaintext
        if open_to_others and self.tls.cert_file is None:
            raise ValueError(
                f"server.host {self.server.host} is not loopback: give tls.cert_file and "
                "tls.key_file, or server.plaintext=true where the network is trusted"
            )
        return self


def load(overrides: dict[str, Any] | None = None, file: Path | None = None) -> Settings:
    """Read the settings; *overrides* is nested as the sections are and wins.

    Raises `pydantic.ValidationError`, which names every wrong or unknown setting at once.
    """

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = (init_settings, env_settings)
            return sources if file is None else (*sources, TomlConfigSettingsSource(cls, file))

    return FromFile(**(overrides or {}))
