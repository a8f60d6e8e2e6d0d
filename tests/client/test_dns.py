"""The address of a name changes, as when all pods of a headless Service are replaced."""

from __future__ import annotations

from contextlib import AsyncExitStack

from samserve.app import running
from samserve.client import Client
from samserve.client.errors import Unavailable
from samserve.engines.fake import FakeEngine
from samserve.settings import Settings

from tests.conftest import settings_with
from tests.support.name_server import name_server

NAME = "samserve.test"
OLD, NEW = "127.0.0.2", "127.0.0.3"


def served_at(host: str, port: int = 0) -> Settings:
    return settings_with(
        server={"host": host, "port": port, "allow_plaintext": True, "grace_period_s": 0.1}
    )


async def test_client_resolves_a_changed_address() -> None:
    async with AsyncExitStack() as stack:
        names = await stack.enter_async_context(name_server())
        names.addresses[NAME] = OLD
        async with running(served_at(OLD), engine=FakeEngine()) as service:
            port = int(service.address.rpartition(":")[2])
            target = names.target(NAME, port)
            client = await stack.enter_async_context(Client(target, plaintext=True))
            await client.models()
        await stack.enter_async_context(running(served_at(NEW, port), engine=FakeEngine()))
        names.addresses[NAME] = NEW
        failures = 0
        while True:
            try:
                await client.models()
                break
            except Unavailable:
                failures += 1

    # By default gRPC resolves a name every 30 s at most, during which about forty calls fail, each
    # of which is retried for most of a second.  On a slow machine there are fewer, never more.
    assert failures < 12
