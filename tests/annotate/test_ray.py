"""`samserve annotate --ray` on a real Ray cluster of two nodes, and what it says without one."""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
import socket
import sys
from pathlib import Path

import pytest
from samserve.annotate.pipeline import Outcome, State
from samserve.annotate.ray import work
from samserve.annotate.source import ImageFile
from samserve.app import running
from samserve.cli.annotate_ray import WorkerServers
from samserve.cli.endpoint import Endpoint
from samserve.cli.main import main
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, Slot
from samserve.engines.fake import FakeEngine

from tests import sample_images
from tests.annotate.killed_runs import agreement, command
from tests.annotate.ray_cluster import running_cluster
from tests.conftest import settings_with
from tests.secret_leaks import secret, secret_file
from tests.security.credentials import KeyFile
from tests.support.waiting import until

pytest.importorskip("ray")

GRID = ("--points-per-side", "3")
IMAGES, UNDER_WAY = 16, 2
# A busy machine needs a minute.
STARTUP_S = 200.0


class Gate(FakeEngine):
    """Encodes images only as the test permits, once the gateway has started."""

    def __init__(self) -> None:
        super().__init__()
        self.permits: asyncio.Semaphore | None = None
        self.waiting = 0

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        if self.permits is not None:
            self.waiting += 1
            try:
                await self.permits.acquire()
            finally:
                self.waiting -= 1
        await super().encode(model, image, into, context)

    def permit(self, count: int) -> None:
        assert self.permits is not None
        for _ in range(count):
            self.permits.release()


def write_images(folder: Path, count: int = IMAGES) -> None:
    for number in range(count):
        path = folder / f"sub {number % 2}" / f"image ü {number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample_images.png(40 + number, 60, seed=number))


def records(out: Path) -> list[Path]:
    return [*(out / "records").rglob("*.json")]


async def annotate(*arguments: str) -> tuple[int, str]:
    """Run the command to its end; return its exit code and its output."""
    process = await start(*arguments)
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that is busy for minutes
async def test_records_are_those_of_one_process_if_a_node_is_killed_halfway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out, expected = tmp_path / "images", tmp_path / "out", tmp_path / "expected"
    write_images(images)
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict", "automask")
    token = secret_file(tmp_path / "token")
    token.write_text(key)
    monkeypatch.setenv("SAMSERVE_CLIENT_TOKEN_FILE", str(token))
    engine, settings = Gate(), settings_with(auth={"api_keys_file": keys.path})
    async with running(settings, engine=engine) as gateway:
        engine.permits = asyncio.Semaphore(0)
        remote = ("--server", gateway.address, *GRID)
        with running_cluster() as cluster:
            options = ("--ray", cluster.address, "--concurrency", str(UNDER_WAY))
            run = await start(*command(images, out, *remote, *options))
            try:
                # Both workers are at work, have written half of the records, and are at work again.
                await until(lambda: engine.waiting == 2 * UNDER_WAY, STARTUP_S)
                engine.permit(IMAGES // 2)
                await until(lambda: len(records(out)) == IMAGES // 2)
                await until(lambda: engine.waiting == 2 * UNDER_WAY)
                assert [each["DO_NOT_TRACK"] for each in cluster.workers()] == ["1", "1"]
                await asyncio.to_thread(cluster.kill_second_node)
                engine.permit(10 * IMAGES)
                output = (await run.communicate())[0].decode()
            finally:
                if run.returncode is None:
                    run.kill()
            with_key = [path for path in cluster.folder.rglob("*") if contains(path, key)]
        ended, text = await annotate(*command(images, expected, *remote))

    assert (run.returncode, ended) == (0, 0), output + text
    assert f"images: {IMAGES}\n" in output
    assert "(raylet)" not in output
    assert "core_worker" not in output
    assert with_key == []
    found = agreement(out, expected)
    assert (found.images, found.other_selection) == (IMAGES, [])
    assert found.equal_pixels >= 0.9999
    assert found.masks > IMAGES
    coco = [json.loads((each / "annotations.json").read_text()) for each in (out, expected)]
    assert len({image["id"] for image in coco[0]["images"]}) == IMAGES
    assert [image["file_name"] for image in coco[0]["images"]] == [
        image["file_name"] for image in coco[1]["images"]
    ]


@pytest.mark.long
async def test_workers_have_servers_of_their_own_and_a_cluster_that_cannot_do_the_work_is_named(
    tmp_path: Path,
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_images(images, 6)
    with running_cluster() as cluster:
        options = ("--set", "engine.kind=fake", "--ray", cluster.address, *GRID)
        ended, text = await annotate(*command(images, out, *options))
        # Each process has its own file system of that kind.
        elsewhere = await annotate(*command(images, "memory://out", *options))
        too_large = await annotate(*command(images, out, *options, "--ray-cpus", "3"))
        interrupted = await start(*command(images, tmp_path / "other", *options))
        await until(lambda: len(cluster.workers()) == 2, STARTUP_S)
        interrupted.send_signal(signal.SIGINT)
        await interrupted.communicate()
        await until(lambda: not cluster.workers())

    assert (ended, len(records(out))) == (0, 6), text
    assert elsewhere[0] == 1
    assert "does not see what is written to" in elsewhere[1]
    assert too_large[0] == 2
    assert "--ray-cpus 3 is more than the 1 CPUs of the largest node" in too_large[1]
    assert interrupted.returncode == 130


def contains(path: Path, text: str) -> bool:
    return path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()


def test_an_address_where_nothing_listens_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    code = main(
        [
            "annotate",
            str(tmp_path / "images"),
            f"--out={tmp_path / 'out'}",
            f"--ray=127.0.0.1:{port}",
        ]
    )

    assert code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error
        == f"samserve: error: the Ray cluster 127.0.0.1:{port} is unreachable: Connection refused"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--ray=ray://127.0.0.1:10001"], "Ray Client are not supported"),
        (["--ray=somewhere"], "expected HOST:PORT or auto"),
        (["--ray=127.0.0.1:1", "--shard=0/2"], "--ray and --shard exclude each other"),
        (["--ray-workers=2"], "require --ray"),
    ],
)
def test_options_that_cannot_be_used_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    write_images(tmp_path / "images", 1)

    code = main(["annotate", str(tmp_path / "images"), f"--out={tmp_path / 'out'}", *options])

    assert code == 2
    assert text in capsys.readouterr().err


def test_without_ray_the_error_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", 1)
    for name in [name for name in sys.modules if name.startswith("samserve.annotate.ray")]:
        monkeypatch.delitem(sys.modules, name)
    # The import system takes None for a module that is not installed.
    monkeypatch.setitem(sys.modules, "ray", None)

    code = main(
        ["annotate", str(tmp_path / "images"), f"--out={tmp_path / 'out'}", "--ray=127.0.0.1:1"]
    )

    assert code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--ray requires ray, which is not installed: pip install '.[ray]'" in error


def test_workers_get_the_credentials_of_the_command_which_no_representation_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = secret("token-of-an-annotating-job")
    monkeypatch.setenv("SAMSERVE_CLIENT_TOKEN", token)

    servers = WorkerServers.of([Endpoint("127.0.0.1:1"), Endpoint("127.0.0.1:2")], "")
    sent = pickle.loads(pickle.dumps(servers))

    assert [(each.target, each.token) for each in sent.connections] == [
        ("127.0.0.1:1", token),
        ("127.0.0.1:2", token),
    ]
    assert token not in f"{sent!r} {sent.connections[0]!r}"


def test_outcomes_and_images_survive_the_way_to_a_worker_and_back() -> None:
    image = ImageFile("/folder/not unicode \udcff.png", "not unicode \udcff.png", "tag")
    outcome = Outcome(image.name, State.FAILED, reason="not an image", replaced=True)

    assert work.text_to_image(work.image_to_text(image)) == image
    assert work.text_to_outcome(work.outcome_to_text(outcome)) == outcome
    assert work.text_to_outcome(work.aborted_to_text("no server")) == "no server"
    assert work.image_to_text(image).isascii()
