"""The caller of a call: its tenant, permissions and quota for one request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from samserve.errors import PermissionDenied, QuotaExceeded

DEFAULT_TENANT = "default"


class Permission(StrEnum):
    """A permission of a role; each is also the name of a role with only this permission."""

    EMBED = "embed"
    PREDICT = "predict"
    AUTOMASK = "automask"
    EMBEDDINGS_ADMIN = "embeddings_admin"
    EMBEDDINGS_READ = "embeddings_read"
    EMBEDDINGS_WRITE = "embeddings_write"
    DECODERS_READ = "decoders_read"
    MODELS_ADMIN = "models_admin"


ALL_PERMISSIONS = frozenset(Permission)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller: the tenant whose data it can access, its permissions, and its name for logs.

    ``subject`` is not secret: the id of a key, the subject of a token, the name in a certificate.
    """

    tenant: str = DEFAULT_TENANT
    permissions: frozenset[Permission] = ALL_PERMISSIONS
    subject: str = "anonymous"

    def require(self, *any_of: Permission) -> None:
        """Raise `PermissionDenied` unless the caller has one of the permissions."""
        if not self.permissions.isdisjoint(any_of):
            return
        required = " or ".join(sorted(any_of))
        raise PermissionDenied(
            f"the permission {required} is required, and not granted by the caller's roles",
            metadata={"permission": required},
        )


@dataclass(frozen=True, slots=True)
class Allowance:
    """The tenant's quota for one request; None leaves only the server's limits."""

    tenant: str = DEFAULT_TENANT
    max_image_pixels: int | None = None
    max_prompts: int | None = None

    def check_image(self, pixels: int) -> None:
        """Raise `QuotaExceeded` for an image with more pixels than the quota."""
        self._check("max_image_megapixels", "pixels of an image", pixels, self.max_image_pixels)

    def check_prompts(self, prompts: int) -> None:
        """Raise `QuotaExceeded` for more prompts than the quota."""
        self._check("max_prompts", "prompts of one request", prompts, self.max_prompts)

    def _check(self, quota: str, what: str, actual: int, limit: int | None) -> None:
        if limit is None or actual <= limit:
            return
        # No RetryInfo: the same request is rejected again, however long the client waits.
        raise QuotaExceeded(
            f"{actual} {what} exceed the tenant's quota of {limit}",
            subject=f"tenant:{self.tenant}",
            retry_after_s=None,
            metadata={"quota": quota, "limit": str(limit), "actual": str(actual)},
        )


UNLIMITED = Allowance()
WARM_UP = Principal(tenant="(warm-up)")
"""The server's own warm-up; the name is not valid for a tenant of callers."""
ANONYMOUS = Principal()
"""Every caller of a server that does not require credentials."""
UNAUTHENTICATED = Principal(tenant="", permissions=frozenset(), subject="")
"""The caller before authentication."""
