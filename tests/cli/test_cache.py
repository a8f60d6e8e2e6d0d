"""`samserve cache`: with a server in a process of its own, and real clusters."""

from __future__ import annotations

import io
import itertools
import json
import os
import pty
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.cluster.cluster import Cluster
from harness.cluster.node import HOST
from harness.cluster.ports import Ports
from harness.cluster.tls import TlsFronts
from tests import pictures
from tests.cli.conftest import FAKE, RUN, Command, Ended, Served, imported, server_process, start
from tests.cluster.clusters import quiet
from tests.secrecy import secret, secret_file
from tests.support.certificates import Issuer
from tests.support.waiting import until_sync

PICTURES = 5


@pytest.fixture
def cluster() -> Cluster:
    """The cluster that no test may harm, empty."""
    cluster = quiet()
    cluster.flush()
    return cluster


@pytest.fixture(scope="module")
def sharing_server() -> Iterator[Served]:
    with server_process(*nodes(quiet())) as server:
        yield server


@pytest.fixture
def sharing(cluster: Cluster, sharing_server: Served) -> Served:
    """A server with an empty shared cache; in its memory are images of other tests."""
    return sharing_server


@pytest.fixture(scope="module")
def alone() -> Iterator[Served]:
    """A server without a shared cache; in its memory are images of other tests."""
    with server_process() as server:
        yield server


# Images of other tests are in the memory of the servers.
SEEDS = itertools.count(step=PICTURES + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of this test alone, a broken one, a text, and what is no file or hidden."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    seed = next(SEEDS)
    for number in range(PICTURES):
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        content = pictures.file_of(pictures.noise(48, 64, seed + number), kind)
        (folder / f"{number}.{kind}").write_bytes(content)
    (folder / "broken.png").write_bytes(pictures.png()[:60])
    (folder / "notes.txt").write_text("no picture")
    (folder / "._0.png").write_text("left by another system")
    deeper = pictures.noise(48, 64, seed + PICTURES)
    (folder / "deeper" / "more.jpg").write_bytes(pictures.file_of(deeper, "JPEG"))
    os.mkfifo(folder / "pipe.png")
    return folder


def nodes(cluster: Cluster, timeout_s: float = 20.0) -> tuple[str, ...]:
    """Settings; the machine may be busy, which is no outage."""
    settings = {
        "nodes": ",".join(cluster.addresses), "timeout_s": timeout_s, "connect_s": timeout_s
    }  # fmt: skip
    return tuple(
        part for name, value in settings.items() for part in ("--set", f"cache.{name}={value}")
    )


def told(text: str) -> dict[str, int]:
    return {name: int(count) for name, _, count in (line.partition(": ") for line in lines(text))}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def records(text: str) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {Path(record["file"]).name: record for record in found}


def words(text: str) -> str:
    """What is printed, without the widths of columns."""
    return " ".join(text.split())


HEADER = "entries bytes capacity hits misses hit ratio evictions"


def test_a_folder_is_warmed_once_and_stays_warm(
    samserve: Command, sharing: Served, cluster: Cluster, folder: Path
) -> None:
    first = samserve("cache", "warm", folder, "--server", sharing.address)
    again = samserve("cache", "warm", folder, "--server", sharing.address)

    assert (first.code, again.code) == (1, 1)
    assert told(first.out) == {
        "files": 6,
        "new": 5,
        "already there": 0,
        "shared": 5,
        "local": 0,
        "failed": 1,
        "passed over": 2,
    }
    assert told(again.out) == told(first.out) | {"new": 0, "already there": 5}
    assert len(cluster.keys()) == PICTURES
    for ended in (first, again):
        assert ended.err.count("samserve: error: ") == 1
        assert f"error: {folder / 'broken.png'}: image.encoded: is damaged" in ended.err
        assert "embedding: 6 of 6\n" in ended.err


def test_records_are_lines_of_json(
    samserve: Command, alone: Served, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    warm = ("cache", "warm", folder, "--server", alone.address, "--recursive", "--json")

    to_file, to_stdout = samserve(*warm, file), samserve(*warm, "-")

    written, printed = records(file.read_text()), records(to_stdout.out)
    assert f"wrote {file}\n" in to_file.err
    assert len(to_stdout.out.splitlines()) == len(printed) == 7
    assert told(to_file.out)["files"] == 7
    assert "already there: 6\n" in to_stdout.err
    assert set(printed["more.jpg"]) == {"file", "id", "cached", "stored", "error"}
    assert (written["more.jpg"]["cached"], printed["more.jpg"]["cached"]) == (False, True)
    assert printed["more.jpg"]["stored"] == "local"
    assert len(printed["more.jpg"]["id"]) == 64
    assert printed["broken.png"]["id"] is None
    assert "IMAGE_UNREADABLE" in printed["broken.png"]["error"]


@pytest.mark.slow
def test_names_that_are_no_text_are_written_as_escapes(
    samserve: Command, alone: Served, tmp_path: Path
) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(pictures.png())

    ended = samserve("cache", "warm", folder, "--server", alone.address, "--json", "-")

    (record,) = (json.loads(line) for line in lines(ended.out))
    assert ended.code == 0
    assert os.fsencode(record["file"]).endswith(b"/\xff.png")


def test_what_was_warmed_is_removed_by_a_pipe(
    samserve: Command,
    sharing: Served,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ("--server", sharing.address)
    warmed = samserve("cache", "warm", folder, *server, "--json", "-").out
    ids = [record["id"] for record in records(warmed).values() if record["id"]]
    pipe = f"{warmed}\n{ids[0]}\n"

    def typed(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pipe.encode())))
        return samserve("cache", "rm", *arguments, *server)

    first, again = typed("-"), typed("-", "other")

    assert (first.code, first.err, again.code) == (0, "", 0)
    assert sorted(lines(first.out)) == sorted(f"{each}  deleted" for each in ids)
    assert sorted(lines(again.out)) == sorted(f"{each}  not there" for each in [*ids, "other"])
    counts = told(samserve("cache", "warm", folder, *server).out)
    assert (counts["new"], counts["shared"]) == (5, 5)


@pytest.mark.slow
def test_many_are_removed_with_progress(samserve: Command, alone: Served) -> None:
    ids = [f"id-{number}" for number in range(25)]

    ended = samserve("cache", "rm", *ids, "--server", alone.address)

    assert ended.code == 0
    assert len(lines(ended.out)) == 25
    assert "deleting: 25 of 25\n" in ended.err


@pytest.mark.slow
def test_what_cannot_be_deleted_everywhere_is_a_failure(samserve: Command, folder: Path) -> None:
    with Cluster(masters=3, replicas=0) as cluster, server_process(*nodes(cluster)) as server:
        warm = ("cache", "warm", folder, "--server", server.address)
        found = records(samserve(*warm, "--json", "-").out)
        cluster.kill()
        ids = [record["id"] for record in found.values() if record["id"]]
        removed = samserve("cache", "rm", *ids, "--server", server.address)
        durable = samserve(*warm, "--durable")
        plain = samserve(*warm)

    assert removed.code == 1
    assert removed.out == ""
    assert removed.err.count("STORE_UNAVAILABLE") == PICTURES
    assert (durable.code, told(durable.out)["failed"]) == (1, 6)
    assert told(plain.out) == told(durable.out) | {"failed": 1, "local": 5, "already there": 5}


@pytest.mark.slow
def test_nobody_waits_for_what_is_only_begun(
    samserve: Command, alone: Served, folder: Path
) -> None:
    warm = ("cache", "warm", folder, "--server", alone.address, "--no-wait")

    begun = told(samserve(*warm).out)
    until_sync(lambda: told(samserve(*warm).out)["already there"] == PICTURES)

    # That one is damaged is found out later, and told to nobody.
    assert begun["new"] == begun["pending"] == PICTURES + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "burst"), [(48, 1), (320, 2)], ids=["sent at once", "asked for first"]
)
def test_a_server_that_asks_to_wait_is_waited_for(
    samserve: Command, tmp_path: Path, side: int, burst: int
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):  # at once, and so more than the burst
        (folder / f"{number}.png").write_bytes(pictures.png(side, side, number))
    policy = tmp_path / "policy.toml"
    policy.write_text(f"version = 1\n[server]\nrequests_per_s = 4\nburst = {burst}\n")
    with server_process("--set", f"auth.policy_file={policy}") as server:
        ended = samserve("cache", "warm", folder, "--server", server.address)

    assert ended.code == 0
    assert told(ended.out)["new"] == 3
    assert ended.err.count("waiting as the server asks: ") == 1
    assert "QUOTA_EXCEEDED" in ended.err


@pytest.mark.slow
def test_a_model_that_is_not_served_ends_it_at_once(
    samserve: Command, alone: Served, folder: Path
) -> None:
    ended = samserve(
        *("cache", "warm", folder, "--server", alone.address),
        *("--model", "nope", "--concurrency", "1"),
    )

    assert ended.code == 1
    assert told(ended.out)["not tried"] == 6
    assert ended.error.startswith("no model 'nope' is served; there are: fake")


@pytest.mark.slow
def test_a_bar_on_the_terminal_leaves_standard_output_alone(alone: Served, folder: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ("cache", "warm", str(folder), "--server", alone.address, "--json", "-")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    shown = bytearray()

    def watch() -> None:
        while chunk := _read(ours):
            shown.extend(chunk)

    watching = threading.Thread(target=watch)
    watching.start()
    out, _ = process.communicate(timeout=60)
    watching.join()
    os.close(ours)

    assert len(records(out)) == len(out.splitlines()) == 6
    assert b"6/6" in shown
    assert b'"file"' not in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


def test_stats_show_the_server_and_whether_embeddings_can_be_durable(
    samserve: Command, cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    with server_process(*nodes(cluster)) as server:
        for _ in range(2):
            samserve("cache", "warm", folder, "--server", server.address)

        ended = samserve("cache", "stats", *server.admin, *nodes(cluster), "--json", file)
        trusting = (*nodes(cluster), "--set", "cache.durable_needs=replica", "--json", "-")
        printed = samserve("cache", "stats", *server.admin, *trusting).out

    stats = json.loads(file.read_text())
    assert (ended.code, ended.err) == (0, f"wrote {file}\n")
    memory = stats["gateway"]["memory"]
    counts = f"{memory['hits']} {memory['misses']} {memory['hit_ratio']:.1%} 0"
    assert f"{HEADER} 5 10.0 MiB 512.0 MiB {counts}" in words(ended.out)
    assert "writes stored 5" in words(ended.out)
    assert lines(ended.out)[-1] == "shared cache: Embeds can be durable"
    assert stats["gateway"]["error"] is None
    assert memory["entries"] == 5
    assert stats["gateway"]["shared"]["writes"] == {"stored": 5}
    assert {node["address"] for node in stats["cluster"]["nodes"]} == set(cluster.addresses)
    assert all(node["reachable"] for node in stats["cluster"]["nodes"])
    assert stats["cluster"]["durable"] == "Embeds can be durable"
    assert "what replicas confirm counts" in json.loads(printed)["cluster"]["durable"]
    # What is written to try it lasts no longer than a second.
    until_sync(lambda: len(cluster.keys()) == PICTURES)


def test_doctor_asks_the_nodes(samserve: Command, cluster: Cluster) -> None:
    free = ("--set", "server.port=0", "--set", "server.admin_port=0")
    with Ports() as held:
        (port,) = held.take(1)
        away = samserve("doctor", *FAKE, *free, "--set", f"cache.nodes={HOST}:{port}")
    ended = samserve("doctor", *FAKE, *free, *nodes(cluster))

    assert ended.code == 0
    assert "ok       shared cache: 6 nodes answer; Embeds can be durable" in ended.out
    assert away.code == 1
    assert "problem  shared cache: 1 of 1 nodes does not answer" in away.out


@pytest.mark.slow
def test_stats_name_dead_and_hanging_nodes_in_time(samserve: Command, folder: Path) -> None:
    with (
        Cluster(masters=3, replicas=0) as cluster,
        # Longer than a busy machine keeps the good node from its answer.
        server_process(*(settings := nodes(cluster, timeout_s=1.0))) as server,
    ):
        samserve("cache", "warm", folder, "--server", server.address)
        hanging, dead, good = cluster.nodes
        hanging.stop_process()
        dead.kill()
        # That this ends shows that the one that hangs is not waited for.
        ended = samserve("cache", "stats", *server.admin, *settings)
        record = json.loads(samserve("cache", "stats", *settings, "--json", "-").out)

        def left_alone() -> bool:
            samserve("cache", "warm", folder, "--server", server.address)
            return "leaves alone" in samserve("cache", "stats", *server.admin).out

        until_sync(left_alone)
        hanging.resume()

    reachable = {each["address"]: each["reachable"] for each in record["cluster"]["nodes"]}
    assert ended.code == 1
    assert ended.error.startswith("2 of 3 nodes do not answer: ")
    assert f"{hanging.announced} (no answer in time)" in ended.error
    assert f"{dead.announced} (ConnectionError: " in ended.error
    assert [node for node, answers in reachable.items() if answers] == [good.announced]
    assert "shared cache: durable Embeds are refused: " in ended.out


@pytest.mark.slow
def test_stats_without_a_shared_cache_say_so(samserve: Command) -> None:
    with server_process() as server:
        ended = samserve("cache", "stats", *server.admin)
        record = json.loads(samserve("cache", "stats", *server.admin, "--json", "-").out)

    assert (ended.code, ended.err) == (0, "")
    assert f"{HEADER} 0 0.0 MiB 512.0 MiB 0 0 - 0" in words(ended.out)
    assert "has asked nothing of a shared cache" in ended.out
    assert "shared cache: not configured (cache.nodes is empty)" in ended.out
    assert record["cluster"] is None


@pytest.mark.slow
def test_stats_without_a_server_still_show_the_nodes(
    samserve: Command, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever has a proxy set must not be sent there.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (port,) = cluster.addresses[0].rpartition(":")[2:]
    alias = (*nodes(cluster), "--set", f"cache.nodes=localhost:{port}")

    ended = samserve("cache", "stats", "--set", "server.admin_port=1", *alias, "--json", "-")

    assert ended.code == 1
    assert ended.error == (
        "no server at http://127.0.0.1:1/metrics: [Errno 111] Connection refused"
    )
    assert {node["address"] for node in json.loads(ended.out)["cluster"]["nodes"]} == {
        *cluster.addresses
    }


@pytest.mark.parametrize(
    ("limit", "value", "text"),
    [("_TIMEOUT_S", 0.1, "timed out"), ("_MOST_BYTES", 100, "is too long for metrics")],
)
def test_a_page_without_end_is_given_up(
    samserve: Command, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, text: str
) -> None:
    monkeypatch.setattr(f"samserve.cli.cache.gateway.{limit}", value)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def respond() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                while True:
                    connection.sendall(b"#\n")

        thread = threading.Thread(target=respond)
        thread.start()
        ended = samserve(
            "cache", "stats", "--set", f"server.admin_port={listener.getsockname()[1]}"
        )
        thread.join()

    assert text in ended.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "is answered with 404 Not Found"),
        (b"HTTP/1.0 200 OK\r\n\r\nup 1\n", "has no metrics of a store"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>\n", "http://127.0.0.1"),
        (b"hello\r\n", "no server at http://127.0.0.1"),
        (b"", "timed out"),
    ],
    ids=["404", "another", "html", "no http", "silent"],
)
def test_what_is_no_server_of_ours_is_told_in_one_line(
    samserve: Command, monkeypatch: pytest.MonkeyPatch, answer: bytes, text: str
) -> None:
    # Only silence is waited out.
    monkeypatch.setattr("samserve.cli.cache.gateway._TIMEOUT_S", 60.0 if answer else 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def respond() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)
                if not answer:
                    done.wait(60)

        thread = threading.Thread(target=respond)
        thread.start()
        port = listener.getsockname()[1]
        ended = samserve("cache", "stats", "--set", f"server.admin_port={port}")
        done.set()
        thread.join()

    assert ended.code == 1
    assert text in ended.error


@pytest.mark.slow
def test_stats_connect_as_the_server_does_and_tell_no_secret(
    samserve: Command, tmp_path: Path
) -> None:
    issuer, password = Issuer(), secret(secrets.token_hex(16))
    files = {name: tmp_path / name for name in ("ca", "cert", "key", "password", "wrong")}
    chain, key = issuer.issue(HOST)
    contents = (issuer.pem, chain, key, password, secret(secrets.token_hex(16)))
    for path, content in zip(files.values(), contents, strict=True):
        secret_file(path).write_text(content)
    tls = ("--set", "cache.tls=true", "--set", f"cache.ca_file={files['ca']}")
    user = ("--set", "cache.username=gateway", "--set")
    free = ("--set", "server.admin_port=0")
    with (
        TlsFronts(files["cert"], files["key"]) as fronts,
        Cluster(
            masters=3,
            replicas=0,
            user="gateway",
            password=password,
            rules="~* &* +@all -info -config",
            announce=fronts.announce,
        ) as cluster,
    ):
        # In processes of their own, which do not wait for TLS connections to say goodbye.
        asking = [
            start(
                *("cache", "stats", *nodes(cluster), *user),
                *(f"cache.password_file={files[name]}", *flags, *free),
            )
            for name, flags in (("password", tls), ("wrong", tls), ("password", ()))
        ]
        right, wrong, clear = map(ended, asking)
        missing = samserve("cache", "stats", *nodes(cluster), *user, "cache.password_file=no")
        for node in cluster.nodes:
            node.command("ACL", "SETUSER", "gateway", "-cluster|slots")
        password_of = f"cache.password_file={files['password']}"
        no_map = ended(start("cache", "stats", *nodes(cluster), *user, password_of, *tls, *free))

    assert right.error.startswith("server.admin_port is 0")
    assert "shared cache: durable Embeds are refused: no replica" in right.out
    for refused in (wrong, clear):
        assert refused.code == 1
        assert "3 of 3 nodes do not answer" in refused.err
    assert "AuthenticationError" in wrong.err
    assert "no node tells who owns which keys: User gateway has no permissions" in no_map.err
    assert (missing.code, missing.error) == (2, "no: No such file or directory")


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)


@pytest.mark.slow
def test_the_commands_load_no_runtime(alone: Served, folder: Path) -> None:
    server = ["--server", alone.address]
    commands = [["warm", str(folder), *server], ["rm", "id", *server], ["stats", *alone.admin]]

    found, out = imported(
        [["cache", *each] for each in commands], {"torch", "onnxruntime", "tritonclient"}
    )

    assert found == set()
    assert "id  not there" in out
