"""`samserve models promote` and `samserve models rollback`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samserve.cli import user_models
from samserve.cli.errors import CommandError
from samserve.cli.options import CaFile, TokenFile
from samserve.cli.terminal import write_line, write_note

if TYPE_CHECKING:
    from samserve.client import Client
    from samserve.models.versions import Version
    from samserve.types import ModelVersion

Servers = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="A running server of the repository; repeat it for each: all switch, or none. "
        "Without one, the version is served by the servers that start from now on.",
    ),
]
Repository = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Model repository of the servers. Default: that of `samserve models pull`.",
    ),
]


def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the served model.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            exists=True,
            file_okay=False,
            help="Folder with the new model, as `samserve export` or `samserve tune` writes it.",
        ),
    ],
    *,
    server: Servers = None,
    repository: Repository = None,
    ca: CaFile = None,
    token_file: TokenFile = None,
) -> None:
    """Put new weights of a model into service without a stop.

    They become a new version in the repository. Each server loads it beside the one in service if
    there is memory for both, runs it once, and uses it for the calls that begin from then on; calls
    in flight end with the version that they began with. If only the decoder differs, all embeddings
    stay valid. With Triton, it must run with --model-control-mode=explicit.
    """
    folder = repository or user_models.folder()

    async def work() -> None:
        from samserve.models import versions

        async with _opened(server or (), ca, token_file, name) as servers:
            now = versions.current(folder, name)
            pending = versions.digest_of(source) == now.digest
            if pending and (not servers or all(each.serves(now) for each in servers)):
                raise CommandError(f"model {name!r} has these weights already: {now.digest[:12]}")
            # Otherwise an earlier command did not reach all servers.
            new = (
                now if pending else await asyncio.to_thread(versions.install, folder, name, source)
            )
            undo = (lambda: None) if pending else lambda: versions.remove(folder, new)
            await _switch(folder, new, now, servers, undo)

    _run(work())


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the served model.")],
    *,
    server: Servers = None,
    repository: Repository = None,
    ca: CaFile = None,
    token_file: TokenFile = None,
) -> None:
    """Put the version of a model into service that was before the current one.

    See `samserve models promote`.
    """
    folder = repository or user_models.folder()

    async def work() -> None:
        from samserve.models import versions

        async with _opened(server or (), ca, token_file, name) as servers:
            now, before = versions.current(folder, name), versions.previous(folder, name)
            await _switch(folder, before, now, servers, lambda: None)

    _run(work())


@dataclass(frozen=True, slots=True, eq=False)
class _Server:
    """A running server, and the digest of the model that it serves before the command."""

    address: str
    client: Client
    digest: str

    def serves(self, version: Version) -> bool:
        return self.digest == version.digest

    async def step(self, step: str, version: ModelVersion) -> None:
        """Run a step.  Raises `CommandError` that names the server."""
        from samserve.annotate.retries import describe
        from samserve.client import SamserveClientError

        try:
            await self.client.promote_model(step, version)
        except SamserveClientError as error:
            raise CommandError(f"{self.address}: {describe(error)}") from error


@asynccontextmanager
async def _opened(
    addresses: Sequence[str], ca: Path | None, token_file: Path | None, model: str
) -> AsyncIterator[list[_Server]]:
    """Connect to the servers.  Raises `CommandError` if one cannot be reached."""
    from samserve.annotate.retries import describe
    from samserve.cli import remote
    from samserve.cli.endpoint import Endpoint
    from samserve.client import SamserveClientError

    async with AsyncExitStack() as stack:
        servers = []
        for address in addresses:
            Endpoint(server=address, ca=ca, token_file=token_file).check()
            opened = remote.client(address, ca, token_file)
            client = await stack.enter_async_context(opened)
            try:
                listing = await client.models()
            except SamserveClientError as error:
                raise CommandError(f"{address}: {describe(error)}") from error
            digests = [each.digest for each in listing.models if each.name == model]
            if not digests:
                raise CommandError(f"{address}: no model {model!r} is served")
            servers.append(_Server(address, client, digests[0]))
        yield servers


async def _switch(
    repository: Path,
    new: Version,
    now: Version,
    servers: Sequence[_Server],
    undo: Callable[[], None],
) -> None:
    """Put *new* into service on all servers, or on none; *undo* removes its files in that case."""
    from samserve.models import versions

    target = new.replacing(now)
    switching = [each for each in servers if not each.serves(new)]
    prepared: list[_Server] = []
    try:
        for each in switching:
            prepared.append(each)
            await each.step("prepare", target)
        await asyncio.to_thread(versions.commit, repository, new)
    except BaseException:
        for each in prepared:
            with suppress(CommandError):
                await each.step("release", target)
        undo()
        raise
    await _all_activate(switching, target)
    write_line(f"{new.model}: version {new.number}, digest {new.digest[:12]}, is in service")
    if not servers:
        write_note("no --server: it is served by the servers that start from now on")
    await asyncio.gather(*(each.step("drain", _old(each, new)) for each in switching))
    for each in switching:
        await each.step("release", _old(each, new))


async def _all_activate(servers: Sequence[_Server], target: ModelVersion) -> None:
    failed: list[str] = []
    for each in servers:
        try:
            await each.step("activate", target)
        except CommandError as error:
            failed.extend(map(str, error.args))
    if failed:
        raise CommandError(*failed, "run the command again once these servers are reachable")


def _old(server: _Server, new: Version) -> ModelVersion:
    from samserve.types import ModelVersion

    return ModelVersion(new.model, "", server.digest, (), 0, 0)


def _run(work: Coroutine[Any, Any, None]) -> None:
    from samserve.cli import session

    try:
        session.run(work)
    except OSError as error:
        raise CommandError(f"{error.filename or 'the repository'}: {error.strerror}") from error
