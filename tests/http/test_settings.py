"""Settings of the HTTP listener that are rejected."""

from __future__ import annotations

import pytest
from samserve.settings import load


@pytest.mark.parametrize("value", ["*", "https://*.example.com", "app.example.com", "https://a/b"])
def test_wildcards_and_paths_are_not_origins(value: str) -> None:
    with pytest.raises(ValueError, match="allowed_origins"):
        load({"http": {"allowed_origins": value}})


def test_the_listener_needs_tls_outside_of_loopback() -> None:
    with pytest.raises(ValueError, match=r"http\.host :: is not loopback"):
        load({"http": {"enabled": True, "host": "::"}})

    load({"http": {"enabled": True, "host": "::"}, "server": {"allow_plaintext": True}})
    load({"http": {"enabled": False, "host": "::"}})


@pytest.mark.parametrize("name", ["port", "admin_port"])
def test_listeners_need_different_ports(name: str) -> None:
    with pytest.raises(ValueError, match=f"http.port and server.{name} are both 9000"):
        load({"http": {"enabled": True, "port": 9000}, "server": {name: 9000}})
