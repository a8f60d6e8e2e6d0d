"""CPU time of the gateway process per call, with an engine that computes nothing.

A bare `grpc.aio` server (`benchmarks.echo`) answers calls of the same sizes in between, because the
speed of machines drifts; for Embed it hashes the image.  CPU time includes all threads of a
process, and so the post-processing of masks.  ``--against`` adds the gateway of another checkout.

``python -m benchmarks.gateway_cpu [--blocks 5] [--calls 100] [--against ../before]``
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import grpc
import numpy as np
from PIL import Image
from samserve.v1 import samserve_pb2 as pb

from benchmarks import echo
from benchmarks.common import cpu_s, options
from harness.child import Child
from harness.gateway import GatewayServer
from harness.program import HOST
from harness.triton.ports import free_ports

ROOT = Path(__file__).parents[1]
SERVICE = "/samserve.v1.SegmentationService/"
SIZES = ((256, 256), (480, 640), (1200, 1800))
CLIENTS = (1, 4, 16, 64)
ECHO, GATEWAY, OTHER = "echo", "gateway", "other"
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", echo.MAX_BYTES),
    ("grpc.max_send_message_length", echo.MAX_BYTES),
]


@dataclass(frozen=True)
class Request:
    """A call: its name in the table, its path, its request, and how many clients send it."""

    name: str
    path: str
    data: bytes
    clients: int = 1


@dataclass
class Series:
    """One request to one server: milliseconds of its CPU and of a call, by block (medians)."""

    request: str
    server: str
    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)

    def ratio(self, other: Series) -> tuple[float, float, float]:
        """Return the median, least and greatest ratio of CPU to that of *other*, by block."""
        ratios = [ours / theirs for ours, theirs in zip(self.cpu_ms, other.cpu_ms, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


class FreeGateway(GatewayServer):
    """The gateway of a checkout, with an engine that computes nothing."""

    def __init__(
        self, log: Path, tree: Path = ROOT, more: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        """Configure the gateway; *more* are further settings."""
        settings = {"engine.kind": "fake", "cache.local.capacity_bytes": 64 << 20, **more}
        super().__init__(settings, program=("-m", "benchmarks.free_gateway"), log=log)
        self._env = {**os.environ, "PYTHONPATH": f"{tree / 'service'}:{ROOT}"}


class EchoServer(Child):
    """`benchmarks.echo` as a child process."""

    _name: ClassVar[str] = "echo"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_ports(1)[0]
        self.target = f"{HOST}:{self._port}"

    def _log_path(self) -> Path:
        return self._folder / "echo.log"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server for the length of the block."""
        command = [sys.executable, "-m", "benchmarks.echo", str(self._port)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = self._spawn(command, self._folder, env)
        try:
            yield
        finally:
            self._process.kill()
            self._process.wait()


async def closed_loop(target: str, request: Request, calls: int) -> list[float]:
    """Send *calls* requests, each client one after the other; return milliseconds of each call."""
    taken_ms: list[float] = []
    left = calls

    async def client() -> None:
        nonlocal left
        async with grpc.aio.insecure_channel(target, _CHANNEL) as channel:
            call = channel.unary_unary(request.path)
            await call(request.data, wait_for_ready=True)
            await started.wait()
            while left > 0:
                left -= 1
                start = time.perf_counter()
                await call(request.data)
                taken_ms.append((time.perf_counter() - start) * 1e3)

    started = asyncio.Barrier(request.clients)
    async with asyncio.TaskGroup() as group:
        for _ in range(request.clients):
            group.create_task(client())
    return taken_ms


def embed(target: str, pixels: np.ndarray) -> pb.EmbedResponse:
    """Store the embedding of an image."""
    height, width = pixels.shape[:2]
    size, layout = pb.ImageSize(height=height, width=width), pb.RAW_LAYOUT_RGB
    raw = pb.RawImage(data=pixels.tobytes(), size=size, layout=layout)
    with grpc.insecure_channel(target, _CHANNEL) as channel:
        call = channel.unary_unary(f"{SERVICE}Embed")
        data = call(pb.EmbedRequest(image=pb.Image(raw=raw)).SerializeToString())
    return pb.EmbedResponse.FromString(data)


def predict_requests(target: str) -> Iterator[Request]:
    """Yield the Predict calls, after storing their embeddings."""
    for height, width in SIZES:
        stored = embed(target, np.zeros((height, width, 3), dtype=np.uint8))
        for name, mode, multimask in (
            ("logits only", pb.OUTPUT_MODE_LOW_RES_LOGITS, pb.MULTIMASK_SINGLE),
            ("one mask", pb.OUTPUT_MODE_COCO_RLE, pb.MULTIMASK_SINGLE),
            ("three masks", pb.OUTPUT_MODE_COCO_RLE, pb.MULTIMASK_ALL),
        ):
            point = pb.Point(x=width / 2, y=height / 2, label=pb.Point.LABEL_FOREGROUND)
            message = pb.PredictRequest(
                embedding_id=stored.embedding.id,
                prompts=[pb.Prompt(points=[point])],
                output_mode=mode,
                multimask=multimask,
            )
            data = message.SerializeToString()
            yield Request(f"Predict {width}x{height}, {name}", f"{SERVICE}Predict", data)


def requests(target: str) -> list[Request]:
    """Return all calls to measure, once the server has the embeddings that they need."""
    fixed = Request("ListModels", f"{SERVICE}ListModels", b"")
    predicts = list(predict_requests(target))
    (click,) = (each for each in predicts if each.name == "Predict 640x480, one mask")
    crowds = [
        Request(f"{each.name}, {clients} clients", each.path, each.data, clients)
        for each in (fixed, click)
        for clients in CLIENTS[1:]
    ]
    return [fixed, embed_hit_request(), *predicts, *crowds]


def embed_hit_request() -> Request:
    """Return an Embed of a photo-sized JPEG file; after the first call it is in the cache."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).resize((640, 480)).save(buffer, "JPEG", quality=95)
    message = pb.EmbedRequest(image=pb.Image(encoded=buffer.getvalue()))
    return Request("Embed 640x480, hit", f"{SERVICE}Embed", message.SerializeToString())


def results(blocks: int = 5, calls: int = 100, against: Path | None = None) -> list[Series]:
    """Measure every call on every server, in turns; the first block only warms up."""
    trees = {GATEWAY: ROOT} | ({} if against is None else {OTHER: against.resolve()})
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        bare = EchoServer(folder)
        stack.enter_context(bare.running())
        gateways = {
            server: stack.enter_context(FreeGateway(folder / f"{server}.log", tree))
            for server, tree in trees.items()
        }
        servers = {server: (each.pid, each.target) for server, each in gateways.items()}
        servers[ECHO] = (bare.pid, bare.target)
        table = _requests_by_server(servers)
        return _measure(servers, table, blocks, calls)


def _requests_by_server(servers: Mapping[str, tuple[int, str]]) -> list[dict[str, Request]]:
    """Return the rows: the same request for each server, an echo of its response's size."""
    rows = []
    for request in requests(servers[GATEWAY][1]):
        row = {server: request for server in servers if server != ECHO}
        with grpc.insecure_channel(servers[GATEWAY][1], _CHANNEL) as channel:
            size = len(channel.unary_unary(request.path)(request.data))
        data = size.to_bytes(4, "big") + b"." * max(0, len(request.data) - 4)
        row[ECHO] = Request(request.name, echo.ECHO, data, request.clients)
        if request.path.endswith("Embed"):
            row[ECHO] = Request(request.name, echo.HASH, request.data)
        rows.append(row)
    if OTHER in servers:
        requests(servers[OTHER][1])  # it needs the embeddings too
    return rows


def _measure(
    servers: Mapping[str, tuple[int, str]],
    table: Sequence[Mapping[str, Request]],
    blocks: int,
    calls: int,
) -> list[Series]:
    found = [
        {server: Series(request.name, server) for server, request in row.items()} for row in table
    ]
    for block in range(blocks + 1):
        for row, series in zip(table, found, strict=True):
            for server, request in row.items():
                pid, target = servers[server]
                before = cpu_s(pid)
                taken_ms = asyncio.run(closed_loop(target, request, calls))
                if block:
                    sent = len(taken_ms) + request.clients
                    series[server].cpu_ms.append((cpu_s(pid) - before) / sent * 1e3)
                    series[server].wall_ms.append(statistics.median(taken_ms))
    return [each for series in found for each in series.values()]


def lines(series: Sequence[Series]) -> Iterator[str]:
    """Yield a table: CPU of the gateway, of the echo, and the ratio to another checkout."""
    by_name: dict[str, dict[str, Series]] = {}
    for each in series:
        by_name.setdefault(each.request, {})[each.server] = each
    yield f"{'call':40} {'CPU ms':>7} {'p50 ms':>7} {'echo':>6} {'other':>7}  ours/other"
    for name, servers in by_name.items():
        ours, other = servers[GATEWAY], servers.get(OTHER)
        line = f"{name:40} {statistics.median(ours.cpu_ms):7.2f}"
        line += f" {statistics.median(ours.wall_ms):7.2f}"
        line += f" {statistics.median(servers[ECHO].cpu_ms):6.2f}"
        if other is not None:
            middle, low, high = ours.ratio(other)
            line += f" {statistics.median(other.cpu_ms):7.2f}  {middle:.2f} ({low:.2f}-{high:.2f})"
        yield line


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__, blocks=5, calls=100, against="")
    against = Path(arguments.against) if arguments.against else None
    print("\n".join(lines(results(arguments.blocks, arguments.calls, against))))


if __name__ == "__main__":
    main()
