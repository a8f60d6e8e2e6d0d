"""What Triton's errors are turned into, and after which of them a request has ended."""

from __future__ import annotations

import pytest
from samserve.engines.triton.failures import ENDED, translate
from samserve.errors import (
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    Overloaded,
    SamserveError,
    WeightsChanged,
)
from tritonclient.utils import InferenceServerException

# Status and text of a real server (2.51, or by the source of mid 2026), our error, is it over.
ERRORS = [
    ("NOT_FOUND", "Unable to find shared memory region: 'x'", EngineUnavailable, True),
    ("NOT_FOUND", "Request for unknown model: 'x' is not found", EngineUnavailable, False),
    ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", Overloaded, True),
    ("UNAVAILABLE", "Request timeout expired", DeadlineExceeded, True),
    ("UNAVAILABLE", "Stream removed (Socket closed)", EngineUnavailable, False),
    ("UNAVAILABLE", "failed to connect; Connection refused", EngineUnavailable, False),
    ("UNAVAILABLE", "This protocol is restricted, expecting header 'x'", EngineFailure, True),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls handshake "
        "failed: CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate",
        EngineUnavailable,
        False,
    ),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", EngineUnavailable, False),
    ("CANCELLED", "Locally cancelled by application!", EngineUnavailable, False),
    ("INVALID_ARGUMENT", "unexpected shape for input 'x'", EngineFailure, True),
    (
        "INVALID_ARGUMENT",
        "unexpected inference output 'samserve_digest' for model 'sam_tiny_encoder'",
        WeightsChanged,
        True,
    ),
    ("INTERNAL", "onnx runtime error 6", EngineFailure, False),
    ("UNKNOWN", "", EngineFailure, False),
    ("", "", EngineFailure, False),
]


@pytest.mark.parametrize(("status", "text", "kind", "ended"), ERRORS)
def test_errors_of_triton_become_ours(
    status: str, text: str, kind: type[SamserveError], ended: bool
) -> None:
    error = translate(InferenceServerException(text, f"StatusCode.{status}" if status else None))

    assert isinstance(error, kind)
    assert isinstance(error, ENDED) == ended


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CERTIFICATE_VERIFY_FAILED: self signed certificate in chain", "not signed by a CA"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "has expired"),
        ("UNAUTHENTICATED: Hostname Verification Check failed.", "for another name"),
        ("Handshake read failed (Socket closed)", "maybe the model server does not use TLS"),
        ("UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed", "maybe it wants TLS or a client"),
        ("UNAVAILABLE: ipv4:127.0.0.1:1: Connection refused", "cannot be reached"),
        ("address lookup failed for a:1: Domain name not found", "leads to no address"),
    ],
)
def test_what_is_wrong_with_a_new_connection_is_told(text: str, told: str) -> None:
    whole = f"failed to connect to all addresses; last error: {text}"

    assert told in str(translate(InferenceServerException(whole, "StatusCode.UNAVAILABLE")))


def test_a_connection_that_breaks_later_is_no_matter_of_tls() -> None:
    broken = InferenceServerException("Socket closed", "StatusCode.UNAVAILABLE")

    assert str(translate(broken)) == "the model server cannot be reached"


def test_a_clients_text_holds_nothing_of_tritons() -> None:
    secret = "/models/secret/1/model.onnx"
    texts = [
        str(translate(InferenceServerException(secret, f"StatusCode.{status}")))
        for status in ("NOT_FOUND", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
    ]

    assert not any(secret in text for text in texts)
