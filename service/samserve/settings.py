"""Every setting, once: type, default and meaning; from flags, environment and a TOML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

MIB = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServerSettings(_Section):
    """Listeners and the manners of the server."""

    host: str = "127.0.0.1"
    """Address of the API listener."""
    port: int = Field(default=50051, ge=0, le=65535)
    """Port of the API listener; 0 takes a free one."""
    admin_host: str = "127.0.0.1"
    """Address of the admin listener (HTTP: /livez, /readyz, /metrics)."""
    admin_port: int = Field(default=8081, ge=0, le=65535)
    """Port of the admin listener; 0 takes a free one."""
    reflection: bool = True
    """Whether generic clients may list and describe the services."""
    drain_s: float = Field(default=0.0, ge=0)
    """Time between saying NOT_SERVING and refusing new calls, for load balancers to notice."""
    grace_s: float = Field(default=30.0, ge=0)
    """Time that running calls get to finish at shutdown."""


class DeadlineSettings(_Section):
    """Deadlines of calls whose client set none; a client's own is never shortened."""

    embed_s: float = Field(default=60.0, gt=0)
    """For Embed."""
    predict_s: float = Field(default=60.0, gt=0)
    """For Predict."""
    automask_s: float = Field(default=900.0, gt=0)
    """For AutoMask."""
    other_s: float = Field(default=10.0, gt=0)
    """For everything else."""


class AdmissionSettings(_Section):
    """How many calls may be in flight; one more is refused at once with RetryInfo."""

    embed: int = Field(default=128, ge=1)
    """Concurrent Embed calls."""
    predict: int = Field(default=256, ge=1)
    """Concurrent Predict calls."""
    automask: int = Field(default=8, ge=1)
    """Concurrent AutoMask calls."""
    request_bytes: int = Field(default=512 * MIB, ge=1)
    """Bytes of all requests in flight."""


class LimitSettings(_Section):
    """Limits on single requests, told to clients by ListModels."""

    request_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of one request message."""
    response_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of one response message."""
    image_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of an image."""
    image_side: int = Field(default=16_384, ge=1)
    """Pixels along one side of an image."""
    prompts: int = Field(default=256, ge=1)
    """Prompts of one Predict."""
    points: int = Field(default=64, ge=1)
    """Points of one prompt."""
    points_per_side: int = Field(default=128, ge=1)
    """AutoMask grid points along one side."""
    points_per_batch: int = Field(default=1024, ge=1)
    """AutoMask points decoded together."""
    crop_n_layers: int = Field(default=3, ge=0)
    """AutoMask crop layers."""


class EngineSettings(_Section):
    """The model runtime."""

    kind: Literal["onnx", "triton", "fake"] = "onnx"
    """`onnx` runs models in this process, `triton` asks the server that `triton.url` names,
    `fake` draws discs around prompts, for development."""
    model_repository: Path | None = None
    """Folder of the models (`onnx`); unset takes the default model that comes with the package."""
    threads: int = Field(default=0, ge=0)
    """Threads of one model run (`onnx`); 0 takes one per core."""
    prompts_per_run: int = Field(default=16, ge=1)
    """Prompts decoded in one run at most, which bounds memory and how long a click waits."""
    default_model: str = ""
    """Model of requests that name none; empty takes the first in alphabetical order."""


class TritonSettings(_Section):
    """The Triton Inference Server, for `engine.kind=triton`."""

    url: str = "127.0.0.1:8001"
    """Host and port of its gRPC listener."""
    shared_memory: Literal["auto", "required", "off"] = "auto"
    """`auto` shares memory with a Triton that accepts it and else sends tensors in messages,
    `required` refuses to start without it."""
    shared_memory_group: int | None = Field(default=None, ge=0)
    """Numeric group that owns the segments, for a Triton of another user; unset keeps ours."""
    scratch_bytes: int = Field(default=256 * MIB, ge=0)
    """Bytes of shared memory for pictures and logits under way; beyond it they go in messages."""
    encoder_in_flight: int = Field(default=8, ge=1)
    """Requests of one image encoder that Triton is given at once; more wait here."""
    decoder_in_flight: int = Field(default=32, ge=1)
    """Requests of one mask decoder that Triton is given at once; more wait here."""
    channels: int = Field(default=2, ge=1)
    """Connections that share the requests."""
    answer_s: float = Field(default=60.0, gt=0)
    """Time after which a request counts as lost, if the call's deadline is not sooner."""
    startup_s: float = Field(default=600.0, ge=0)
    """Time that Triton gets to load its models before this server gives up."""
    health_interval_s: float = Field(default=0.5, gt=0)
    """Time between two looks at Triton's health."""


class StoreSettings(_Section):
    """The embedding store."""

    capacity_bytes: int = Field(default=512 * MIB, ge=1)
    """Bytes of embeddings held in memory."""
    ttl_s: float = Field(default=3600.0, gt=0)
    """Time after which an embedding is forgotten; Embed starts it again."""


class LogSettings(_Section):
    """Logging, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["json", "console"] = "console"
    """`json` for machines, `console` for people."""


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
    deadlines: DeadlineSettings = DeadlineSettings()
    admission: AdmissionSettings = AdmissionSettings()
    limits: LimitSettings = LimitSettings()
    engine: EngineSettings = EngineSettings()
    triton: TritonSettings = TritonSettings()
    store: StoreSettings = StoreSettings()
    log: LogSettings = LogSettings()


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


def core_count() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
