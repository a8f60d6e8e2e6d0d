"""`samserve cache` with a server in a separate process and real clusters."""

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
from harness.cluster.tls import TlsProxies
from tests import sample_images
from tests.cli.conftest import FAKE, RUN, Command, Result, Served, imported, server_process, start
from tests.cluster.clusters import session_cluster
from tests.secret_leaks import secret, secret_file
from tests.support.certificates import Issuer
from tests.support.waiting import until_sync

IMAGES = 5


@pytest.fixture
def cluster() -> Cluster:
    """The empty cluster that tests must not disturb."""
    cluster = session_cluster()
    cluster.flush()
    return cluster


@pytest.fixture(scope="module")
def sharing_server() -> Iterator[Served]:
    with server_process(*nodes(session_cluster())) as server:
        yield server


@pytest.fixture
def sharing(cluster: Cluster, sharing_server: Served) -> Served:
    """A server with an empty shared tier; its local tier has images of other tests."""
    return sharing_server


@pytest.fixture(scope="module")
def alone() -> Iterator[Served]:
    """A server without a shared cache; its local tier has images of other tests."""
    with server_process() as server:
        yield server


# The local tiers of the servers have images of other tests.
SEEDS = itertools.count(step=IMAGES + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of this test only, a corrupt one, a text file, a hidden file and a pipe."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    seed = next(SEEDS)
    for number in range(IMAGES):
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        content = sample_images.encode(sample_images.noise(48, 64, seed + number), kind)
        (folder / f"{number}.{kind}").write_bytes(content)
    (folder / "broken.png").write_bytes(sample_images.png()[:60])
    (folder / "notes.txt").write_text("no image")
    (folder / "._0.png").write_text("left by another system")
    deeper = sample_images.noise(48, 64, seed + IMAGES)
    (folder / "deeper" / "more.jpg").write_bytes(sample_images.encode(deeper, "JPEG"))
    os.mkfifo(folder / "pipe.png")
    return folder


def nodes(cluster: Cluster, timeout_s: float = 20.0) -> tuple[str, ...]:
    """Settings of the shared tier, with timeouts that a busy machine does not exceed."""
    settings = {
        "nodes": ",".join(cluster.addresses), "timeout_s": timeout_s, "connect_timeout_s": timeout_s
    }  # fmt: skip
    return tuple(
        part
        for name, value in settings.items()
        for part in ("--set", f"cache.shared.{name}={value}")
    )


def counts_of(text: str) -> dict[str, int]:
    return {name: int(count) for name, _, count in (line.partition(": ") for line in lines(text))}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def records(text: str) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {Path(record["file"]).name: record for record in found}


def words(text: str) -> str:
    """The output without the padding of columns."""
    return " ".join(text.split())


HEADER = "entries bytes capacity hits misses hit ratio evictions"


def test_warming_a_folder_again_finds_its_embeddings_cached(
    samserve: Command, sharing: Served, cluster: Cluster, folder: Path
) -> None:
    first = samserve("cache", "warm", folder, "--server", sharing.address)
    again = samserve("cache", "warm", folder, "--server", sharing.address)

    assert (first.code, again.code) == (1, 1)
    assert counts_of(first.out) == {
        "files": 6,
        "new": 5,
        "already cached": 0,
        "shared": 5,
        "local": 0,
        "failed": 1,
        "skipped": 2,
    }
    assert counts_of(again.out) == counts_of(first.out) | {"new": 0, "already cached": 5}
    assert len(cluster.keys()) == IMAGES
    for result in (first, again):
        assert result.err.count("samserve: error: ") == 1
        assert f"error: {folder / 'broken.png'}: image.encoded: is corrupt" in result.err
        assert "embedding: 6 of 6\n" in result.err


def test_warm_writes_one_json_record_per_line(
    samserve: Command, alone: Served, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    warm = ("cache", "warm", folder, "--server", alone.address, "--recursive", "--json")

    to_file, to_stdout = samserve(*warm, file), samserve(*warm, "-")

    written, printed = records(file.read_text()), records(to_stdout.out)
    assert f"wrote {file}\n" in to_file.err
    assert len(to_stdout.out.splitlines()) == len(printed) == 7
    assert counts_of(to_file.out)["files"] == 7
    assert "already cached: 6\n" in to_stdout.err
    assert set(printed["more.jpg"]) == {
        *("file", "id", "cached", "stored", "error"),
        *("model", "image_size", "expires_at", "converted_from"),
    }
    assert (written["more.jpg"]["cached"], printed["more.jpg"]["cached"]) == (False, True)
    assert printed["more.jpg"]["stored"] == "local"
    assert len(printed["more.jpg"]["id"]) == 64
    assert printed["broken.png"]["id"] is None
    assert "IMAGE_UNREADABLE" in printed["broken.png"]["error"]


@pytest.mark.slow
def test_file_names_that_are_not_utf8_are_written_as_escapes(
    samserve: Command, alone: Served, tmp_path: Path
) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(sample_images.png())

    result = samserve("cache", "warm", folder, "--server", alone.address, "--json", "-")

    (record,) = (json.loads(line) for line in lines(result.out))
    assert result.code == 0
    assert os.fsencode(record["file"]).endswith(b"/\xff.png")


def test_rm_deletes_the_records_of_warm_from_standard_input(
    samserve: Command,
    sharing: Served,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ("--server", sharing.address)
    warmed = samserve("cache", "warm", folder, *server, "--json", "-").out
    ids = [record["id"] for record in records(warmed).values() if record["id"]]
    pipe = f"{warmed}\n{ids[0]}\n"

    def remove(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pipe.encode())))
        return samserve("cache", "rm", *arguments, *server)

    first, again = remove("-"), remove("-", "other")

    assert (first.code, first.err, again.code) == (0, "", 0)
    assert sorted(lines(first.out)) == sorted(f"{each}  deleted" for each in ids)
    assert sorted(lines(again.out)) == sorted(f"{each}  not found" for each in [*ids, "other"])
    counts = counts_of(samserve("cache", "warm", folder, *server).out)
    assert (counts["new"], counts["shared"]) == (5, 5)


@pytest.mark.slow
def test_rm_of_many_ids_shows_progress(samserve: Command, alone: Served) -> None:
    ids = [f"id-{number}" for number in range(25)]

    result = samserve("cache", "rm", *ids, "--server", alone.address)

    assert result.code == 0
    assert len(lines(result.out)) == 25
    assert "deleting: 25 of 25\n" in result.err


@pytest.mark.slow
def test_rm_fails_if_the_shared_tier_is_unavailable(samserve: Command, folder: Path) -> None:
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
    assert removed.err.count("CACHE_UNAVAILABLE") == IMAGES
    assert (durable.code, counts_of(durable.out)["failed"]) == (1, 6)
    assert counts_of(plain.out) == counts_of(durable.out) | {
        "failed": 1,
        "local": 5,
        "already cached": 5,
    }


@pytest.mark.slow
def test_warm_without_waiting_returns_before_images_are_encoded(
    samserve: Command, alone: Served, folder: Path
) -> None:
    warm = ("cache", "warm", folder, "--server", alone.address, "--no-wait")

    started = counts_of(samserve(*warm).out)
    until_sync(lambda: counts_of(samserve(*warm).out)["already cached"] == IMAGES)

    # The corrupt image fails later, which is not reported.
    assert started["new"] == started["pending"] == IMAGES + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "burst"), [(48, 1), (320, 2)], ids=["one request", "lookup first"]
)
def test_warm_retries_after_the_delay_that_the_server_returns(
    samserve: Command, tmp_path: Path, side: int, burst: int
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):  # concurrently, which exceeds the burst
        (folder / f"{number}.png").write_bytes(sample_images.png(side, side, number))
    policy = tmp_path / "policy.toml"
    policy.write_text(f"version = 1\n[server]\nrequests_per_s = 4\nburst = {burst}\n")
    with server_process("--set", f"auth.policy_file={policy}") as server:
        result = samserve("cache", "warm", folder, "--server", server.address)

    assert result.code == 0
    assert counts_of(result.out)["new"] == 3
    assert result.err.count("retrying after the delay that the server returned: ") == 1
    assert "QUOTA_EXCEEDED" in result.err


@pytest.mark.slow
def test_warm_aborts_if_the_model_is_not_served(
    samserve: Command, alone: Served, folder: Path
) -> None:
    result = samserve(
        *("cache", "warm", folder, "--server", alone.address),
        *("--model", "nope", "--concurrency", "1"),
    )

    assert result.code == 1
    assert counts_of(result.out)["not attempted"] == 6
    assert result.error.startswith("no model 'nope' is served; served models: fake")


@pytest.mark.slow
def test_a_progress_bar_on_the_terminal_does_not_change_standard_output(
    alone: Served, folder: Path
) -> None:
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


def test_stats_show_the_server_and_the_durability_of_the_shared_tier(
    samserve: Command, cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    with server_process(*nodes(cluster)) as server:
        for _ in range(2):
            samserve("cache", "warm", folder, "--server", server.address)

        result = samserve("cache", "stats", *server.admin, *nodes(cluster), "--json", file)
        replica_level = (
            *nodes(cluster),
            "--set",
            "cache.shared.durability_level=replica",
            "--json",
            "-",
        )
        printed = samserve("cache", "stats", *server.admin, *replica_level).out

    stats = json.loads(file.read_text())
    assert (result.code, result.err) == (0, f"wrote {file}\n")
    local = stats["gateway"]["local"]
    counts = f"{local['hits']} {local['misses']} {local['hit_ratio']:.1%} 0"
    assert f"{HEADER} 5 10.0 MiB 512.0 MiB {counts}" in words(result.out)
    assert "writes stored 5" in words(result.out)
    assert lines(result.out)[-1] == "shared cache: Embeds can be durable"
    assert stats["gateway"]["error"] is None
    assert local["entries"] == 5
    assert stats["gateway"]["shared"]["writes"] == {"stored": 5}
    assert {node["address"] for node in stats["cluster"]["nodes"]} == set(cluster.addresses)
    assert all(node["reachable"] for node in stats["cluster"]["nodes"])
    assert stats["cluster"]["durable"] == "Embeds can be durable"
    assert "durable by replicas alone" in json.loads(printed)["cluster"]["durable"]
    # The value that the check writes expires after a second.
    until_sync(lambda: len(cluster.keys()) == IMAGES)


def test_doctor_checks_the_nodes(samserve: Command, cluster: Cluster) -> None:
    free = ("--set", "server.port=0", "--set", "server.admin_port=0")
    with Ports() as ports:
        (port,) = ports.reserve(1)
        unreachable = samserve("doctor", *FAKE, *free, "--set", f"cache.shared.nodes={HOST}:{port}")
    result = samserve("doctor", *FAKE, *free, *nodes(cluster))

    assert result.code == 0
    assert "ok       shared cache: 6 nodes respond; Embeds can be durable" in result.out
    assert unreachable.code == 1
    assert "problem  shared cache: 1 of 1 nodes unreachable: " in unreachable.out


@pytest.mark.slow
def test_stats_report_stopped_and_hanging_nodes_within_the_timeout(
    samserve: Command, folder: Path
) -> None:
    with (
        Cluster(masters=3, replicas=0) as cluster,
        # Longer than the healthy node needs to respond on a busy machine.
        server_process(*(settings := nodes(cluster, timeout_s=1.0))) as server,
    ):
        samserve("cache", "warm", folder, "--server", server.address)
        hanging, stopped, healthy = cluster.nodes
        hanging.stop_process()
        stopped.kill()
        # The command would not end if it waited for the hanging node.
        result = samserve("cache", "stats", *server.admin, *settings)
        record = json.loads(samserve("cache", "stats", *settings, "--json", "-").out)

        def circuit_open() -> bool:
            samserve("cache", "warm", folder, "--server", server.address)
            return "unavailable nodes" in samserve("cache", "stats", *server.admin).out

        until_sync(circuit_open)
        hanging.resume()

    reachable = {each["address"]: each["reachable"] for each in record["cluster"]["nodes"]}
    assert result.code == 1
    assert result.error.startswith("2 of 3 nodes unreachable: ")
    assert f"{hanging.announced} (no response in time)" in result.error
    assert f"{stopped.announced} (ConnectionError: " in result.error
    assert [node for node, responds in reachable.items() if responds] == [healthy.announced]
    assert "shared cache: durable Embeds are rejected: " in result.out


@pytest.mark.slow
def test_stats_report_that_no_shared_cache_is_configured(samserve: Command) -> None:
    with server_process() as server:
        result = samserve("cache", "stats", *server.admin)
        record = json.loads(samserve("cache", "stats", *server.admin, "--json", "-").out)

    assert (result.code, result.err) == (0, "")
    assert f"{HEADER} 0 0.0 MiB 512.0 MiB 0 0 - 0" in words(result.out)
    assert "has not used a shared cache" in result.out
    assert "shared cache: not configured (cache.shared.nodes is empty)" in result.out
    assert record["cluster"] is None


@pytest.mark.slow
def test_stats_without_a_server_still_show_the_nodes(
    samserve: Command, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The request must not go to a proxy of the environment.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (port,) = cluster.addresses[0].rpartition(":")[2:]
    alias = (*nodes(cluster), "--set", f"cache.shared.nodes=localhost:{port}")

    result = samserve("cache", "stats", "--set", "server.admin_port=1", *alias, "--json", "-")

    assert result.code == 1
    assert result.error == (
        "no server at http://127.0.0.1:1/metrics: [Errno 111] Connection refused"
    )
    assert {node["address"] for node in json.loads(result.out)["cluster"]["nodes"]} == {
        *cluster.addresses
    }


@pytest.mark.parametrize(
    ("limit", "value", "text"),
    [("_TIMEOUT_S", 0.1, "timed out"), ("_MAX_BYTES", 100, "is too large for metrics")],
)
def test_stats_abort_reading_an_endless_metrics_page(
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
        result = samserve(
            "cache", "stats", "--set", f"server.admin_port={listener.getsockname()[1]}"
        )
        thread.join()

    assert text in result.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("response", "text"),
    [
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "responded with 404 Not Found"),
        (b"HTTP/1.0 200 OK\r\n\r\nup 1\n", "contains no cache metrics"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>\n", "http://127.0.0.1"),
        (b"hello\r\n", "no server at http://127.0.0.1"),
        (b"", "timed out"),
    ],
    ids=["404", "another service", "html", "no http", "no response"],
)
def test_stats_report_another_service_in_one_line(
    samserve: Command, monkeypatch: pytest.MonkeyPatch, response: bytes, text: str
) -> None:
    # Only a missing response must reach the timeout.
    monkeypatch.setattr("samserve.cli.cache.gateway._TIMEOUT_S", 60.0 if response else 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def respond() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(response)
                if not response:
                    done.wait(60)

        thread = threading.Thread(target=respond)
        thread.start()
        port = listener.getsockname()[1]
        result = samserve("cache", "stats", "--set", f"server.admin_port={port}")
        done.set()
        thread.join()

    assert result.code == 1
    assert text in result.error


@pytest.mark.slow
def test_stats_use_the_credentials_of_the_server_and_print_no_secret(
    samserve: Command, tmp_path: Path
) -> None:
    issuer, password = Issuer(), secret(secrets.token_hex(16))
    files = {name: tmp_path / name for name in ("ca", "cert", "key", "password", "wrong")}
    chain, key = issuer.issue(HOST)
    contents = (issuer.pem, chain, key, password, secret(secrets.token_hex(16)))
    for path, content in zip(files.values(), contents, strict=True):
        secret_file(path).write_text(content)
    tls = ("--set", "cache.shared.tls=true", "--set", f"cache.shared.ca_file={files['ca']}")
    user = ("--set", "cache.shared.username=gateway", "--set")
    free = ("--set", "server.admin_port=0")
    with (
        TlsProxies(files["cert"], files["key"]) as proxies,
        Cluster(
            masters=3,
            replicas=0,
            user="gateway",
            password=password,
            rules="~* &* +@all -info -config",
            announce=proxies.announce,
        ) as cluster,
    ):
        # In separate processes, which do not wait for the shutdown of TLS connections.
        processes = [
            start(
                *("cache", "stats", *nodes(cluster), *user),
                *(f"cache.shared.password_file={files[name]}", *flags, *free),
            )
            for name, flags in (("password", tls), ("wrong", tls), ("password", ()))
        ]
        right, wrong, plaintext = map(result_of, processes)
        missing = samserve(
            "cache", "stats", *nodes(cluster), *user, "cache.shared.password_file=no"
        )
        for node in cluster.nodes:
            node.command("ACL", "SETUSER", "gateway", "-cluster|slots")
        password_of = f"cache.shared.password_file={files['password']}"
        no_topology = result_of(
            start("cache", "stats", *nodes(cluster), *user, password_of, *tls, *free)
        )

    assert right.error.startswith("server.admin_port is 0")
    assert "shared cache: durable Embeds are rejected: no replica" in right.out
    for rejected in (wrong, plaintext):
        assert rejected.code == 1
        assert "3 of 3 nodes unreachable" in rejected.err
    assert "AuthenticationError" in wrong.err
    assert "cluster topology unavailable: User gateway has no permissions" in no_topology.err
    assert (missing.code, missing.error) == (2, "no: No such file or directory")


def result_of(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


@pytest.mark.slow
def test_cache_commands_import_no_engine(alone: Served, folder: Path) -> None:
    server = ["--server", alone.address]
    commands = [["warm", str(folder), *server], ["rm", "id", *server], ["stats", *alone.admin]]

    found, out = imported(
        [["cache", *each] for each in commands], {"torch", "onnxruntime", "tritonclient"}
    )

    assert found == set()
    assert "id  not found" in out
