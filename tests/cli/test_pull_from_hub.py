"""`samserve models pull` of a model on the hub, into the folder that `samserve serve` reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest
import torch
from samserve.models.repository import discover

from tests.cli.conftest import Command, Result
from tests.export import graphs
from tests.export.hub import COMMIT, Hub, connect, git_blob, running_hub, sha256
from tests.export.loopback import Reply, Script, file
from tests.models.test_selection import add
from tests.oracle import huggingface
from tests.oracle.sam import SMALL

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    huggingface.model(SMALL, 4 * SMALL.width).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass(frozen=True)
class Setup:
    """A hub with a model, and a user without models."""

    hub: Hub
    content: dict[str, bytes]
    folder: Path
    samserve: Command

    @property
    def models(self) -> Path:
        return self.folder / "data" / "samserve" / "models"

    @property
    def names(self) -> list[str]:
        found = self.models.is_dir() and list(self.models.glob("*/config.pbtxt"))
        return [bundle.info.name for bundle in discover(self.models)] if found else []

    @property
    def blobs(self) -> list[str]:
        """The files in the hub's cache that contain weights, complete or not."""
        cache = self.folder / "hub"
        size = len(self.content[WEIGHTS]) // 4
        files = [path for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path.name for path in files if path.stat().st_size > size]

    def pull(self, *arguments: str, **more: str) -> Result:
        catalog = self.folder / "catalog.toml"
        entry = {
            "hub": "owner/name",
            "license": "Apache-2.0",
            "page": "https://example.org/small",
            "description": "Small",
            "checkpoint_mib": 20,
            "export_memory_mib": 300,
            **more,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        catalog.write_text("\n".join(["[small]", *lines]))
        options = ("--catalog", catalog, "--no-parity-check", *arguments)
        return self.samserve("models", "pull", "small", *options)


@pytest.fixture
def setup(
    samserve: Command,
    published: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Setup]:
    # Minimal graphs instead of traced ones, which take seconds.
    monkeypatch.setattr("samserve.export.pipeline.export_encoder", lambda _: graphs.encoder())
    monkeypatch.setattr("samserve.export.pipeline.export_decoder", lambda _: graphs.decoder())
    monkeypatch.setattr("samserve.export.download.RETRIES", 0)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with running_hub() as hub:
        connect(hub, tmp_path / "hub", monkeypatch)
        hub.publish(published)
        yield Setup(hub, published, tmp_path, samserve)


def test_a_model_is_verified_and_written_to_the_users_folder(setup: Setup) -> None:
    result = setup.pull()

    assert result.code == 0, result.err
    (bundle,) = discover(setup.models)
    card = bundle.info.card
    assert (bundle.info.name, card.source, card.source_revision) == ("small", "owner/name", COMMIT)
    assert card.license == "Apache-2.0"
    assert f"sha256:{sha256(setup.content[WEIGHTS])}" in result.out
    assert setup.blobs == [sha256(setup.content[WEIGHTS])]
    assert "samserve serve --model small" in result.err


def test_the_costs_are_stated_before_the_download(setup: Setup) -> None:
    setup.hub.offer(WEIGHTS, Reply(503))

    result = setup.pull()

    size = len(setup.content[WEIGHTS]) / 2**20
    assert result.code == 1
    assert f"{size:.0f} of {size:.0f} MiB are not yet in {setup.folder / 'hub'}" in result.err
    assert "download: 20 MiB" in result.err
    assert "memory of the export: 300 MiB" in result.err
    assert f"commit {COMMIT} (Apache-2.0, https://example.org/small)" in result.err


def test_a_second_pull_downloads_nothing(setup: Setup) -> None:
    setup.pull()
    before = setup.hub.downloads

    result = setup.pull("--name", "again")

    assert result.code == 0
    assert setup.hub.downloads == before == ["config.json", WEIGHTS]
    assert setup.names == ["again", "small"]


def test_a_pulled_model_is_the_default_only_on_request(setup: Setup) -> None:
    def default() -> str:
        return setup.samserve("models", "default").out.strip()

    setup.pull()
    before = default()
    result = setup.pull("--skip-existing", "--default")
    changed = default()
    unset = setup.samserve("models", "default", "--unset")

    assert (before, changed) == ("sam_tiny (of the package)", "small")
    assert "undo with: samserve models default --unset" in result.out
    assert (unset.code, default()) == (0, "sam_tiny (of the package)")
    assert setup.samserve("models", "default", "small").code == 0
    assert default() == "small"
    unknown = setup.samserve("models", "default", "other")
    assert "no model 'other'; available: sam_tiny, small" in unknown.error


@pytest.mark.parametrize("name", ["model", "config"])
def test_a_file_with_another_digest_is_deleted(setup: Setup, name: str) -> None:
    wrong = "0" * (64 if name == "model" else 40)
    setup.hub.publish(setup.content, **{name: wrong})

    result = setup.pull()

    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if "error:" in line]
    assert wrong in line
    assert "deleted" in line
    assert (setup.blobs, setup.names) == ([], [])


def test_a_cached_file_that_was_damaged_is_noticed(setup: Setup) -> None:
    setup.pull()
    (blob,) = (setup.folder / "hub").rglob(sha256(setup.content[WEIGHTS]))
    blob.write_bytes(setup.content[WEIGHTS][:-1] + b"!")

    damaged = setup.pull("--name", "again")
    repaired = setup.pull("--name", "again")

    assert damaged.code == 1
    assert "model.safetensors does not match the digest that the hub lists" in damaged.err
    assert repaired.code == 0
    assert setup.names == ["again", "small"]


def test_an_interrupted_download_is_resumed_by_the_next_command(setup: Setup) -> None:
    weights = setup.content[WEIGHTS]
    headers = {"ETag": f'"{sha256(weights)}"', "X-Repo-Commit": COMMIT}
    half = 8 << 20
    setup.hub.offer(WEIGHTS, file(weights, half, **headers), file(weights, **headers))

    first = setup.pull()
    second = setup.pull()

    path = setup.hub.path(WEIGHTS)
    gets = [each for each in setup.hub.server.requests if each.path == path]
    assert first.code == 1
    assert f"{half} of {len(weights)} bytes received" in first.err
    assert "run the command again to resume" in first.err
    assert second.code == 0, second.err
    assert [each.headers["Range"] for each in gets if each.method == "GET"] == [
        None,
        f"bytes={half}-",
    ]


def test_a_gated_model_says_how_to_get_access(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = Reply(403, b"", {"X-Error-Code": "GatedRepo"})
    weights = setup.content[WEIGHTS]

    def only_with_token(script: Script) -> Script:
        def guarded(headers: Message) -> Reply:
            granted = headers["Authorization"] == "Bearer hf_granted"
            return script(headers) if granted else gated

        return guarded

    for name, digest in {"config.json": "", WEIGHTS: sha256(weights)}.items():
        content = setup.content[name]
        headers = {"ETag": f'"{digest or git_blob(content)}"', "X-Repo-Commit": COMMIT}
        setup.hub.offer(name, only_with_token(file(content, **headers)))
    refused = setup.pull()
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    granted = setup.pull()

    assert refused.code == 1
    assert f"accept the terms on {setup.hub.server.address}/owner/name" in refused.err
    assert "set HF_TOKEN to a token of your account, or run `hf auth login`" in refused.err
    assert granted.code == 0, granted.err


def test_a_model_of_another_kind_is_rejected_before_its_weights_are_downloaded(
    setup: Setup,
) -> None:
    setup.hub.publish({**setup.content, "config.json": b'{"model_type": "bert"}'})

    result = setup.pull()

    assert result.code == 1
    assert "bert" in result.err
    assert "owner/name" in result.err
    assert setup.hub.downloads == ["config.json"]


def test_another_model_under_the_name_is_rejected(setup: Setup) -> None:
    result = setup.pull(variant="sam2.1_hiera_tiny")

    assert result.code == 1
    assert "owner/name has a model of the variant custom, not sam2.1_hiera_tiny" in result.err
    assert setup.names == []


def test_a_package_that_a_model_requires_is_reported_before_the_download(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.utils", None)

    result = setup.pull(variant="edgetam")

    assert result.code == 1
    assert "install timm" in result.error
    assert setup.hub.server.requests == []


def test_a_folder_that_cannot_be_written_to_is_reported_before_the_download(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samserve.cli.pull.os.access", lambda path, _: path != setup.folder)

    result = setup.pull()

    assert result.error == f"{setup.folder}: cannot be written to"
    assert setup.hub.server.requests == []


def test_a_directory_with_the_name_of_the_model_is_not_exported_in_its_place(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    (setup.folder / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(setup.folder)

    result = setup.pull()

    assert result.error.startswith("owner/name exists here")
    assert setup.hub.server.requests == []


def test_a_full_disk_is_reported_before_the_download(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1 << 20

    monkeypatch.setattr("samserve.export.sources.hub.shutil.disk_usage", lambda _: Usage)

    result = setup.pull()

    assert result.code == 1
    assert "the download needs" in result.err
    assert "where 1 MiB are free" in result.err
    assert setup.hub.downloads == []


def test_an_unreachable_hub_and_an_unknown_model_are_one_line(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.hub.server.on("/api/models/owner/name", Reply(404, b"", {"X-Error-Code": "RepoNotFound"}))
    unknown = setup.pull()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    unreachable = setup.pull()

    assert (unknown.code, unreachable.code) == (1, 1)
    assert unknown.error.startswith(
        "owner/name: not available from the hub: the model does not exist or is private"
    )
    assert unreachable.error.endswith("the hub is unreachable, and the model is not in its cache")


def test_a_cached_model_is_exported_without_a_connection(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.pull()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")

    result = setup.pull("--name", "again")

    assert result.code == 0, result.err
    assert f"the hub is unreachable; commit {COMMIT} is in {setup.folder / 'hub'}" in result.err
    assert setup.names == ["again", "small"]


def test_a_name_of_the_package_is_rejected_before_the_download(setup: Setup) -> None:
    result = setup.pull("--name", "sam_tiny")

    assert result.code == 1
    assert "the package has a model 'sam_tiny'" in result.error
    assert setup.hub.server.requests == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--unverified",), "verified against the digests that the hub lists"),
        (("--repository", "models", "--default"), "--default is for models without --repository"),
    ],
)
def test_options_that_do_not_apply_are_rejected(
    setup: Setup, arguments: tuple[str, ...], text: str
) -> None:
    result = setup.pull(*arguments)

    assert result.code == 2
    assert text in result.err
    assert setup.hub.server.requests == []


def test_show_also_finds_models_that_are_not_served(setup: Setup) -> None:
    setup.pull()
    only = ("--set", "engine.models=sam_tiny")

    stored = setup.samserve("models", "show", "small", *only)
    published = setup.samserve("models", "show", "sam2.1_hiera_tiny", *only)

    assert stored.code == 0
    assert f"source revision: {COMMIT}" in stored.out
    assert "license: Apache-2.0" in stored.out
    assert "facebook/sam2.1-hiera-tiny on the Hugging Face hub" in published.out
    assert "work per image: 0.291 TFLOP" in published.out
    assert "samserve models pull sam2.1_hiera_tiny" in published.err


def test_upgrade_and_doctor_use_the_users_folder(setup: Setup) -> None:
    missing = setup.samserve("models", "upgrade")
    setup.pull()
    upgraded = setup.samserve("models", "upgrade")
    (setup.models / "small_decoder" / "1" / "model.onnx").unlink()
    doctor = setup.samserve("doctor", "--set", "server.port=0", "--set", "server.admin_port=0")

    assert f"there is no folder {setup.models}" in missing.error
    assert "small: already up to date" in upgraded.out
    assert doctor.code == 1
    (line,) = [line for line in doctor.out.splitlines() if "model repository" in line]
    assert line.startswith("problem")
    assert str(setup.models) in line


def test_a_command_without_a_server_loads_only_the_model_that_it_uses(
    samserve: Command, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = add(tmp_path / "samserve" / "models", "damaged")
    graph = folder / "damaged_decoder" / "1" / "model.onnx"
    graph.unlink()
    graph.write_bytes(b"damaged")

    default = samserve("embed", image)
    named = samserve("embed", image, "--model", "damaged")
    served = samserve("serve", "--model", "damaged", "--port", "0", "--admin-port", "0")

    assert default.code == 0
    assert "model: sam_tiny" in default.out
    assert "not served" not in default.err
    for result in (named, served):
        assert result.code == 1
        assert f"pull or export it again, or delete {folder / 'damaged'}_*" in result.err
