"""What is said of wrong settings and files: no words of pydantic's, whatever is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from samserve.cli.client_settings import ClientSettings
from samserve.cli.configuration import load_settings
from samserve.cli.errors import UsageError
from samserve.security.keys import KeyEntry
from samserve.security.policy import Policy, Quota, RateQuota, TenantPolicy
from samserve.settings import Settings, validation

# How pydantic's own sentences begin or go on.
PYDANTIC = re.compile(
    r"Input should|Value error|(String|List|Tuple|Dictionary|Set) should|Extra inputs|"
    r"Field required|unable to|valid (string|integer|number|boolean|tuple)|is not valid"
)
WRONG: tuple[Any, ...] = (
    *("", "x", "no number", "-1", "0", "1e400", "nan", "1.5", "9" * 30, "\udcff"),
    *(True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), None, [], {}, [1], {"a": 1}, b"\xff"),
)
MODELS = (ClientSettings, KeyEntry, Policy, Quota, RateQuota, TenantPolicy)


def models() -> dict[str, type[BaseModel]]:
    """Every section of the settings, and every part of the files."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {**sections, **{model.__name__: model for model in MODELS}}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", models())
def test_no_wrong_value_is_told_in_pydantics_words(name: str) -> None:
    model = models()[name]
    told = {
        (field, problem["type"]): validation.describe(problem)
        for field in model.model_fields
        for value in WRONG
        for problem in problems(model, {field: value})
    }

    assert told
    assert {place: text for place, text in told.items() if PYDANTIC.search(text)} == {}


def problems(model: type[BaseModel], values: dict[str, Any]) -> list[Any]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return error.errors()
    return []


def test_everything_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSERVE_STOER__TTL_S", "1")
    monkeypatch.setenv("SAMSERVE_LIMITS__POINTS", "many")
    wrong = {
        "server.port": "99999",
        "server.host": "http://a",
        "engine.kind": "magic",
        "triton.url": "https://a:1",
        "cache.nodes": "redis://a:1",
        "cache.prefx": "a",
        "trace.endpoint": "a:1",
        "trace.ratio": "2",
        "store.ttl_s": "never",
        "nope.x": "1",
    }

    lines = mistakes(*(f"{name}={value}" for name, value in wrong.items()))

    assert sorted(lines) == [
        "setting cache.nodes: is a URL: write a:1 instead",
        "setting engine.kind: must be 'onnx', 'triton' or 'fake'; got 'magic'",
        "setting limits.points: must be a whole number; got 'many'",
        "setting server.host: is a URL: write a instead",
        "setting server.port: must be at most 65535; got '99999'",
        "setting store.ttl_s: must be a number; got 'never'",
        "setting trace.endpoint: expected http://HOST:PORT, or https://HOST:PORT for TLS",
        "setting trace.ratio: must be at most 1; got '2'",
        "setting triton.url: is a URL: write a:1 instead; TLS is a setting of its own",
        "there is no setting cache.prefx: did you mean cache.prefix?",
        "there is no setting nope: see `samserve config`",
        "there is no setting stoer: did you mean store?",
    ]


def mistakes(*assignments: str) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        load_settings(None, assignments)
    return caught.value.lines


def test_what_belongs_together_is_told_by_its_section() -> None:
    lines = mistakes("tls.cert_file=a", "tls.client_identities=x", "triton.cert_file=b")

    assert lines == (
        "section tls: cert_file and key_file need each other",
        "section tls: client_identities needs client_ca_file",
        "section triton: triton.key_file is missing: certificate and key go together",
        "section triton: triton.cert_file is for triton.tls=true only",
    )


def test_a_variable_that_is_no_section_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSERVE_SERVER", "127.0.0.1:50051")

    assert mistakes() == (
        "SAMSERVE_SERVER: must be a JSON object; single settings are SAMSERVE_SERVER__NAME",
    )


def test_a_section_that_is_no_table_is_not_replaced_by_another_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAMSERVE_STORE", "3")

    assert mistakes("store.ttl_s=60") == (
        "section store: must be a table of names and values; got 3",
    )


def test_variables_of_others_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    # What Kubernetes makes of Services of these names, and what `samserve models pull` takes.
    monkeypatch.setenv("SAMSERVE_PORT", "tcp://10.0.0.1:50051")
    monkeypatch.setenv("SAMSERVE_CACHE_PORT_6379_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("SAMSERVE_CHECKPOINTS", "/var/checkpoints")

    assert load_settings(None, ["store.ttl_s=60"]).store.ttl_s == 60
