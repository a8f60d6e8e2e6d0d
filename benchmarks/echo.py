"""A bare `grpc.aio` server: the least that any server of this kind costs.

``/echo/Echo`` returns a number of bytes that the request's first four bytes ask for; ``/echo/Hash``
returns the SHA-256 of the request.  ``python -m benchmarks.echo PORT``
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from typing import Any

import grpc

from harness.program import HOST

ECHO, HASH = "/echo/Echo", "/echo/Hash"
MAX_BYTES = 64 << 20


async def _echo(request: bytes, _: Any) -> bytes:
    return b"." * int.from_bytes(request[:4], "big")


async def _hash(request: bytes, _: Any) -> bytes:
    return hashlib.sha256(request).digest()


async def _serve(port: int) -> None:
    size = [(f"grpc.max_{way}_message_length", MAX_BYTES) for way in ("send", "receive")]
    server = grpc.aio.server(options=size)
    methods = {"Echo": _echo, "Hash": _hash}
    handlers = {name: grpc.unary_unary_rpc_method_handler(each) for name, each in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", handlers),))
    server.add_insecure_port(f"{HOST}:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
