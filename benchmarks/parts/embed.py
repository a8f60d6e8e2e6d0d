"""Embed of images that the cache has, and of new ones, against the work that it cannot avoid.

A hit is compared with a bare gRPC server that returns the SHA-256 of the same bytes. A miss is
compared with its parts in one process: Pillow decodes and resizes the file, and the same image
encoder runs on as many threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from PIL import Image
from samserve.client import Client
from samserve.v1 import samserve_pb2 as pb

from benchmarks import echo, gateway_cpu
from benchmarks.gateways import DEFAULT_MODEL, Gateway, Side
from benchmarks.machine import ROOT
from benchmarks.parts import Plan
from benchmarks.photographs import photograph
from benchmarks.process import ReferenceProcess
from benchmarks.results import Comparison, Cost, Result

SIZES = ((640, 480), (4000, 3000))
HITS, MISSES = 15, 12
CALLS = 20
"""Hits of one side in a block; a miss is a block of its own."""


class Parts:
    """Decoding, resizing and encoding, without a server."""

    def __init__(self, encoder: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # As in samserve.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(encoder, options)
        self.side = self.session.get_inputs()[0].shape[1]

    def embed(self, image: bytes) -> Callable[[], int]:
        """Encode an image file."""
        opened = Image.open(BytesIO(image)).convert("RGB")
        scale = self.side / max(opened.size)
        width, height = (int(scale * length + 0.5) for length in opened.size)
        frame = np.zeros((1, self.side, self.side, 3), np.uint8)
        frame[0, :height, :width] = opened.resize((width, height), Image.Resampling.BILINEAR)
        feeds = {"image": frame, "image_size": np.array([[height, width]], np.int32)}
        (embedding,) = self.session.run(["image_embedding"], feeds)
        return lambda: embedding.nbytes


def run(plan: Plan) -> Result:
    """Measure hits and misses of both sizes."""
    result = Result("embed")
    encoder = ROOT / "model_repository" / f"{DEFAULT_MODEL}_encoder" / "1" / "model.onnx"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bare = gateway_cpu.EchoServer(Path(folder))
        stack.enter_context(bare.running())
        gateway = stack.enter_context(Gateway(plan.threads))
        parts = stack.enter_context(
            ReferenceProcess(
                partial(Parts, encoder, plan.threads), threads=plan.threads, imports=()
            )
        )
        for size in ((160, 120),) if plan.toy else SIZES:
            image = photograph(*size)
            name = f"{size[0]}x{size[1]}, {len(image) / 1e6:.2g} MB"
            result.comparisons += [
                asyncio.run(_hits(gateway, bare, name, image, plan)),
                asyncio.run(_misses(gateway, parts, name, image, plan)),
            ]
    result.notes.append("CPU time is that of the server, or of the process with the parts.")
    return result


async def _hits(
    gateway: Gateway, bare: gateway_cpu.EchoServer, name: str, image: bytes, plan: Plan
) -> Comparison:
    comparison = Comparison(f"hit, {name}", "bare grpc.aio with SHA-256")
    options = [(f"grpc.max_{way}_message_length", echo.MAX_BYTES) for way in ("send", "receive")]
    message = pb.EmbedRequest(image=pb.Image(encoded=image))
    async with (
        grpc.aio.insecure_channel(gateway.target, options) as ours,
        grpc.aio.insecure_channel(bare.target, options) as theirs,
    ):
        embed = ours.unary_unary(gateway_cpu.SERVICE + "Embed")
        digest = theirs.unary_unary(echo.HASH)
        data = message.SerializeToString()
        first = pb.EmbedResponse.FromString(await embed(data, wait_for_ready=True))
        assert await digest(data, wait_for_ready=True) == hashlib.sha256(data).digest()
        for _ in range(plan.blocks(HITS)):
            comparison.ours.append(await _block(gateway.pid, lambda: embed(data)))
            comparison.theirs.append(await _block(bare.pid, lambda: digest(data)))
        again = pb.EmbedResponse.FromString(await embed(data))
    assert again.embedding.id == first.embedding.id
    return comparison


async def _block(pid: int, call: Callable[[], Awaitable[Any]]) -> Cost:
    """Return the median time of a call, and its mean CPU time, over a block of them."""
    side = Side(None, pid)  # type: ignore[arg-type]  # the calls are not those of a client
    costs = [(await side.cost(call))[1] for _ in range(CALLS)]
    wall = float(np.median([each.wall_s for each in costs]))
    return Cost(wall, float(np.mean([each.cpu_s for each in costs])))


async def _misses(
    gateway: Gateway, parts: ReferenceProcess, name: str, image: bytes, plan: Plan
) -> Comparison:
    comparison = Comparison(f"miss, {name}", "its parts in one process")
    async with Client(gateway.target) as client:
        side = Side(client, gateway.pid)
        for block in range(plan.blocks(MISSES) + 1):
            await client.delete_embedding(await client.embed(image))
            embedding, ours = await side.cost(lambda: client.embed(image))
            await client.delete_embedding(embedding)
            parts.call("embed", image)
            theirs = parts.call("embed", image).cost
            if block:
                comparison.ours.append(ours)
                comparison.theirs.append(theirs)
    return comparison
