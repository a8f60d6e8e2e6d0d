"""`samserve models pull` against a server on this machine, with its own catalog."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from samserve.models.repository import discover

from tests.cli.conftest import Command, Result
from tests.export import graphs
from tests.export.loopback import Loopback, file, loopback, redirect
from tests.oracle.sam import MOBILE, Size, original


def checkpoint_of(size: Size, folder: Path) -> bytes:
    torch.manual_seed(0)
    torch.save(original(size).state_dict(), folder / "sam.pt")
    return (folder / "sam.pt").read_bytes()


@dataclass(frozen=True)
class Setup:
    """A publisher, a catalog with its checkpoint, and the directories of the command."""

    folder: Path
    server: Loopback
    content: bytes
    samserve: Command

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def checkpoints(self) -> list[str]:
        folder = self.folder / "checkpoints"
        return sorted(path.name for path in folder.glob("*/*") if path.name != ".lock")

    def pull(self, *arguments: str, variant: str = "mobile", checksum: str = "") -> Result:
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
        sources = ("--catalog", catalog, "--checkpoint-dir", self.folder / "checkpoints")
        options = ("--repository", self.folder / "models", "--no-parity-check", *arguments)
        return self.samserve("models", "pull", "small", *sources, *options)

    @property
    def models(self) -> list[str]:
        models = self.folder / "models"
        return [files.info.name for files in discover(models)] if models.exists() else []


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return checkpoint_of(MOBILE, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def _without_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write minimal graphs instead of traced ones, which take seconds."""
    monkeypatch.setattr("samserve.export.pipeline.export_encoder", lambda _: graphs.encoder())
    monkeypatch.setattr("samserve.export.pipeline.export_decoder", lambda _: graphs.decoder())


without_tracing = pytest.mark.usefixtures("_without_tracing")


@pytest.fixture
def setup(samserve: Command, content: bytes, tmp_path: Path) -> Iterator[Setup]:
    with loopback() as server:
        server.on("/weights/small.pt", file(content))
        yield Setup(tmp_path, server, content, samserve)


@without_tracing
def test_a_pulled_model_is_verified_exported_and_named_by_the_catalog(setup: Setup) -> None:
    setup.server.on("/weights/small.pt", redirect(setup.server.address + "/store/1"))
    setup.server.on("/store/1", file(setup.content))

    result = setup.pull(checksum=setup.sha256)

    assert result.code == 0
    assert f"sha256 {setup.sha256}" in result.out
    assert "Apache-2.0" in result.err
    assert f"{len(setup.content) >> 20} of {len(setup.content) >> 20} MiB" in result.err
    assert setup.models == ["small"]
    assert setup.checkpoints == ["small.pt"]
    (files,) = discover(setup.folder / "models")
    assert (files.info.card.source, files.info.card.variant) == ("small.pt", "mobile")
    assert files.info.card.source_sha256 == setup.sha256


@without_tracing
def test_a_second_pull_downloads_nothing(setup: Setup) -> None:
    setup.pull(checksum=setup.sha256)
    requests = len(setup.server.requests)

    result = setup.pull("--name", "again", checksum=setup.sha256)

    assert result.code == 0
    assert len(setup.server.requests) == requests
    assert setup.models == ["again", "small"]


@without_tracing
def test_an_interrupted_download_is_resumed_by_the_next_command(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samserve.export.download.RETRIES", 0)
    half = 1 << 20
    setup.server.on("/weights/small.pt", file(setup.content, cut=half), file(setup.content))

    first = setup.pull(checksum=setup.sha256)
    partial = setup.checkpoints
    second = setup.pull(checksum=setup.sha256)

    assert first.code == 1
    assert len([line for line in first.err.splitlines() if "error:" in line]) == 1
    assert f"{half} of {len(setup.content)}" in first.err
    assert "small.pt.part" in partial
    assert "small.pt" not in partial
    assert second.code == 0
    assert setup.server.ranges == [None, f"bytes={half}-"]
    assert setup.models == ["small"]


def test_an_existing_model_is_skipped_on_request(setup: Setup) -> None:
    for role in ("encoder", "decoder"):
        (setup.folder / "models" / f"small_{role}").mkdir(parents=True)

    skipped = setup.pull("--skip-existing", "--unverified")

    assert skipped.code == 0, skipped.err
    assert "small already exists in " in skipped.out
    assert setup.checkpoints == []
    # An incomplete model does not count.
    (setup.folder / "models" / "small_decoder").rmdir()
    assert setup.pull("--skip-existing").code == 1


def test_a_wrong_checksum_is_rejected_and_the_file_deleted(setup: Setup) -> None:
    result = setup.pull("--sha256", "0" * 64)

    assert result.code == 1
    assert "0" * 64 in result.err
    assert setup.sha256 in result.err
    assert setup.checkpoints == []
    assert setup.models == []


def test_without_any_checksum_nothing_is_requested(setup: Setup) -> None:
    result = setup.pull()

    assert result.code == 1
    assert "pass one that you trust with --sha256" in result.err
    assert setup.server.requests == []


@without_tracing
def test_unverified_accepts_the_file_and_prints_its_checksum(setup: Setup) -> None:
    result = setup.pull("--unverified")

    assert result.code == 0
    assert f"sha256 {setup.sha256}" in result.out
    assert setup.models == ["small"]


@without_tracing
def test_the_checksum_option_takes_precedence_over_the_catalog(setup: Setup) -> None:
    result = setup.pull("--sha256", setup.sha256.upper(), checksum="1" * 64)

    assert result.code == 0


def test_a_checkpoint_of_another_variant_is_rejected(setup: Setup) -> None:
    result = setup.pull(variant="vit_h", checksum=setup.sha256)

    assert result.code == 1
    assert "small.pt has a model of the variant mobile, not vit_h" in result.err
    assert setup.models == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--sha256", "abc"), "--sha256: checksum"),
        (("--precision", "int8"), "--precision 'int8'"),
        (("--name", "../up", "--unverified"), "model name '../up'"),
    ],
)
def test_invalid_options_are_reported_before_the_download(
    setup: Setup, arguments: tuple[str, ...], text: str
) -> None:
    result = setup.pull(*arguments)

    assert result.code in (1, 2)
    assert text in result.err
    assert setup.server.requests == []


def test_an_unknown_name_is_reported_with_the_known_ones(samserve: Command, tmp_path: Path) -> None:
    result = samserve("models", "pull", "sam_vit_x", "--repository", tmp_path)

    assert result.code == 1
    assert "sam_vit_b, sam_vit_l, sam_vit_h, mobile_sam" in result.err


def test_catalog_lists_the_models_and_which_require_a_checksum(samserve: Command) -> None:
    result = samserve("models", "catalog")

    rows = {line.split()[0]: line for line in result.out.splitlines()}
    assert "requires --sha256" in rows["sam_vit_h"]
    assert " yes " in rows["mobile_sam"]
    assert "from the hub" in rows["sam2.1_hiera_tiny"]
    assert "149 MiB" in rows["sam2.1_hiera_tiny"]
    assert "0.291 TFLOP" in rows["sam2.1_hiera_tiny"]


def test_catalog_shows_a_dash_for_memory_that_is_unknown(samserve: Command, tmp_path: Path) -> None:
    entry = """
url = "http://127.0.0.1/small.pt"
variant = "mobile"
license = "Apache-2.0"
page = "https://example.org/small"
description = "Small"
"""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(f"[unknown]{entry}[measured]{entry}served_memory_mib = 1200\n")

    result = samserve("models", "catalog", "--catalog", catalog)

    memory = {columns[0]: columns[4] for columns in map(_columns, result.out.splitlines())}
    assert memory == {"name": "memory", "unknown": "-", "measured": "1200 MiB"}


def _columns(row: str) -> list[str]:
    return re.split(r"\s{2,}", row)
