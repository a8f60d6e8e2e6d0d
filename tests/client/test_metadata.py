"""Request ids and tokens that cannot be sent raise `ValueError`."""

from __future__ import annotations

import pytest
from samserve.client import Client, EmbeddingNotFound, Prompt, metadata
from samserve.client.metadata import call_metadata

from tests import sample_images
from tests.conftest import serving, settings_with

# For some of these, gRPC's core raises an exception of its own; the server ignores the others.
INVALID = ("ü", "a\nb", "a b", "a\x00", "\udcff", "x" * 129, "a\x7f", "<script>")


@pytest.mark.parametrize("request_id", INVALID, ids=ascii)
async def test_invalid_request_id_raises_value_error(request_id: str) -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="request_id must be 1 to 128 ASCII letters"):
            await client.embed(sample_images.png(), request_id=request_id)
        with pytest.raises(ValueError, match="request_id"):
            async for _ in client.automask("0" * 64, request_id=request_id):
                pass


@pytest.mark.parametrize("request_id", ["a", "A-z_0.9:/", "x" * 128])
async def test_valid_request_id_is_used_by_the_server(request_id: str) -> None:
    settings = settings_with(engine={"kind": "fake"})
    async with serving(settings) as (service, _), Client(service.address) as client:
        with pytest.raises(EmbeddingNotFound) as missed:
            await client.predict("0" * 64, [Prompt(points=[(1, 1)])], request_id=request_id)

    # From the trailing metadata of the server.
    assert missed.value.request_id == request_id


@pytest.mark.parametrize("token", ["a\nb", "ü", "a\x00b", "\udcff"], ids=ascii)
def test_invalid_token_raises_and_is_not_quoted(token: str) -> None:
    with pytest.raises(ValueError, match="the token has invalid characters") as caught:
        call_metadata("id", token)

    assert token not in str(caught.value)


def test_invalid_trace_header_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = (("traceparent", "00-1-1-01"), ("baggage", "key=ü\n"))
    monkeypatch.setattr(metadata, "trace_headers", lambda: headers)

    assert call_metadata("id", "") == (("x-request-id", "id"), headers[0])
