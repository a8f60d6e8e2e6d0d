"""Errors of settings and files: complete, located, and without texts of pydantic."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from samserve.cli.client_settings import ClientSettings
from samserve.cli.configuration import load_settings
from samserve.cli.errors import UsageError
from samserve.security.keys import KeyEntry
from samserve.security.policy import Policy, Quota, RateQuota, TenantPolicy
from samserve.settings import Settings, validation

# Parts of pydantic's own error texts.
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
    """Return every section of the settings, and every model of the files."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {**sections, **{model.__name__: model for model in MODELS}}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", models())
def test_no_error_text_comes_from_pydantic(name: str) -> None:
    model = models()[name]
    texts = {
        (field, problem["type"]): validation.describe(problem)
        for field in model.model_fields
        for value in WRONG
        for problem in problems(model, {field: value})
    }

    assert texts
    assert {field: text for field, text in texts.items() if PYDANTIC.search(text)} == {}


def problems(model: type[BaseModel], values: dict[str, Any]) -> list[Any]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return error.errors()
    return []


def test_all_errors_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSERVE_CAHCE__TTL_S", "1")
    monkeypatch.setenv("SAMSERVE_LIMITS__MAX_POINTS", "many")
    wrong = {
        "server.port": "99999",
        "server.host": "http://a",
        "engine.kind": "magic",
        "triton.url": "https://a:1",
        "cache.shared.nodes": "redis://a:1",
        "cache.shared.prefx": "a",
        "trace.endpoint": "a:1",
        "trace.sampling_ratio": "2",
        "cache.ttl_s": "never",
        "nope.x": "1",
    }

    lines = errors_of(*(f"{name}={value}" for name, value in wrong.items()))

    assert sorted(lines) == [
        "setting cache.shared.nodes: is a URL: write a:1 instead",
        "setting cache.ttl_s: must be a number; got 'never'",
        "setting engine.kind: must be 'onnx', 'triton' or 'fake'; got 'magic'",
        "setting limits.max_points: must be a whole number; got 'many'",
        "setting server.host: is a URL: write a instead",
        "setting server.port: must be at most 65535; got '99999'",
        "setting trace.endpoint: expected http://HOST:PORT, or https://HOST:PORT for TLS",
        "setting trace.sampling_ratio: must be at most 1; got '2'",
        "setting triton.url: is a URL: write a:1 instead; TLS is a separate setting",
        "unknown setting cache.shared.prefx: did you mean cache.shared.key_prefix?",
        "unknown setting cahce.ttl_s: did you mean cache.ttl_s?",
        "unknown setting nope.x: see `samserve config`",
    ]


def errors_of(*assignments: str) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        load_settings(None, assignments)
    return caught.value.lines


def test_conflicts_are_reported_by_section() -> None:
    lines = errors_of("tls.cert_file=a", "tls.client_identities=x", "triton.cert_file=b")

    assert lines == (
        "section tls: cert_file and key_file must be set together",
        "section tls: client_identities requires client_ca_file",
        "section triton: triton.key_file is missing: certificate and key must be set together",
        "section triton: triton.cert_file requires triton.tls=true",
    )


def test_a_variable_of_a_whole_section_must_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSERVE_SERVER", "127.0.0.1:50051")

    assert errors_of() == (
        "SAMSERVE_SERVER: must be a JSON object; single settings are SAMSERVE_SERVER__NAME",
    )
    monkeypatch.delenv("SAMSERVE_SERVER")
    monkeypatch.setenv("SAMSERVE_CACHE__LOCAL", "512 MiB")
    assert "SAMSERVE_CACHE__LOCAL" in errors_of()[0]


def test_a_section_that_is_not_a_table_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAMSERVE_CACHE", "3")

    assert errors_of("cache.ttl_s=60") == (
        "section cache: must be a table of names and values; got 3",
    )


def test_a_nested_section_that_is_not_a_table_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The variable must not replace the value of the file without an error.
    monkeypatch.setenv("SAMSERVE_CACHE__LOCAL__CAPACITY_BYTES", "1000")
    file = tmp_path / "samserve.toml"
    file.write_text("[cache]\nlocal = 3\n")

    with pytest.raises(UsageError) as caught:
        load_settings(file, [])

    expected = "section cache.local: must be a table of names and values; got 3"
    assert caught.value.lines == (expected,)


def test_other_variables_with_the_prefix_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    # Variables that Kubernetes sets for Services of these names, and one of `samserve models pull`.
    monkeypatch.setenv("SAMSERVE_PORT", "tcp://10.0.0.1:50051")
    monkeypatch.setenv("SAMSERVE_CACHE_PORT_6379_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("SAMSERVE_CHECKPOINT_DIR", "/var/checkpoints")

    assert load_settings(None, ["cache.ttl_s=60"]).cache.ttl_s == 60


@pytest.mark.parametrize("kind", ["triton", "fake"])
def test_models_are_selected_for_the_in_process_engine_only(kind: str) -> None:
    (line,) = errors_of(f"engine.kind={kind}", "engine.models=a")

    assert line.startswith("section engine: engine.models requires engine.kind=onnx")
    assert load_settings(None, ["engine.models=a, b"]).engine.model_names == ("a", "b")
