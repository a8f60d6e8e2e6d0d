"""CPU time of the gateway for a call over HTTP, against the same call over gRPC."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing

import grpc
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from samserve.v1 import samserve_pb2 as pb

from benchmarks import gateway_cpu
from benchmarks.common import cpu_s
from benchmarks.gateway_cpu import FreeGateway, Request
from benchmarks.parts import Plan
from benchmarks.results import Comparison, Cost, Result
from harness.program import HOST
from harness.triton.ports import free_ports

BLOCKS, CALLS = 9, 200
GRPC = "gRPC"
NAMES = ("ListModels", "Embed 640x480, hit", "Predict 640x480, one mask")
Call = Callable[[], bytes]


def run(plan: Plan) -> Result:
    """Send every request over every protocol, in turns; the first block only warms up."""
    calls = 8 if plan.toy else CALLS
    port = free_ports(1)[0]
    settings = {"http.enabled": "true", "http.port": port, "http.idle_timeout_s": 3600}
    with ExitStack() as stack:
        gateway = FreeGateway(plan.folder / "http.log", more=settings)
        stack.enter_context(gateway)
        channel = stack.enter_context(grpc.insecure_channel(gateway.target))
        requests = [each for each in gateway_cpu.requests(gateway.target) if each.name in NAMES]
        rows = [(each.name, protocols(channel, port, each, stack)) for each in requests]
        costs: dict[tuple[str, str], list[Cost]] = {}
        for block in range(plan.blocks(BLOCKS) + 1):
            for name, row in rows:
                for protocol, call in row.items():
                    cost = measured(gateway.pid, call, calls)
                    if block:
                        costs.setdefault((name, protocol), []).append(cost)
    return Result(
        "http",
        comparisons=[
            Comparison(f"{name}, {protocol}", GRPC, costs[name, protocol], costs[name, GRPC])
            for name, row in rows
            for protocol in row
            if protocol != GRPC
        ],
        notes=["CPU time is that of the server alone; each client has one connection."],
    )


def measured(pid: int, call: Call, calls: int) -> Cost:
    """Return the CPU seconds of the server, and the median wall seconds, of a call."""
    taken, before = [], cpu_s(pid)
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return Cost(statistics.median(taken), (cpu_s(pid) - before) / calls)


def protocols(
    channel: grpc.Channel, port: int, request: Request, stack: ExitStack
) -> Mapping[str, Call]:
    """Return a function for each protocol that makes the call once, over one connection.

    *stack* closes the connections.
    """
    name = request.path.rpartition("/")[2]
    method = pb.DESCRIPTOR.services_by_name["SegmentationService"].methods_by_name[name]
    message = GetMessageClass(method.input_type).FromString(request.data)
    text = json.dumps(json_format.MessageToDict(message), separators=(",", ":")).encode()
    framed = b"\0" + len(request.data).to_bytes(4, "big") + request.data
    unary = channel.unary_unary(request.path)
    return {
        GRPC: lambda: bytes(unary(request.data, wait_for_ready=True)),
        **{
            protocol: _over_http(
                stack.enter_context(closing(http.client.HTTPConnection(HOST, port))),
                request.path,
                content_type,
                body,
            )
            for protocol, content_type, body in (
                ("Connect", "application/proto", request.data),
                ("JSON", "application/json", text),
                ("gRPC-Web", "application/grpc-web+proto", framed),
            )
        },
    }


def _over_http(
    connection: http.client.HTTPConnection, path: str, content_type: str, body: bytes
) -> Call:
    def call() -> bytes:
        connection.request("POST", path, body, {"content-type": content_type})
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise RuntimeError(f"{content_type}: {response.status} {data[:200]!r}")
        return data

    return call
