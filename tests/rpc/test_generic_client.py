"""A client without generated stubs: `buf curl` reads the service by reflection."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2
from samserve.app import Running
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images

BUF = str(Path(sys.executable).parent / "buf")
ROOT = Path(__file__).parents[2]


async def buf(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        BUF, *arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def curl(service: Running, method: str, body: object) -> tuple[int, str, str]:
    url = f"http://{service.address}/samserve.v1.SegmentationService/{method}"
    return await buf(
        "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(body), url
    )


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
async def test_reflection_lists_the_service_and_its_methods(
    service: tuple[Running, SegmentationServiceStub], version: str
) -> None:
    url = f"http://{service[0].address}"
    only = ("--reflect-protocol", version)

    _, listed, _ = await buf(
        *("curl", "--protocol", "grpc", "--http2-prior-knowledge", *only, "--list-methods", url)
    )

    assert {
        *(f"samserve.v1.SegmentationService/{name}" for name in ("Embed", "Predict", "AutoMask")),
        "grpc.health.v1.Health/Check",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    } <= set(listed.split())


def predict_json(x: float) -> dict[str, Any]:
    """Return a Predict request in JSON."""
    return {
        "image": {"encoded": base64.b64encode(sample_images.png()).decode()},
        "prompts": [{"points": [{"x": x, "y": 24, "label": "LABEL_FOREGROUND"}]}],
    }


async def test_predict_returns_json(service: tuple[Running, SegmentationServiceStub]) -> None:
    status, out, err = await curl(service[0], "Predict", predict_json(32))

    assert (status, err) == (0, "")
    response = json.loads(out)
    assert response["results"][0]["masks"][0]["cocoRle"]["size"] == {"height": 48, "width": 64}


async def test_invalid_request_prints_a_structured_error(
    service: tuple[Running, SegmentationServiceStub],
) -> None:
    status, _, err = await curl(service[0], "Predict", predict_json(999))

    assert status != 0
    error = json.loads(err)
    assert error["code"] == "invalid_argument"
    assert "prompts[0].points[0].x" in error["message"]
    details = {detail["type"]: unpadded(detail["value"]) for detail in error["details"]}
    info = error_details_pb2.ErrorInfo.FromString(details["google.rpc.ErrorInfo"])
    bad = error_details_pb2.BadRequest.FromString(details["google.rpc.BadRequest"])
    assert (info.domain, info.reason) == ("samserve", "INVALID_ARGUMENT")
    assert [violation.field for violation in bad.field_violations] == ["prompts[0].points[0].x"]


def unpadded(value: str) -> bytes:
    return base64.b64decode(value + "=" * (-len(value) % 4))
