"""Downloads of decoders: who may have which, and what is sent."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from samserve.app import Running, running
from samserve.http import decoders
from samserve.settings import Settings
from samserve.v1 import samserve_pb2 as pb

from tests.conftest import stub_of
from tests.engine_choice import drawing_repository
from tests.http.serving import settings_of
from tests.http.wire import Response, connected
from tests.metric_values import total
from tests.security.credentials import KeyFile

LICENSE = re.compile(r'parameters \{ key: "samserve.license".*?\}\s*\}', re.DOTALL)


def repository(folder: Path, license_name: str) -> Path:
    """Copy a small model, with another licence in its card."""
    shutil.copytree(drawing_repository(), folder)
    for config in folder.glob("*/config.pbtxt"):
        text = LICENSE.sub("", config.read_text())
        value = f'{{ string_value: "{license_name}" }}'
        text += f'\nparameters {{ key: "samserve.license" value {value} }}\n' * bool(license_name)
        config.write_text(text)
    return folder


def settings(folder: Path, **http: str) -> Settings:
    engine = {"kind": "onnx", "model_repository": folder, "threads": 1}
    return settings_of(engine=engine, http=http)


def decoder_of(folder: Path) -> Path:
    (path,) = (each for each in folder.glob("*/1/model.onnx") if "decoder" in each.parts[-3])
    return path


@pytest.fixture
def permissive(tmp_path: Path) -> Path:
    return repository(tmp_path / "models", "Apache-2.0")


async def get(
    service: Running, path: str, *headers: tuple[str, str], method: str = "GET"
) -> Response:
    async with connected(service.http_address) as wire:
        return await wire.request(path, b"", headers, method=method)


async def listed_digest(service: Running) -> str:
    async with stub_of(service.address) as stub:
        (model,) = (await stub.ListModels(pb.ListModelsRequest())).models
    return str(model.decoder_sha256)


async def test_a_decoder_is_downloaded_by_its_digest(
    permissive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several chunks.
    monkeypatch.setattr(decoders, "_CHUNK_BYTES", 1000)
    content = decoder_of(permissive).read_bytes()
    async with running(settings(permissive)) as service:
        digest = await listed_digest(service)
        response = await get(service, f"/decoders/{digest}")
        again = await get(service, f"/decoders/{digest}", ("if-none-match", f'"{digest}"'))
        registry = service.metrics.registry
        counted = total(registry, "grpc_server_handled_total", grpc_method="DownloadDecoder")

    assert digest == hashlib.sha256(content).hexdigest()
    assert (response.status, response.body == content) == (200, True)
    assert response.headers["etag"] == again.headers["etag"] == f'"{digest}"'
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert response.headers["content-type"] == "application/octet-stream"
    assert (again.status, again.body) == (304, b"")
    assert counted == 2


async def test_other_digests_and_methods_are_rejected(permissive: Path) -> None:
    async with running(settings(permissive)) as service:
        digest = await listed_digest(service)
        for path in ("0" * 64, "", "..", "%2e%2e/x", digest.upper(), digest + "/", "x" * 5000):
            response = await get(service, f"/decoders/{path}")
            assert (response.status, reason(response)) == (404, "DECODER_NOT_FOUND"), path
        for method in ("POST", "HEAD", "DELETE"):
            async with connected(service.http_address) as wire:
                wire.send(wire.head(f"/decoders/{digest}", method=method))
                assert (await wire.response_head())[0] == 405


def reason(response: Response) -> str:
    return str(json.loads(response.body)["details"][0]["debug"]["reason"])


@pytest.mark.parametrize("name", ["", "CC-BY-NC-4.0", "other", "Apache-2.0 WITH terms"])
async def test_a_restricted_licence_needs_the_permission_of_the_operator(
    tmp_path: Path, name: str
) -> None:
    folder = repository(tmp_path / "models", name)
    digest = hashlib.sha256(decoder_of(folder).read_bytes()).hexdigest()
    async with running(settings(folder)) as service:
        assert await listed_digest(service) == ""
        assert (await get(service, f"/decoders/{digest}")).status == 404
        (model,) = service.engine.models
    async with running(settings(folder, decoder_downloads=f"x, {model}")) as service:
        assert await listed_digest(service) == digest
        assert (await get(service, f"/decoders/{digest}")).status == 200


async def test_a_replaced_file_is_not_sent(permissive: Path) -> None:
    async with running(settings(permissive)) as service:
        digest = await listed_digest(service)
        decoder_of(permissive).write_bytes(b"other")
        response = await get(service, f"/decoders/{digest}")

    assert (response.status, reason(response)) == (404, "DECODER_NOT_FOUND")


async def test_a_download_needs_its_own_permission(permissive: Path, key_file: KeyFile) -> None:
    keys = {name: key_file.add("acme", name) for name in ("decoders_read", "embed")}
    given = settings(permissive)
    auth = given.auth.model_copy(update={"api_keys_file": key_file.path})
    async with running(given.model_copy(update={"auth": auth})) as service:
        digest = hashlib.sha256(decoder_of(permissive).read_bytes()).hexdigest()
        path = f"/decoders/{digest}"
        for name, status in (("decoders_read", 200), ("embed", 403)):
            response = await get(service, path, ("authorization", f"Bearer {keys[name]}"))
            assert response.status == status, name
        assert (await get(service, path)).status == 401
        # Also for what the browser has cached.
        assert (await get(service, path, ("if-none-match", f'"{digest}"'))).status == 401


async def test_decoders_are_not_offered_without_the_listener(permissive: Path) -> None:
    given = settings(permissive)
    http = given.http.model_copy(update={"enabled": False})
    async with running(given.model_copy(update={"http": http})) as service:
        assert await listed_digest(service) == ""
        assert service.http_address == ""
