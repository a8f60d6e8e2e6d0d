"""Who gets in: everything that is decided before a call's request is even read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from samserve.rpc.admission import Admission
from samserve.rpc.metadata import Metadata
from samserve.rpc.methods import Method
from samserve.security.authenticator import HEADER, Authenticator
from samserve.security.certificates import names_of_peer
from samserve.security.principal import Allowance, Principal
from samserve.security.quotas import Quotas

Rpc = grpc.aio.ServicerContext[Any, Any]


class Entrance:
    """Credentials and permissions, then the bounds of the server and the quotas of the tenant."""

    def __init__(self, authenticator: Authenticator, quotas: Quotas, admission: Admission) -> None:
        self.admission = admission
        self._authenticator = authenticator
        self._quotas = quotas

    def identify(self, rpc: Rpc, metadata: Metadata) -> Principal:
        """Tell who calls.  Raises `Unauthenticated` or `PermissionDenied`."""
        headers = [
            value if isinstance(value, str) else "" for key, value in metadata if key == HEADER
        ]
        names = names_of_peer(rpc.auth_context()) if self._authenticator.reads_certificates else ()
        return self._authenticator.authenticate(headers, names)

    @contextmanager
    def admitted(self, method: Method, principal: Principal) -> Iterator[Allowance]:
        """Count a call in for the length of the block; yields what its request may contain.

        Raises `PermissionDenied`, `Overloaded` or `QuotaExceeded`, and counts nothing then.
        """
        principal.require(*sorted(method.permissions))
        tenant = principal.tenant
        with self.admission.admit(method.name, tenant), self._quotas.admit(method.name, tenant):
            yield self._quotas.allowance(tenant)
