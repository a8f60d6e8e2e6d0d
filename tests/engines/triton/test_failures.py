"""How Triton's errors are translated, and after which of them a request has ended."""

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

# Status and message of a real server (2.51, or by the source of mid 2026), our error, has it ended.
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
def test_errors_of_triton_are_translated(
    status: str, text: str, kind: type[SamserveError], ended: bool
) -> None:
    error = translate(InferenceServerException(text, f"StatusCode.{status}" if status else None))

    assert isinstance(error, kind)
    assert isinstance(error, ENDED) == ended


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CERTIFICATE_VERIFY_FAILED: self signed certificate in chain", "not signed by a CA"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "has expired"),
        ("UNAUTHENTICATED: Hostname Verification Check failed.", "not valid for the host"),
        ("Handshake read failed (Socket closed)", "Triton may not use TLS"),
        ("UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed", "it may require TLS or a client"),
        ("UNAVAILABLE: ipv4:127.0.0.1:1: Connection refused", "cannot be reached"),
        ("address lookup failed for a:1: Domain name not found", "cannot be resolved"),
    ],
)
def test_error_states_why_a_new_connection_failed(text: str, expected: str) -> None:
    message = f"failed to connect to all addresses; last error: {text}"

    assert expected in str(translate(InferenceServerException(message, "StatusCode.UNAVAILABLE")))


def test_established_connection_that_breaks_is_not_attributed_to_tls() -> None:
    broken = InferenceServerException("Socket closed", "StatusCode.UNAVAILABLE")

    assert str(translate(broken)) == "Triton cannot be reached"


def test_text_for_clients_contains_nothing_of_tritons_message() -> None:
    secret = "/models/secret/1/model.onnx"
    texts = [
        str(translate(InferenceServerException(secret, f"StatusCode.{status}")))
        for status in ("NOT_FOUND", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
    ]

    assert not any(secret in text for text in texts)
