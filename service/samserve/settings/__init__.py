"""All settings, read from command line, environment and TOML file, in order of precedence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import InitErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

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


def _check_sections(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a source; raises `ValidationError` for sections that are not tables.

    Otherwise another source with values of that section would replace them without an error.
    """
    wrong = list(_not_tables(values, Settings))
    if wrong:
        raise ValidationError.from_exception_data("Settings", wrong)
    return values


def _not_tables(
    values: dict[str, Any], model: type[BaseModel], path: tuple[str, ...] = ()
) -> Iterator[InitErrorDetails]:
    """Yield an error for each section of *model*, nested ones included, that is not a table."""
    for name, value in values.items():
        field, location = model.model_fields.get(name), (*path, name)
        kind = None if field is None else field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        if isinstance(value, dict):
            yield from _not_tables(value, kind, location)
        else:
            yield {"type": "dict_type", "loc": location, "input": value}


class _File(TomlConfigSettingsSource):
    def __call__(self) -> dict[str, Any]:
        """Read the values by section."""
        return _check_sections(super().__call__())


class _Environment(EnvSettingsSource):
    """The environment, including variables of unknown sections, which are reported as errors.

    Other names with the same prefix, such as those that Kubernetes sets for Services, are ignored.
    """

    def __call__(self) -> dict[str, Any]:
        """Read the values by section."""
        values = super().__call__()
        for variable, value in self.env_vars.items():
            name = variable.lower().removeprefix(self.env_prefix.lower())
            section, nested, setting = name.partition("__")
            if nested and name != variable.lower() and section not in Settings.model_fields:
                values.setdefault(section, {})[setting] = value
        return _check_sections(values)


class _ConfigLocation(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SAMSERVE_")

    config: str = ""


def file_of_environment() -> Path | None:
    """Return the settings file that `SAMSERVE_CONFIG` names, None if it is not set."""
    name = _ConfigLocation().config
    return Path(name) if name else None


def load(
    overrides: dict[str, Any] | None = None,
    file: Path | None = None,
    defaults: dict[str, Any] | None = None,
) -> Settings:
    """Read the settings; *overrides* are nested like the sections and have priority.

    *defaults* have the least priority: they replace the defaults of settings that nothing sets.

    Raises `pydantic.ValidationError`, which contains every invalid or unknown setting.
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
            files = [] if file is None else [_File(cls, file)]
            last = InitSettingsSource(cls, defaults or {})
            return (init_settings, _Environment(settings_cls), *files, last)

    return FromFile(**(overrides or {}))
