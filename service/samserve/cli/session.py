"""The client of a command: of a running server, or of a server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from samserve.annotate.retries import describe
from samserve.cli import bulk, progress, remote
from samserve.cli.configuration import Sections, load_settings
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import CommandError
from samserve.client import Client, SamserveClientError
from samserve.errors import SamserveError

if TYPE_CHECKING:
    from samserve.annotate.gateways import Gateways
    from samserve.settings import Settings

_T = TypeVar("_T")

# A server for one command: on loopback and free ports, without logs, stopped without delay.
_PRIVATE: Sections = {
    "server": {
        "host": "127.0.0.1",
        "port": 0,
        "admin_host": "127.0.0.1",
        "admin_port": 0,
        "drain_delay_s": 0,
        "grace_period_s": 1,
    },
    # This command is the only caller; the identity files of a deployed server are not needed.
    "tls": {"cert_file": None, "key_file": None, "client_ca_file": None, "client_identities": ""},
    "auth": {"api_keys_file": None, "jwks_file": None, "policy_file": None},
    # A command fails early if Triton is unavailable.
    "triton": {"startup_timeout_s": 5},
    "log": {"level": "error", "format": "console"},
}


@asynccontextmanager
async def connected(endpoint: Endpoint, model: str | None = None) -> AsyncIterator[Client]:
    """Open a client; without a server in *endpoint*, one runs until the block ends.

    That server loads only *model*, the default one if it is empty, all if it is None.
    """
    endpoint.check()
    if endpoint.server:
        remote_client = remote.client(endpoint.server, endpoint.ca, endpoint.token_file)
        async with remote_client as client:
            yield client
        return
    async with serving(settings_of(endpoint, model)) as client:
        yield client


@asynccontextmanager
async def connected_to_all(
    endpoints: Sequence[Endpoint], model: str | None = None
) -> AsyncIterator[Gateways]:
    """Open a client of each server, as `connected` does, to use them evenly."""
    from samserve.annotate.gateways import Gateways

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(each, model)) for each in endpoints]
        names = [each.server or "the server" for each in endpoints]
        yield Gateways(clients, names, on_retry=bulk.note_retry)


def settings_of(endpoint: Endpoint, model: str | None) -> Settings:
    """Return the settings of a server for one command, with the models as in `connected`."""
    settings = load_settings(endpoint.config, endpoint.assignments, _PRIVATE)
    return settings if model is None else _with_one_model(settings, model)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    """Run a server for this process only and open a client of it."""
    from samserve import app
    from samserve.telemetry import logs

    logs.configure(settings.log)
    async with AsyncExitStack() as stack:
        with progress.spinner("starting a server in this process"):
            service = await stack.enter_async_context(app.running(settings))
        yield await stack.enter_async_context(Client(service.address))


def _with_one_model(settings: Settings, model: str) -> Settings:
    """Return settings of a server that loads one model only; memory for others is not needed."""
    from samserve import app

    if settings.engine.kind != "onnx":
        return settings
    name = model or app.select_models(settings.engine).default
    engine = settings.engine.model_copy(update={"models": name, "default_model": name})
    return settings.model_copy(update={"engine": engine})


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run the coroutine of a command.  Raises `CommandError` for errors that a user can cause."""
    try:
        return asyncio.run(work)
    except SamserveClientError as error:
        raise CommandError(describe(error)) from error
    except SamserveError as error:
        raise CommandError(error.message) from error
