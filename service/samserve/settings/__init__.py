"""Every setting, once: type, default and meaning; from flags, environment and a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_core import InitErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from samserve.settings.backends import CacheSettings, EngineSettings, StoreSettings, TritonSettings
from samserve.settings.listeners import (
    AdmissionSettings,
    AuthSettings,
    DeadlineSettings,
    LimitSettings,
    ServerSettings,
    TlsSettings,
)
from samserve.settings.section import MIB
from samserve.settings.telemetry import LogSettings, TraceSettings
from samserve.system.addresses import is_loopback

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
    "file_of_environment",
    "load",
]


class Settings(BaseSettings):
    """All settings.

    `SAMSERVE_STORE__TTL_S=60` in the environment, `ttl_s = 60` under `[store]` in the file that
    `--config` or `SAMSERVE_CONFIG` names, and `--set store.ttl_s=60` on the command line say the
    same thing; the command line wins over the environment, the environment over the file.
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


def _check_sections(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a source says; raises `ValidationError` for sections that are no tables.

    A source that says more of the section would else replace them, and nothing would be wrong.
    """
    wrong: list[InitErrorDetails] = [
        {"type": "dict_type", "loc": (section,), "input": value}
        for section, value in values.items()
        if section in Settings.model_fields and not isinstance(value, dict)
    ]
    if wrong:
        raise ValidationError.from_exception_data("Settings", wrong)
    return values


class _File(TomlConfigSettingsSource):
    def __call__(self) -> dict[str, Any]:
        """Read the values by section."""
        return _check_sections(super().__call__())


class _Environment(EnvSettingsSource):
    """The environment, with variables of sections that there are not, so that they are mistakes.

    Other names that begin as ours, those that Kubernetes makes of Services for instance, are not.
    """

    def __call__(self) -> dict[str, Any]:
        """Read the values by section."""
        values = super().__call__()
        for variable, value in self.env_vars.items():
            name = variable.lower().removeprefix(self.env_prefix.lower())
            section, nested, setting = name.partition("__")
            if nested and name != variable.lower() and section not in Settings.model_fields:
                values[section] = {setting: value}
        return _check_sections(values)


class _Place(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SAMSERVE_")

    config: str = ""


def file_of_environment() -> Path | None:
    """Return the file of settings that `SAMSERVE_CONFIG` names, if it names one."""
    name = _Place().config
    return Path(name) if name else None


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
            *_: Any,
            **others: Any,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = (init_settings, _Environment(settings_cls))
            return sources if file is None else (*sources, _File(cls, file))

    return FromFile(**(overrides or {}))
