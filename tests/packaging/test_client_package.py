"""The distribution `samserve-client`: its files, its dependencies, and the server's absence."""

from __future__ import annotations

import json
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from samserve.client import Prompt, SyncClient
from samserve.v1.samserve_pb2_grpc import GRPC_GENERATED_VERSION

from harness.gateway import GatewayServer
from harness.triton.ports import free_ports
from tests import photos
from tests.packaging.environments import Environment, run
from tests.packaging.images import pins
from tests.test_architecture import CLIENT_LEAVES, CLIENT_PARTS, PACKAGE, name_of, part_of

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python"
CONFIG = tomllib.loads((CLIENT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIG["project"]
SERVER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CALLS = Path(__file__).with_name("client_calls.py")
# Of grpcio.
INDIRECT = {"typing_extensions"}


def names(requirements: list[str]) -> set[str]:
    return {Requirement(each).name for each in requirements}


def test_files_are_exactly_the_modules_that_the_client_imports() -> None:
    listed = [
        PACKAGE / name for name in CONFIG["tool"]["hatch"]["build"]["hooks"]["custom"]["files"]
    ]
    modules = {
        name_of(path)
        for each in listed
        for path in (each.rglob("*.py") if each.is_dir() else [each])
        if path.suffix == ".py"
    }
    needed = {name_of(path) for path in PACKAGE.rglob("*.py") if is_needed(name_of(path))}

    assert modules == needed
    assert PACKAGE / "py.typed" in listed


def is_needed(name: str) -> bool:
    return name in CLIENT_LEAVES or part_of(name) in CLIENT_PARTS


def test_dependencies_are_the_named_ones() -> None:
    expected = {"grpcio", "googleapis-common-protos", "protobuf", "numpy", "pillow"}

    assert names(PROJECT["dependencies"]) == expected
    assert "optional-dependencies" not in PROJECT


def test_dependencies_allow_the_versions_of_the_server() -> None:
    for each in map(Requirement, PROJECT["dependencies"]):
        assert each.specifier.contains(pins()[each.name]), each


def test_oldest_versions_are_those_that_the_stubs_require() -> None:
    protobuf = re.findall(
        r"Protobuf Python Version: (.+)", (PACKAGE / "v1" / "samserve_pb2.py").read_text()
    )

    oldest = [each.partition(",")[0] for each in PROJECT["dependencies"]]
    assert f"grpcio>={GRPC_GENERATED_VERSION}" in oldest
    assert f"protobuf>={protobuf[0]}" in oldest


@pytest.mark.parametrize("key", ["requires-python", "classifiers", "license", "license-files"])
def test_metadata_is_that_of_the_server(key: str) -> None:
    assert PROJECT[key] == SERVER[key]


def test_license_is_that_of_the_server() -> None:
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_client_works_in_an_environment_without_the_server(
    wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    environment = Environment.create(tmp_path / "environment")
    environment.install(wheels[0])
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photos.files()[0])
    with GatewayServer({}) as gateway:
        unused = f"127.0.0.1:{free_ports(1)[0]}"
        found = json.loads(run(environment.program("python"), CALLS, gateway.target, unused, photo))
        run(environment.program("python"), "-c", example(gateway.target, photo))
        with SyncClient(gateway.target) as client:
            expected = client.predict(photo, [Prompt(points=[(250, 200)])]).results[0][0]

    assert set(found["distributions"]) == {
        *names(PROJECT["dependencies"]),
        *INDIRECT,
        "samserve-client",
    }
    assert set(found["modules"]) == {
        f"samserve.{name}".rstrip(".")
        for name in map(name_of, PACKAGE.rglob("*.py"))
        if is_needed(name)
    }
    assert found["version"][0] == found["version"][1]
    assert found["typed"]
    assert found["ready"]
    assert found["image_size"] == [512, 512]
    assert found["counts"][0] == expected.counts
    assert len(set(found["counts"])) == 3
    assert found["records"] == found["ends_with_summary"] > 0
    assert found["progress"]
    iou = found["iou_by_format"]
    assert 0.9 < iou.pop("polygons") <= 1
    assert set(iou.values()) == {1.0}
    assert found["size_of_a_bmp"] == [4, 6]
    assert found["deleted"]
    assert found["invalid"] == [
        "InvalidArgument",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        ["prompts"],
    ]
    assert found["unknown"][:3] == ["EmbeddingNotFound", "NOT_FOUND", "EMBEDDING_NOT_FOUND"]
    assert found["unavailable"][:3] == ["Unavailable", "UNAVAILABLE", ""]


@pytest.mark.slow
def test_client_and_server_can_be_installed_in_one_environment(
    wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    environment = Environment.create(tmp_path / "environment")
    environment.install("--no-deps", *wheels)
    environment.add_dependencies()
    code = "import samserve.app, samserve.client as c; print(samserve.app.__file__, c.__file__)"

    files = run(environment.program("python"), "-c", code).split()
    version = run(environment.program("samserve"), "--version")

    assert all(Path(each).is_relative_to(environment.site) for each in files)
    assert wheels[1].name.split("-")[1] in version


@pytest.mark.slow
def test_files_in_both_wheels_are_the_same(wheels: tuple[Path, Path]) -> None:
    client, server = map(contents, wheels)

    shared = {name for name in client if name.startswith("samserve/")}
    assert len(shared) > 20
    assert {name: client[name] for name in shared} == {name: server.get(name) for name in shared}
    assert wheels[0].stat().st_size < 200 << 10


def example(address: str, photo: Path) -> str:
    """Return the example of the client's page, with another address and file."""
    (code,) = re.findall(r"```python\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    assert "127.0.0.1:50051" in code
    assert "photo.jpg" in code
    return str(code).replace("127.0.0.1:50051", address).replace("photo.jpg", str(photo))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
