"""Downloads from a real server on this machine, with interruptions, wrong sizes and redirects."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest
import requests
import samserve
from samserve.export import download as module
from samserve.export.download import (
    check_url,
    checksum_of,
    download,
    file_name,
    parse_checksum,
    shown,
)
from samserve.export.errors import ExportError

from tests.export.loopback import Loopback, Reply, file, full, loopback, redirect
from tests.support.certificates import Issuer
from tests.support.waiting import TIMEOUT_S

CONTENT = bytes(range(256)) * 4096
HALF = len(CONTENT) // 2
OTHER = bytes(reversed(CONTENT))
RIGHT = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
WRONG = f"sha256:{'0' * 64}"
PATH = "/some/sam.pth?token=secret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with loopback() as running:
        yield running


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit downloads to one attempt: pooch waits for seconds between attempts."""
    monkeypatch.setattr(module, "RETRIES", 0)


class Pull:
    """Downloads into one folder, and records the progress."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress: list[tuple[int, int | None]] = []

    def __call__(self, url: str, checksum: str | None = RIGHT, **bound: int) -> bytes:
        def report(done: int, total: int | None) -> None:
            self.progress.append((done, total))

        path = download(url, self.folder, checksum, report, **bound)
        assert path == self.folder / "sam.pth"
        return path.read_bytes()

    def fails(self, url: str, checksum: str | None = RIGHT, **bound: int) -> str:
        with pytest.raises(ExportError) as error:
            self(url, checksum, **bound)
        assert str(error.value).isprintable()
        assert "secret" not in str(error.value)
        return str(error.value)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != ".lock")


@pytest.fixture
def pull(tmp_path: Path) -> Pull:
    return Pull(tmp_path / "models")


def test_a_file_is_downloaded_completely(server: Loopback, pull: Pull) -> None:
    url = server.on(PATH, file(CONTENT))

    assert pull(url) == CONTENT

    assert pull.files == ["sam.pth"]
    assert pull.progress[0] == (0, len(CONTENT))
    assert pull.progress[-1] == (len(CONTENT), len(CONTENT))
    assert pull.progress == sorted(pull.progress)
    headers = server.requests[0].headers
    assert headers["User-Agent"] == f"samserve/{samserve.__version__}"
    assert (headers["Accept-Encoding"], headers["Range"]) == ("identity", None)


def test_an_existing_file_is_not_downloaded_again(server: Loopback, pull: Pull) -> None:
    url = server.on(PATH, file(CONTENT))
    pull(url)

    assert [pull(url, checksum) for checksum in (None, RIGHT)] == [CONTENT] * 2
    assert f"expected {WRONG}, found {RIGHT}; delete it" in pull.fails(url, WRONG)

    assert len(server.requests) == 1
    assert pull.files == ["sam.pth"]


def test_a_wrong_checksum_is_reported_and_the_file_deleted(server: Loopback, pull: Pull) -> None:
    error = pull.fails(server.on(PATH, file(CONTENT)), WRONG)

    assert f"expected {WRONG}, found {RIGHT}; the file is deleted" in error
    assert (pull.files, len(server.requests)) == ([], 1)


def test_the_git_checksum_equals_that_of_git(server: Loopback, pull: Pull, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    command = ["git", "hash-object", "--no-filters", tmp_path / "content"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert checksum_of(tmp_path / "content", "git-blob-sha1") == f"git-blob-sha1:{found}"
    assert pull(server.on(PATH, file(CONTENT)), f"git-blob-sha1:{found}") == CONTENT
    assert f"found git-blob-sha1:{found}" in pull.fails(
        server.address + PATH, f"git-blob-sha1:{'0' * 40}"
    )


def test_checksums_are_parsed() -> None:
    wrong = [
        *("", "ab", "0" * 40, "0" * 63, "0" * 65, "g" * 64, "\u0660" * 64, "0" * 64 + "\n"),
        *("sha256:" + "0" * 40, "git-blob-sha1:" + "0" * 64, "sha1:" + "0" * 40, ":" + "0" * 64),
    ]

    for text in wrong:
        with pytest.raises(ExportError, match="64 hexadecimal digits"):
            parse_checksum(text)
    assert parse_checksum("AB" * 32) == f"sha256:{'ab' * 32}"


def test_a_cut_transfer_is_resumed_by_the_next_attempt(server: Loopback, pull: Pull) -> None:
    url = server.on(PATH, file(CONTENT, cut=HALF), file(CONTENT))

    assert pull(url) == CONTENT

    assert server.ranges == [None, f"bytes={HALF}-"]
    assert (HALF, len(CONTENT)) in pull.progress
    assert pull.progress == sorted(pull.progress)


@pytest.mark.usefixtures("once")
def test_a_cut_transfer_is_resumed_by_the_next_call(server: Loopback, pull: Pull) -> None:
    url = server.on(PATH, file(CONTENT, cut=HALF), Reply(503, b"busy"), file(CONTENT))

    cut, busy = pull.fails(url), pull.fails(url)
    remaining = pull.files

    assert cut.startswith(f"{server.address}/some/sam.pth: {HALF} of {len(CONTENT)} bytes received")
    assert cut.endswith("run the command again to resume")
    assert "the server responded with 503 Service Unavailable" in busy
    assert remaining == ["sam.pth.part"]
    assert pull(url) == CONTENT
    assert server.ranges[1:] == [f"bytes={HALF}-"] * 2
    assert pull.files == ["sam.pth"]


@pytest.mark.usefixtures("once")
def test_without_a_checksum_nothing_is_resumed(server: Loopback, pull: Pull) -> None:
    """The file may have changed, which would remain undetected."""
    url = server.on(PATH, file(CONTENT, cut=HALF), file(OTHER))

    assert pull.fails(url, None).endswith("run the command again to start over")
    assert pull(url, None) == OTHER
    assert server.ranges == [None, None]


def test_a_download_is_resumed_after_ctrl_c(server: Loopback, pull: Pull) -> None:
    url = server.on(PATH, file(CONTENT))

    def interrupt(done: int, _: int | None) -> None:
        if done > HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(url, pull.folder, RIGHT, interrupt)
    remaining = pull.files

    assert remaining == ["sam.pth.part"]
    assert pull(url) == CONTENT
    assert HALF < int((server.ranges[1] or "").strip("bytes=-")) < len(CONTENT)


@pytest.mark.parametrize("reply", [full(CONTENT), Reply(416)], ids=["full", "invalid range"])
def test_a_server_without_ranges_sends_the_whole_file(
    server: Loopback, pull: Pull, reply: Reply
) -> None:
    url = server.on(PATH, reply, file(CONTENT))
    pull.folder.mkdir()
    (pull.folder / "sam.pth.part").write_bytes(OTHER[:HALF])

    assert pull(url) == CONTENT
    assert server.ranges[0] == f"bytes={HALF}-"


def test_a_file_combined_from_two_versions_is_rejected(server: Loopback, pull: Pull) -> None:
    url = server.on(PATH, file(CONTENT))
    pull.folder.mkdir()
    (pull.folder / "sam.pth.part").write_bytes(OTHER[:HALF])

    assert RIGHT in pull.fails(url)
    assert pull.files == []
    assert pull(url) == CONTENT


@pytest.mark.parametrize("status", [400, 403, 404, 410, 206, 204])
def test_client_errors_are_not_retried(server: Loopback, pull: Pull, status: int) -> None:
    server.on("/elsewhere?token=secret", Reply(status, b"error"))

    error = pull.fails(server.on(PATH, redirect("/elsewhere?token=secret")))

    assert error.startswith(f"{server.address}/elsewhere: the server responded with {status} ")
    assert len(server.requests) == 2
    assert "sam.pth" not in pull.files


@pytest.mark.usefixtures("once")
def test_an_unreachable_server_is_reported(pull: Pull) -> None:
    with loopback() as stopped:
        url = stopped.address + PATH

    assert "Connection refused" in pull.fails(url)


@pytest.mark.usefixtures("once")
def test_only_certificates_that_the_system_trusts_are_accepted(pull: Pull, tmp_path: Path) -> None:
    (tmp_path / "certificate.pem").write_text("".join(Issuer().issue("127.0.0.1")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)

        def shake() -> None:
            connection, _ = listener.accept()
            with pytest.raises(OSError), connection:  # noqa: PT011
                context.wrap_socket(connection, server_side=True).recv(1)

        thread = Thread(target=shake)
        thread.start()
        error = pull.fails(f"https://127.0.0.1:{listener.getsockname()[1]}/sam.pth")
        thread.join()

    assert "certificate verify failed" in error


def test_only_https_and_loopback_http_are_allowed() -> None:
    hosts = ["https://models.example", "http://localhost:80", "http://127.9.8.7", "http://[::1]:80"]
    wrong = [
        *("http://models.example", "http://localhost.models.example", "http://10.0.0.1"),
        *("http://127.0.0.1.models.example", "http://models.example\\@localhost", "http://[::2]"),
        *("https://user@models.example", "https://", "models.example", "", "file://localhost"),
    ]

    for host in hosts:
        check_url(f"{host}/sam.pth")
    for host in wrong:
        with pytest.raises(ExportError):
            check_url(f"{host}/sam.pth")


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("http://models.example/sam.pth?token=secret", "http://models.example/sam.pth: only https"),
        ("file:///etc/passwd", "file:///etc/passwd: only https"),
        ("https://me:secret@models.example/sam.pth", "credentials in URLs are not allowed"),
        ("http://me:secret@[oops/sam.pth", ""),
    ],
)
def test_redirects_follow_the_same_rules(
    server: Loopback, pull: Pull, location: str, text: str
) -> None:
    assert text in pull.fails(server.on(PATH, redirect(location)))
    assert "sam.pth" not in pull.files


def test_redirects_do_not_lead_from_https_to_http() -> None:
    """Nor to loopback: another host must not control which local URLs are requested."""
    response = requests.Response()
    response.status_code, response.url = 302, "https://models.example/sam.pth"
    response.headers["Location"] = "http://127.0.0.1:8500/secrets"
    transfer = module._Transfer(Path("sam.pth.part"), RIGHT, lambda *_: None, 0, {})

    with pytest.raises(ExportError, match="redirected from https to http"):
        transfer._check(response)


def test_credentials_are_not_sent_to_the_server_of_a_redirect(
    server: Loopback, tmp_path: Path
) -> None:
    with loopback() as store:
        server.on(PATH, redirect(store.on("/1", file(CONTENT))))
        headers = {"Authorization": "Bearer secret"}
        download(server.address + PATH, tmp_path, RIGHT, lambda *_: None, headers=headers)

        found = [
            [each.headers["Authorization"] for each in one.requests] for one in (server, store)
        ]
    assert found == [["Bearer secret"], [None]]


def test_a_token_precedes_the_password_of_git(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = tmp_path / "netrc"
    passwords.write_text("machine 127.0.0.1 login me password of-git\n")
    monkeypatch.setenv("NETRC", str(passwords))
    url = server.on(PATH, file(CONTENT))

    for name, headers in {"a": {"Authorization": "Bearer token"}, "b": {}}.items():
        download(url, tmp_path / name, RIGHT, lambda *_: None, headers=headers)

    assert [each.headers["Authorization"].split()[0] for each in server.requests] == [
        "Bearer",
        "Basic",
    ]


def test_urls_end_in_a_file_name_and_are_shown_without_secrets() -> None:
    url = "https://me:secret@models.example:8443/x/sam.pth?token=secret#secret"

    for end in ("", ".hidden", "..", "a%2Fb", "a%00", "a b", "a:b", "ä"):
        with pytest.raises(ExportError, match="file name"):
            file_name(f"https://models.example/x/{end}")
    assert shown(url) == "https://models.example:8443/x/sam.pth"


def test_without_a_size_a_file_needs_a_checksum(server: Loopback, pull: Pull) -> None:
    for framing in ("chunked", "none"):
        url = server.on(PATH, Reply(200, CONTENT, framing=framing))
        assert "this requires a checksum" in pull.fails(url, None)

    assert pull(url) == CONTENT
    assert pull.progress[-1] == (len(CONTENT), None)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_files_beyond_the_limit_are_rejected_and_deleted(
    server: Loopback, pull: Pull, framing: str
) -> None:
    url = server.on(PATH, Reply(200, CONTENT, framing=framing))

    assert f"more than the limit of {len(CONTENT) - 1}" in pull.fails(
        url, max_bytes=len(CONTENT) - 1
    )
    assert pull.files == []
    assert pull(url, max_bytes=len(CONTENT)) == CONTENT


def test_errors_of_the_file_system_are_reported(server: Loopback, pull: Pull) -> None:
    def raise_no_space(done: int, _: int | None) -> None:
        if done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ExportError) as error:
        download(server.on(PATH, file(CONTENT)), pull.folder, RIGHT, raise_no_space)

    assert str(error.value) == f"{pull.folder / 'sam.pth'}: No space left on device"
    shutil.rmtree(pull.folder)
    pull.folder.write_text("a file")
    assert str(pull.folder) in pull.fails(server.address + PATH)


def test_two_downloads_of_one_file_transfer_it_once(server: Loopback, pull: Pull) -> None:
    url = server.on(PATH, file(CONTENT))
    begun = Event()
    seen: list[list[str]] = []

    def second() -> bytes:
        begun.set()
        return pull(url)

    with ThreadPoolExecutor(1) as pool:
        waiting = []

        def start(*_: object) -> None:
            seen.append(pull.files)
            if not waiting:
                waiting.append(pool.submit(second))
            assert begun.wait(TIMEOUT_S)

        download(url, pull.folder, RIGHT, start)
        assert waiting[0].result(TIMEOUT_S) == CONTENT

    assert len(server.requests) == 1
    assert not any("sam.pth" in files for files in seen)
    assert pull.files == ["sam.pth"]
