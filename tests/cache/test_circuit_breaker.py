from __future__ import annotations

from samserve.cache.shared.redis.circuit_breaker import CircuitBreaker


def test_a_circuit_opens_after_consecutive_failures_and_closes_with_a_response() -> None:
    breaker = CircuitBreaker(3)
    for _ in range(2):
        breaker.record_failure()
    breaker.record_success()
    for _ in range(2):
        breaker.record_failure()
    assert not breaker.open
    breaker.record_failure()
    assert breaker.open
    breaker.record_success()
    assert not breaker.open
