from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress

import pytest
from samserve.calls.admission import Admission
from samserve.errors import Overloaded
from samserve.settings import AdmissionSettings

Admit = Callable[[str], AbstractContextManager[None]]


def acquire_all(admit: Admit, stack: ExitStack, tenant: str) -> int:
    """Acquire all slots that a tenant can get, hold them in *stack*, and return their number."""
    count = 0
    with suppress(Overloaded):
        while count < 1000:
            stack.enter_context(admit(tenant))
            count += 1
    return count


@pytest.mark.parametrize(
    ("setting", "admit_of"),
    [
        ("max_concurrent_embed", lambda admission: lambda tenant: admission.admit("Embed", tenant)),
        (
            "max_concurrent_other",
            lambda admission: lambda tenant: admission.admit("ListModels", tenant),
        ),
        ("max_slow_requests", lambda admission: admission.slow_requests.acquire),
        ("max_slow_responses", lambda admission: admission.slow_responses.acquire),
    ],
)
def test_slots_are_shared_fairly_between_tenants(
    setting: str, admit_of: Callable[[Admission], Admit]
) -> None:
    admission = Admission(AdmissionSettings(**{setting: 28}), shared=lambda: True)
    admit = admit_of(admission)

    for _ in range(3):
        with ExitStack() as stack:
            assert [acquire_all(admit, stack, tenant) for tenant in "abcd"] == [21, 6, 1, 0]
            assert admission.busy()
        assert not admission.busy()


def test_a_single_tenant_can_use_all_slots() -> None:
    admission = Admission(AdmissionSettings(max_concurrent_embed=28), shared=lambda: False)

    with ExitStack() as stack:
        counts = [
            acquire_all(lambda tenant, name=name: admission.admit(name, tenant), stack, "default")  # type: ignore[misc]
            for name in ("Embed", "Predict")
        ]

    assert counts == [28, 256]


def test_request_bytes_are_limited_over_all_methods() -> None:
    admission = Admission(AdmissionSettings(max_in_flight_request_bytes=100), shared=lambda: True)

    with admission.admit_bytes(60):
        with pytest.raises(Overloaded), admission.admit_bytes(41):
            pass
        with admission.admit_bytes(40):
            pass
    with admission.admit_bytes(1000):
        pass
