"""The methods of the service as HTTP endpoints: content type, encoding, and the call itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from samserve.calls.methods import Method
from samserve.calls.pipeline import Call, CallPipeline
from samserve.http.connect import ConnectStream, ConnectUnary
from samserve.http.failures import send_failure, unsupported
from samserve.http.grpc_web import GrpcWeb
from samserve.http.request import HttpRequest
from samserve.http.response import HttpResponse
from samserve.http.transports import HttpTransport, Shape
from samserve.rpc.codecs import JSON, PROTO, Codec

Endpoint = Callable[[HttpRequest, HttpResponse], Awaitable[None]]
Serve = Callable[[Call], Awaitable[None]]

_IDENTITY = ("", "identity")


@dataclass(frozen=True, slots=True)
class Format:
    """A content type of requests: its transport and codec, and the header of its compression."""

    protocol: str
    transport: type[ConnectUnary | ConnectStream | GrpcWeb]
    codec: Codec
    encoding: str


_WEB = Format("grpc_web", GrpcWeb, PROTO, "grpc-encoding")
_GRPC_WEB = {
    "application/grpc-web": _WEB,
    "application/grpc-web+proto": _WEB,
    "application/grpc-web-text": _WEB,
    "application/grpc-web-text+proto": _WEB,
}
_UNARY = {
    "application/proto": Format("connect", ConnectUnary, PROTO, "content-encoding"),
    "application/json": Format("json", ConnectUnary, JSON, "content-encoding"),
}
_STREAM = {
    "application/connect+proto": Format(
        "connect", ConnectStream, PROTO, "connect-content-encoding"
    ),
    "application/connect+json": Format("json", ConnectStream, JSON, "connect-content-encoding"),
}


def formats_of(method: Method) -> Mapping[str, Format]:
    """Return the formats of a method by content type."""
    if method.client_streams:
        # gRPC-Web has no client streams.
        return _STREAM
    return {**(_STREAM if method.streams else _UNARY), **_GRPC_WEB}


class RpcEndpoint:
    """One method of the service; *serving* returns what serves a call in an encoding."""

    def __init__(
        self,
        method: Method,
        pipeline: CallPipeline,
        serving: Callable[[Codec], Serve],
        limit: int,
        count: Callable[[str], None],
    ) -> None:
        self._method = method
        self._pipeline = pipeline
        self._limit = limit
        self._count = count
        self._formats = formats_of(method)
        self._serve: dict[Codec, Serve] = {codec: serving(codec) for codec in (PROTO, JSON)}

    async def __call__(self, request: HttpRequest, response: HttpResponse) -> None:
        """Serve one call."""
        if request.method != "POST":
            failure = unsupported(f"{self._method.name} is called with POST")
            await send_failure(response, failure, 405, (b"allow", b"POST"))
            return
        content_type = request.header("content-type").partition(";")[0].strip().lower()
        found = self._formats.get(content_type)
        if found is None:
            await self._refuse_type(response, content_type)
            return
        self._count(found.protocol)
        shape = Shape(content_type, self._limit, self._method.streams)
        transport = found.transport(request, response, shape)
        transport.protocol = found.protocol
        encoding = request.header(found.encoding).lower()
        if encoding not in _IDENTITY:
            response.headers.append((b"accept-encoding", b"identity"))
            text = f"compressed requests ({found.encoding}) are not accepted; send identity"
            await transport.fail(unsupported(text))
            return
        await self._pipeline.run(
            self._method, transport, _finishing(self._serve[found.codec], transport)
        )

    async def _refuse_type(self, response: HttpResponse, content_type: str) -> None:
        accepted = ", ".join(self._formats)
        shown = repr(content_type[:60]) if content_type else "none"
        text = f"the content type of {self._method.name} must be one of {accepted}; it is {shown}"
        if content_type.startswith("application/grpc") and "web" not in content_type:
            text += "; gRPC itself is served at server.port"
        header = (b"accept-post", accepted.encode("ascii"))
        await send_failure(response, unsupported(text), 415, header)


def _finishing(serve: Serve, transport: HttpTransport) -> Serve:
    """Serve a call and end its response, within its deadline."""

    async def serve_and_finish(call: Call) -> None:
        await serve(call)
        await transport.finish()

    return serve_and_finish
