from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress

import pytest
from samserve.calls.admission import Admission
from samserve.errors import Overloaded
from samserve.settings import AdmissionSettings

Admit = Callable[[str], AbstractContextManager[None]]


def admitted(admit: Admit, stack: ExitStack, tenant: str) -> int:
    """Take all places that a tenant gets, and keep them as long as the stack does."""
    taken = 0
    with suppress(Overloaded):
        while taken < 1000:
            stack.enter_context(admit(tenant))
            taken += 1
    return taken


@pytest.mark.parametrize(
    ("setting", "admit_of"),
    [
        ("embed", lambda admission: lambda tenant: admission.admit("Embed", tenant)),
        ("other", lambda admission: lambda tenant: admission.admit("ListModels", tenant)),
        ("slow_requests", lambda admission: admission.slow_requests.hold),
        ("slow_answers", lambda admission: admission.slow_answers.hold),
    ],
)
def test_places_are_shared_again_and_again(
    setting: str, admit_of: Callable[[Admission], Admit]
) -> None:
    admission = Admission(AdmissionSettings(**{setting: 28}), shared=lambda: True)
    admit = admit_of(admission)

    for _ in range(3):
        with ExitStack() as stack:
            assert [admitted(admit, stack, tenant) for tenant in "abcd"] == [21, 6, 1, 0]
            assert admission.busy()
        assert not admission.busy()


def test_a_tenant_that_is_alone_by_nature_takes_all() -> None:
    admission = Admission(AdmissionSettings(embed=28), shared=lambda: False)

    with ExitStack() as stack:
        taken = [
            admitted(lambda tenant, name=name: admission.admit(name, tenant), stack, "default")  # type: ignore[misc]
            for name in ("Embed", "Predict")
        ]

    assert taken == [28, 256]


def test_bytes_are_counted_over_all() -> None:
    admission = Admission(AdmissionSettings(request_bytes=100), shared=lambda: True)

    with admission.holding(60):
        with pytest.raises(Overloaded), admission.holding(41):
            pass
        with admission.holding(40):
            pass
    with admission.holding(1000):
        pass
