"""The steps of the Dockerfile run in directories instead of image layers.

No image is built, which requires a container runtime. The steps install the wheel, so these tests
cover the wheel as well.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import photos
from tests.chart.rendered import container, render
from tests.packaging.images import Builder, in_image, packages, pins


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    builder = Builder(tmp_path_factory.mktemp("page"))
    builder.build("page")
    # Hundreds of megabytes, which pytest would keep.
    shutil.rmtree(builder.root / "src" / "web" / "node_modules")
    return builder


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, page: Builder) -> Builder:
    builder = Builder(tmp_path_factory.mktemp("image"), page)
    builder.build("build")
    return builder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gateway_image_serves_and_is_small(gateway: Builder, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photos.files()[0])
    options = ("--point", "250,200", "--out", "overlay.png", "--json", "response.json")

    in_image(gateway, "samserve", "predict", "photo.jpg", *options, cwd=tmp_path)

    response = json.loads((tmp_path / "response.json").read_text())
    assert (response["model"], response["image_size"]) == ("sam_tiny", [512, 512])
    assert response["results"][0]["masks"][0]["area"] > 0
    assert (tmp_path / "overlay.png").stat().st_size > 10_000
    used = sum(path.lstat().st_size for path in gateway.program.rglob("*") if path.is_file())
    assert used < 600 << 20
    # The content of the wheel, uncompressed.
    (package,) = gateway.program.glob("lib/python*/site-packages/samserve")
    wheel = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in wheel) < 40 << 20
    assert package / "web_page" / "index.html" in wheel


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gateway_image_has_pinned_runtime_packages_only(gateway: Builder, tmp_path: Path) -> None:
    installed = packages(gateway, tmp_path)

    assert installed.keys().isdisjoint({"torch", "onnx", "transformers", "scikit-image"})
    for name in ("samserve", "pip", "setuptools"):
        installed.pop(name, None)
    assert installed.items() <= pins().items()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ["export small.pth", "models pull mobile_sam"])
def test_commands_without_their_extra_name_it(
    gateway: Builder, tmp_path: Path, command: str
) -> None:
    arguments = (*command.split(), "--repository", "models")

    output = in_image(gateway, "samserve", *arguments, cwd=tmp_path, code=1)

    assert output.count("\n") == 1
    assert "pip install '.[export]'" in output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gateway_image_has_the_default_model_at_the_path_of_the_chart(gateway: Builder) -> None:
    command = container(render(), "copy-models")["command"]
    assert command[2] == "/opt/samserve/models/."
    models = gateway.program / "models"
    assert sorted(path.name for path in models.iterdir()) == [
        "sam_tiny_decoder",
        "sam_tiny_encoder",
    ]
    assert (models / "sam_tiny_encoder" / "config.pbtxt").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_export_image_exports_and_serves(tmp_path: Path, page: Builder) -> None:
    """The extra is complete, and the photos for the parity check are included."""
    import torch  # noqa: PLC0415 - slow import, for this test only

    from tests.oracle.sam import TINY, original  # noqa: PLC0415 - imports transformers

    builder = Builder(tmp_path, page)
    builder.build("build-export")
    torch.manual_seed(0)
    torch.save(original(TINY).state_dict(), tmp_path / "small.pth")
    (tmp_path / "photo.jpg").write_bytes(photos.files()[0])

    def samserve(*arguments: str) -> str:
        return in_image(builder, "samserve", *arguments, cwd=tmp_path)

    output = samserve("export", "small.pth", "--repository", "models")
    served = ("--set", "engine.model_repository=models", "--json", "-")
    response = samserve("predict", "photo.jpg", "--point", "250,200", *served)

    assert packages(builder, tmp_path)["torch"] == pins()["torch"]
    assert "75 prompts on 3 images" in output
    assert json.loads(response.splitlines()[-1])["model"] == "small"
    assert "sam_vit_h" in samserve("models", "catalog")
