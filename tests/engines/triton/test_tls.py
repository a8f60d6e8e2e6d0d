"""A Triton that requires TLS, client certificates and headers, and rotation of their files."""

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
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.fake import MODEL
from samserve.engines.triton.channels import Channels
from samserve.engines.triton.engine import TritonEngine
from samserve.engines.triton.failures import RequestRejected, Unreachable
from samserve.errors import EngineUnavailable, Misconfigured, SamserveError
from samserve.settings import TritonSettings
from samserve.telemetry.metrics import Metrics
from samserve.types import Embedding, Transport
from structlog.testing import capture_logs

from harness.triton.server import TritonServer
from tests.engines.drawing import Hold, write_drawing_pair
from tests.engines.triton.services import encoded, opened, point_prompts, wait_for_checks
from tests.secret_leaks import secret
from tests.support.certificates import Issuer, Mounted
from tests.support.waiting import TIMEOUT_S, until

HOST = "127.0.0.1"
NAME = MODEL.name
SERVERS, NEW_SERVERS, CLIENTS, NEW_CLIENTS, UNTRUSTED = (Issuer() for _ in range(5))
VALUE, WRONG_VALUE = secret("the-header-that-triton-requires"), secret("another-header-value")
HEADER = "triton-grpc-protocol-gateway"
FREQUENT_CHECKS: dict[str, Any] = {"health_interval_s": 0.05}

Pair = tuple[TritonEngine, LocalCache]


@pytest.fixture(scope="module")
def _models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Hold]:
    folder = tmp_path_factory.mktemp("tls")
    write_drawing_pair(folder / "models")
    hold = Hold(folder / "held")
    hold.apply_to(folder / "models")
    return folder / "models", hold


@pytest.fixture(scope="module")
def models(_models: tuple[Path, Hold]) -> Path:
    """The drawing pair, whose runs can be held."""
    return _models[0]


@pytest.fixture
def hold(_models: tuple[Path, Hold]) -> Iterator[Hold]:
    yield _models[1]
    _models[1].release()


def tls_arguments(folder: Path, issuer: Issuer, clients: str = "", host: str = HOST) -> list[str]:
    """Return arguments for a server certificate and for the CA of client certificates."""
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
def restricted(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton with TLS that requires a header for all protocols but health."""
    folder = tmp_path_factory.mktemp("restricted")
    protocols = "inference,model-repository,model-config,shared-memory"
    arguments = [
        *tls_arguments(folder, SERVERS),
        f"--grpc-restricted-protocol={protocols}:gateway={VALUE}",
    ]
    with TritonServer(models, log=folder / "triton.log", extra_args=arguments) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton that requires client certificates and trusts two issuers."""
    folder = tmp_path_factory.mktemp("mutual")
    arguments = tls_arguments(folder, SERVERS, CLIENTS.pem + NEW_CLIENTS.pem)
    with TritonServer(models, log=folder / "triton.log", extra_args=arguments) as server:
        yield server


def header(value: str = VALUE) -> str:
    return f"{HEADER}: {value}\n"


def client_files(issuer: Issuer) -> dict[str, str]:
    """Return a client certificate and its key, as files."""
    return dict(zip(("cert", "key"), issuer.issue("gateway"), strict=True))


def settings_for(mount: Mounted, *names: str) -> dict[str, Any]:
    return {"tls": True, **{f"{name}_file": mount.path(name) for name in names}}


async def startup_error(url: str, **settings: Any) -> SamserveError:
    """Open an engine, which must fail, and return the error."""
    complete = {"url": url, "startup_timeout_s": 0.3, **settings}
    engine = TritonEngine(TritonSettings(**complete), Metrics(CollectorRegistry()))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            with pytest.raises(SamserveError) as caught:
                await engine.open()
    finally:
        await engine.aclose()
    return caught.value


async def embedded(engine: TritonEngine, cache: LocalCache, name: str = "x") -> Embedding:
    return (await encoded(engine, cache, name)).as_embedding()


async def test_engine_works_with_the_right_ca_and_header(
    restricted: TritonServer, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, headers=header())
    async with opened(restricted.grpc_address, **settings_for(mount, "ca", "headers")) as (
        engine,
        cache,
    ):
        output = await engine.decode(
            NAME, await embedded(engine, cache), point_prompts(2), RequestContext()
        )

        assert output.low_res_logits.shape == (2, 4, 256, 256)
        assert engine.transport is Transport.SHARED_MEMORY


NOT_SIGNED = "not signed by a CA of triton.ca_file"
WRONG_HEADER = "triton.headers_file lacks the header that it requires or has another value"
REJECTED: dict[str, tuple[dict[str, str], type[SamserveError], str]] = {
    "another CA": ({"ca": UNTRUSTED.pem, "headers": header()}, Unreachable, NOT_SIGNED),
    "the system's CAs": ({"headers": header()}, Unreachable, NOT_SIGNED),
    "no header": ({"ca": SERVERS.pem}, RequestRejected, WRONG_HEADER),
    "another value": (
        {"ca": SERVERS.pem, "headers": header(WRONG_VALUE)},
        RequestRejected,
        WRONG_HEADER,
    ),
    "another name": (
        {"ca": SERVERS.pem, "headers": f"another: {VALUE}"},
        RequestRejected,
        WRONG_HEADER,
    ),
}


@pytest.mark.parametrize("case", REJECTED)
async def test_untrusted_certificates_and_wrong_headers_are_rejected(
    restricted: TritonServer, tmp_path: Path, case: str
) -> None:
    files, kind, text = REJECTED[case]
    mount = Mounted(tmp_path / "files", **files)
    error = await startup_error(restricted.grpc_address, **settings_for(mount, *files))

    assert isinstance(error, kind)
    assert text in str(error)


async def test_certificate_for_another_host_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    arguments = tls_arguments(tmp_path, SERVERS, host="triton.example")
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem)
    log = tmp_path / "triton.log"
    with TritonServer(tmp_path / "models", log=log, extra_args=arguments) as server:
        error = await startup_error(server.grpc_address, **settings_for(mount, "ca"))

    assert isinstance(error, EngineUnavailable)
    assert "not valid for the host in triton.url" in str(error)


async def test_error_states_that_only_one_side_uses_tls(
    restricted: TritonServer, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem)
    plain_client = await startup_error(restricted.grpc_address)
    plain_server = await startup_error(
        f"{HOST}:{restricted.http_port}", **settings_for(mount, "ca")
    )

    assert "it may require TLS" in str(plain_client)
    assert "Triton may not use TLS" in str(plain_server)
    assert isinstance(plain_client, EngineUnavailable)
    assert isinstance(plain_server, EngineUnavailable)


async def test_invalid_file_ends_the_startup_immediately(
    restricted: TritonServer, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca="")
    error = await startup_error(
        restricted.grpc_address, startup_timeout_s=600, **settings_for(mount, "ca")
    )

    assert isinstance(error, Misconfigured)
    assert str(mount.path("ca")) in str(error)


async def test_mutual_tls_requires_a_certificate_of_a_trusted_issuer(
    mutual: TritonServer, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **client_files(UNTRUSTED))
    names = ("ca", "cert", "key")
    without = await startup_error(mutual.grpc_address, **settings_for(mount, "ca"))
    untrusted = await startup_error(mutual.grpc_address, **settings_for(mount, *names))
    for error in (without, untrusted):
        assert isinstance(error, Unreachable)
        assert "client certificate" in str(error)

    mount.swap(**client_files(CLIENTS))
    async with opened(mutual.grpc_address, **settings_for(mount, *names)) as (engine, cache):
        await engine.decode(NAME, await embedded(engine, cache), point_prompts(), RequestContext())


class Load:
    """Clients that encode and decode continuously, and check every result."""

    def __init__(self, engine: TritonEngine, cache: LocalCache) -> None:
        self._engine, self._cache = engine, cache
        self._numbers = itertools.count()
        self.successes = 0
        self.failures: list[SamserveError] = []

    @asynccontextmanager
    async def running(self, callers: int = 4) -> AsyncIterator[None]:
        embedding = await embedded(self._engine, self._cache, "kept")
        self._expected = await self._decode(embedding)
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._call(embedding, over)) for _ in range(callers)]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def progress(self) -> None:
        """Wait for a few more successful calls."""
        before = self.successes
        await until(lambda: self.successes > before + 10)

    async def _call(self, embedding: Embedding, over: asyncio.Event) -> None:
        while not over.is_set():
            number = next(self._numbers)
            try:
                if number % 8 == 0:
                    slot = await encoded(self._engine, self._cache, f"new {number}")
                    await self._cache.discard(slot)
                assert np.array_equal(await self._decode(embedding), self._expected)
            except SamserveError as error:
                self.failures.append(error)
                await asyncio.sleep(0.05)
            else:
                self.successes += 1

    async def _decode(self, embedding: Embedding) -> np.ndarray:
        output = await self._engine.decode(NAME, embedding, point_prompts(2), RequestContext())
        return output.low_res_logits.copy()


def current(engine: TritonEngine) -> Channels:
    channels = engine._connection._current
    assert channels is not None
    return channels


async def renewed(engine: TritonEngine, before: Channels) -> None:
    """Wait until new channels are in use, and the old ones are closed."""
    await until(lambda: current(engine) is not before)
    await until(lambda: not engine._connection._retired)


def connections(server: TritonServer) -> int:
    """Count the connections of this process to Triton."""
    established = psutil.Process().net_connections("tcp")
    return sum(
        bool(each.raddr) and each.raddr.port == server.grpc_port and each.status == "ESTABLISHED"
        for each in established
    )


def logged(logs: Sequence[Any], *events: str) -> list[str]:
    return [str(line.get("reason")) for line in logs if line["event"] in events]


def is_logged(logs: Sequence[Any], event: str, times: int) -> bool:
    return len(logged(logs, event)) == times


FAILED, RELOADED = "Triton credentials reload failed", "Triton credentials reloaded"
STATE_CHANGES = ("Triton ready", "Triton unavailable")


async def test_certificates_are_replaced_under_load_without_failed_calls(
    models: Path, tmp_path: Path
) -> None:
    arguments = tls_arguments(tmp_path, SERVERS, CLIENTS.pem + NEW_CLIENTS.pem)
    server = TritonServer(models, log=tmp_path / "triton.log", extra_args=arguments)
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **client_files(CLIENTS))
    settings = settings_for(mount, "ca", "cert", "key")
    with server, capture_logs() as logs:
        async with opened(server.grpc_address, **settings, **FREQUENT_CHECKS) as (engine, cache):
            load = Load(engine, cache)
            regions = await engine._connection.regions()
            async with load.running():
                for number in range(2):
                    before = current(engine)
                    mount.swap(
                        ca=SERVERS.pem + NEW_SERVERS.pem,
                        **client_files((NEW_CLIENTS, CLIENTS)[number % 2]),
                    )
                    await renewed(engine, before)
                    await load.progress()
                mount.swap(**client_files(NEW_CLIENTS))
                await renewed(engine, current(engine))
            assert load.failures == []
            assert len(logged(logs, RELOADED)) == 3
            assert logged(logs, FAILED) == []
            assert logged(logs, *STATE_CHANGES) == []
            # Only those of the latest channels: two for requests, one for control calls.
            await until(lambda: connections(server) == 3)
            # Triton did not restart, and has the same regions registered.
            assert regions.keys() <= (await engine._connection.regions()).keys()
            assert engine.transport is Transport.SHARED_MEMORY

            # The new files are in use: a Triton that trusts none of the old ones accepts them.
            server.kill()
            server.extra_args = tls_arguments(tmp_path, NEW_SERVERS, NEW_CLIENTS.pem)
            server.start()
            await until(lambda: engine._monitor.healthy)
            async with load.running():
                await load.progress()
            assert load.failures == []
        old = Mounted(tmp_path / "old", ca=NEW_SERVERS.pem, **client_files(CLIENTS))
        error = await startup_error(server.grpc_address, **settings_for(old, "ca", "cert", "key"))
        assert "client certificate" in str(error)


async def test_call_in_flight_continues_over_the_old_channel(
    mutual: TritonServer, hold: Hold, tmp_path: Path
) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **client_files(CLIENTS))
    settings = settings_for(mount, "ca", "cert", "key")
    async with opened(mutual.grpc_address, **settings, **FREQUENT_CHECKS) as (engine, cache):
        embedding = await embedded(engine, cache)
        before = current(engine)
        # Only one call, because the other decoder instance serves the other calls.
        call = asyncio.create_task(
            engine.decode(NAME, embedding, point_prompts(2, held=True), RequestContext())
        )
        await hold.begun()
        mount.swap(**client_files(NEW_CLIENTS))
        await until(lambda: current(engine) is not before)
        # Other calls do not wait for it.
        later = await engine.decode(NAME, embedding, point_prompts(1), RequestContext())

        assert not call.done()
        assert list(engine._connection._retired.values()) == [before]
        assert later.low_res_logits.shape == (1, 4, 256, 256)
        hold.release()
        assert (await call).low_res_logits.shape == (2, 4, 256, 256)
        await until(lambda: not engine._connection._retired)
        await before.idle()
        # Closed channels reject calls.
        with pytest.raises(Exception, match=r"[Cc]losed"):
            await before.ensure_connected()


async def test_previous_credentials_stay_in_use_until_invalid_files_are_corrected(
    mutual: TritonServer, tmp_path: Path
) -> None:
    good, other = client_files(CLIENTS), client_files(CLIENTS)
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **good)
    settings = settings_for(mount, "ca", "cert", "key")
    with capture_logs() as logs:
        async with opened(mutual.grpc_address, **settings, **FREQUENT_CHECKS) as (engine, cache):
            load, before = Load(engine, cache), current(engine)
            bad: list[tuple[dict[str, str], str]] = [
                ({"ca": "no certificate"}, "must contain PEM certificates"),
                ({"ca": SERVERS.pem, "key": ""}, "No such file"),
                ({"key": other["key"]}, "does not match"),
                # These files are valid in themselves, but Triton or the gateway rejects them.
                (client_files(UNTRUSTED), "client certificate"),
                ({**good, "ca": UNTRUSTED.pem}, "not signed by a CA"),
            ]
            async with load.running(callers=2):
                for count, (files, reason) in enumerate(bad, start=1):
                    mount.swap(**files)
                    await until(partial(is_logged, logs, FAILED, count))
                    assert reason in logged(logs, FAILED)[-1]
                    await load.progress()
                # Logged once, although the files were checked several times.
                await wait_for_checks(engine)
                assert len(logged(logs, FAILED)) == len(bad)
                assert current(engine) is before
                mount.swap(ca=SERVERS.pem)
                await renewed(engine, before)
            assert load.failures == []
            assert engine._monitor.healthy
    assert logged(logs, *STATE_CHANGES) == []
    assert len(logged(logs, RELOADED)) == 1


async def test_credentials_that_triton_accepts_only_later_are_retried(
    models: Path, tmp_path: Path
) -> None:
    arguments = tls_arguments(tmp_path, SERVERS, CLIENTS.pem)
    server = TritonServer(models, log=tmp_path / "triton.log", extra_args=arguments)
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, **client_files(CLIENTS))
    settings = settings_for(mount, "ca", "cert", "key")
    with server, capture_logs() as logs:
        async with opened(server.grpc_address, **settings, **FREQUENT_CHECKS) as (engine, cache):
            embedding, before = await embedded(engine, cache), current(engine)
            mount.swap(**client_files(NEW_CLIENTS))
            await until(lambda: logged(logs, FAILED))
            await engine.decode(NAME, embedding, point_prompts(), RequestContext())
            server.kill()
            server.extra_args = tls_arguments(tmp_path, SERVERS, NEW_CLIENTS.pem)
            server.start()
            await renewed(engine, before)
            await until(lambda: engine._monitor.healthy)
            await engine.decode(NAME, embedding, point_prompts(), RequestContext())
    assert len(logged(logs, FAILED)) == len(logged(logs, RELOADED)) == 1


async def test_headers_are_replaced(restricted: TritonServer, tmp_path: Path) -> None:
    mount = Mounted(tmp_path / "files", ca=SERVERS.pem, headers=header())
    settings = settings_for(mount, "ca", "headers")
    with capture_logs() as logs:
        async with opened(restricted.grpc_address, **settings, **FREQUENT_CHECKS) as (
            engine,
            cache,
        ):
            embedding, before = await embedded(engine, cache), current(engine)
            mount.swap(headers=header(WRONG_VALUE))
            await until(lambda: logged(logs, FAILED))
            await engine.decode(NAME, embedding, point_prompts(), RequestContext())
            assert current(engine) is before
            mount.swap(headers=header() + "something-else: x")
            await renewed(engine, before)
            await engine.decode(NAME, embedding, point_prompts(), RequestContext())
            assert current(engine).headers == {HEADER: VALUE, "something-else": "x"}
    assert "triton.headers_file" in logged(logs, FAILED)[0]
    assert not [line for line in logs if VALUE in str(line) or WRONG_VALUE in str(line)]
