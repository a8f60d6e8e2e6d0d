"""Request ids and tokens from outside: what cannot be sent is a `ValueError` of ours."""

from __future__ import annotations

import pytest
from samserve.client import Client, EmbeddingNotFound, Prompt, metadata
from samserve.client.metadata import call_metadata

from tests import pictures
from tests.conftest import serving, settings_with

# gRPC's core ends a call with an exception of its own for some, and the server takes others for
# none.
ODD = ("ü", "a\nb", "a b", "a\x00", "\udcff", "x" * 129, "a\x7f", "<script>")


@pytest.mark.parametrize("request_id", ODD, ids=ascii)
async def test_an_odd_request_id_is_refused_before_the_call(request_id: str) -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="request_id must be from 1 to 128 letters"):
            await client.embed(pictures.png(), request_id=request_id)
        with pytest.raises(ValueError, match="request_id"):
            async for _ in client.automask("0" * 64, request_id=request_id):
                pass


@pytest.mark.parametrize("request_id", ["a", "A-z_0.9:/", "x" * 128])
async def test_the_server_takes_every_other_as_it_is(request_id: str) -> None:
    settings = settings_with(engine={"kind": "fake"})
    async with serving(settings) as (service, _), Client(service.address) as client:
        with pytest.raises(EmbeddingNotFound) as missed:
            await client.predict("0" * 64, [Prompt(points=[(1, 1)])], request_id=request_id)

    # As the server has it.
    assert missed.value.request_id == request_id


@pytest.mark.parametrize("token", ["a\nb", "ü", "a\x00b", "\udcff"], ids=ascii)
def test_an_odd_token_is_refused_and_not_quoted(token: str) -> None:
    with pytest.raises(ValueError, match="the token has characters that no token has") as caught:
        call_metadata("id", token)

    assert token not in str(caught.value)


def test_an_odd_header_of_a_propagator_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written = (("traceparent", "00-1-1-01"), ("baggage", "key=ü\n"))
    monkeypatch.setattr(metadata, "trace_headers", lambda: written)

    assert call_metadata("id", "") == (("x-request-id", "id"), written[0])
