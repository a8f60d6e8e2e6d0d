"""Downloads against a real server on this machine, which cuts, lies and redirects."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import samserve
import urllib3.util.connection
from samserve.export import transfer as transfer_module
from samserve.export.download import Checksum, Downloaded, download
from samserve.export.errors import ExportError
from samserve.export.part import Origin, Part
from samserve.export.transfer import check_url, file_name, shown

from tests.export.loopback import NOW, Loopback, Reply, file, loopback, ranged, redirect, whole
from tests.support.certificates import Issuer
from tests.support.waiting import BOUND_S

CONTENT = bytes(range(256)) * 1000
HALF = len(CONTENT) // 2
OTHER = bytes(reversed(CONTENT))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT_BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
RIGHT = Checksum("sha256", SHA256)
WRONG = Checksum("sha256", "0" * 64)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as running:
        yield running


class Pull:
    """Downloads into one folder; remembers the progress and the waits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress: list[tuple[int, int | None]] = []
        self.waits: list[float] = []

    def __call__(self, url: str, checksum: Checksum | None = None, **options: Any) -> Downloaded:
        def progress(done: int, total: int | None) -> None:
            self.progress.append((done, total))

        return download(
            url,
            self.folder,
            checksum=checksum,
            **{"progress": progress, "sleep": self.waits.append, **options},
        )

    def fails(self, url: str, checksum: Checksum | None = None, **options: Any) -> str:
        with pytest.raises(ExportError) as error:
            self(url, checksum, **options)
        assert str(error.value).isprintable()
        return str(error.value)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    @property
    def part(self) -> bytes:
        return (self.folder / "sam.pth.part").read_bytes()

    def leave(self, url: str, content: bytes, validator: str | None, total: int | None) -> None:
        """Leave a part behind, as an earlier run would."""
        self.folder.mkdir()
        (self.folder / "sam.pth.part").write_bytes(content)
        origin = {"url": url, "validator": validator, "total": total}
        (self.folder / "sam.pth.part.json").write_text(json.dumps(origin))


@pytest.fixture
def pull(tmp_path: Path) -> Pull:
    return Pull(tmp_path / "models")


def assert_whole(pull: Pull, found: Downloaded, content: bytes = CONTENT) -> None:
    path = pull.folder / "sam.pth"
    assert found == Downloaded(path, hashlib.sha256(content).hexdigest(), len(content))
    assert path.read_bytes() == content
    assert pull.files == ["sam.pth"]


def test_a_file_arrives_whole_and_alone(server: Loopback, pull: Pull) -> None:
    url = server.on("/some/sam.pth?token=secret", file(CONTENT))

    assert_whole(pull, pull(url))

    assert pull.progress[0] == (0, len(CONTENT))
    assert pull.progress[-1] == (len(CONTENT), len(CONTENT))
    assert pull.progress == sorted(pull.progress)
    headers = server.seen[0].headers
    assert headers["User-Agent"] == f"samserve/{samserve.__version__}"
    assert headers["Accept-Encoding"] == "identity"
    assert (headers["Range"], headers["If-Range"]) == (None, None)


def test_an_unfinished_file_has_another_name(server: Loopback, pull: Pull) -> None:
    seen = []
    url = server.on("/sam.pth", file(CONTENT))

    pull(url, progress=lambda *_: seen.append(pull.files))

    assert {name for files in seen for name in files} == {
        "sam.pth.lock",
        "sam.pth.part",
        "sam.pth.part.json",
    }


def test_a_file_is_on_the_disk_before_it_has_its_name(
    server: Loopback, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), pull.files))

    monkeypatch.setattr(os, "fsync", fsync)
    pull(server.on("/sam.pth", file(CONTENT)))

    ((path, files),) = synced
    assert path == str(pull.folder / "sam.pth.part")
    assert "sam.pth" not in files


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Loopback, pull: Pull, status: int) -> None:
    server.on("/elsewhere/other.bin", file(CONTENT))
    url = server.on("/sam.pth", redirect("elsewhere/other.bin", status))

    assert_whole(pull, pull(url))


def test_five_redirects_are_followed_and_not_six(server: Loopback, pull: Pull) -> None:
    for hop in range(6):
        server.on(f"/{hop}", redirect(f"/{hop + 1}"))
    server.on("/sam.pth", redirect("/2"))
    server.on("/6", file(CONTENT))
    assert_whole(pull, pull(f"{server.address}/sam.pth"))

    (pull.folder / "sam.pth").unlink()
    server.on("/sam.pth", redirect("/1"))

    assert "more than 5 redirects" in pull.fails(f"{server.address}/sam.pth")


def test_a_circle_of_redirects_is_left(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", redirect("/sam.pth"))

    assert "more than 5 redirects" in pull.fails(url)
    assert len(server.seen) == 6
    assert pull.waits == []


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("http://models.example/sam.pth?token=secret", "http://models.example/sam.pth: only https"),
        ("//models.example/sam.pth", "http://models.example/sam.pth: only https"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("ftp://127.0.0.1/sam.pth", "ftp://127.0.0.1/sam.pth: only https"),
        ("https://me:secret@models.example/sam.pth", "credentials"),
        ("http://[oops/sam.pth", "no URL"),
        ("https://me:secret@models.example:99999/sam.pth?token=secret", "no URL"),
    ],
)
def test_redirects_to_what_may_not_be_asked_are_refused(
    server: Loopback,
    pull: Pull,
    monkeypatch: pytest.MonkeyPatch,
    location: str,
    text: str,
) -> None:
    asked = connections(monkeypatch)
    url = server.on("/sam.pth", redirect(location))

    error = pull.fails(url)

    assert text in error
    assert "secret" not in error
    assert asked == ["127.0.0.1"]
    assert pull.files == []


def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Remember the hosts that are connected to."""
    hosts = []
    connect = urllib3.util.connection.create_connection

    def remember(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        hosts.append(address[0])
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", remember)
    return hosts


@pytest.mark.parametrize(
    "url",
    [
        "https://models.example/sam.pth",
        "http://localhost:80/sam.pth",
        "http://127.9.8.7/sam.pth",
        "http://[::1]:8000/sam.pth",
    ],
)
def test_https_may_be_asked_and_http_of_this_machine(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example/sam.pth",
        "http://localhost.models.example/sam.pth",
        "http://127.0.0.1.models.example/sam.pth",
        "http://models.example\\@localhost/sam.pth",
        "http://10.0.0.1/sam.pth",
        "http://[::2]/sam.pth",
        "https://user@models.example/sam.pth",
        "https:///sam.pth",
        "models.example/sam.pth",
        "/sam.pth",
        "",
    ],
)
def test_other_urls_may_not(pull: Pull, url: str) -> None:
    pull.fails(url)
    assert not pull.folder.exists()


@pytest.mark.parametrize("end", ["", ".hidden", "..", "a%2Fb", "a%00", "a b", "a:b", "ä"])
def test_ends_of_urls_that_are_no_file_names_are_refused(end: str) -> None:
    with pytest.raises(ExportError, match="file name"):
        file_name(f"https://models.example/x/{end}")


def test_urls_are_shown_without_their_secrets() -> None:
    shown_url = shown("https://me:secret@models.example:8443/sam.pth?token=secret#secret")

    assert shown_url == "https://models.example:8443/sam.pth"


def test_a_cut_file_is_resumed_and_nothing_sent_twice(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT, cut=1000), file(CONTENT, cut=5000), file(CONTENT))

    assert_whole(pull, pull(url))

    assert server.ranges == [None, "bytes=1000-", "bytes=6000-"]
    assert [seen.headers["If-Range"] for seen in server.seen] == [None, '"v1"', '"v1"']
    assert sum(server.sent) == len(CONTENT)
    # Each brought more: neither was a second failure.
    assert pull.waits == [1, 1]


def test_a_cut_that_never_ends_is_given_up_and_resumed_by_the_next_call(
    server: Loopback, pull: Pull
) -> None:
    url = server.on("/sam.pth?token=secret", file(CONTENT, cut=1000), file(CONTENT, cut=0))

    error = pull.fails(url)

    assert f"{server.address}/sam.pth: 1000 of {len(CONTENT)} bytes arrived" in error
    assert "run the command again to resume" in error
    assert "secret" not in error
    assert server.ranges == [None] + ["bytes=1000-"] * 4
    assert pull.waits == [1, 2, 4, 8]
    assert pull.part == CONTENT[:1000]
    assert pull.files == ["sam.pth.part", "sam.pth.part.json"]

    server.on("/sam.pth?token=secret", file(CONTENT))
    assert_whole(pull, pull(url))

    assert server.ranges[5:] == ["bytes=1000-"]
    assert server.sent[5:] == [len(CONTENT) - 1000]


def test_progress_begins_where_the_part_ends(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT, cut=1000), file(CONTENT))

    pull(url)

    assert (1000, len(CONTENT)) in pull.progress
    assert pull.progress == sorted(pull.progress)


def test_a_server_that_always_begins_anew_and_is_cut_is_given_up(
    server: Loopback, pull: Pull
) -> None:
    url = server.on("/sam.pth", whole(CONTENT, cut=1000, ETag='"v1"'))

    assert f"1000 of {len(CONTENT)} bytes" in pull.fails(url)
    assert len(server.seen) == 5


def test_an_interrupted_download_is_resumed(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT))

    def interrupt(done: int, _: int | None) -> None:
        if done > HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(url, progress=interrupt)
    arrived = len(pull.part)
    assert HALF < arrived < len(CONTENT)
    assert pull.files == ["sam.pth.part", "sam.pth.part.json"]

    assert_whole(pull, pull(url))

    assert server.ranges == [None, f"bytes={arrived}-"]


@pytest.mark.parametrize("content", [CONTENT, OTHER])
def test_a_last_modified_is_a_version_too(server: Loopback, pull: Pull, content: bytes) -> None:
    date = "Wed, 05 Apr 2023 10:00:00 GMT"
    tags = {"Last-Modified": date}
    second = whole(OTHER, **tags) if content is OTHER else ranged(CONTENT, 1000, **tags)
    url = server.on("/sam.pth", whole(CONTENT, cut=1000, **tags), second)

    assert_whole(pull, pull(url), content)

    assert server.ranges == [None, "bytes=1000-"]
    assert server.seen[1].headers["If-Range"] == date


@pytest.mark.parametrize(
    "tags",
    [
        {"ETag": 'W/"v1"', "Last-Modified": "Wed, 05 Apr 2023 10:00:00 GMT"},
        {"Last-Modified": NOW},
        {"Last-Modified": "Wed, 05 Apr 2023 10:00:02 GMT"},
        {"Last-Modified": "yesterday"},
    ],
)
def test_a_version_that_two_files_may_share_is_none(
    server: Loopback, pull: Pull, tags: dict[str, str]
) -> None:
    url = server.on("/sam.pth", whole(CONTENT, cut=1000, **tags), whole(OTHER, **tags))

    assert_whole(pull, pull(url), OTHER)

    assert server.ranges == [None, None]


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_version_a_file_is_begun_anew(
    server: Loopback, pull: Pull, etag: str | None
) -> None:
    url = server.on("/sam.pth", file(CONTENT, etag, cut=0), file(CONTENT, etag, cut=1000))

    error = pull.fails(url)

    assert f"1000 of {len(CONTENT)} bytes" in error
    assert "run the command again to start over" in error
    assert set(server.ranges) == {None}

    server.on("/sam.pth", file(CONTENT, etag))
    assert_whole(pull, pull(url))


def test_without_a_version_a_checksum_allows_to_resume(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT, None, cut=1000), file(CONTENT, None))

    assert_whole(pull, pull(url, RIGHT))

    assert server.ranges == [None, "bytes=1000-"]
    assert server.seen[1].headers["If-Range"] is None


def test_without_a_version_a_checksum_judges_what_was_put_together(
    server: Loopback, pull: Pull
) -> None:
    url = server.on("/sam.pth", file(CONTENT, None, cut=1000), file(OTHER, None))

    assert SHA256 in pull.fails(url, RIGHT)
    assert pull.files == []


def test_a_file_that_changed_is_begun_anew(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT, '"v1"', cut=1000), file(OTHER, '"v2"'))

    assert_whole(pull, pull(url), OTHER)

    assert server.ranges == [None, "bytes=1000-"]


def test_a_server_without_ranges_is_asked_for_the_whole(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", whole(CONTENT, cut=1000, ETag='"v1"'), whole(CONTENT, ETag='"v1"'))

    assert_whole(pull, pull(url))

    assert server.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    "answer",
    [
        ranged(OTHER, 999),
        ranged(OTHER + b"more", 1000),
        ranged(OTHER, 1000, ETag='"v2"'),
        Reply(206, OTHER[1000:]),
        Reply(206, OTHER[1000:], {"Content-Range": f"bytes */{len(OTHER)}"}),
        Reply(206, OTHER[1000:], {"Content-Range": f"bytes 1000-{len(OTHER) - 1}/*"}),
        Reply(416),
        Reply(416, headers={"Content-Range": "bytes */1000"}),
    ],
)
def test_answers_that_do_not_fit_the_part_make_it_begin_anew(
    server: Loopback, pull: Pull, answer: Reply
) -> None:
    url = server.on("/sam.pth", file(CONTENT, cut=1000), answer, file(CONTENT))

    assert_whole(pull, pull(url))

    assert server.ranges == [None, "bytes=1000-", None]


@pytest.mark.parametrize("position", [{"Content-Range": f"bytes */{len(CONTENT)}"}, {}])
def test_a_part_that_is_complete_gets_its_name(
    server: Loopback, pull: Pull, position: dict[str, str]
) -> None:
    url = server.on("/sam.pth", Reply(416, b"no such range", position))
    pull.leave(url, CONTENT, '"v1"', len(CONTENT))

    assert_whole(pull, pull(url))

    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_complete_but_of_another_version_is_begun_anew(
    server: Loopback, pull: Pull
) -> None:
    url = server.on("/sam.pth", file(OTHER, '"v2"'))
    pull.leave(url, CONTENT, '"v1"', len(CONTENT))

    assert_whole(pull, pull(url), OTHER)


def test_a_part_of_a_file_that_has_grown_is_begun_anew(server: Loopback, pull: Pull) -> None:
    longer = {"Content-Range": f"bytes */{len(CONTENT) + 1}"}
    url = server.on("/sam.pth", Reply(416, headers=longer), file(CONTENT + b"!"))
    pull.leave(url, CONTENT, '"v1"', len(CONTENT))

    assert_whole(pull, pull(url), CONTENT + b"!")


@pytest.mark.parametrize("status", [206, 416])
def test_answers_to_a_range_that_nobody_asked_for_are_refused(
    server: Loopback, pull: Pull, status: int
) -> None:
    url = server.on("/sam.pth", Reply(status, CONTENT))

    assert f"the server answered {status}" in pull.fails(url)


def test_parts_of_another_url_are_not_resumed(server: Loopback, pull: Pull) -> None:
    url = server.on("/new/sam.pth", file(CONTENT))
    pull.leave(f"{server.address}/old/sam.pth", OTHER[:1000], '"v1"', len(CONTENT))

    assert_whole(pull, pull(url))

    assert server.ranges == [None]


@pytest.mark.parametrize("note", [None, "", "{}", "[1]", '{"url": 1', "\xff"])
def test_parts_of_unknown_origin_are_not_resumed(
    server: Loopback, pull: Pull, note: str | None
) -> None:
    url = server.on("/sam.pth", file(CONTENT))
    pull.leave(url, OTHER[:1000], '"v1"', len(CONTENT))
    path = pull.folder / "sam.pth.part.json"
    if note is None:
        path.unlink()
    else:
        path.write_bytes(note.encode("latin-1"))

    assert_whole(pull, pull(url))

    assert server.ranges == [None]


@pytest.mark.parametrize(("validator", "total"), [(1, len(CONTENT)), ('"v1"', "all")])
def test_parts_with_a_note_of_another_kind_are_not_resumed(
    server: Loopback, pull: Pull, validator: Any, total: Any
) -> None:
    url = server.on("/sam.pth", file(CONTENT))
    pull.leave(url, OTHER[:1000], validator, total)

    assert_whole(pull, pull(url))

    assert server.ranges == [None]


def test_a_part_larger_than_the_file_is_not_resumed(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT))
    pull.leave(url, CONTENT + b"more", '"v1"', len(CONTENT))

    assert_whole(pull, pull(url))

    assert server.ranges == [None]


def test_a_note_never_describes_the_bytes_of_another_origin(tmp_path: Path) -> None:
    part = Part(tmp_path / "sam.pth")
    part.path.write_bytes(OTHER)
    # As after a crash between the two: the note that is there is not the new one.
    (tmp_path / "sam.pth.part.json").mkdir()

    with pytest.raises(IsADirectoryError):
        part.begin(Origin("https://models.example/sam.pth", '"v1"', len(CONTENT)))

    assert part.size == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusals_are_final(server: Loopback, pull: Pull, status: int) -> None:
    url = server.on("/sam.pth?token=secret", Reply(status, b"go away"))

    error = pull.fails(url)

    assert error.startswith(f"{server.address}/sam.pth: the server answered {status} ")
    assert (len(server.seen), pull.waits, pull.files) == (1, [], [])


def test_a_refusal_names_who_refused(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", redirect("/elsewhere?token=secret"))

    assert pull.fails(url).startswith(f"{server.address}/elsewhere: the server answered 404")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(server: Loopback, pull: Pull, status: int) -> None:
    url = server.on("/sam.pth", Reply(status, b"busy"), Reply(status, b"busy"), file(CONTENT))

    assert_whole(pull, pull(url))

    assert pull.waits == [1, 2]


def test_trouble_leaves_the_part_as_it_is(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT, cut=1000), Reply(503, b"busy"), file(CONTENT))

    assert_whole(pull, pull(url))

    assert server.ranges == [None, "bytes=1000-", "bytes=1000-"]


def test_trouble_that_stays_is_told(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", Reply(503))

    assert "0 of an unknown number of bytes" in (error := pull.fails(url))
    assert "503 Service Unavailable" in error
    assert len(server.seen) == 5


def test_a_server_that_is_not_there_is_told(pull: Pull) -> None:
    with loopback() as gone:
        url = f"{gone.address}/sam.pth"

    assert "Connection refused" in pull.fails(url)
    assert pull.waits == [1, 2, 4, 8]


def test_a_wrong_checksum_leaves_nothing(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT))

    error = pull.fails(url, WRONG)

    assert error.startswith("sam.pth: ")
    assert f"expected {WRONG}" in error
    assert f"found {RIGHT}" in error
    assert pull.files == []
    assert len(server.seen) == 1


@pytest.mark.parametrize("checksum", [SHA256, SHA256.upper(), f"git-blob-sha1:{GIT_BLOB}"])
def test_a_right_checksum_lets_the_file_pass(server: Loopback, pull: Pull, checksum: str) -> None:
    url = server.on("/sam.pth", file(CONTENT, cut=1000), file(CONTENT))

    assert_whole(pull, pull(url, Checksum.parse(checksum)))


def test_the_checksum_of_git_is_that_of_git(tmp_path: Path, server: Loopback, pull: Pull) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    found = subprocess.run(
        ["git", "hash-object", "--no-filters", "content"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    pull(server.on("/sam.pth", file(CONTENT)), Checksum("git-blob-sha1", found.stdout.strip()))


def test_a_wrong_checksum_of_git_is_told(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(OTHER))

    error = pull.fails(url, Checksum("git-blob-sha1", GIT_BLOB))

    assert f"expected git-blob-sha1:{GIT_BLOB}, found git-blob-sha1:" in error
    assert pull.files == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "ab", "0" * 40, "0" * 63, "0" * 65, "g" * 64, "\u0660" * 64, "0" * 64 + "\n"),
        *("sha256:" + "0" * 40, "git-blob-sha1:" + "0" * 64, "sha1:" + "0" * 40, ":" + "0" * 64),
    ],
)
def test_other_texts_are_no_checksums(text: str) -> None:
    with pytest.raises(ExportError, match="64 hexadecimal digits"):
        Checksum.parse(text)


def test_bytes_beyond_the_announced_ones_are_not_taken(server: Loopback, pull: Pull) -> None:
    headers = {"Content-Length": str(HALF), "ETag": '"v1"'}
    url = server.on("/sam.pth", Reply(200, CONTENT, headers))

    assert_whole(pull, pull(url), CONTENT[:HALF])


def test_a_range_that_goes_on_beyond_the_file_is_refused(server: Loopback, pull: Pull) -> None:
    position = {"Content-Range": f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"}
    url = server.on(
        "/sam.pth", file(CONTENT, cut=1000), Reply(206, CONTENT[1000:] + b"more", position)
    )

    assert f"beyond the {len(CONTENT)}" in pull.fails(url)
    assert pull.files == []


def test_a_range_that_ends_early_is_continued(server: Loopback, pull: Pull) -> None:
    position = {"Content-Range": f"bytes 1000-1999/{len(CONTENT)}", "ETag": '"v1"'}
    url = server.on(
        "/sam.pth",
        file(CONTENT, cut=1000),
        Reply(206, CONTENT[1000:2000], position),
        file(CONTENT),
    )

    assert_whole(pull, pull(url))

    assert server.ranges == [None, "bytes=1000-", "bytes=2000-"]


def test_a_file_in_chunks_arrives_whole(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", Reply(200, CONTENT, framing="chunked"))

    assert_whole(pull, pull(url))

    assert pull.progress[-1] == (len(CONTENT), None)


def test_a_cut_file_in_chunks_is_begun_anew(server: Loopback, pull: Pull) -> None:
    tag = {"ETag": '"v1"'}
    url = server.on(
        "/sam.pth",
        Reply(200, CONTENT, tag, cut=HALF, framing="chunked"),
        Reply(200, CONTENT, tag, framing="chunked"),
    )

    assert_whole(pull, pull(url))

    assert server.ranges == [None, None]


def test_without_any_length_a_file_needs_a_checksum(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", Reply(200, CONTENT, framing="none"))

    assert "this needs a checksum" in pull.fails(url)
    assert pull.files == []

    assert_whole(pull, pull(url, RIGHT))


def test_a_body_that_comes_encoded_is_refused(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", whole(CONTENT, **{"Content-Encoding": "gzip"}))

    assert "'gzip'" in pull.fails(url)
    assert pull.files == []


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_files_beyond_the_bound_are_refused_and_deleted(
    server: Loopback, pull: Pull, framing: str
) -> None:
    url = server.on("/sam.pth", Reply(200, CONTENT, framing=framing))

    error = pull.fails(url, max_bytes=len(CONTENT) - 1)

    assert f"beyond the {len(CONTENT) - 1}" in error
    assert max(done for done, _ in [(0, None), *pull.progress]) < len(CONTENT)
    assert pull.files == []
    assert_whole(pull, pull(url, max_bytes=len(CONTENT)))


def test_a_part_of_a_file_beyond_the_bound_is_deleted(server: Loopback, pull: Pull) -> None:
    url = server.on("/sam.pth", file(CONTENT))
    pull.leave(url, CONTENT[:1000], '"v1"', len(CONTENT))

    pull.fails(url, max_bytes=len(CONTENT) - 1)

    assert pull.files == []


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_what_does_not_fit_on_the_disk_is_not_begun(
    server: Loopback, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes(monkeypatch, len(CONTENT) - 1)
    url = server.on("/sam.pth", file(CONTENT))

    error = pull.fails(url)

    assert f"{len(CONTENT)} bytes are needed, {len(CONTENT) - 1} are free" in error
    assert (pull.files, pull.progress) == ([], [])


def test_only_the_rest_of_a_file_must_fit_on_the_disk(
    server: Loopback, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.on("/sam.pth", file(CONTENT))
    pull.leave(url, CONTENT[:1000], '"v1"', len(CONTENT))

    free_bytes(monkeypatch, len(CONTENT) - 1001)
    assert f"{len(CONTENT) - 1000} bytes are needed" in pull.fails(url)
    assert pull.part == CONTENT[:1000]

    free_bytes(monkeypatch, len(CONTENT) - 1000)
    assert_whole(pull, pull(url))


def test_a_disk_that_fails_is_told(server: Loopback, pull: Pull) -> None:
    def full(done: int, _: int | None) -> None:
        if done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    url = server.on("/sam.pth", file(CONTENT))

    assert pull.fails(url, progress=full) == f"{pull.folder / 'sam.pth'}: No space left on device"


def test_a_folder_that_cannot_be_made_is_told(server: Loopback, pull: Pull) -> None:
    pull.folder.write_text("a file")

    assert str(pull.folder) in pull.fails(server.on("/sam.pth", file(CONTENT)))


@pytest.mark.parametrize("checksum", [None, RIGHT, Checksum("git-blob-sha1", GIT_BLOB)])
def test_a_file_that_is_there_is_taken_without_the_network(
    server: Loopback,
    pull: Pull,
    monkeypatch: pytest.MonkeyPatch,
    checksum: Checksum | None,
) -> None:
    # Nor with a lock: its folder may be read-only.
    monkeypatch.setattr(fcntl, "flock", None)
    pull.folder.mkdir()
    (pull.folder / "sam.pth").write_bytes(CONTENT)

    assert_whole(pull, pull(f"{server.address}/sam.pth", checksum))

    assert server.seen == []


def test_another_file_of_that_name_is_left_alone(server: Loopback, pull: Pull) -> None:
    pull.folder.mkdir()
    (pull.folder / "sam.pth").write_bytes(OTHER)

    error = pull.fails(f"{server.address}/sam.pth", RIGHT)

    assert "is another file" in error
    assert "delete it" in error
    assert (pull.folder / "sam.pth").read_bytes() == OTHER
    assert server.seen == []


def test_two_downloads_of_one_file_transfer_it_once(
    server: Loopback, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.on("/sam.pth", file(CONTENT))
    waiting = Event()
    lock = fcntl.flock
    locked: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        locked.append(operation)
        if len(locked) == 2:
            waiting.set()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with ThreadPoolExecutor(1) as pool:
        second = []

        def progress(_: int, __: int | None) -> None:
            if not second:
                second.append(pool.submit(pull, url))
            assert waiting.wait(BOUND_S)

        first = pull(url, progress=progress)
        assert second[0].result(BOUND_S) == first

    assert_whole(pull, first)
    assert len(server.seen) == 1
    # The second one waited for a file that the first has removed, and took another.
    assert locked == [fcntl.LOCK_EX] * 3


def test_the_lock_is_free_after_a_failure(server: Loopback, pull: Pull) -> None:
    pull.fails(server.on("/sam.pth", Reply(404)))

    assert pull.files == []
    assert_whole(pull, pull(server.on("/sam.pth", file(CONTENT))))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of this machine, with its key, of an authority that is not trusted here."""
    path = tmp_path / "certificate.pem"
    path.write_text("".join(Issuer().issue("127.0.0.1")))
    return path


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    """A port that shakes hands with that certificate, once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(BOUND_S)

        def shake() -> None:
            connection, _ = listener.accept()
            with pytest.raises(OSError), connection:  # noqa: PT011
                context.wrap_socket(connection, server_side=True).recv(1)

        thread = Thread(target=shake)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_certificate_that_nobody_signed_is_refused_at_once(tls_port: int, pull: Pull) -> None:
    error = pull.fails(f"https://127.0.0.1:{tls_port}/sam.pth")

    assert "certificate verify failed" in error
    assert pull.waits == []


def test_a_redirect_from_elsewhere_to_this_machine_is_not_followed() -> None:
    asked: list[str] = []

    class Pool:
        def __init__(self) -> None:
            self.headers: dict[str, str] = {}

        def request(self, _method: str, url: str, **_options: object) -> Pool:
            asked.append(url)
            return self

        def get_redirect_location(self) -> str:
            return "http://127.0.0.1:8500/secrets"

        def close(self) -> None:
            pass

    with pytest.raises(ExportError, match="redirected from elsewhere to this machine"):
        transfer_module._follow(Pool(), "https://example.org/a.pth", {})  # type: ignore[arg-type]
    assert asked == ["https://example.org/a.pth"]
