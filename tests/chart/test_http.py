"""The HTTP listener in the chart: its port, its names, and the settings of the gateway."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from samserve.settings import HttpSettings

from tests.chart.rendered import (
    ci_values,
    config_text,
    container,
    find_object,
    render,
)

ON = {"http": {"enabled": True}}


def ports(values: dict[str, Any], name: str) -> dict[str, Any]:
    service = find_object(render(values), "Service", name)
    return {port["name"]: port for port in service["spec"]["ports"]}


def test_the_listener_is_disabled_by_default() -> None:
    objects = render()

    assert "http" not in tomllib.loads(config_text(objects))
    assert "http" not in ports({}, "demo-samserve")


@pytest.mark.parametrize("name", ["demo-samserve", "demo-samserve-headless"])
def test_services_have_its_port(name: str) -> None:
    assert ports(ON, name)["http"] == {
        "name": "http",
        "port": 8080,
        "targetPort": "http",
        "appProtocol": "http",
    }
    over_tls = ports(ci_values("http"), name)["http"]
    assert (over_tls["port"], over_tls["appProtocol"]) == (443, "https")


def test_gateway_listens_on_its_port_for_the_names_of_the_services() -> None:
    objects = render(ci_values("http"))
    http = HttpSettings(**tomllib.loads(config_text(objects))["http"])
    gateway = container(objects, "gateway")

    assert {"name": "http", "containerPort": http.port} in gateway["ports"]
    assert (http.enabled, http.host, http.max_connections) == (True, "::", 256)
    assert http.origins == ("https://app.example.com",)
    assert {
        *("demo-samserve", "demo-samserve-headless.vision.svc", "sam.example.com"),
        "demo-samserve.vision.svc.cluster.local",
    } <= set(http.hosts)


def test_the_web_page_is_served_with_what_it_needs() -> None:
    config = tomllib.loads(config_text(render(ci_values("http"))))
    kept = ci_values("http") | {"config": {"embedding_files": {"get_enabled": False}}}

    assert config["http"]["web_page"] is True
    assert config["embedding_files"]["get_enabled"] is True
    assert tomllib.loads(config_text(render(kept)))["embedding_files"]["get_enabled"] is False
    assert tomllib.loads(config_text(render(ON)))["http"]["web_page"] is False
