"""`samserve doctor`."""

from __future__ import annotations

import importlib
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

import typer

from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import CommandError
from samserve.cli.ports import check_free
from samserve.cli.terminal import write_line
from samserve.system import addresses

if TYPE_CHECKING:
    from samserve.client import Model
    from samserve.settings import Settings

_OLDEST_PYTHON = (3, 11)
_MODULES = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health.v1.health",
    "grpcio-reflection": "grpc_reflection.v1alpha.reflection",
    "grpcio-status": "grpc_status.rpc_status",
    "protobuf": "google.protobuf",
    "tritonclient": "tritonclient.grpc.aio",
    "numpy": "numpy",
    "pillow": "PIL.Image",
    "opencv-python-headless": "cv2",
    "pycocotools": "pycocotools.mask",
    "onnxruntime": "onnxruntime",
    "prometheus-client": "prometheus_client",
    "pyjwt": "jwt",
    "cryptography": "cryptography.x509",
    "pydantic": "pydantic",
    "pydantic-settings": "pydantic_settings",
    "typer": "typer",
    "rich": "rich",
    "structlog": "structlog",
}

_Check = tuple[str, Callable[[], str]]


def doctor(endpoint: Endpoint) -> None:
    """Check this installation and print one line per check; exit code 1 if a check fails.

    With --server, check only the installed packages and whether that server is ready.
    """
    passed = [_passes(name, check) for name, check in _installation()]
    # Without its packages no other check can run.
    if all(passed):
        endpoint.check()
        checks = _remote(endpoint) if endpoint.server else _local(endpoint)
        passed += [_passes(name, check) for name, check in checks]
    if not all(passed):
        raise typer.Exit(1)


def _passes(name: str, check: Callable[[], str]) -> bool:
    try:
        detail = check()
    except CommandError as error:
        write_line(f"problem  {name}: {'; '.join(error.lines)}")
        return False
    write_line(f"ok       {name}: {detail}")
    return True


def _installation() -> Iterator[_Check]:
    yield "python", _python
    for distribution, module in _MODULES.items():
        yield distribution, partial(_package, distribution, module)
    if _version("samserve-client"):
        yield "samserve-client", _client


def _remote(endpoint: Endpoint) -> Iterator[_Check]:
    yield "server", partial(_server, endpoint)


def _local(endpoint: Endpoint) -> Iterator[_Check]:
    from samserve.cli.configuration import load_settings

    settings = load_settings(endpoint.config, endpoint.assignments)
    listeners = settings.server
    yield "model repository", partial(_repository, settings)
    yield "authentication", partial(_authentication, settings)
    yield "shared cache", partial(_shared_cache, settings)
    yield "inference", partial(_inference, endpoint)
    yield "API port", partial(_port, listeners.host, listeners.port)
    yield "admin port", partial(_port, listeners.admin_host, listeners.admin_port)


def _python() -> str:
    if sys.version_info < _OLDEST_PYTHON:
        oldest = ".".join(map(str, _OLDEST_PYTHON))
        raise CommandError(f"{platform.python_version()}, requires {oldest} or newer")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _package(distribution: str, module: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise CommandError(f"cannot be imported: {error}") from error
    return _version(distribution) or "unknown version"


def _version(distribution: str) -> str:
    """Return the installed version; empty if there is none, or no metadata of it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _client() -> str:
    """Compare the version of samserve-client, whose files samserve has as well."""
    client, server = _version("samserve-client"), _version("samserve")
    if client != server:
        raise CommandError(
            f"{client} has other versions of files that it shares with samserve {server}: "
            "uninstall both, then install samserve, which contains the client"
        )
    return client


def _server(endpoint: Endpoint) -> str:
    from samserve.cli import session

    async def work() -> str:
        async with session.connected(endpoint) as client:
            if not await client.ready():
                raise CommandError(f"{endpoint.server} responds, but reports NOT_SERVING")
            catalog = await client.models()
        return f"{endpoint.server} is ready and serves {_names(catalog.models)}"

    return session.run(work())


def _repository(settings: Settings) -> str:
    from samserve import app
    from samserve.errors import SamserveError
    from samserve.models.digest import bundle_digest, graph_digests

    if settings.engine.kind != "onnx":
        return f"not used by the {settings.engine.kind} engine"
    try:
        found = app.select_models(settings.engine)
    except (SamserveError, OSError) as error:
        raise CommandError(str(error)) from error
    if found.problems:
        raise CommandError(*found.problems)
    for model in found.bundles:
        if bundle_digest(graph_digests(model.graphs)) != model.info.digest:
            repository = model.graphs["encoder"].parents[2]
            raise CommandError(
                f"{repository}: the files of {model.info.name} do not match its digest"
            )
    return ", ".join(
        f"{model.info.name} {model.info.digest[:12]} in {model.graphs['encoder'].parents[2]}"
        for model in found.bundles
    )


def _authentication(settings: Settings) -> str:
    from samserve.errors import Misconfigured
    from samserve.security.setup import open_security

    try:
        security = open_security(settings)
    except Misconfigured as error:
        raise CommandError(error.message) from error
    transport = "plaintext" if security.certificate is None else "TLS"
    if settings.tls.client_ca_file is not None:
        transport = "mutual TLS"
    required = "required" if security.authenticator.required else "not required"
    return f"{transport}, credentials {required}"


def _shared_cache(settings: Settings) -> str:
    from samserve.cli.cache import stats

    return stats.check(settings.cache.shared)


def _inference(endpoint: Endpoint) -> str:
    import numpy as np

    from samserve.cli import session
    from samserve.client import Prompt

    async def work() -> str:
        async with session.connected(endpoint) as client:
            started = time.perf_counter()
            embedding = await client.embed(np.zeros((64, 64, 3), dtype=np.uint8))
            await client.predict(embedding, [Prompt(points=[(32, 32)])])
            spent = time.perf_counter() - started
            catalog = await client.models()
            transports = {model.transport.replace("_", " ") for model in catalog.models}
            return f"{embedding.model}: Embed and Predict in {spent:.2f} s, {', '.join(transports)}"

    return session.run(work())


def _port(host: str, port: int) -> str:
    check_free(host, port)
    return f"{addresses.join(host, port)} is free"


def _names(models: Iterable[Model]) -> str:
    return ", ".join(model.name for model in models)
