"""Hostile and slow clients of the HTTP listener: each wait ends, and memory is bounded."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import numpy as np
import pytest
from samserve.app import Running
from samserve.calls import slow_clients
from samserve.http import transports
from samserve.http.origins import OriginPolicy
from samserve.http.request import HttpRequest
from samserve.http.server.connection import Connection
from samserve.http.server.exchange import HIGH_WATER_BYTES
from samserve.v1 import samserve_pb2 as pb
from structlog.testing import capture_logs

from tests import sample_images
from tests.http.clients import PROTOCOLS, HttpCaller, envelope
from tests.http.serving import http_service
from tests.http.wire import JSON, SERVICE, Wire, connected
from tests.metric_values import total
from tests.support.waiting import TIMEOUT_S, until

LIST, EMBED, PREDICT = SERVICE + "ListModels", SERVICE + "Embed", SERVICE + "Predict"
PROTO = ("content-type", "application/proto")
SHORT = {"header_timeout_s": 0.3, "idle_timeout_s": 0.3}


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with http_service() as running:
        yield running


async def check_served(wire: Wire) -> None:
    assert (await wire.request(LIST, b"{}", [JSON])).status == 200


async def check_others_are_served(service: Running) -> None:
    async with connected(service.http_address) as wire:
        await check_served(wire)


async def test_a_connection_is_used_again(service: Running) -> None:
    async with connected(service.http_address) as wire:
        for _ in range(3):
            await check_served(wire)
        # Also after failures that were read completely.
        assert (await wire.request(EMBED, b"{}", [JSON])).status == 400
        assert (await wire.request("/nothing", b"{}", [JSON])).status == 404
        await check_served(wire)
        assert total(service.metrics.registry, "samserve_http_connections") == 1


async def test_a_connection_is_used_again_after_large_requests(service: Running) -> None:
    image = sample_images.image(200, 400)
    body = pb.EmbedRequest(image=image).SerializeToString()
    assert len(body) > HIGH_WATER_BYTES
    async with connected(service.http_address) as wire:
        assert (await wire.request(EMBED, body, [PROTO])).status == 200
        await check_served(wire)
        # The body of this one is never read.
        unread = await wire.request("/nothing", body, [PROTO])
        assert unread.status == 404
        if unread.headers.get("connection") != "close":
            await check_served(wire)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\na b: c\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
        bytes(1000),
    ],
    ids=["TLS", "HTTP/2", "no URL", "version", "name", "negative", "two", "both", "huge", "zeros"],
)
async def test_what_is_not_http_is_answered_and_ends(service: Running, data: bytes) -> None:
    async with connected(service.http_address) as wire:
        wire.send(data)
        answer = await wire.closed()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    await check_others_are_served(service)


async def test_pipelined_requests_are_not_answered(service: Running) -> None:
    one = b"%b{}"
    async with connected(service.http_address) as wire:
        head = wire.head(LIST, [JSON, ("content-length", "2")])
        wire.send(one % head * 500)
        answer = await wire.closed()

    assert answer.count(b"HTTP/1.1 200") == answer.count(b"HTTP/1.1") == 1
    assert total(service.metrics.registry, "grpc_server_started_total") == 1


async def test_garbage_behind_a_request_does_not_change_its_response(service: Running) -> None:
    async with connected(service.http_address) as wire:
        wire.send(wire.head(LIST, [JSON, ("content-length", "2")]) + b"{}" + b"\0garbage" * 1000)
        answer = await wire.closed()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("whole", [True, False], ids=["at once", "without end"])
async def test_headers_over_the_limit_are_refused(service: Running, whole: bool) -> None:
    lines = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 20) for number in range(2000))
    async with connected(service.http_address) as wire:
        wire.send(wire.head(LIST)[:-2] + (lines if whole else b"x: " + b"y" * 300_000))
        answer = await wire.closed()

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_metadata_over_the_limit_gets_an_error_with_a_reason(service: Running) -> None:
    async with connected(service.http_address) as wire:
        response = await wire.request(LIST, b"{}", [JSON, ("x-large", "x" * 20_000)])

    assert response.status == 400
    assert json.loads(response.body)["details"][0]["debug"]["reason"] == "METADATA_TOO_LARGE"


async def test_cookies_are_not_metadata(service: Running) -> None:
    """A browser sends those of every service on the same host name."""
    async with connected(service.http_address) as wire:
        response = await wire.request(LIST, b"{}", [JSON, ("cookie", "x" * 20_000)])

    assert response.status == 200


@pytest.mark.parametrize("sent", [b"", b"POST /x HT", b"\r\n", b"POST /x HTTP/1.1\r\nhost: a\r\n"])
async def test_requests_whose_headers_do_not_arrive_end(sent: bytes) -> None:
    async with http_service(http={**SHORT, "idle_timeout_s": 600}) as service:
        async with connected(service.http_address) as wire:
            wire.send(sent)
            assert await wire.closed() == b""
        async with connected(service.http_address) as wire:
            # Also after a request.
            await check_served(wire)
            wire.send(sent or b"P")
            assert await wire.closed() == b""


async def test_idle_connections_are_closed() -> None:
    async with (
        http_service(http={**SHORT, "header_timeout_s": 600}) as service,
        connected(service.http_address) as wire,
    ):
        await check_served(wire)
        assert await wire.closed() == b""


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_half_sent_requests_end_with_an_error(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.05)
    async with http_service(server={"receive_timeout_s": 0.1}) as service:
        caller = HttpCaller(service.http_address, protocol)
        request = pb.EmbedRequest(image=sample_images.image())
        body = caller.encoded("Embed", request)
        headers = [("content-type", caller.content_type("Embed")), ("content-length", "100000")]
        async with connected(service.http_address) as wire:
            wire.send(wire.head(EMBED, headers) + body[:5000])
            failed = await wire.response()
            assert failed.headers["connection"] == "close"
            await wire.closed()

        assert code_of(caller, "Embed", failed) == "DEADLINE_EXCEEDED"
        assert service.engine.counts["encode_begun"] == 1  # the warm-up's
        await check_others_are_served(service)


def code_of(caller: HttpCaller, name: str, response: object) -> str:
    with pytest.raises(Exception, match="StatusCode") as failed:
        caller.read(name, response)  # type: ignore[arg-type]
    return str(failed.value.code().name)  # type: ignore[attr-defined]


async def test_slow_requests_need_one_of_few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.05)
    async with http_service(admission={"max_slow_requests": 2}) as service:
        async with AsyncExitStack() as stack:
            wires = [
                await stack.enter_async_context(connected(service.http_address)) for _ in range(4)
            ]
            for wire in wires:
                wire.send(wire.head(EMBED, [PROTO, ("content-length", "1000")]) + b"x")
            responses = [asyncio.create_task(wire.response()) for wire in wires]
            done, pending = await asyncio.wait(
                responses, return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT_S
            )
            await until(lambda: sum(each.done() for each in responses) == 2)
            assert {each.result().status for each in responses if each.done()} == {429}
            for each in done | pending:
                each.cancel()
        # The slots are free again once the clients are gone.
        await until(lambda: total(service.metrics.registry, "samserve_inflight_requests") == 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
async def test_oversized_requests_are_rejected(protocol: str, chunked: bool) -> None:
    async with http_service(limits={"max_request_bytes": 10_000}) as service:
        caller = HttpCaller(service.http_address, protocol)
        body = caller.encoded("Embed", pb.EmbedRequest(image=pb.Image(encoded=bytes(300_000))))
        kind = ("content-type", caller.content_type("Embed"))
        async with connected(service.http_address) as wire:
            if chunked:
                wire.send(wire.head(EMBED, [kind, ("transfer-encoding", "chunked")]))
                wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            else:
                # Refused by what is declared: nothing is sent.
                wire.send(wire.head(EMBED, [kind, ("content-length", str(len(body)))]))
            response = await wire.response()

        assert code_of(caller, "Embed", response) == "INVALID_ARGUMENT"
        await check_others_are_served(service)


async def test_a_rejected_caller_can_read_the_response_while_it_sends(service: Running) -> None:
    """A client that sends its whole request first would else get a reset connection."""
    body = bytes(20_000_000)
    head = [PROTO, ("content-length", str(len(body))), ("connect-timeout-ms", "x")]
    async with connected(service.http_address) as wire:
        wire.send(wire.head(EMBED, head) + body)
        await wire.writer.drain()
        assert (await wire.response()).status == 400


async def test_a_body_is_requested_only_when_it_is_read(service: Running) -> None:
    expects = ("expect", "100-continue")
    async with connected(service.http_address) as wire:
        wire.send(wire.head(LIST, [JSON, ("content-length", "2"), expects]))
        async with asyncio.timeout(TIMEOUT_S):
            assert await wire.response_head() == (100, {})
        wire.send(b"{}")
        assert (await wire.response()).status == 200
    async with connected(service.http_address) as wire:
        wire.send(wire.head(LIST, [JSON, ("content-length", "9"), expects], host="evil.test"))
        assert (await wire.response()).status == 403


async def test_compressed_requests_are_refused_unread(service: Running) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    for name, kind, header, body in (
        ("Embed", "application/proto", "content-encoding", bomb),
        ("AutoMask", "application/connect+proto", "connect-content-encoding", envelope(bomb, 1)),
        ("Embed", "application/grpc-web+proto", "grpc-encoding", envelope(bomb, 1)),
    ):
        async with connected(service.http_address) as wire:
            headers = [("content-type", kind), (header, "gzip")]
            response = await wire.request(SERVICE + name, body, headers)
            assert response.headers["accept-encoding"] == "identity"
            assert b"unimplemented" in response.body or b"grpc-status: 12" in response.body


@pytest.mark.parametrize("flags", [1, 2, 0x80])
async def test_envelopes_with_flags_are_rejected(flags: int) -> None:
    body = envelope(gzip.compress(bytes(1000)), flags)
    async with http_service(embedding_files={"put_enabled": True}) as service:
        for name, kind in (
            ("AutoMask", "application/connect+proto"),
            ("PutEmbedding", "application/connect+proto"),
            ("Embed", "application/grpc-web"),
        ):
            async with connected(service.http_address) as wire:
                response = await wire.request(SERVICE + name, body, [("content-type", kind)])
            assert b"invalid_argument" in response.body or b"grpc-status: 3" in response.body


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", bytes(4), b"\0\0\0\0\x09123", envelope(b"") * 2, b"\0\xff\xff\xff\xff"],
    ids=["empty", "flags", "prefix", "short", "two", "huge"],
)
async def test_wrong_envelopes_are_rejected(service: Running, body: bytes) -> None:
    for name, kind in (
        ("AutoMask", "application/connect+proto"),
        ("Embed", "application/grpc-web"),
    ):
        async with connected(service.http_address) as wire:
            response = await wire.request(SERVICE + name, body, [("content-type", kind)])
            assert b"invalid_argument" in response.body or b"grpc-status: 3" in response.body


async def test_a_broken_body_ends_the_call(service: Running) -> None:
    async with connected(service.http_address) as wire:
        wire.send(wire.head(EMBED, [PROTO, ("transfer-encoding", "chunked")]) + b"5\r\nhello\r\n")
        await until(lambda: total(service.metrics.registry, "samserve_inflight_requests") == 1)
        wire.send(b"xyz\r\n")
        answer = await wire.closed()

    assert answer.startswith(b"HTTP/1.1 400 ")
    await until(lambda: total(service.metrics.registry, "samserve_inflight_requests") == 0)


async def test_a_stream_that_is_not_read_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.05)
    monkeypatch.setattr(transports, "_FAIL_TIMEOUT_S", 0.05)
    image = pb.Image(encoded=sample_images.encode(np.zeros((2800, 2800, 3), np.uint8)))
    request = pb.AutoMaskRequest(
        image=image,
        output_mode=pb.OUTPUT_MODE_BINARY_MASK,
        options=pb.AutoMaskOptions(points_per_side=8),
    )
    async with http_service(server={"send_timeout_s": 0.1}) as service:
        caller = HttpCaller(service.http_address, "connect")
        content = ("content-type", caller.content_type("AutoMask"))
        body = caller.encoded("AutoMask", request)
        async with connected(service.http_address) as wire:
            opened = wire.writer.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            wire.writer.transport.pause_reading()
            length = ("content-length", str(len(body)))
            wire.send(wire.head(SERVICE + "AutoMask", [content, length]) + body)
            registry = service.metrics.registry
            await until(lambda: total(registry, "grpc_server_handled_total") == 1)
            assert total(registry, "samserve_inflight_requests") == 0
            late = "DEADLINE_EXCEEDED"
            assert total(registry, "grpc_server_handled_total", grpc_code=late) == 1
            await until(lambda: total(registry, "samserve_http_connections") == 0)


async def test_a_client_that_reads_no_response_is_not_served_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its responses would pile up in memory, as many as it sends requests."""
    blocked: list[Connection] = []
    pause_writing = Connection.pause_writing

    def record(connection: Connection) -> None:
        pause_writing(connection)
        blocked.append(connection)

    monkeypatch.setattr(Connection, "pause_writing", record)
    image = pb.Image(encoded=sample_images.encode(np.zeros((2800, 2800, 3), np.uint8)))
    point = pb.Point(x=1, y=1, label=pb.Point.LABEL_FOREGROUND)
    prompts = [pb.Prompt(points=[point])] * 8
    request = pb.PredictRequest(
        image=image, prompts=prompts, output_mode=pb.OUTPUT_MODE_BINARY_MASK
    )
    body = request.SerializeToString()
    async with http_service() as service, connected(service.http_address) as wire:
        registry = service.metrics.registry
        opened = wire.writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        wire.writer.transport.pause_reading()
        data = wire.head(PREDICT, [PROTO, ("content-length", str(len(body)))]) + body
        wire.send(data)
        # The response is complete for the server, and is larger than the buffers of the system.
        await until(lambda: len(blocked) == 1)
        wire.send(data)
        await asyncio.sleep(0.2)
        assert total(registry, "grpc_server_started_total") == 1
        wire.writer.transport.resume_reading()
        for _ in range(2):
            assert (await wire.response()).status == 200
        assert total(registry, "grpc_server_started_total") == 2


@pytest.mark.parametrize("part", [b"0\r\nx: ", b"2;"], ids=["trailer", "extension of a chunk"])
async def test_endless_parts_that_are_no_body_are_refused(service: Running, part: bytes) -> None:
    async with connected(service.http_address) as wire:
        wire.send(wire.head(EMBED, [PROTO, ("transfer-encoding", "chunked")]) + part)
        for _ in range(20):
            wire.send(b"y" * 50_000)
        answer = await wire.closed()

    assert answer.startswith(b"HTTP/1.1 431 ")
    await check_others_are_served(service)


async def test_trailers_are_ignored(service: Running) -> None:
    async with connected(service.http_address) as wire:
        wire.send(wire.head(LIST, [JSON, ("transfer-encoding", "chunked")]))
        wire.send(b"2\r\n{}\r\n0\r\nhost: evil.test\r\n\r\n")
        assert (await wire.response()).status == 200
        await check_served(wire)


@pytest.mark.parametrize("version", ["0.9", "2.0"])
async def test_other_versions_of_http_are_refused(service: Running, version: str) -> None:
    async with connected(service.http_address) as wire:
        data = wire.head(LIST, [JSON, ("content-length", "2")]) + b"{}"
        wire.send(data.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        assert (await wire.closed()).startswith(b"HTTP/1.1 400 ")


async def test_expectations_are_met_in_any_case(service: Running) -> None:
    async with connected(service.http_address) as wire:
        expect = ("expect", "100-Continue")
        wire.send(wire.head(LIST, [JSON, expect, ("content-length", "2")]))
        assert (await wire.response_head())[0] == 100
        wire.send(b"{}")
        assert (await wire.response()).status == 200


async def test_two_hundred_connections_are_served_at_once(service: Running) -> None:
    async with AsyncExitStack() as stack:
        wires = [
            await stack.enter_async_context(connected(service.http_address)) for _ in range(200)
        ]
        for _ in range(2):
            await asyncio.gather(*(check_served(wire) for wire in wires))
        assert total(service.metrics.registry, "samserve_http_connections") == 200
    await until(lambda: total(service.metrics.registry, "samserve_http_connections") == 0)


async def test_connections_over_the_limit_are_closed() -> None:
    async with http_service(http={"max_connections": 5}) as service:
        async with AsyncExitStack() as stack:
            for _ in range(5):
                wire = await stack.enter_async_context(connected(service.http_address))
                await check_served(wire)
            async with connected(service.http_address) as over:
                assert await over.closed() == b""
            await check_served(wire)
        await until(lambda: total(service.metrics.registry, "samserve_http_connections") == 0)
        await check_others_are_served(service)


async def test_http_1_0_clients_get_whole_responses(service: Running) -> None:
    body = b'{"image":{},"options":{}}'
    data = (
        b"POST %b HTTP/1.0\r\nhost: localhost\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
    )
    for path, kind, content in (
        (LIST, b"application/json", b"{}"),
        (SERVICE + "AutoMask", b"application/connect+json", envelope(body)),
    ):
        async with connected(service.http_address) as wire:
            wire.send(data % (path.encode(), kind, len(content), content))
            answer = await wire.closed()
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"chunked" not in head
        assert b"connection: close" in head
        assert rest


async def test_upgrades_are_refused(service: Running) -> None:
    upgrade = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]
    async with connected(service.http_address) as wire:
        response = await wire.request(LIST, b"{}", [JSON, *upgrade])

    assert response.status == 501


@pytest.mark.parametrize("body", [b"{}", b"{"], ids=["received", "incomplete"])
async def test_an_unexpected_error_ends_the_request(
    service: Running, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    def fail(policy: OriginPolicy, request: HttpRequest, *, linked: bool) -> None:
        raise RuntimeError("of no known kind")

    with monkeypatch.context() as patch, capture_logs() as lines:
        patch.setattr(OriginPolicy, "check", fail)
        async with connected(service.http_address) as wire:
            wire.send(wire.head(LIST, [JSON, ("content-length", "2")]) + body)
            response = await wire.response()
            assert (response.status, response.body) == (500, b"internal error\n")
            assert await wire.closed() == b""
    assert [line["event"] for line in lines] == ["internal error of the HTTP listener"]
    await check_others_are_served(service)
