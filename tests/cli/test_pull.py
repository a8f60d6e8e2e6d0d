"""`samserve models pull` against a server on this machine, with a catalogue of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from samserve.models.repository import discover

from tests.cli.conftest import Command, Ended
from tests.export import graphs
from tests.export.loopback import Loopback, file, loopback, redirect
from tests.oracle.sam import MOBILE, Size, original


def checkpoint_of(size: Size, folder: Path) -> bytes:
    torch.manual_seed(0)
    torch.save(original(size).state_dict(), folder / "sam.pt")
    return (folder / "sam.pt").read_bytes()


@dataclass(frozen=True)
class World:
    """A publisher, a catalogue that knows it, and where things go."""

    folder: Path
    server: Loopback
    content: bytes
    samserve: Command

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def cached(self) -> list[str]:
        cache = self.folder / "cache"
        return sorted(path.name for path in cache.glob("*/*") if path.name != ".lock")

    def pull(self, *arguments: str, variant: str = "mobile", checksum: str = "") -> Ended:
        lines = [
            "[small]",
            f'url = "{self.server.address}/weights/small.pt"',
            f'variant = "{variant}"',
            'license = "Apache-2.0"',
            'page = "https://example.org/small"',
            'description = "Small"',
            *([f'checksum = "{checksum}"'] if checksum else []),
        ]
        catalog = self.folder / "catalog.toml"
        catalog.write_text("\n".join(lines))
        places = ("--catalog", catalog, "--cache", self.folder / "cache")
        given = ("--repository", self.folder / "models", "--no-check", *arguments)
        return self.samserve("models", "pull", "small", *places, *given)

    @property
    def models(self) -> list[str]:
        models = self.folder / "models"
        return [files.info.name for files in discover(models)] if models.exists() else []


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return checkpoint_of(MOBILE, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def _without_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write graphs by the contract in the place of traced ones, which take seconds."""
    monkeypatch.setattr("samserve.export.pipeline.export_encoder", lambda _: graphs.encoder())
    monkeypatch.setattr("samserve.export.pipeline.export_decoder", lambda _: graphs.decoder())


without_tracing = pytest.mark.usefixtures("_without_tracing")


@pytest.fixture
def world(samserve: Command, content: bytes, tmp_path: Path) -> Iterator[World]:
    with loopback() as server:
        server.on("/weights/small.pt", file(content))
        yield World(tmp_path, server, content, samserve)


def test_a_pulled_model_is_verified_exported_and_named_by_the_catalogue(world: World) -> None:
    world.server.on("/weights/small.pt", redirect(world.server.address + "/store/1"))
    world.server.on("/store/1", file(world.content))

    ended = world.pull(checksum=world.sha256)

    assert ended.code == 0
    assert f"sha256 {world.sha256}" in ended.out
    assert "Apache-2.0" in ended.err
    assert f"{len(world.content) >> 20} of {len(world.content) >> 20} MiB" in ended.err
    assert world.models == ["small"]
    assert world.cached == ["small.pt"]
    (files,) = discover(world.folder / "models")
    assert (files.info.card.source, files.info.card.variant) == ("small.pt", "mobile")
    assert files.info.card.source_sha256 == world.sha256


@without_tracing
def test_a_second_pull_downloads_nothing(world: World) -> None:
    world.pull(checksum=world.sha256)
    asked = len(world.server.seen)

    ended = world.pull("--name", "again", checksum=world.sha256)

    assert ended.code == 0
    assert len(world.server.seen) == asked
    assert world.models == ["again", "small"]


@without_tracing
def test_what_was_cut_off_is_resumed_by_the_next_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samserve.export.download.RETRIES", 0)
    half = 1 << 20
    world.server.on("/weights/small.pt", file(world.content, cut=half), file(world.content))

    first = world.pull(checksum=world.sha256)
    left = world.cached
    second = world.pull(checksum=world.sha256)

    assert first.code == 1
    assert len([line for line in first.err.splitlines() if "error:" in line]) == 1
    assert f"{half} of {len(world.content)}" in first.err
    assert "small.pt.part" in left
    assert "small.pt" not in left
    assert second.code == 0
    assert world.server.ranges == [None, f"bytes={half}-"]
    assert world.models == ["small"]


def test_a_model_that_is_there_is_kept_if_asked_for(world: World) -> None:
    for role in ("encoder", "decoder"):
        (world.folder / "models" / f"small_{role}").mkdir(parents=True)

    kept = world.pull("--keep", "--unverified")

    assert kept.code == 0, kept.err
    assert "already" in kept.out + kept.err
    assert world.cached == []
    # Half a model is none.
    (world.folder / "models" / "small_decoder").rmdir()
    assert world.pull("--keep").code == 1


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(world: World) -> None:
    ended = world.pull("--sha256", "0" * 64)

    assert ended.code == 1
    assert "0" * 64 in ended.err
    assert world.sha256 in ended.err
    assert world.cached == []
    assert world.models == []


def test_without_any_checksum_nothing_is_asked_for(world: World) -> None:
    ended = world.pull()

    assert ended.code == 1
    assert "pass the one that you trust with --sha256" in ended.err
    assert world.server.seen == []


@without_tracing
def test_unverified_takes_what_comes_and_prints_its_checksum(world: World) -> None:
    ended = world.pull("--unverified")

    assert ended.code == 0
    assert f"sha256 {world.sha256}" in ended.out
    assert world.models == ["small"]


@without_tracing
def test_what_is_given_by_hand_goes_before_the_catalogue(world: World) -> None:
    ended = world.pull("--sha256", world.sha256.upper(), checksum="1" * 64)

    assert ended.code == 0


def test_a_checkpoint_of_another_variant_is_refused(world: World) -> None:
    ended = world.pull(variant="vit_h", checksum=world.sha256)

    assert ended.code == 1
    assert "small.pt is a SAM of variant mobile, not vit_h" in ended.err
    assert world.models == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--sha256", "abc"), "--sha256: checksum"),
        (("--precision", "int8"), "--precision 'int8'"),
        (("--name", "../up", "--unverified"), "model name '../up'"),
    ],
)
def test_mistakes_are_told_before_the_download(
    world: World, arguments: tuple[str, ...], text: str
) -> None:
    ended = world.pull(*arguments)

    assert ended.code in (1, 2)
    assert text in ended.err
    assert world.server.seen == []


def test_a_name_that_is_not_known_lists_those_that_are(samserve: Command, tmp_path: Path) -> None:
    ended = samserve("models", "pull", "sam_vit_x", "--repository", tmp_path)

    assert ended.code == 1
    assert "sam_vit_b, sam_vit_l, sam_vit_h, mobile_sam" in ended.err


def test_known_lists_the_catalogue_and_who_needs_a_checksum(samserve: Command) -> None:
    ended = samserve("models", "known")

    rows = {line.split()[0]: line for line in ended.out.splitlines()}
    assert "pass --sha256" in rows["sam_vit_h"]
    assert " yes " in rows["mobile_sam"]
