"""TLS on the listener, and to the gateways, whose client certificate is the bridge's."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme
from samserve.app import running
from samserve.engines.fake import FakeEngine

from tests import sample_images
from tests.bridge.serving import X, bridged, bridging, click, point, shapes
from tests.conftest import settings_with
from tests.http.wire import connected
from tests.security.credentials import ca_file, write_pem

REQUEST = click(sample_images.png(60, 80), point(40, 30))


async def test_gateways_are_verified_and_verify_the_bridge(tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    server = write_pem(tmp_path, authority.issue_cert("localhost"))
    own = write_pem(tmp_path, authority.issue_cert("bridge"), "bridge")
    trusted = ca_file(tmp_path, authority)
    tls = server.settings(client_ca_file=trusted)
    async with running(settings_with(tls=tls), engine=FakeEngine()) as gateway:
        address = gateway.address.replace("127.0.0.1", "localhost")
        gateways = {"tls": True, "ca_file": trusted, "cert_file": own.cert, "key_file": own.key}
        async with bridging(address, gateways=gateways) as bridge:
            assert await shapes(bridge, REQUEST)


async def test_listener_serves_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    server = write_pem(tmp_path, authority.issue_cert("localhost"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with bridged(tls=server.settings()) as (bridge, _):
        assert bridge.address.startswith("https://")
        async with connected(bridge.address, context) as wire:
            answer = await wire.request(f"{X}/health", method="GET")

    assert answer.status == 200
