"""Access to the cluster: ACL rules, TLS, and the rotation of passwords and certificates."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from prometheus_client import CollectorRegistry, generate_latest
from samserve.app import Running
from samserve.cache.shared import value_format
from samserve.cache.shared.base import Batch
from samserve.cache.shared.cache import Presence
from samserve.cache.shared.redis import credentials as credentials_module
from samserve.cache.shared.redis import node as node_module
from samserve.cache.shared.redis.connection import _unopened
from samserve.cache.shared.redis.credentials import (
    Credentials,
    NodeCredentials,
    open_cache_credentials,
)
from samserve.cache.shared.redis.node import Node as ClusterNode
from samserve.errors import EmbeddingNotFound, SamserveError
from samserve.settings import LogSettings, SharedCacheSettings
from samserve.telemetry import logs
from samserve.telemetry.metrics import Metrics
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub
from structlog.testing import capture_logs

from harness.cluster.binaries import Flavour
from harness.cluster.cluster import Cluster
from harness.cluster.node import HOST, Node
from harness.cluster.tls import TlsProxies
from tests import sample_images, secret_leaks
from tests.cli.conftest import FAKE, Command, samserve
from tests.cluster.caches import FACTS, LONG_TIMEOUTS, SLOT, GatewayCache, key, open_cache, tensors
from tests.conftest import serving, settings_with
from tests.rpc.errors import failure_of, read
from tests.secret_leaks import secret
from tests.support.certificates import Issuer, Mounted
from tests.support.waiting import until

__all__ = ["samserve"]


def issued_files(issuer: Issuer, host: str = "gateway") -> dict[str, str]:
    """Return the contents of a new certificate and its key."""
    return dict(zip(("cert", "key"), issuer.issue(host), strict=True))


USER = "samserve"
# The required ACL rules, in the form of ACL SETUSER; `docs/cache.md` has the same.
RULES = (
    "~samserve:* resetchannels &samserve:* +hget +hmget +hlen +hset +hdel +hexists +del +pttl "
    "+pexpire +eval +wait +publish +subscribe +ping +asking +cluster|slots +client|setname"
)
# The command that confirms writes to disk, for durable embeddings only.
DISK: dict[Flavour, str] = {"valkey": "+waitaof", "redis": "+config|get"}

pytestmark = pytest.mark.slow
PASSWORD, NEW_PASSWORD, WRONG = (
    secret(f"{which}-password-of-the-gateways") for which in ("first", "second", "wrong")
)


class DatedIssuer(Issuer):
    """An issuer that can also issue expired certificates."""

    def issue_expired(self, name: str) -> dict[str, str]:
        ago = [datetime.now(UTC) - timedelta(days=days) for days in (30, 1)]
        issued = self._ca.issue_cert(name, not_before=ago[0], not_after=ago[1])
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        return {"cert": chain.decode(), "key": secret(issued.private_key_pem.bytes().decode())}


SERVERS, NEW_SERVERS, CLIENTS, NEW_CLIENTS, UNTRUSTED = (DatedIssuer() for _ in range(5))
TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    """The log entries of this process, which are also scanned for secrets."""
    logs.configure(LogSettings(level="debug"))
    with capture_logs() as entries:
        yield entries
    secret_leaks.check("log", str(entries))


def reasons(log: list[Any]) -> list[str]:
    """Return the reasons in log entries for operators, i.e. without debug entries."""
    lines = [line for line in log if line["log_level"] != "debug"]
    return [str(line["reason"]) for line in lines if "reason" in line]


def reasons_of(log: list[Any], event: str) -> list[str]:
    return [line["reason"] for line in log if line["event"] == event]


@dataclass
class Server:
    """A gateway in this process."""

    service: Running
    stub: SegmentationServiceStub

    async def embed(self, number: int, *, durable: bool = False) -> pb.Embedding:
        request = pb.EmbedRequest(
            image=sample_images.image(40, 60, seed=number),
            durability=pb.DURABILITY_DURABLE if durable else pb.DURABILITY_UNSPECIFIED,
        )
        return (await self.stub.Embed(request, timeout=TIMEOUT_S)).embedding

    async def predict(self, embedding_id: str) -> None:
        request = pb.PredictRequest(
            embedding_id=embedding_id, prompts=[sample_images.point_prompt()]
        )
        await self.stub.Predict(request, timeout=TIMEOUT_S)

    async def reason_of_a_miss(self) -> str:
        """Return the reason of the error for an embedding that is not in the local tier."""
        failure = await failure_of(self.predict("0" * 64))
        secret_leaks.check("error", f"{failure}")
        return failure.reason

    @property
    def reload_successful(self) -> float | None:
        labels = {"file": "cache credentials"}
        return self.service.metrics.registry.get_sample_value(
            "samserve_config_last_reload_successful", labels
        )


@asynccontextmanager
async def sharing(addresses: Iterable[str], **shared: Any) -> AsyncIterator[Server]:
    """Run a gateway that checks its files often."""
    settings = settings_with(
        cache={
            "local": {"capacity_bytes": 32 * SLOT},
            "shared": {"nodes": ",".join(addresses), **LONG_TIMEOUTS, **shared},
        },
        tls={"reload_interval_s": 0.02},
    )
    async with serving(settings) as (service, stub):
        yield Server(service, stub)
        secret_leaks.check("metrics", generate_latest(service.metrics.registry).decode())


@dataclass
class Load:
    """Clients that embed at one gateway and predict at another, through the cluster."""

    writer: Server
    reader: Server
    failures: list[str] = field(default_factory=list)
    _rounds: list[int] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    @asynccontextmanager
    async def running(self, callers: int = 3) -> AsyncIterator[None]:
        stop, self._rounds = asyncio.Event(), [0] * callers
        tasks = [asyncio.create_task(self._call(caller, stop)) for caller in range(callers)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def progress(self, rounds: int = 2) -> None:
        """Wait until every client has completed this number of rounds.

        After two rounds, all calls that were in flight before have ended.
        """
        before = list(self._rounds)
        await until(
            lambda: all(
                now >= then + rounds for now, then in zip(self._rounds, before, strict=True)
            )
        )

    async def authenticated(self, cluster: Cluster) -> None:
        """Wait until every master has accepted the credentials of both gateways."""
        masters = {master.announced for master in cluster.masters}
        await until(
            lambda: all(
                node._credentials._accepted is not None
                for server in (self.writer, self.reader)
                for node in server.service.cache._shared._servers.nodes  # type: ignore[attr-defined]
                if node.address in masters
            )
        )

    async def _call(self, caller: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                embedding = await self.writer.embed(next(self._numbers))
                await self.reader.predict(embedding.id)
                if embedding.stored != pb.STORED_SHARED:
                    self.failures.append("not shared")
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{read(error).reason}: {error.details()}")
            self._rounds[caller] += 1


@asynccontextmanager
async def loaded(addresses: Iterable[str], **shared: Any) -> AsyncIterator[Load]:
    """Run two gateways for a load of which no call may fail."""
    addresses = tuple(addresses)
    # So that all nodes get commands, not only the owners of embeddings.
    shared["topology_refresh_interval_s"] = 0.1
    async with sharing(addresses, **shared) as writer, sharing(addresses, **shared) as reader:
        load = Load(writer, reader)
        yield load
        assert load.failures == []


def grant(cluster: Cluster, user: str, *rules: str) -> None:
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", user, *rules)


def connections(cluster: Cluster, user: str) -> dict[Node, set[int]]:
    """Return the ids of gateways' connections; the ids of a node increase with time."""
    return {
        node: {
            int(client["id"])
            for client in node.client.client_list()
            if client["name"] == "samserve" and client["user"] == user
        }
        for node in cluster.nodes
    }


def close_connections(cluster: Cluster, user: str) -> None:
    """Close all connections of gateways, so that they must open new ones."""
    for node, numbers in connections(cluster, user).items():
        for number in numbers:
            node.command("CLIENT", "KILL", "ID", number)


async def replaced(cluster: Cluster, user: str, before: dict[Node, set[int]]) -> None:
    """Wait until all connections from *before* are closed."""
    await until(
        lambda: (
            not any(numbers & before[node] for node, numbers in connections(cluster, user).items())
        )
    )


@pytest.fixture(scope="module", params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster that accepts only the harness, until a test creates a user."""
    unused = secret("password-that-no-test-uses")
    with Cluster(2, 1, request.param, user="unused", password=unused) as cluster:
        yield cluster


@pytest.fixture
def _short_ping_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make subscriptions check the credentials more often."""
    monkeypatch.setattr(node_module, "_PING_AFTER_S", 0.1)


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")  # editors add the newline
    return path


def run_on(node: Node, *command: str | bytes) -> Any:
    """Run a command on a node, also for a slot that is being moved to it."""
    pipeline = node.client.pipeline(transaction=False)
    pipeline.execute_command("ASKING")
    pipeline.execute_command(*command)
    return pipeline.execute()[1]


async def use_all_commands(gateway: GatewayCache, name: str, owner: Node) -> None:
    """Do everything that a gateway does with an embedding, which *owner* stores."""
    cache, embedding = gateway.shared, key(name)
    stored = cache.name(embedding)
    data = value_format.encode(stored, FACTS, tensors(1.0))
    assert await cache.deletion_marker(embedding) == b""
    assert (await cache.put(embedding, data, 60)).presence is Presence.STORED
    assert (await cache.get(embedding, lambda value: True)).value.facts == FACTS
    assert await cache.check(embedding) is Presence.STORED
    assert await cache.renew(embedding, 600) is Presence.STORED
    assert await cache.renew(embedding, 600, durable=True) is Presence.STORED
    assert await cache.delete(embedding, 60)
    assert await cache.check(embedding) is Presence.DELETED
    marker = await cache.deletion_marker(embedding)
    assert (await cache.put(embedding, data, 60, marker=marker, durable=True)).own_value
    first = run_on(owner, "HGET", stored, "v2")
    run_on(owner, "HSET", stored, "v2", first[:-1] + bytes([first[-1] ^ 1]))
    with pytest.raises(EmbeddingNotFound):
        await cache.get(embedding, lambda value: True)
    assert not run_on(owner, "EXISTS", stored)


def all_rules(cluster: Cluster) -> list[str]:
    """Return the ACL rules that a gateway needs for servers of this kind."""
    return [*RULES.split(), DISK[cluster.flavour]]


def test_the_documented_rules_are_the_tested_ones() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cache.md").read_text()
    _, _, section = text.partition("ACL SETUSER samserve reset on >PASSWORD ")
    rules, _, rest = section.partition("```")

    assert set(rules.split()) == {*RULES.split(), DISK["valkey"]}
    assert f"`{DISK['redis']}` replaces `{DISK['valkey']}`" in rest


def denied(cluster: Cluster, user: str) -> set[str]:
    """Return the commands, keys and channels that were denied to the user."""
    entries = [
        dict(zip(entry[::2], entry[1::2], strict=True))
        for node in cluster.nodes
        for entry in node.command("ACL", "LOG", 100)
    ]
    return {entry[b"object"].decode() for entry in entries if entry[b"username"] == user.encode()}


def names_by_node(cluster: Cluster) -> Iterator[tuple[Node, str]]:
    """Yield for each master a name of an embedding that it owns."""
    for master in cluster.masters:
        names = (f"{number:064}" for number in itertools.count())
        owned = (each for each in names if cluster.owner_of(f"samserve:default:{each}") is master)
        yield master, next(owned)


async def subscriptions(cluster: Cluster, count: int) -> None:
    """Wait until *count* gateways have subscribed to deletions."""
    await until(
        lambda: (
            sum(node.command("PUBSUB", "NUMSUB", "samserve:deleted")[1] for node in cluster.nodes)
            == count
        )
    )


async def test_the_documented_rules_are_sufficient(guarded: Cluster, password_file: Path) -> None:
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *all_rules(guarded))
    settings: dict[str, Any] = {"username": USER, "password_file": password_file}
    (one, name), (other, moving) = names_by_node(guarded)
    move = guarded.slot_move(guarded.slot_of(f"samserve:default:{moving}"), one)
    nodes = guarded.addresses[0]
    async with (
        open_cache(nodes, revalidate_interval_s=600, **settings) as gateway,
        open_cache(nodes, revalidate_interval_s=600, **settings) as second,
    ):
        await use_all_commands(gateway, name, one)
        move.begin()
        await use_all_commands(gateway, moving, one)
        move.finish()
        for node in gateway.client.nodes:
            await node.probe()
        # The subscription removes deleted embeddings long before they are checked again.
        await subscriptions(guarded, 2)
        await gateway.put(key("shared"))
        assert await second.get(key("shared")) == 1.0
        assert await gateway.cache.delete(key("shared"))
        await until(lambda: not second.local.stats().entries)

    assert other is not one
    assert denied(guarded, USER) == set()


async def test_each_of_the_documented_rules_is_necessary(
    guarded: Cluster, password_file: Path
) -> None:
    (one, name), (_, moving) = names_by_node(guarded)
    move = guarded.slot_move(guarded.slot_of(f"samserve:default:{moving}"), one)
    move.begin()
    rules = all_rules(guarded)
    for rule in (rule for rule in rules if rule != "resetchannels"):
        user = f"without-{rule}"
        others = (each for each in rules if each != rule)
        grant(guarded, user, "reset", "on", f">{PASSWORD}", *others)
        settings: dict[str, Any] = {"username": user, "password_file": password_file}
        async with open_cache(guarded.addresses[0], **settings) as gateway:
            for each in (name, moving):
                try:
                    await use_all_commands(gateway, each, one)
                except SamserveError:
                    run_on(one, "DEL", gateway.shared.name(key(each)))
            for node in gateway.client.nodes:
                await node.probe()
            # For scripts, Redis 6.2 logs the command; for subcommands, only the main command.
            objects = {"~": "samserve:default:", "&": "samserve:deleted"}
            expected = objects.get(rule[0], rule[1:].partition("|")[0])
            await until(partial(denied, guarded, user))
            assert {
                each for each in denied(guarded, user) if not each.startswith(expected)
            } == set()
    move.finish()


@dataclass(frozen=True)
class Case:
    """A user with wrong credentials or missing permissions, and the expected log message."""

    message: str
    rules: str = RULES
    password: str = field(default=PASSWORD, repr=False)
    writes: bool = False
    reads: bool = False


REJECTED = {
    "another password": Case("invalid username-password pair", password=WRONG),
    "no password": Case("Authentication required", password=""),
    "no key permission": Case("to access", RULES.replace("~samserve", "~other")),
    "no cluster slots": Case(
        "no permissions to run the 'cluster", RULES.replace("+cluster|slots", "")
    ),
    "no client setname": Case(
        "no permissions to run the 'client", RULES.replace("+client|setname", "")
    ),
    "no hmget": Case("run the 'hmget'", RULES.replace("+hmget", ""), writes=True),
    "no eval": Case("run the 'eval'", RULES.replace("+eval", ""), reads=True),
}


@pytest.mark.parametrize("case", REJECTED.values(), ids=REJECTED)
async def test_a_rejected_gateway_works_with_the_local_tier_and_logs_the_reason(
    guarded: Cluster, tmp_path: Path, log: list[Any], case: Case
) -> None:
    guarded.flush()
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *case.rules.split())
    settings: dict[str, Any] = {}
    if case.password:
        (tmp_path / "password").write_text(case.password)
        settings = {"username": USER, "password_file": tmp_path / "password"}
    async with sharing(guarded.addresses, **settings) as server:
        embedding = await server.embed(1)
        await server.predict(embedding.id)
        assert embedding.stored == (pb.STORED_SHARED if case.writes else pb.STORED_LOCAL)
        assert await server.reason_of_a_miss() == (
            "EMBEDDING_NOT_FOUND" if case.reads else "CACHE_UNAVAILABLE"
        )
        await until(lambda: any(case.message in reason for reason in reasons(log)))

    assert not [reason for reason in reasons(log) if "\n" in reason]
    assert bool(guarded.keys()) == case.writes


@pytest.mark.parametrize("guarded", ["valkey"], indirect=True)
@pytest.mark.parametrize("first", ["cluster", "file"])
@pytest.mark.usefixtures("_short_ping_interval")
async def test_password_rotation_under_load_in_either_order(
    guarded: Cluster, tmp_path: Path, log: list[Any], first: str
) -> None:
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *RULES.split())
    mount = Mounted(tmp_path / "mounted", password=PASSWORD)
    settings = {"username": USER, "password_file": mount.path("password")}
    async with loaded(guarded.addresses, **settings) as load:
        async with load.running():
            await load.progress()
            # The previous password is only used for nodes that have accepted it before.
            await load.authenticated(guarded)
            if first == "cluster":
                grant(guarded, USER, f">{NEW_PASSWORD}")
            before = connections(guarded, USER)
            mount.swap(password=NEW_PASSWORD)
            await until(lambda: [line["event"] for line in log].count("config reloaded") == 2)
            await load.progress()
        if first == "file":
            # New connections work as well.
            close_connections(guarded, USER)
        async with load.running(callers=8):
            await load.progress()
            if first == "file":
                before = connections(guarded, USER)
                grant(guarded, USER, f">{NEW_PASSWORD}")
            # All connections with the old password are closed, also idle ones.
            await replaced(guarded, USER, before)
            # A call may still be about to use the old password.
            await load.progress()
            grant(guarded, USER, f"<{PASSWORD}")
            await load.progress()
        close_connections(guarded, USER)
        async with load.running():
            await load.progress()
    # Logged once per node and gateway, however often it was tried.
    logged = [line["node"] for line in log if line["event"] == "previous password still in use"]
    assert bool(logged) == (first == "file")
    assert {logged.count(node) for node in logged} <= {1, 2}


@pytest.mark.parametrize("guarded", ["valkey"], indirect=True)
@pytest.mark.usefixtures("_short_ping_interval")
async def test_a_password_that_is_removed_too_early_does_not_close_connections(
    guarded: Cluster, tmp_path: Path
) -> None:
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *RULES.split())
    mount = Mounted(tmp_path / "mounted", password=PASSWORD)
    settings = {"username": USER, "password_file": mount.path("password")}
    # With more, a call might open a new connection at that moment.
    async with (
        loaded(guarded.addresses, max_connections_per_node=1, **settings) as load,
        load.running(),
    ):
        await load.authenticated(guarded)
        grant(guarded, USER, "resetpass", f">{NEW_PASSWORD}")
        await load.progress()
        before = connections(guarded, USER)
        mount.swap(password=NEW_PASSWORD)
        await replaced(guarded, USER, before)
        await load.progress()


@pytest.mark.parametrize("guarded", ["valkey"], indirect=True)
async def test_all_idle_connections_with_an_old_password_are_closed(
    guarded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_module, "_RETRY_REJECTED_S", 0.0)
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *RULES.split())
    mount = Mounted(tmp_path / "mounted", password=PASSWORD)
    settings = SharedCacheSettings(
        username=USER, password_file=mount.path("password"), **LONG_TIMEOUTS
    )
    credentials = open_cache_credentials(settings)
    metrics = Metrics(CollectorRegistry()).cache
    server = guarded.nodes[0]
    node = ClusterNode((HOST, server.port), lambda: credentials.value, settings, metrics)

    async def number_after(calls: int) -> int:
        await asyncio.gather(*(node.run(Batch([("PING",)])) for _ in range(calls)))
        return len(connections(guarded, USER)[server])

    assert await number_after(4) == 4
    mount.swap(password=NEW_PASSWORD)
    credentials.refresh()
    # The node does not accept the new one yet.
    assert await number_after(4) == 4
    grant(guarded, USER, f">{NEW_PASSWORD}", f"<{PASSWORD}")
    await number_after(1)
    await number_after(1)
    await until(lambda: len(connections(guarded, USER)[server]) == 1)
    await node.aclose()


def test_a_previous_password_is_only_sent_to_nodes_that_current_cas_verify() -> None:
    old, new = (
        Credentials(USER, password, ssl.create_default_context())
        for password in (PASSWORD, NEW_PASSWORD)
    )
    newest = [old]
    entry = NodeCredentials(lambda: newest[-1])
    entry.accept(old)
    newest.append(new)
    used = entry.reject(new)

    assert used is not None
    assert (used.password == PASSWORD, used.tls is new.tls) == (True, True)
    assert [entry.is_current(each) for each in (old, used, new)] == [False, True, False]
    entry.accept(new)
    assert [entry.is_current(each) for each in (old, used, new)] == [False, False, True]


def test_reprs_contain_no_secrets(tmp_path: Path) -> None:
    mount = Mounted(
        tmp_path / "mounted", ca=SERVERS.pem, password=PASSWORD, **issued_files(CLIENTS)
    )
    paths = {f"{name}_file": mount.path(name) for name in ("ca", "cert", "key", "password")}
    settings = SharedCacheSettings(nodes="127.0.0.1:1", username=USER, tls=True, **paths)
    credentials = open_cache_credentials(settings)
    node = ClusterNode(
        (HOST, 1), lambda: credentials.value, settings, Metrics(CollectorRegistry()).cache
    )
    connection = _unopened((HOST, 1), credentials.value, 1.0)

    texts = [
        f"{each} {each!r}" for each in (settings, credentials, credentials.value, node, connection)
    ]
    assert not [text for text in texts if PASSWORD in text or "PRIVATE" in text]
    secret_leaks.check("repr", " ".join(texts))


@dataclass
class TlsCluster:
    """A cluster that accepts only TLS connections with a client certificate."""

    cluster: Cluster
    proxies: TlsProxies
    files: Mounted

    def use(self, issuer: Issuer, **files: str) -> None:
        """Use another server certificate, or other client CAs, for new connections."""
        self.files.swap(**{**issued_files(issuer, HOST), **files})
        self.proxies.use(self.files.path("cert"), self.files.path("key"))


@pytest.fixture(scope="module")
def tls_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    folder = tmp_path_factory.mktemp("tls") / "server"
    files = Mounted(folder, clients=CLIENTS.pem + NEW_CLIENTS.pem, **issued_files(SERVERS, HOST))
    cert, key_file, clients = (files.path(name) for name in ("cert", "key", "clients"))
    with (
        TlsProxies(cert, key_file, clients) as proxies,
        Cluster(3, 1, announce=proxies.announce) as cluster,
    ):
        yield TlsCluster(cluster, proxies, files)


@pytest.fixture
def tls_cluster(tls_nodes: TlsCluster) -> TlsCluster:
    tls_nodes.use(SERVERS, clients=CLIENTS.pem + NEW_CLIENTS.pem)
    tls_nodes.cluster.flush()
    return tls_nodes


def secured(mount: Mounted, *names: str) -> dict[str, Any]:
    """Return the TLS settings of the cache."""
    return {"tls": True, **{f"{name}_file": mount.path(name) for name in names}}


@pytest.fixture
def mount(tmp_path: Path) -> Mounted:
    """Files with which a gateway is accepted."""
    return Mounted(tmp_path / "mounted", ca=SERVERS.pem, **issued_files(CLIENTS))


async def test_all_nodes_are_used_over_tls_also_after_a_failover(
    tls_cluster: TlsCluster, mount: Mounted
) -> None:
    cluster = tls_cluster.cluster
    settings = secured(mount, "ca", "cert", "key")
    # The others are discovered.
    async with sharing(cluster.addresses[:1], **settings) as one:
        ids = [(await one.embed(number, durable=True)).id for number in range(8)]
        owners = {each: cluster.owner_of(f"samserve:default:{each}") for each in ids}
        assert set(owners.values()) == set(cluster.masters)
        master = owners[ids[0]]
        await asyncio.to_thread(cluster.fail_over, master)

        async def shared_again() -> bool:
            return (await one.embed(0)).stored == pb.STORED_SHARED

        await until(shared_again)
        async with sharing(cluster.addresses[1:], **settings) as other:
            for each in ids:
                await other.predict(each)
    await asyncio.to_thread(cluster.start_again)


@dataclass(frozen=True)
class TlsCase:
    """Certificates of nodes and gateway that do not match, and the expected log message."""

    message: str
    nodes: DatedIssuer = SERVERS
    host: str = HOST
    expired: bool = False
    names: str = "ca cert key"
    trusted: Issuer = SERVERS
    gateway: Issuer = CLIENTS


TLS_CASES = {
    "another CA": TlsCase("CERTIFICATE_VERIFY_FAILED", trusted=UNTRUSTED),
    "the system's CAs": TlsCase("CERTIFICATE_VERIFY_FAILED", names="cert key"),
    "expired": TlsCase("certificate has expired", expired=True),
    "another name": TlsCase("not valid for '127.0.0.1'", host="elsewhere.test"),
    "no client certificate": TlsCase("certificate required", names="ca"),
    "an untrusted client certificate": TlsCase("unknown ca", gateway=UNTRUSTED),
    "no TLS": TlsCase("Connection closed by server", names=""),
}


@pytest.mark.parametrize("case", TLS_CASES.values(), ids=TLS_CASES)
async def test_a_failed_tls_handshake_is_logged_and_the_local_tier_works_alone(
    tls_cluster: TlsCluster, tmp_path: Path, log: list[Any], case: TlsCase
) -> None:
    issued = case.nodes.issue_expired(case.host) if case.expired else None
    tls_cluster.use(case.nodes, **(issued or issued_files(case.nodes, case.host)))
    mount = Mounted(tmp_path / "mounted", ca=case.trusted.pem, **issued_files(case.gateway))
    settings = secured(mount, *case.names.split()) if case.names else {}
    async with sharing(tls_cluster.cluster.addresses, **settings) as server:
        embedding = await server.embed(1)
        await server.predict(embedding.id)
        assert embedding.stored == pb.STORED_LOCAL
        assert await server.reason_of_a_miss() == "CACHE_UNAVAILABLE"
        opened = partial(reasons_of, log, "circuit opened")
        await until(lambda: len(opened()) >= 6)

    assert not [reason for reason in opened() if case.message not in reason or "\n" in reason]
    assert tls_cluster.cluster.keys() == set()


async def test_a_gateway_with_tls_does_not_use_nodes_without_tls(
    tls_cluster: TlsCluster, mount: Mounted, log: list[Any]
) -> None:
    # A server without TLS reads the handshake as an incomplete command, and waits.
    settings = {**secured(mount, "ca", "cert", "key"), "connect_timeout_s": 0.2}
    async with sharing([tls_cluster.cluster.nodes[0].address], **settings) as server:
        assert (await server.embed(1)).stored == pb.STORED_LOCAL
        assert await server.reason_of_a_miss() == "CACHE_UNAVAILABLE"
        await until(lambda: reasons_of(log, "circuit opened"))
    assert reasons_of(log, "circuit opened")[0] == "TimeoutError: Timeout connecting to server"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node with TLS that requests no client certificate, and has no AUTH command."""
    server = Mounted(tmp_path_factory.mktemp("alone") / "server", **issued_files(SERVERS, HOST))
    options = {"rename-command": "AUTH somethingelse"}
    with (
        TlsProxies(server.path("cert"), server.path("key")) as proxies,
        Cluster(1, 0, options=options, announce=proxies.announce) as cluster,
    ):
        yield cluster


async def test_a_client_certificate_is_optional(alone: Cluster, mount: Mounted) -> None:
    async with sharing(alone.addresses, **secured(mount, "ca")) as server:
        assert (await server.embed(1)).stored == pb.STORED_SHARED


async def test_a_password_in_the_error_of_a_node_is_not_logged(
    alone: Cluster, mount: Mounted, password_file: Path, log: list[Any]
) -> None:
    # For an unknown command, the error of a server contains the arguments.
    settings = {"username": USER, "password_file": password_file, **secured(mount, "ca")}
    async with sharing(alone.addresses, **settings) as server:
        assert (await server.embed(2)).stored == pb.STORED_LOCAL
        assert await server.reason_of_a_miss() == "CACHE_UNAVAILABLE"
        await until(lambda: reasons_of(log, "circuit opened"))
    assert "ResponseError" in reasons_of(log, "circuit opened")[0]
    assert PASSWORD not in str(log)


@pytest.mark.usefixtures("_short_ping_interval")
async def test_certificate_rotation_on_both_sides_under_load(
    tls_cluster: TlsCluster, mount: Mounted
) -> None:
    cluster = tls_cluster.cluster
    settings = secured(mount, "ca", "cert", "key")
    async with loaded(cluster.addresses, **settings) as load:
        async with load.running():
            await load.progress()
            for clients, servers in (
                (NEW_CLIENTS, SERVERS),
                (NEW_CLIENTS, NEW_SERVERS),
            ):
                before = connections(cluster, "default")
                mount.swap(ca=SERVERS.pem + NEW_SERVERS.pem, **issued_files(clients))
                await replaced(cluster, "default", before)
                tls_cluster.use(servers)
                await load.progress()
        # Now neither side accepts the old certificates.
        tls_cluster.use(NEW_SERVERS, clients=NEW_CLIENTS.pem)
        before = connections(cluster, "default")
        mount.swap(ca=NEW_SERVERS.pem)
        async with load.running():
            await replaced(cluster, "default", before)
            await load.progress()


async def test_invalid_files_are_not_used_until_they_are_valid_again(
    tls_cluster: TlsCluster, mount: Mounted, log: list[Any]
) -> None:
    good = {"ca": SERVERS.pem, **issued_files(CLIENTS)}
    invalid = [
        {"ca": (SERVERS.pem + NEW_SERVERS.pem)[:-40]},  # partially written
        {"key": issued_files(CLIENTS)["key"]},
        {"cert": ""},  # missing
    ]
    mount.swap(**good)
    settings = secured(mount, "ca", "cert", "key")
    async with loaded(tls_cluster.cluster.addresses, **settings) as load:
        for files in invalid:
            mount.swap(**files)
            await until(lambda: load.writer.reload_successful == load.reader.reload_successful == 0)
            # New connections use the last valid content.
            close_connections(tls_cluster.cluster, "default")
            async with load.running():
                await load.progress(1)
            mount.swap(**good)
            await until(lambda: load.writer.reload_successful == load.reader.reload_successful == 1)
    # Once per change and gateway.
    assert len(reasons_of(log, "config reload failed")) == 2 * len(invalid)


def encrypted(private_key: str) -> str:
    loaded_key = serialization.load_pem_private_key(private_key.encode(), None)
    return secret(
        loaded_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        ).decode()
    )


CLIENT_FILES = issued_files(CLIENTS)
INVALID: list[tuple[str, dict[str, str]]] = [
    (
        "cache.shared.key_file {key}: must be an unencrypted PEM private key",
        {"key": encrypted(CLIENT_FILES["key"])},
    ),
    (
        "cache.shared.key_file {key}: does not match cache.shared.cert_file {cert}",
        {"key": issued_files(CLIENTS)["key"]},
    ),
    (
        "cache.shared.key_file {key}: must be an unencrypted PEM private key",
        {"key": CLIENT_FILES["cert"]},
    ),
    (
        "cache.shared.cert_file {cert}: must contain PEM certificates",
        {"cert": CLIENT_FILES["key"]},
    ),
    ("cache.shared.ca_file {ca}: must contain PEM certificates", {"ca": "nothing"}),
    ("cache.shared.password_file {password}: contains no password", {"password": "\n"}),
    ("{ca}: No such file or directory", {"ca": ""}),
]


# Explicit ids, because the contents are secrets.
@pytest.mark.parametrize(("message", "files"), INVALID, ids=range(len(INVALID)))
def test_a_server_does_not_start_with_invalid_files(
    samserve: Command, tmp_path: Path, message: str, files: dict[str, str]
) -> None:
    arguments, paths = serve_with(tmp_path, files)
    ended = samserve(*arguments)

    assert ended.code == 1
    assert ended.err == f"samserve: error: {message.format(**paths)}\n"


def serve_with(folder: Path, files: dict[str, str]) -> tuple[list[str], dict[str, Path]]:
    mount = Mounted(
        folder / "files", **{"ca": SERVERS.pem, "password": PASSWORD, **CLIENT_FILES, **files}
    )
    paths = {name: mount.path(name) for name in ("ca", "cert", "key", "password")}
    settings = {"nodes": f"{HOST}:1", "tls": "true"}
    settings.update({f"{name}_file": str(path) for name, path in paths.items()})
    options = [f"--set=cache.shared.{name}={value}" for name, value in settings.items()]
    return ["serve", "--port=0", "--admin-port=0", *FAKE, *options], paths


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cert_file": "a", "tls": "true"}, "cache.shared.key_file is missing"),
        ({"key_file": "a", "tls": "true"}, "cache.shared.cert_file is missing"),
        ({"ca_file": "a"}, "cache.shared.ca_file requires cache.shared.tls=true"),
        (
            {"cert_file": "a", "key_file": "b"},
            "cache.shared.cert_file requires cache.shared.tls=true",
        ),
        ({"username": "a"}, "cache.shared.username requires cache.shared.password_file"),
        ({"nodes": " , "}, "cache.shared.nodes: must contain at least one node"),
        ({"key_prefix": "sam serve"}, "cache.shared.key_prefix: must match"),
        ({"key_prefix": ""}, "cache.shared.key_prefix: must match"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(
    samserve: Command, settings: dict[str, str], message: str
) -> None:
    options = (f"--set=cache.shared.{name}={value}" for name, value in settings.items())
    ended = samserve("config", *options)

    assert ended.code == 2
    assert ended.err.startswith("samserve: error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
