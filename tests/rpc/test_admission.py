from __future__ import annotations

from contextlib import ExitStack

import pytest
from samserve.errors import Overloaded
from samserve.rpc.admission import SLOW_REQUESTS, Admission
from samserve.settings import AdmissionSettings


def admitted(admission: Admission, stack: ExitStack, method: str, tenant: str) -> int:
    """Take all places that a tenant gets, and keep them as long as the stack does."""
    for taken in range(1000):
        try:
            stack.enter_context(admission.admit(method, tenant))
        except Overloaded:
            return taken
    raise AssertionError("there is no bound")


@pytest.mark.parametrize(
    ("method", "setting"),
    [("Embed", "embed"), ("ListModels", "other"), (SLOW_REQUESTS, "slow_requests")],
)
def test_places_are_shared_again_and_again(method: str, setting: str) -> None:
    admission = Admission(AdmissionSettings(**{setting: 28}), shared=lambda: True)

    for _ in range(3):
        with ExitStack() as stack:
            assert admitted(admission, stack, method, "a") == 21
            assert admitted(admission, stack, method, "b") == 6
            assert admitted(admission, stack, method, "c") == 1
            assert admitted(admission, stack, method, "d") == 0
    assert not any(places._by_tenant for places in admission._places.values())


def test_a_tenant_that_is_alone_by_nature_takes_all() -> None:
    admission = Admission(AdmissionSettings(embed=28), shared=lambda: False)

    with ExitStack() as stack:
        assert admitted(admission, stack, "Embed", "default") == 28
        assert admitted(admission, stack, "Predict", "default") == 256


def test_bytes_are_counted_over_all() -> None:
    admission = Admission(AdmissionSettings(request_bytes=100), shared=lambda: True)

    with admission.holding(60):
        with pytest.raises(Overloaded), admission.holding(41):
            pass
        with admission.holding(40):
            pass
    with admission.holding(1000):
        pass
