"""A Triton that wants TLS, client certificates and headers, and files that are replaced."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from prometheus_client import CollectorRegistry
from samserve.context import RequestContext
from samserve.engines.fake import MODEL
from samserve.engines.triton.channels import Channels
from samserve.engines.triton.engine import TritonEngine
from samserve.engines.triton.failures import Refused, Unreachable
from samserve.errors import EngineUnavailable, Misconfigured, SamserveError
from samserve.settings import TritonSettings
from samserve.stores.local.store import MemoryStore
from samserve.telemetry.metrics import Metrics
from samserve.types import Embedding, Transport
from structlog.testing import capture_logs

from harness.triton.server import TritonServer
from tests.engines.drawing import Hold, write_drawing_pair
from tests.engines.triton.opening import clicks, encoded, looked_again, opened
from tests.secrecy import secret
from tests.support.certificates import Issuer, Mounted
from tests.support.waiting import BOUND_S, until

HOST = "127.0.0.1"
NAME = MODEL.name
SERVERS, NEW_SERVERS, CLIENTS, NEW_CLIENTS, STRANGERS = (Issuer() for _ in range(5))
VALUE, WRONG_VALUE = secret("the-header-that-triton-wants"), secret("another-header-value")
HEADER = "triton-grpc-protocol-gateway"
QUICKLY: dict[str, Any] = {"health_interval_s": 0.05}

Pair = tuple[TritonEngine, MemoryStore]


@pytest.fixture(scope="module")
def _models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Hold]:
    folder = tmp_path_factory.mktemp("tls")
    write_drawing_pair(folder / "models")
    hold = Hold(folder / "held")
    hold.apply_to(folder / "models")
    return folder / "models", hold


@pytest.fixture(scope="module")
def models(_models: tuple[Path, Hold]) -> Path:
    """The pair that draws, and can be held."""
    return _models[0]


@pytest.fixture
def hold(_models: tuple[Path, Hold]) -> Iterator[Hold]:
    yield _models[1]
    _models[1].release()


def tls_arguments(folder: Path, issuer: Issuer, clients: str = "", host: str = HOST) -> list[str]:
    """Let Triton have a certificate, and ask for those that *clients* have signed."""
    certificate, key = issuer.issue(host)
    for name, text in {"cert": certificate, "key": key, "clients": clients}.items():
        (folder / f"server.{name}").write_text(text)
    own = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={folder}/server.cert",
        f"--grpc-server-key={folder}/server.key",
    ]
    mutual = ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={folder}/server.clients"]
    return [*own, *mutual] if clients else own


@pytest.fixture(scope="module")
def closed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton with a certificate, and all but its health for those with a header."""
    folder = tmp_path_factory.mktemp("closed")
    protocols = "inference,model-repository,model-config,shared-memory"
    arguments = [
        *tls_arguments(folder, SERVERS),
        f"--grpc-restricted-protocol={protocols}:gateway={VALUE}",
    ]
    with TritonServer(models, log=folder / "triton.log", extra_args=arguments) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton that wants certificates of two issuers of clients."""
    folder = tmp_path_factory.mktemp("mutual")
    arguments = tls_arguments(folder, SERVERS, CLIENTS.pem + NEW_CLIENTS.pem)
    with TritonServer(models, log=folder / "triton.log", extra_args=arguments) as server:
        yield server


def header(value: str = VALUE) -> str:
    return f"{HEADER}: {value}\n"


def shown(issuer: Issuer) -> dict[str, str]:
    """A client's certificate and key, as files."""
    return dict(zip(("cert", "key"), issuer.issue("gateway"), strict=True))


def settings_for(mount: Mounted, *names: str) -> dict[str, Any]:
    return {"tls": True, **{f"{name}_file": mount.path(name) for name in names}}


async def refusal(url: str, **settings: Any) -> SamserveError:
    """Open an engine, which must fail."""
    everything = {"url": url, "startup_s": 0.3, **settings}
    engine = TritonEngine(TritonSettings(**everything), Metrics(CollectorRegistry()))
    try:
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(SamserveError) as caught:
                await engine.open()
    finally:
        await engine.aclose()
    return caught.value


async def embedded(engine: TritonEngine, store: MemoryStore, name: str = "x") -> Embedding:
    return (await encoded(engine, store, name)).as_embedding()


async def test_the_right_ca_and_header_let_everything_work(
    closed: TritonServer, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, headers=header())
    async with opened(closed.grpc_address, **settings_for(mount, "ca", "headers")) as (
        engine,
        store,
    ):
        output = await engine.decode(
            NAME, await embedded(engine, store), clicks(2), RequestContext()
        )

        assert output.low_res_logits.shape == (2, 4, 256, 256)
        assert engine.transport is Transport.SHARED_MEMORY


NOT_SIGNED = "not signed by a CA of triton.ca_file"
NOT_ADMITTED = "triton.headers_file has not what it expects"
REFUSALS: dict[str, tuple[dict[str, str], type[SamserveError], str]] = {
    "another CA": ({"ca": STRANGERS.pem, "headers": header()}, Unreachable, NOT_SIGNED),
    "the system's CAs": ({"headers": header()}, Unreachable, NOT_SIGNED),
    "no header": ({"ca": SERVERS.pem}, Refused, NOT_ADMITTED),
    "another value": ({"ca": SERVERS.pem, "headers": header(WRONG_VALUE)}, Refused, NOT_ADMITTED),
    "another name": ({"ca": SERVERS.pem, "headers": f"another: {VALUE}"}, Refused, NOT_ADMITTED),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_triton_or_the_gateway_does_not_trust_is_refused(
    closed: TritonServer, tmp_path: Path, case: str
) -> None:
    files, kind, text = REFUSALS[case]
    mount = Mounted(tmp_path / "files", **files)
    error = await refusal(closed.grpc_address, **settings_for(mount, *files))

    assert isinstance(error, kind)
    assert text in str(error)


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    arguments = tls_arguments(tmp_path, SERVERS, host="triton.example")
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem)
    log = tmp_path / "triton.log"
    with TritonServer(tmp_path / "models", log=log, extra_args=arguments) as server:
        error = await refusal(server.grpc_address, **settings_for(mount, "ca"))

    assert isinstance(error, EngineUnavailable)
    assert "for another name than that in triton.url" in str(error)


async def test_tls_on_one_side_only_is_said(closed: TritonServer, tmp_path: Path) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem)
    without = await refusal(closed.grpc_address)
    alone = await refusal(f"{HOST}:{closed.http_port}", **settings_for(mount, "ca"))

    assert "maybe it wants TLS" in str(without)
    assert "maybe the model server does not use TLS" in str(alone)
    assert isinstance(without, EngineUnavailable)
    assert isinstance(alone, EngineUnavailable)


async def test_a_file_that_cannot_be_used_ends_the_start_at_once(
    closed: TritonServer, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca="")
    error = await refusal(closed.grpc_address, startup_s=600, **settings_for(mount, "ca"))

    assert isinstance(error, Misconfigured)
    assert str(mount.path("ca")) in str(error)


async def test_mutual_tls_wants_a_certificate_of_the_right_issuer(
    mutual: TritonServer, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **shown(STRANGERS))
    names = ("ca", "cert", "key")
    without = await refusal(mutual.grpc_address, **settings_for(mount, "ca"))
    of_a_stranger = await refusal(mutual.grpc_address, **settings_for(mount, *names))
    for error in (without, of_a_stranger):
        assert isinstance(error, Unreachable)
        assert "client certificate" in str(error)

    mount.swap(**shown(CLIENTS))
    async with opened(mutual.grpc_address, **settings_for(mount, *names)) as (engine, store):
        await engine.decode(NAME, await embedded(engine, store), clicks(), RequestContext())


class Load:
    """Callers that encode and decode all the time, and see that every answer is right."""

    def __init__(self, engine: TritonEngine, store: MemoryStore) -> None:
        self._engine, self._store = engine, store
        self._numbers = itertools.count()
        self.answers = 0
        self.failures: list[SamserveError] = []

    @asynccontextmanager
    async def running(self, callers: int = 4) -> AsyncIterator[None]:
        embedding = await embedded(self._engine, self._store, "kept")
        self._expected = await self._decode(embedding)
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._call(embedding, over)) for _ in range(callers)]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def goes_on(self) -> None:
        """Wait for a few answers more."""
        before = self.answers
        await until(lambda: self.answers > before + 10)

    async def _call(self, embedding: Embedding, over: asyncio.Event) -> None:
        while not over.is_set():
            number = next(self._numbers)
            try:
                if number % 8 == 0:
                    slot = await encoded(self._engine, self._store, f"new {number}")
                    await self._store.discard(slot)
                assert np.array_equal(await self._decode(embedding), self._expected)
            except SamserveError as error:
                self.failures.append(error)
                await asyncio.sleep(0.05)
            else:
                self.answers += 1

    async def _decode(self, embedding: Embedding) -> np.ndarray:
        output = await self._engine.decode(NAME, embedding, clicks(2), RequestContext())
        return output.low_res_logits.copy()


def now(engine: TritonEngine) -> Channels:
    channels = engine._connection._now
    assert channels is not None
    return channels


async def renewed(engine: TritonEngine, before: Channels) -> None:
    """Wait until new channels are used, and the old ones are closed."""
    await until(lambda: now(engine) is not before)
    await until(lambda: not engine._connection._retired)


def connections(server: TritonServer) -> int:
    """How many this process has to Triton."""
    established = psutil.Process().net_connections("tcp")
    return sum(
        bool(each.raddr) and each.raddr.port == server.grpc_port and each.status == "ESTABLISHED"
        for each in established
    )


def said(logs: Sequence[Any], event: str) -> list[str]:
    return [str(line.get("reason")) for line in logs if event in line["event"]]


def is_said(logs: Sequence[Any], event: str, times: int) -> bool:
    return len(said(logs, event)) == times


REFUSED, TAKEN = "are not used yet", "are in use"


async def test_certificates_are_replaced_under_load_and_no_call_fails(
    models: Path, tmp_path: Path
) -> None:
    arguments = tls_arguments(tmp_path, SERVERS, CLIENTS.pem + NEW_CLIENTS.pem)
    server = TritonServer(models, log=tmp_path / "triton.log", extra_args=arguments)
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **shown(CLIENTS))
    settings = settings_for(mount, "ca", "cert", "key")
    with server, capture_logs() as logs:
        async with opened(server.grpc_address, **settings, **QUICKLY) as (engine, store):
            load = Load(engine, store)
            regions = await engine._connection.regions()
            async with load.running():
                for number in range(2):
                    before = now(engine)
                    mount.swap(
                        ca=SERVERS.pem + NEW_SERVERS.pem,
                        **shown((NEW_CLIENTS, CLIENTS)[number % 2]),
                    )
                    await renewed(engine, before)
                    await load.goes_on()
                mount.swap(**shown(NEW_CLIENTS))
                await renewed(engine, now(engine))
            assert load.failures == []
            assert len(said(logs, TAKEN)) == 3
            assert said(logs, REFUSED) == []
            assert said(logs, "model server is") == []
            # Those of the last channels, and of no others: two for requests, one for the rest.
            await until(lambda: connections(server) == 3)
            # Triton did not restart, and knows the same memory.
            assert regions.keys() <= (await engine._connection.regions()).keys()
            assert engine.transport is Transport.SHARED_MEMORY

            # The new ones are in use: a Triton that knows none of the old ones takes us.
            server.kill()
            server.extra_args = tls_arguments(tmp_path, NEW_SERVERS, NEW_CLIENTS.pem)
            server.start()
            await until(lambda: engine._monitor.healthy)
            async with load.running():
                await load.goes_on()
            assert load.failures == []
        old = Mounted(tmp_path / "old", ca=NEW_SERVERS.pem, **shown(CLIENTS))
        error = await refusal(server.grpc_address, **settings_for(old, "ca", "cert", "key"))
        assert "client certificate" in str(error)


async def test_a_call_that_is_under_way_goes_on_over_the_old_channel(
    mutual: TritonServer, hold: Hold, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **shown(CLIENTS))
    settings = settings_for(mount, "ca", "cert", "key")
    async with opened(mutual.grpc_address, **settings, **QUICKLY) as (engine, store):
        embedding = await embedded(engine, store)
        before = now(engine)
        # One only: the other instance of the decoder is for the others.
        call = asyncio.create_task(
            engine.decode(NAME, embedding, clicks(2, held=True), RequestContext())
        )
        await hold.begun()
        mount.swap(**shown(NEW_CLIENTS))
        await until(lambda: now(engine) is not before)
        # The others do not wait for it.
        quick = await engine.decode(NAME, embedding, clicks(1), RequestContext())

        assert not call.done()
        assert list(engine._connection._retired.values()) == [before]
        assert quick.low_res_logits.shape == (1, 4, 256, 256)
        hold.release()
        assert (await call).low_res_logits.shape == (2, 4, 256, 256)
        await until(lambda: not engine._connection._retired)
        await before.idle()
        # Closed channels refuse.
        with pytest.raises(Exception, match=r"[Cc]losed"):
            await before.reach()


async def test_files_that_cannot_be_used_change_nothing_until_they_are_mended(
    mutual: TritonServer, tmp_path: Path
) -> None:
    good, other = shown(CLIENTS), shown(CLIENTS)
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **good)
    settings = settings_for(mount, "ca", "cert", "key")
    with capture_logs() as logs:
        async with opened(mutual.grpc_address, **settings, **QUICKLY) as (engine, store):
            load, before = Load(engine, store), now(engine)
            bad: list[tuple[dict[str, str], str]] = [
                ({"ca": "no certificate"}, "not made of certificates"),
                ({"ca": SERVERS.pem, "key": ""}, "No such file"),
                ({"key": other["key"]}, "is not the key of"),
                # These are in order by themselves: Triton is asked.
                (shown(STRANGERS), "client certificate"),
                ({**good, "ca": STRANGERS.pem}, "not signed by a CA"),
            ]
            async with load.running(callers=2):
                for count, (files, reason) in enumerate(bad, start=1):
                    mount.swap(**files)
                    await until(partial(is_said, logs, REFUSED, count))
                    assert reason in said(logs, REFUSED)[-1]
                    await load.goes_on()
                # Said once, though it was looked at again and again.
                await looked_again(engine)
                assert len(said(logs, REFUSED)) == len(bad)
                assert now(engine) is before
                mount.swap(ca=SERVERS.pem)
                await renewed(engine, before)
            assert load.failures == []
            assert engine._monitor.healthy
    assert said(logs, "model server is") == []
    assert len(said(logs, TAKEN)) == 1


async def test_files_that_triton_takes_only_later_are_tried_again(
    models: Path, tmp_path: Path
) -> None:
    arguments = tls_arguments(tmp_path, SERVERS, CLIENTS.pem)
    server = TritonServer(models, log=tmp_path / "triton.log", extra_args=arguments)
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **shown(CLIENTS))
    settings = settings_for(mount, "ca", "cert", "key")
    with server, capture_logs() as logs:
        async with opened(server.grpc_address, **settings, **QUICKLY) as (engine, store):
            embedding, before = await embedded(engine, store), now(engine)
            mount.swap(**shown(NEW_CLIENTS))
            await until(lambda: said(logs, REFUSED))
            await engine.decode(NAME, embedding, clicks(), RequestContext())
            server.kill()
            server.extra_args = tls_arguments(tmp_path, SERVERS, NEW_CLIENTS.pem)
            server.start()
            await renewed(engine, before)
            await until(lambda: engine._monitor.healthy)
            await engine.decode(NAME, embedding, clicks(), RequestContext())
    assert len(said(logs, REFUSED)) == len(said(logs, TAKEN)) == 1


async def test_headers_are_replaced_too(closed: TritonServer, tmp_path: Path) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, headers=header())
    settings = settings_for(mount, "ca", "headers")
    with capture_logs() as logs:
        async with opened(closed.grpc_address, **settings, **QUICKLY) as (engine, store):
            embedding, before = await embedded(engine, store), now(engine)
            mount.swap(headers=header(WRONG_VALUE))
            await until(lambda: said(logs, REFUSED))
            await engine.decode(NAME, embedding, clicks(), RequestContext())
            assert now(engine) is before
            mount.swap(headers=header() + "something-else: x")
            await renewed(engine, before)
            await engine.decode(NAME, embedding, clicks(), RequestContext())
            assert now(engine).headers == {HEADER: VALUE, "something-else": "x"}
    assert "triton.headers_file" in said(logs, REFUSED)[0]
    assert not [line for line in logs if VALUE in str(line) or WRONG_VALUE in str(line)]
