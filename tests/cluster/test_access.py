"""Who gets at the cluster and whom it is taken for: ACL, TLS, and secrets that are replaced."""

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
from samserve.errors import EmbeddingNotFound, SamserveError
from samserve.settings import CacheSettings, LogSettings
from samserve.stores.shared import value_format
from samserve.stores.shared.base import Batch
from samserve.stores.shared.redis import credentials as credentials_module
from samserve.stores.shared.redis import node as node_module
from samserve.stores.shared.redis.connection import _describe
from samserve.stores.shared.redis.credentials import (
    Credentials,
    NodeCredentials,
    open_cache_credentials,
)
from samserve.stores.shared.redis.node import Node as ClusterNode
from samserve.stores.shared.store import Presence
from samserve.telemetry import logs
from samserve.telemetry.metrics import Metrics
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub
from structlog.testing import capture_logs

from harness.cluster.binaries import Flavour
from harness.cluster.cluster import Cluster
from harness.cluster.node import HOST, Node
from harness.cluster.tls import TlsFronts
from tests import pictures, secrecy
from tests.cli.conftest import FAKE, Command, samserve
from tests.cluster.stores import FACTS, PATIENT, SLOT, Gateway, key, store_over, tensors
from tests.conftest import serving, settings_with
from tests.rpc.errors import failure_of, read
from tests.secrecy import secret
from tests.support.certificates import Issuer, Mounted
from tests.support.waiting import until

__all__ = ["samserve"]


def shown(issuer: Issuer, host: str = "gateway") -> dict[str, str]:
    """A certificate and its key, as files."""
    return dict(zip(("cert", "key"), issuer.issue(host), strict=True))


USER = "samserve"
# What a user must have, as ACL SETUSER takes it; `docs` give it too.
RULES = (
    "~samserve:* resetchannels &samserve:* +hget +hmget +hlen +hset +hdel +hexists +del +pttl "
    "+pexpire +eval +wait +publish +subscribe +ping +asking +cluster|slots +client|setname"
)
# What shows that an embedding is on disk, which only durable ones need.
DISK: dict[Flavour, str] = {"valkey": "+waitaof", "redis": "+config|get"}

pytestmark = pytest.mark.slow
PASSWORD, NEW_PASSWORD, WRONG = (
    secret(f"{which}-password-of-the-gateways") for which in ("first", "second", "wrong")
)


class DatedIssuer(Issuer):
    """Issues certificates that are no good any more, too."""

    def issue_expired(self, name: str) -> dict[str, str]:
        ago = [datetime.now(UTC) - timedelta(days=days) for days in (30, 1)]
        issued = self._ca.issue_cert(name, not_before=ago[0], not_after=ago[1])
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        return {"cert": chain.decode(), "key": secret(issued.private_key_pem.bytes().decode())}


SERVERS, NEW_SERVERS, CLIENTS, NEW_CLIENTS, STRANGERS = (DatedIssuer() for _ in range(5))
BOUND_S = 60.0


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    """All that is logged in this process, which the scan for secrets shall see too."""
    logs.configure(LogSettings(level="debug"))
    with capture_logs() as entries:
        yield entries
    secrecy.check("log", str(entries))


def reasons(log: list[Any]) -> list[str]:
    """Why something is wrong, as operators read it: without what is for developers."""
    lines = [line for line in log if line["log_level"] != "debug"]
    return [str(line["reason"]) for line in lines if "reason" in line]


def told(log: list[Any], event: str) -> list[str]:
    return [line["reason"] for line in log if line["event"] == event]


@dataclass
class Server:
    """A gateway in this process."""

    service: Running
    stub: SegmentationServiceStub

    async def embed(self, number: int, *, durable: bool = False) -> pb.Embedding:
        request = pb.EmbedRequest(
            image=pictures.image(40, 60, seed=number),
            durability=pb.DURABILITY_DURABLE if durable else pb.DURABILITY_UNSPECIFIED,
        )
        return (await self.stub.Embed(request, timeout=BOUND_S)).embedding

    async def click(self, embedding_id: str) -> None:
        request = pb.PredictRequest(embedding_id=embedding_id, prompts=[pictures.click()])
        await self.stub.Predict(request, timeout=BOUND_S)

    async def fails_to_find(self) -> str:
        """Why there is no answer about an embedding that is not in its memory."""
        failure = await failure_of(self.click("0" * 64))
        secrecy.check("error", f"{failure}")
        return failure.reason

    @property
    def in_order(self) -> float | None:
        labels = {"file": "cache credentials"}
        return self.service.metrics.registry.get_sample_value("samserve_file_in_order", labels)


@asynccontextmanager
async def sharing(addresses: Iterable[str], **cache: Any) -> AsyncIterator[Server]:
    """Run a gateway that looks at its files often."""
    settings = settings_with(
        cache={"nodes": ",".join(addresses), **PATIENT, **cache},
        tls={"reload_s": 0.02},
        store={"capacity_bytes": 32 * SLOT},
    )
    async with serving(settings) as (service, stub):
        yield Server(service, stub)
        secrecy.check("metrics", generate_latest(service.metrics.registry).decode())


@dataclass
class Load:
    """Callers that embed by way of one gateway and click by way of another, all in the cluster."""

    writer: Server
    reader: Server
    failures: list[str] = field(default_factory=list)
    _answers: list[int] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    @asynccontextmanager
    async def running(self, callers: int = 3) -> AsyncIterator[None]:
        over, self._answers = asyncio.Event(), [0] * callers
        tasks = [asyncio.create_task(self._call(caller, over)) for caller in range(callers)]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def goes_on(self, answers: int = 2) -> None:
        """Wait until every caller has got so many answers more.

        After two of them, no call is under way that has begun before.
        """
        before = list(self._answers)
        await until(
            lambda: all(
                now >= then + answers for now, then in zip(self._answers, before, strict=True)
            )
        )

    async def knows_masters(self, cluster: Cluster) -> None:
        """Wait until both gateways were let in by every master."""
        masters = {master.announced for master in cluster.masters}
        await until(
            lambda: all(
                node._credentials._accepted is not None
                for server in (self.writer, self.reader)
                for node in server.service.store._cache._servers.nodes  # type: ignore[attr-defined]
                if node.address in masters
            )
        )

    async def _call(self, caller: int, over: asyncio.Event) -> None:
        while not over.is_set():
            try:
                embedding = await self.writer.embed(next(self._numbers))
                await self.reader.click(embedding.id)
                if embedding.stored != pb.STORED_SHARED:
                    self.failures.append("not shared")
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{read(error).reason}: {error.details()}")
            self._answers[caller] += 1


@asynccontextmanager
async def loaded(addresses: Iterable[str], **cache: Any) -> AsyncIterator[Load]:
    """Run two gateways for a load, of which no call may fail."""
    addresses = tuple(addresses)
    # Otherwise only nodes that have to do with an embedding would be asked anything soon.
    cache["refresh_s"] = 0.1
    async with sharing(addresses, **cache) as writer, sharing(addresses, **cache) as reader:
        load = Load(writer, reader)
        yield load
        assert load.failures == []


def grant(cluster: Cluster, user: str, *rules: str) -> None:
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", user, *rules)


def connections(cluster: Cluster, user: str) -> dict[Node, set[int]]:
    """Those of gateways; numbers of one node grow with time."""
    return {
        node: {
            int(client["id"])
            for client in node.client.client_list()
            if client["name"] == "samserve" and client["user"] == user
        }
        for node in cluster.nodes
    }


def cut_all(cluster: Cluster, user: str) -> None:
    """End all connections of gateways, so that what follows is about new ones."""
    for node, numbers in connections(cluster, user).items():
        for number in numbers:
            node.command("CLIENT", "KILL", "ID", number)


async def replaced(cluster: Cluster, user: str, before: dict[Node, set[int]]) -> None:
    """Wait until nobody uses the connections from *before* any more."""
    await until(
        lambda: (
            not any(numbers & before[node] for node, numbers in connections(cluster, user).items())
        )
    )


@pytest.fixture(scope="module", params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Lets in nobody but the harness, until a test makes a user."""
    nobody = secret("password-that-nobody-uses")
    with Cluster(2, 1, request.param, user="nobody", password=nobody) as cluster:
        yield cluster


@pytest.fixture
def _soon_aware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let listeners look up more often than a silent server deserves."""
    monkeypatch.setattr(node_module, "_SILENCE_S", 0.1)


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")  # as an editor leaves it
    return path


def asked(node: Node, *command: str | bytes) -> Any:
    """Ask a node, also for a slot that is still on its way to it."""
    pipeline = node.client.pipeline(transaction=False)
    pipeline.execute_command("ASKING")
    pipeline.execute_command(*command)
    return pipeline.execute()[1]


async def live(gateway: Gateway, name: str, holder: Node) -> None:
    """All that a gateway does with an embedding, which *holder* keeps."""
    cache, embedding = gateway.cache, key(name)
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
    assert (await cache.put(embedding, data, 60, marker=marker, durable=True)).same
    asked(holder, "HSET", stored, "v1", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(EmbeddingNotFound):
        await cache.get(embedding, lambda value: True)
    assert not asked(holder, "EXISTS", stored)


def all_rules(cluster: Cluster) -> list[str]:
    """What a user of servers of this kind must have for all that a gateway does."""
    return [*RULES.split(), DISK[cluster.flavour]]


def test_the_documentation_gives_these_rules() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cache.md").read_text()
    _, _, section = text.partition("ACL SETUSER samserve reset on >PASSWORD ")
    rules, _, rest = section.partition("```")

    assert set(rules.split()) == {*RULES.split(), DISK["valkey"]}
    assert f"`{DISK['redis']}` takes the place" in rest


def denied(cluster: Cluster, user: str) -> set[str]:
    """What the user was refused."""
    entries = [
        dict(zip(entry[::2], entry[1::2], strict=True))
        for node in cluster.nodes
        for entry in node.command("ACL", "LOG", 100)
    ]
    return {entry[b"object"].decode() for entry in entries if entry[b"username"] == user.encode()}


def names_by_node(cluster: Cluster) -> Iterator[tuple[Node, str]]:
    """Make up names of embeddings, one of each master's."""
    for master in cluster.masters:
        names = (f"{number:064}" for number in itertools.count())
        owned = (each for each in names if cluster.owner_of(f"samserve:default:{each}") is master)
        yield master, next(owned)


async def hears_deletions(cluster: Cluster, count: int) -> None:
    """Wait until so many gateways listen."""
    await until(
        lambda: (
            sum(node.command("PUBSUB", "NUMSUB", "samserve:deleted")[1] for node in cluster.nodes)
            == count
        )
    )


async def test_the_documented_rules_are_enough_for_all_that_a_gateway_does(
    guarded: Cluster, password_file: Path
) -> None:
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *all_rules(guarded))
    settings: dict[str, Any] = {"username": USER, "password_file": password_file}
    (one, name), (other, moving) = names_by_node(guarded)
    move = guarded.slot_move(guarded.slot_of(f"samserve:default:{moving}"), one)
    nodes = guarded.addresses[0]
    async with (
        store_over(nodes, check_s=600, **settings) as gateway,
        store_over(nodes, check_s=600, **settings) as second,
    ):
        await live(gateway, name, one)
        move.begin()
        await live(gateway, moving, one)
        move.finish()
        for node in gateway.client.nodes:
            await node.probe()
        # Of a deletion the others hear at once, though they would look in ten minutes only.
        await hears_deletions(guarded, 2)
        await gateway.put(key("shared"))
        assert await second.get(key("shared")) == 1.0
        assert await gateway.store.delete(key("shared"))
        await until(lambda: not second.memory.stats().entries)

    assert other is not one
    assert denied(guarded, USER) == set()


async def test_each_of_the_documented_rules_is_needed(
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
        async with store_over(guarded.addresses[0], **settings) as gateway:
            for each in (name, moving):
                try:
                    await live(gateway, each, one)
                except SamserveError:
                    asked(one, "DEL", gateway.cache.name(key(each)))
            for node in gateway.client.nodes:
                await node.probe()
            # In a script, Redis 6.2 tells the command; of subcommands it does not tell which.
            objects = {"~": "samserve:default:", "&": "samserve:deleted"}
            expected = objects.get(rule[0], rule[1:].partition("|")[0])
            await until(partial(denied, guarded, user))
            assert {
                what for what in denied(guarded, user) if not what.startswith(expected)
            } == set()
    move.finish()


@dataclass(frozen=True)
class Case:
    """A user that is not let in, or not far enough, and what the log says of it."""

    said: str
    rules: str = RULES
    given: str = field(default=PASSWORD, repr=False)
    writes: bool = False
    reads: bool = False


NOT_LET_IN = {
    "another password": Case("invalid username-password pair", given=WRONG),
    "no password": Case("Authentication required", given=""),
    "no such keys": Case("to access", RULES.replace("~samserve", "~other")),
    "no map": Case("no permissions to run the 'cluster", RULES.replace("+cluster|slots", "")),
    "no name": Case("no permissions to run the 'client", RULES.replace("+client|setname", "")),
    "no hmget": Case("run the 'hmget'", RULES.replace("+hmget", ""), writes=True),
    "no eval": Case("run the 'eval'", RULES.replace("+eval", ""), reads=True),
}


@pytest.mark.parametrize("case", NOT_LET_IN.values(), ids=NOT_LET_IN)
async def test_who_is_not_let_in_works_alone_and_the_log_says_why(
    guarded: Cluster, tmp_path: Path, log: list[Any], case: Case
) -> None:
    guarded.flush()
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *case.rules.split())
    settings: dict[str, Any] = {}
    if case.given:
        (tmp_path / "password").write_text(case.given)
        settings = {"username": USER, "password_file": tmp_path / "password"}
    async with sharing(guarded.addresses, **settings) as server:
        embedding = await server.embed(1)
        await server.click(embedding.id)
        assert embedding.stored == (pb.STORED_SHARED if case.writes else pb.STORED_LOCAL)
        assert await server.fails_to_find() == (
            "EMBEDDING_NOT_FOUND" if case.reads else "STORE_UNAVAILABLE"
        )
        await until(lambda: any(case.said in reason for reason in reasons(log)))

    assert not [reason for reason in reasons(log) if "\n" in reason]
    assert bool(guarded.keys()) == case.writes


@pytest.mark.parametrize("guarded", ["valkey"], indirect=True)
@pytest.mark.parametrize("first", ["cluster", "file"])
@pytest.mark.usefixtures("_soon_aware")
async def test_a_password_is_replaced_under_load_wherever_it_is_known_first(
    guarded: Cluster, tmp_path: Path, log: list[Any], first: str
) -> None:
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *RULES.split())
    mount = Mounted(tmp_path / "mounted", password=PASSWORD)
    settings = {"username": USER, "password_file": mount.path("password")}
    async with loaded(guarded.addresses, **settings) as load:
        async with load.running():
            await load.goes_on()
            # A node that has never let a gateway in is not offered the old password again.
            await load.knows_masters(guarded)
            if first == "cluster":
                grant(guarded, USER, f">{NEW_PASSWORD}")
            before = connections(guarded, USER)
            mount.swap(password=NEW_PASSWORD)
            await until(lambda: [line["event"] for line in log].count("read again") == 2)
            await load.goes_on()
        if first == "file":
            # Nor is it an outage for those who need new connections.
            cut_all(guarded, USER)
        async with load.running(callers=8):
            await load.goes_on()
            if first == "file":
                before = connections(guarded, USER)
                grant(guarded, USER, f">{NEW_PASSWORD}")
            # All that were opened with the old one end, also those that nobody needs just now.
            await replaced(guarded, USER, before)
            # A call may be about to offer the old one still.
            await load.goes_on()
            grant(guarded, USER, f"<{PASSWORD}")
            await load.goes_on()
        cut_all(guarded, USER)
        async with load.running():
            await load.goes_on()
    # Said once for each node and gateway, however often it was tried.
    said = [line["node"] for line in log if line["event"] == "old password still used"]
    assert bool(said) == (first == "file")
    assert {said.count(node) for node in said} <= {1, 2}


@pytest.mark.parametrize("guarded", ["valkey"], indirect=True)
@pytest.mark.usefixtures("_soon_aware")
async def test_a_password_that_is_taken_away_too_early_cuts_off_nobody_who_is_connected(
    guarded: Cluster, tmp_path: Path
) -> None:
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *RULES.split())
    mount = Mounted(tmp_path / "mounted", password=PASSWORD)
    settings = {"username": USER, "password_file": mount.path("password")}
    # With more, a call might want another one just then.
    async with loaded(guarded.addresses, connections=1, **settings) as load, load.running():
        await load.knows_masters(guarded)
        grant(guarded, USER, "resetpass", f">{NEW_PASSWORD}")
        await load.goes_on()
        before = connections(guarded, USER)
        mount.swap(password=NEW_PASSWORD)
        await replaced(guarded, USER, before)
        await load.goes_on()


@pytest.mark.parametrize("guarded", ["valkey"], indirect=True)
async def test_no_connection_with_an_old_password_is_kept_below_a_new_one(
    guarded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_module, "_RETRY_REFUSED_S", 0.0)
    grant(guarded, USER, "reset", "on", f">{PASSWORD}", *RULES.split())
    mount = Mounted(tmp_path / "mounted", password=PASSWORD)
    settings = CacheSettings(username=USER, password_file=mount.path("password"), **PATIENT)
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
    # The node does not know it yet.
    assert await number_after(4) == 4
    grant(guarded, USER, f">{NEW_PASSWORD}", f"<{PASSWORD}")
    await number_after(1)
    await number_after(1)
    await until(lambda: len(connections(guarded, USER)[server]) == 1)
    await node.aclose()


def test_an_old_password_is_not_shown_to_whom_only_an_old_ca_has_signed() -> None:
    old, new = (
        Credentials(USER, password, ssl.create_default_context())
        for password in (PASSWORD, NEW_PASSWORD)
    )
    newest = [old]
    entry = NodeCredentials(lambda: newest[-1])
    entry.accept(old)
    newest.append(new)
    used = entry.refuse(new)

    assert used is not None
    assert (used.password == PASSWORD, used.tls is new.tls) == (True, True)
    assert [entry.is_current(each) for each in (old, used, new)] == [False, True, False]
    entry.accept(new)
    assert [entry.is_current(each) for each in (old, used, new)] == [False, False, True]


def test_nothing_that_holds_secrets_shows_them(tmp_path: Path) -> None:
    mount = Mounted(tmp_path / "mounted", ca=SERVERS.pem, password=PASSWORD, **shown(CLIENTS))
    paths = {f"{name}_file": mount.path(name) for name in ("ca", "cert", "key", "password")}
    settings = CacheSettings(nodes="127.0.0.1:1", username=USER, tls=True, **paths)
    credentials = open_cache_credentials(settings)
    node = ClusterNode(
        (HOST, 1), lambda: credentials.value, settings, Metrics(CollectorRegistry()).cache
    )
    connection = _describe((HOST, 1), credentials.value, 1.0)

    texts = [
        f"{each} {each!r}" for each in (settings, credentials, credentials.value, node, connection)
    ]
    assert not [text for text in texts if PASSWORD in text or "PRIVATE" in text]
    secrecy.check("repr", " ".join(texts))


@dataclass
class Fortress:
    """A cluster that is reached by TLS only, with a certificate of a gateway."""

    cluster: Cluster
    fronts: TlsFronts
    files: Mounted

    def show(self, issuer: Issuer, **files: str) -> None:
        """Show another certificate, or ask for others, on new connections."""
        self.files.swap(**{**shown(issuer, HOST), **files})
        self.fronts.use(self.files.path("cert"), self.files.path("key"))


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    folder = tmp_path_factory.mktemp("walls") / "server"
    files = Mounted(folder, clients=CLIENTS.pem + NEW_CLIENTS.pem, **shown(SERVERS, HOST))
    cert, key_file, clients = (files.path(name) for name in ("cert", "key", "clients"))
    with (
        TlsFronts(cert, key_file, clients) as fronts,
        Cluster(3, 1, announce=fronts.announce) as cluster,
    ):
        yield Fortress(cluster, fronts, files)


@pytest.fixture
def fortress(walls: Fortress) -> Fortress:
    walls.show(SERVERS, clients=CLIENTS.pem + NEW_CLIENTS.pem)
    walls.cluster.flush()
    return walls


def secured(mount: Mounted, *names: str) -> dict[str, Any]:
    """Settings of the cache."""
    return {"tls": True, **{f"{name}_file": mount.path(name) for name in names}}


@pytest.fixture
def mount(tmp_path: Path) -> Mounted:
    """What lets a gateway in."""
    return Mounted(tmp_path / "mounted", ca=SERVERS.pem, **shown(CLIENTS))


async def test_all_nodes_are_spoken_to_by_tls_also_after_a_takeover(
    fortress: Fortress, mount: Mounted
) -> None:
    cluster = fortress.cluster
    settings = secured(mount, "ca", "cert", "key")
    # The others are discovered.
    async with sharing(cluster.addresses[:1], **settings) as one:
        ids = [(await one.embed(number, durable=True)).id for number in range(8)]
        owners = {each: cluster.owner_of(f"samserve:default:{each}") for each in ids}
        assert set(owners.values()) == set(cluster.masters)
        victim = owners[ids[0]]
        await asyncio.to_thread(cluster.fail_over, victim)

        async def shared_again() -> bool:
            return (await one.embed(0)).stored == pb.STORED_SHARED

        await until(shared_again)
        async with sharing(cluster.addresses[1:], **settings) as other:
            for each in ids:
                await other.click(each)
    await asyncio.to_thread(cluster.start_again)


@dataclass(frozen=True)
class Mistrust:
    """What the nodes show, what the gateway has, and what the log says of it."""

    said: str
    nodes: DatedIssuer = SERVERS
    host: str = HOST
    expired: bool = False
    names: str = "ca cert key"
    trusted: Issuer = SERVERS
    gateway: Issuer = CLIENTS


MISTRUST = {
    "another CA": Mistrust("CERTIFICATE_VERIFY_FAILED", trusted=STRANGERS),
    "the system's CAs": Mistrust("CERTIFICATE_VERIFY_FAILED", names="cert key"),
    "expired": Mistrust("certificate has expired", expired=True),
    "another name": Mistrust("not valid for '127.0.0.1'", host="elsewhere.test"),
    "no certificate of our own": Mistrust("certificate required", names="ca"),
    "a certificate of a stranger": Mistrust("unknown ca", gateway=STRANGERS),
    "no TLS": Mistrust("Connection closed by server", names=""),
}


@pytest.mark.parametrize("case", MISTRUST.values(), ids=MISTRUST)
async def test_without_trust_on_both_sides_a_gateway_works_alone_and_the_log_says_why(
    fortress: Fortress, tmp_path: Path, log: list[Any], case: Mistrust
) -> None:
    issued = case.nodes.issue_expired(case.host) if case.expired else None
    fortress.show(case.nodes, **(issued or shown(case.nodes, case.host)))
    mount = Mounted(tmp_path / "mounted", ca=case.trusted.pem, **shown(case.gateway))
    settings = secured(mount, *case.names.split()) if case.names else {}
    async with sharing(fortress.cluster.addresses, **settings) as server:
        embedding = await server.embed(1)
        await server.click(embedding.id)
        assert embedding.stored == pb.STORED_LOCAL
        assert await server.fails_to_find() == "STORE_UNAVAILABLE"
        left_alone = partial(told, log, "node left alone")
        await until(lambda: len(left_alone()) >= 6)

    assert not [reason for reason in left_alone() if case.said not in reason or "\n" in reason]
    assert fortress.cluster.keys() == set()


async def test_nodes_that_do_not_speak_tls_are_not_spoken_to_without(
    fortress: Fortress, mount: Mounted, log: list[Any]
) -> None:
    # A server without TLS waits for the rest of what it takes for a command.
    settings = {**secured(mount, "ca", "cert", "key"), "connect_s": 0.2}
    async with sharing([fortress.cluster.nodes[0].address], **settings) as server:
        assert (await server.embed(1)).stored == pb.STORED_LOCAL
        assert await server.fails_to_find() == "STORE_UNAVAILABLE"
        await until(lambda: told(log, "node left alone"))
    assert told(log, "node left alone")[0] == "TimeoutError: Timeout connecting to server"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node with TLS that asks for no certificate, and has no command to take passwords."""
    server = Mounted(tmp_path_factory.mktemp("alone") / "server", **shown(SERVERS, HOST))
    options = {"rename-command": "AUTH somethingelse"}
    with (
        TlsFronts(server.path("cert"), server.path("key")) as fronts,
        Cluster(1, 0, options=options, announce=fronts.announce) as cluster,
    ):
        yield cluster


async def test_nodes_that_ask_for_no_certificate_need_none(alone: Cluster, mount: Mounted) -> None:
    async with sharing(alone.addresses, **secured(mount, "ca")) as server:
        assert (await server.embed(1)).stored == pb.STORED_SHARED


async def test_what_a_node_repeats_of_a_password_is_not_logged(
    alone: Cluster, mount: Mounted, password_file: Path, log: list[Any]
) -> None:
    # Of a command that it does not know a server tells the arguments.
    settings = {"username": USER, "password_file": password_file, **secured(mount, "ca")}
    async with sharing(alone.addresses, **settings) as server:
        assert (await server.embed(2)).stored == pb.STORED_LOCAL
        assert await server.fails_to_find() == "STORE_UNAVAILABLE"
        await until(lambda: told(log, "node left alone"))
    assert "ResponseError" in told(log, "node left alone")[0]
    assert PASSWORD not in str(log)


@pytest.mark.usefixtures("_soon_aware")
async def test_certificates_of_both_sides_are_replaced_under_load(
    fortress: Fortress, mount: Mounted
) -> None:
    cluster = fortress.cluster
    settings = secured(mount, "ca", "cert", "key")
    async with loaded(cluster.addresses, **settings) as load:
        async with load.running():
            await load.goes_on()
            for clients, servers in (
                (NEW_CLIENTS, SERVERS),
                (NEW_CLIENTS, NEW_SERVERS),
            ):
                before = connections(cluster, "default")
                mount.swap(ca=SERVERS.pem + NEW_SERVERS.pem, **shown(clients))
                await replaced(cluster, "default", before)
                fortress.show(servers)
                await load.goes_on()
        # Now the old ones are worth nothing, on either side.
        fortress.show(NEW_SERVERS, clients=NEW_CLIENTS.pem)
        before = connections(cluster, "default")
        mount.swap(ca=NEW_SERVERS.pem)
        async with load.running():
            await replaced(cluster, "default", before)
            await load.goes_on()


async def test_files_that_got_worse_are_not_taken_until_they_are_in_order_again(
    fortress: Fortress, mount: Mounted, log: list[Any]
) -> None:
    good = {"ca": SERVERS.pem, **shown(CLIENTS)}
    damages = [
        {"ca": (SERVERS.pem + NEW_SERVERS.pem)[:-40]},  # not all of it has been written yet
        {"key": shown(CLIENTS)["key"]},
        {"cert": ""},  # not there
    ]
    mount.swap(**good)
    settings = secured(mount, "ca", "cert", "key")
    async with loaded(fortress.cluster.addresses, **settings) as load:
        for files in damages:
            mount.swap(**files)
            await until(lambda: load.writer.in_order == load.reader.in_order == 0)
            # New connections are made with what was in order last.
            cut_all(fortress.cluster, "default")
            async with load.running():
                await load.goes_on(1)
            mount.swap(**good)
            await until(lambda: load.writer.in_order == load.reader.in_order == 1)
    # Once for each time and gateway.
    assert len(told(log, "kept the old content")) == 2 * len(damages)


def encrypted(private_key: str) -> str:
    loaded_key = serialization.load_pem_private_key(private_key.encode(), None)
    return secret(
        loaded_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        ).decode()
    )


OURS = shown(CLIENTS)
UNUSABLE: list[tuple[str, dict[str, str]]] = [
    (
        "cache.key_file {key}: is no private key in PEM form, or it is encrypted",
        {"key": encrypted(OURS["key"])},
    ),
    (
        "cache.key_file {key}: is not the key of cache.cert_file {cert}",
        {"key": shown(CLIENTS)["key"]},
    ),
    (
        "cache.key_file {key}: is no private key in PEM form, or it is encrypted",
        {"key": OURS["cert"]},
    ),
    ("cache.cert_file {cert}: is not made of certificates in PEM form", {"cert": OURS["key"]}),
    ("cache.ca_file {ca}: is not made of certificates in PEM form", {"ca": "nothing"}),
    ("cache.password_file {password}: holds no password", {"password": "\n"}),
    ("{ca}: No such file or directory", {"ca": ""}),
]


# With ids of our own, since contents are secrets.
@pytest.mark.parametrize(("said", "files"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_a_server_does_not_start_with_files_that_cannot_be_used(
    samserve: Command, tmp_path: Path, said: str, files: dict[str, str]
) -> None:
    arguments, paths = serve_with(tmp_path, files)
    ended = samserve(*arguments)

    assert ended.code == 1
    assert ended.err == f"samserve: error: {said.format(**paths)}\n"


def serve_with(folder: Path, files: dict[str, str]) -> tuple[list[str], dict[str, Path]]:
    mount = Mounted(folder / "files", **{"ca": SERVERS.pem, "password": PASSWORD, **OURS, **files})
    paths = {name: mount.path(name) for name in ("ca", "cert", "key", "password")}
    settings = {"nodes": f"{HOST}:1", "tls": "true"}
    settings.update({f"{name}_file": str(path) for name, path in paths.items()})
    given = [f"--set=cache.{name}={value}" for name, value in settings.items()]
    return ["serve", "--port=0", "--admin-port=0", *FAKE, *given], paths


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cert_file": "a", "tls": "true"}, "cache.key_file is missing"),
        ({"key_file": "a", "tls": "true"}, "cache.cert_file is missing"),
        ({"ca_file": "a"}, "cache.ca_file is for cache.tls=true only"),
        ({"cert_file": "a", "key_file": "b"}, "cache.cert_file is for cache.tls=true only"),
        ({"username": "a"}, "cache.username needs cache.password_file"),
        ({"nodes": " , "}, "cache.nodes: names no node"),
        ({"prefix": "sam serve"}, "cache.prefix: must match"),
        ({"prefix": ""}, "cache.prefix: must match"),
    ],
)
def test_settings_that_make_no_sense_are_told_in_one_line(
    samserve: Command, given: dict[str, str], said: str
) -> None:
    ended = samserve("config", *(f"--set=cache.{name}={value}" for name, value in given.items()))

    assert ended.code == 2
    assert ended.err.startswith("samserve: error: ")
    assert said in ended.err
    assert ended.err.count("\n") == 1
