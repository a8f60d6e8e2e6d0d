"""Who calls, and what that allows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from samserve.errors import PermissionDenied, QuotaExceeded

DEFAULT_TENANT = "default"


class Permission(StrEnum):
    """What a role can allow; each is a role of its own, too."""

    EMBED = "embed"
    PREDICT = "predict"
    AUTOMASK = "automask"
    EMBEDDINGS_ADMIN = "embeddings_admin"


EVERYTHING = frozenset(Permission)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller: the tenant whose data it sees, what it may do, and its name for logs.

    ``subject`` is no secret: a key's id, a token's subject, the name in a certificate.
    """

    tenant: str = DEFAULT_TENANT
    permissions: frozenset[Permission] = EVERYTHING
    subject: str = "anonymous"

    def require(self, *any_of: Permission) -> None:
        """Raise `PermissionDenied` unless one of the permissions is held."""
        if not self.permissions.isdisjoint(any_of):
            return
        needed = " or ".join(any_of)
        raise PermissionDenied(
            f"this needs the permission {needed}, which the caller's roles do not give",
            metadata={"permission": needed},
        )


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a tenant's quota lets one request contain; None leaves it to the server's limits."""

    tenant: str = DEFAULT_TENANT
    image_pixels: int | None = None
    prompts: int | None = None

    def check_image(self, pixels: int) -> None:
        """Raise `QuotaExceeded` for an image of more pixels than the quota has."""
        self._check("image_megapixels", "pixels of an image", pixels, self.image_pixels)

    def check_prompts(self, prompts: int) -> None:
        """Raise `QuotaExceeded` for more prompts than the quota has."""
        self._check("prompts", "prompts of one request", prompts, self.prompts)

    def _check(self, quota: str, what: str, actual: int, limit: int | None) -> None:
        if limit is None or actual <= limit:
            return
        # No RetryInfo: waiting does not help, the same request is refused for ever.
        raise QuotaExceeded(
            f"{actual} {what} are over the tenant's quota of {limit}",
            subject=f"tenant:{self.tenant}",
            retry_after_s=None,
            metadata={"quota": quota, "limit": str(limit), "actual": str(actual)},
        )


UNLIMITED = Allowance()
WARM_UP = Principal(tenant="(warm-up)")
"""The server itself; no caller's tenant can have this name."""
ANYBODY = Principal()
"""The caller of a server that asks nobody for credentials."""
NOBODY = Principal(tenant="", permissions=frozenset(), subject="")
"""Who calls, as long as that is not known."""
