"""Clients of each protocol, whose errors are those of gRPC, so that tests can be shared."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from samserve.v1 import samserve_pb2 as pb

from tests.http.wire import SERVICE, Response, connected
from tests.rpc.errors import Failure, failure_of

METHODS = pb.DESCRIPTOR.services_by_name["SegmentationService"].methods_by_name
PROTOCOLS = ("connect", "json", "grpc_web", "grpc_web_text")
Metadata = Iterable[tuple[str, str]]


def envelope(data: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(data).to_bytes(4, "big") + data


def messages_of(body: bytes) -> list[tuple[int, bytes]]:
    """Return the flags and the content of each envelope."""
    found = []
    while body:
        length = int.from_bytes(body[1:5], "big")
        assert len(body) >= 5 + length, "the last envelope is incomplete"
        found.append((body[0], body[5 : 5 + length]))
        body = body[5 + length :]
    return found


class HttpCaller:
    """Calls any method over one protocol; each call has a connection of its own."""

    def __init__(self, url: str, protocol: str, tls: ssl.SSLContext | None = None) -> None:
        self.url, self.protocol, self.tls = url, protocol, tls

    def __getattr__(self, name: str) -> Any:
        """Return a method, as a stub has it; streams are lists of messages."""
        if name not in METHODS:
            raise AttributeError(name)

        async def call(request: Message, **options: Any) -> Any:
            messages = await self.messages(name, request, **options)
            return messages if METHODS[name].server_streaming else messages[-1]

        return call

    async def call(self, name: str, request: Any, metadata: Metadata = ()) -> Any:
        """Return the response, or the last message of a stream; raises `AioRpcError`."""
        return (await self.messages(name, request, metadata))[-1]

    async def failure(self, name: str, request: Any, metadata: Metadata = ()) -> Failure:
        """Return the error of a call."""
        return await failure_of(self.call(name, request, metadata))

    async def messages(
        self, name: str, request: Message, metadata: Metadata = (), deadline: str = ""
    ) -> list[Message]:
        """Return all messages of the response; *deadline* is as the protocol's header has it."""
        headers = [("content-type", self.content_type(name)), *metadata]
        if deadline:
            header = "grpc-timeout" if "web" in self.protocol else "connect-timeout-ms"
            headers.append((header, deadline))
        async with connected(self.url, self.tls) as wire:
            response = await wire.request(SERVICE + name, self.encoded(name, request), headers)
        return self.read(name, response)

    def content_type(self, name: str) -> str:
        method = METHODS[name]
        if self.protocol.startswith("grpc_web"):
            return f"application/{self.protocol.replace('_', '-')}+proto"
        streams = method.server_streaming or method.client_streaming
        codec = "json" if self.protocol == "json" else "proto"
        return f"application/connect+{codec}" if streams else f"application/{codec}"

    def encoded(self, name: str, request: Message) -> bytes:
        json_text = json_format.MessageToJson(request) if self.protocol == "json" else ""
        data = json_text.encode() or request.SerializeToString()
        if "connect+" not in self.content_type(name) and "web" not in self.protocol:
            return data
        body = envelope(data)
        return base64.b64encode(body) if self.protocol == "grpc_web_text" else body

    def read(self, name: str, response: Response) -> list[Message]:
        """Return the messages of a response; raises `AioRpcError` for a failure."""
        if response.status != 200:
            assert response.headers["content-type"] == "application/json"
            raise connect_error(json.loads(response.body), response)
        assert response.headers["content-type"] == self.content_type(name)
        kind = GetMessageClass(METHODS[name].output_type)
        if "connect+" not in self.content_type(name) and "web" not in self.protocol:
            return [self.parsed(kind, response.body)]
        body = response.body
        if self.protocol == "grpc_web_text":
            # Each part is padded by itself.
            body = b"".join(base64.b64decode(part) for part in _padded_parts(body))
        *messages, (flags, end) = messages_of(body)
        if self.protocol.startswith("grpc_web"):
            assert flags == 0x80
            check_trailers(end)
        else:
            assert flags == 0x02
            if "error" in (ended := json.loads(end)):
                raise connect_error(ended["error"], response)
        assert {each for each, _ in messages} <= {0}
        return [self.parsed(kind, data) for _, data in messages]

    def parsed(self, kind: type[Message], data: bytes) -> Message:
        return json_format.Parse(data, kind()) if self.protocol == "json" else kind.FromString(data)


def _padded_parts(text: bytes) -> list[bytes]:
    """Split concatenated base64 after each padding."""
    parts, start = [], 0
    for at in range(0, len(text), 4):
        if text[at : at + 4].endswith(b"="):
            parts.append(text[start : at + 4])
            start = at + 4
    return [*parts, text[start:]]


def connect_error(error: dict[str, Any], response: Response) -> grpc.aio.AioRpcError:
    """Return the error of Connect's JSON as gRPC has it."""
    code = "CANCELLED" if error["code"] == "canceled" else error["code"].upper()
    status = status_pb2.Status(code=grpc.StatusCode[code].value[0], message=error["message"])
    for detail in error["details"]:
        value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
        status.details.add(type_url=f"type.googleapis.com/{detail['type']}", value=value)
        assert isinstance(detail["debug"], dict)
    request_id = response.headers.get("x-request-id", "")
    return _error(code, error["message"], status.SerializeToString(), request_id)


def check_trailers(data: bytes) -> None:
    """Raise the error in the trailers of gRPC-Web, if there is one."""
    lines = data.decode("ascii").removesuffix("\r\n").split("\r\n")
    trailers = dict(line.split(": ", 1) for line in lines)
    if trailers["grpc-status"] == "0":
        return
    code = next(each for each in grpc.StatusCode if each.value[0] == int(trailers["grpc-status"]))
    details = trailers["grpc-status-details-bin"]
    status = base64.b64decode(details + "=" * (-len(details) % 4))
    message = unquote(trailers["grpc-message"])
    raise _error(code.name, message, status, trailers.get("x-request-id", ""))


def _error(code: str, message: str, status: bytes, request_id: str) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status), ("x-request-id", request_id))
    return grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), trailing, message)
