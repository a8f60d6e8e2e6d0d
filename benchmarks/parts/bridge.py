"""A click in an annotation tool over the bridge, against the same Predict over gRPC."""

from __future__ import annotations

import base64
import http.client
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from samserve.client import SyncClient
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from benchmarks.common import cpu_s
from benchmarks.gateways import Gateway, points
from benchmarks.parts import Plan
from benchmarks.photographs import photograph
from benchmarks.results import Comparison, Cost, Result
from harness.bridge import BridgeServer
from tests.bridge.label_studio import recorded, stub_server

BLOCKS, CLICKS = 9, 30
GRPC = "Predict by id over gRPC"
SIZES = ((640, 480), (4000, 3000))
_JSON = {"content-type": "application/json"}

Click = Callable[[float, float], object]


@dataclass(frozen=True)
class Row:
    """A tool and an image: the click over the bridge, and that over gRPC, at a point in pixels."""

    name: str
    ours: Click
    theirs: Click
    size: tuple[int, int]


def run(plan: Plan) -> Result:
    """Click in every tool and over gRPC, in turns; the first block only warms up."""
    clicks, sizes = (2, ((160, 120),)) if plan.toy else (CLICKS, SIZES)
    with ExitStack() as stack:
        gateway = stack.enter_context(Gateway(plan.threads))
        bridge = stack.enter_context(_bridge(gateway.target, plan.folder))
        channel = stack.enter_context(grpc.insecure_channel(gateway.target))
        connection = stack.enter_context(
            closing(http.client.HTTPConnection(urlsplit(bridge.server.tools_url).netloc))
        )
        stub = SegmentationServiceStub(channel)
        rows = [
            row for size in sizes for row in _rows(bridge, gateway.target, connection, stub, size)
        ]
        pids = (gateway.pid, bridge.server.pid)
        result = Result("bridge", [Comparison(row.name, GRPC) for row in rows])
        for block in range(plan.blocks(BLOCKS) + 1):
            for row, comparison in zip(rows, result.comparisons, strict=True):
                ours = measured(pids, row.ours, row.size, clicks)
                theirs = measured(pids[:1], row.theirs, row.size, clicks)
                if block:
                    comparison.ours.append(ours)
                    comparison.theirs.append(theirs)
    result.notes.append(
        "CPU time is that of gateway and bridge together, of the gateway alone for gRPC; the image "
        "is known, so a click of Label Studio has no image, and one of X-AnyLabeling all of it, as "
        "base64."
    )
    return result


def measured(pids: tuple[int, ...], click: Click, size: tuple[int, int], clicks: int) -> Cost:
    """Return the median wall seconds of a click, and its mean CPU seconds in *pids*."""
    taken, before = [], [cpu_s(pid) for pid in pids]
    for x, y in points(*size, clicks):
        start = time.perf_counter()
        click(x, y)
        taken.append(time.perf_counter() - start)
    used = sum(cpu_s(pid) - earlier for pid, earlier in zip(pids, before, strict=True))
    return Cost(statistics.median(taken), used / clicks)


@dataclass(frozen=True)
class _Bridge:
    server: BridgeServer
    images: dict[str, bytes]


@contextmanager
def _bridge(target: str, folder: Path) -> Iterator[_Bridge]:
    """Run a bridge, and the stub of Label Studio that it gets images from."""
    with stub_server() as label_studio:
        token = folder / "label-studio-token"
        token.write_text(label_studio.legacy)
        settings = {
            "gateways.targets": target,
            "log.level": "warning",
            "listener.idle_timeout_s": 3600,
            "label_studio.url": label_studio.url,
            "label_studio.token_file": token,
        }
        with BridgeServer(settings, log=folder / "bridge.log") as server:
            yield _Bridge(server, label_studio.images)


def _rows(
    bridge: _Bridge,
    target: str,
    connection: http.client.HTTPConnection,
    stub: SegmentationServiceStub,
    size: tuple[int, int],
) -> Iterator[Row]:
    file = photograph(*size)
    kilobytes = f"{len(file) / 1000:,.0f} kB"
    path = f"/data/upload/1/{size[0]}.jpg"
    bridge.images[path] = file
    with SyncClient(target) as client:
        ids = {each: client.embed(file, orientation=each).id for each in ("exif", "ignore")}
    text = "data:image/jpeg;base64," + base64.b64encode(file).decode()
    shown = f"{size[0]}x{size[1]}, {kilobytes}"

    def post(route: str, body: dict[str, Any]) -> object:
        connection.request("POST", route, json.dumps(body).encode(), _JSON)
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise RuntimeError(f"{route}: {response.status} {data[:200]!r}")
        return data

    def in_x_anylabeling(x: float, y: float) -> object:
        mark = {"type": "point", "data": [int(x), int(y)], "label": 1}
        params = {"marks": [mark], "epsilon_factor": 0.001, "current_task": "clicks"}
        return post("/x-anylabeling/v1/predict", {"model": "", "image": text, "params": params})

    def in_label_studio(x: float, y: float) -> object:
        body = recorded("point")
        body["tasks"][0]["data"]["image"] = path
        (region,) = body["params"]["context"]["result"]
        region["original_width"], region["original_height"] = size
        region["value"].update(x=100 * x / size[0], y=100 * y / size[1])
        return post("/label-studio/predict", body)

    yield Row(
        f"X-AnyLabeling, {shown}",
        in_x_anylabeling,
        _direct(stub, ids["ignore"], pb.OUTPUT_MODE_POLYGONS),
        size,
    )
    yield Row(
        f"Label Studio, brush, {shown}",
        in_label_studio,
        _direct(stub, ids["exif"], pb.OUTPUT_MODE_COCO_RLE),
        size,
    )


def _direct(stub: SegmentationServiceStub, embedding_id: str, mode: Any) -> Click:
    def predict(x: float, y: float) -> object:
        prompt = pb.Prompt(points=[pb.Point(x=int(x), y=int(y), label=1)])
        return stub.Predict(
            pb.PredictRequest(embedding_id=embedding_id, prompts=[prompt], output_mode=mode)
        )

    return predict
