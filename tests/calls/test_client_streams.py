"""Client streams in the call pipeline, without gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest
from samserve.calls import slow_clients
from samserve.calls.pipeline import Call
from structlog.testing import capture_logs

from tests.calls.plain_transport import ROWS, PlainTransport, Service
from tests.metric_values import total
from tests.support.clock import advance_loop


class Stream(PlainTransport):
    """Sends *messages*, and its end unless it stays *idle* after them."""

    def __init__(self, messages: Sequence[bytes], *, idle: bool = False) -> None:
        super().__init__()
        self.messages, self.idle = list(messages), idle
        self.sent_all = asyncio.Event()

    async def read_next(self) -> bytes | None:
        self.was_read = True
        if self.messages:
            return self.messages.pop(0)
        self.sent_all.set()
        if self.idle:
            await asyncio.Event().wait()
        return None


async def upload(service: Service, stream: Stream) -> Stream:
    """Make a call that returns the number of its messages."""

    async def serve(call: Call) -> None:
        count = 0
        while await call.receive_next() is not None:
            count += 1
        await call.send(str(count).encode(), last=True)

    with suppress(asyncio.CancelledError):
        await service.pipeline.run(ROWS["PutEmbedding"], stream, serve)
    return stream


async def test_messages_arrive_in_order_until_the_end() -> None:
    service = Service()
    with capture_logs() as lines:
        stream = await upload(service, Stream([b"123", b"", b"45"]))

    assert (stream.response, stream.failure) == ([b"3"], None)
    assert lines[0]["received_bytes"] == 5
    assert total(service.registry, "grpc_server_handled_total", grpc_type="client_stream") == 1


async def test_bytes_of_all_messages_count_until_the_call_ends() -> None:
    service = Service(admission={"max_in_flight_request_bytes": 100})
    first = Stream([bytes(30), bytes(31)], idle=True)
    running = asyncio.create_task(upload(service, first))
    await first.sent_all.wait()

    rejected = await upload(service, Stream([bytes(20), bytes(20)]))
    fitting = await upload(service, Stream([bytes(20), bytes(19)]))
    unary = await service.call("Embed", PlainTransport(request=bytes(40)))
    running.cancel()
    await running
    # A stream over the whole budget is admitted alone, as a request is.
    alone = await upload(service, Stream([bytes(90)] * 3))

    assert rejected.failure is not None
    assert rejected.failure.metadata["resource"] == "request_bytes"
    assert fitting.response == [b"2"]
    assert unary.outcome == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert alone.response == [b"3"]


async def test_each_message_has_the_timeout_of_a_request() -> None:
    service = Service(server={"receive_timeout_s": 10}, deadlines={"embedding_files_s": 10**6})
    idle = Stream([b"1", b"2"], idle=True)
    call = asyncio.create_task(upload(service, idle))
    await idle.sent_all.wait()

    await advance_loop(slow_clients.SLOW_AFTER_S + 1)
    assert service.admission.slow_requests.in_use == 1
    # The timeout begins when the client is found to be slow.
    await advance_loop(9)
    assert not call.done()
    await advance_loop(2)
    assert call.done()

    assert idle.outcome == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert idle.failure is not None
    assert idle.failure.metadata["stage"] == "receive"
    assert not service.admission.busy()


async def test_slow_message_needs_a_slot_for_slow_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.01)
    service = Service(admission={"max_slow_requests": 1})
    first, second = (Stream([b"1"], idle=True) for _ in range(2))
    waiting = asyncio.create_task(upload(service, first))
    await first.sent_all.wait()

    await upload(service, second)
    waiting.cancel()
    await waiting

    assert second.failure is not None
    assert second.failure.metadata["resource"] == "slow_requests"
    assert service.admission.slow_requests.in_use == 0


async def test_deadline_of_a_stream_is_that_of_its_method() -> None:
    service = Service(deadlines={"embedding_files_s": 5})
    idle = Stream([], idle=True)
    call = asyncio.create_task(upload(service, idle))
    await idle.sent_all.wait()

    await advance_loop(6)
    await call

    assert idle.outcome[0] == "DEADLINE_EXCEEDED"
