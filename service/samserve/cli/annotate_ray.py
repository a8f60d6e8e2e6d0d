"""`samserve annotate --ray`: the images of a run on a Ray cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from samserve.annotate.gateways import Gateways
from samserve.annotate.locations import is_url, locate
from samserve.annotate.outputs import Output
from samserve.annotate.pipeline import ImageJob, Outcome, Summary
from samserve.annotate.records import Records
from samserve.annotate.source import Source
from samserve.cli import remote, session
from samserve.cli.errors import CommandError, UsageError
from samserve.errors import InvalidRequest, Misconfigured
from samserve.settings import Settings
from samserve.system.extras import how_to_install

if TYPE_CHECKING:
    from samserve.annotate.run import Plan
    from samserve.cli.annotate_ray_options import RayOptions
    from samserve.cli.endpoint import Endpoint

CONCURRENCY = 4
"""Images under way for each server."""


@dataclass(frozen=True, slots=True, repr=False)
class WorkerServers:
    """The servers of a worker: running ones, or its own.  Picklable, with secrets."""

    connections: tuple[remote.Connection, ...]
    settings: Settings | None

    @classmethod
    def of(cls, endpoints: Sequence[Endpoint], model: str) -> WorkerServers:
        """Return what *endpoints* stand for, with the files and environment of this machine.

        Raises `UsageError` and ``OSError``.
        """
        named = [each for each in endpoints if each.server]
        if not named:
            return cls((), session.settings_of(endpoints[0], model))
        found = (remote.connection(each.server, each.ca, each.token_file) for each in named)
        return cls(tuple(found), None)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Gateways]:
        """Connect, or start a server in this process."""
        async with AsyncExitStack() as stack:
            if self.settings is not None:
                client = await stack.enter_async_context(session.serving(self.settings))
                yield Gateways([client], ["the server of a worker"])
                return
            clients = [await stack.enter_async_context(each.client()) for each in self.connections]
            yield Gateways(clients, [each.target for each in self.connections])


@dataclass(frozen=True, slots=True)
class RayRun:
    """A run on a cluster; *prepare* is called when that is checked, and returns the job."""

    options: RayOptions
    plan: Plan
    endpoints: Sequence[Endpoint]
    model: str
    prepare: Callable[[], ImageJob]

    def __call__(self, concurrency: int | None, advance: Callable[[Outcome], None]) -> Summary:
        """Annotate the images, *concurrency* in each worker.  Raises `CommandError`."""
        with _ray_extra():
            from samserve.annotate.ray import cluster, nodes, run
            from samserve.annotate.ray.work import Work

        source, output = Source(_absolute(self.plan.source.url)), _absolute(self.plan.output.url)
        servers = WorkerServers.of(self.endpoints, self.model)
        with _errors(), cluster.connected(self.options.address):
            found = nodes.usable_nodes(self.options.cpus)
            pool = run.Pool.of(found, self.options.workers, self.options.cpus)
            if self.plan.images:
                nodes.check(found, source, self.plan.images[0], Output(output))
            job = replace(self.prepare(), source=source, records=Records(output))
            each = concurrency or self._concurrency(pool.workers)
            return run.run(self.plan.images, Work(job, servers, each), pool, advance)

    def _concurrency(self, workers: int) -> int:
        """Return the images under way in a worker: as many for each server as without Ray."""
        named = sum(bool(each.server) for each in self.endpoints)
        return CONCURRENCY if not named else max(1, -(-CONCURRENCY * named // workers))


@contextmanager
def _ray_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"--ray requires {error.name or 'ray'}, which is not installed: {how_to_install('ray')}"
        ) from error


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except InvalidRequest as error:
        field, text = error.violations[0]
        raise UsageError(f"--{field.replace('_', '-')} {text}") from error
    except Misconfigured as error:
        raise CommandError(error.message) from error


def _absolute(url: str) -> str:
    """Return a path or URL that means the same on all machines with the same folders."""
    if is_url(url) and not url.startswith("file://"):
        return url
    return locate(url, "path")[1]
