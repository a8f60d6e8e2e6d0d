"""The policy file: roles, tenants, quotas and certificate identities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from samserve.security.principal import Permission
from samserve.security.strict import TENANT_PATTERN, Strict, read_toml

MAX_BYTES = 256 << 10

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Tenant = Annotated[str, StringConstraints(pattern=TENANT_PATTERN)]
Identity = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]
# One in a million seconds is the minimum: a lower rate would overflow the retry delay.
Rate = Annotated[float, Field(ge=1e-6, le=1e9, allow_inf_nan=False)]


class RateQuota(Strict):
    """A token bucket: *burst* calls at once, and *requests_per_s* on average."""

    requests_per_s: Rate | None = Field(default=None, description="Average calls per second.")
    burst: Count | None = Field(
        default=None,
        description="Maximum calls at once; unset uses the calls of one second, at least one.",
    )

    @property
    def bucket_size(self) -> int:
        """The capacity of the bucket in calls."""
        return self.burst or max(1, math.ceil(self.requests_per_s or 1))

    @model_validator(mode="after")
    def _check_burst(self) -> Self:
        if self.burst is not None and self.requests_per_s is None:
            raise ValueError("burst requires requests_per_s")
        return self


class ConcurrentCalls(Strict):
    """Limits on concurrent calls; `calls.methods.Method` names the limit of each method."""

    max_concurrent_embed: Count | None = Field(
        default=None, description="Maximum concurrent Embed calls."
    )
    max_concurrent_predict: Count | None = Field(
        default=None, description="Maximum concurrent Predict calls."
    )
    max_concurrent_automask: Count | None = Field(
        default=None, description="Maximum concurrent AutoMask calls."
    )

    def concurrent(self, name: str) -> int | None:
        """Return the limit *name*, None if it is not set."""
        limit: int | None = getattr(self, name) if name in _CONCURRENT else None
        return limit


# Each look-up of `model_fields` calls a property, and every call needs one.
_CONCURRENT = frozenset(ConcurrentCalls.model_fields)


class Quota(ConcurrentCalls, RateQuota):
    """The quota of one tenant at one gateway; unset values leave only the server's own limits."""

    max_cached_bytes: Count | None = Field(
        default=None,
        description="Maximum bytes of embeddings in the local cache; beyond it, the tenant's own "
        "least recently used are evicted.",
    )
    max_image_megapixels: Rate | None = Field(
        default=None, description="Maximum megapixels (millions of pixels) of an image to encode."
    )
    max_prompts: Count | None = Field(default=None, description="Maximum prompts of one Predict.")

    @property
    def max_image_pixels(self) -> int | None:
        """`max_image_megapixels` in pixels."""
        megapixels = self.max_image_megapixels
        return None if megapixels is None else int(megapixels * 1_000_000)


class TenantPolicy(Strict):
    """One tenant: its quota, and the roles of callers whose credentials contain none."""

    quota: Name | None = Field(default=None, description="Name of a quota; unset uses `default`.")
    roles: tuple[Name, ...] = Field(
        default=(), description="Roles of callers whose credentials contain none."
    )


class IdentityPolicy(Strict):
    """A client certificate that is accepted as a credential."""

    tenant: Tenant = Field(description="Tenant of the client.")
    roles: tuple[Name, ...] = Field(
        default=(), description="Roles of the client; empty uses those of the tenant."
    )


class Policy(Strict):
    """The policy file."""

    version: Literal[1] = Field(description="Version of this format.")
    roles: dict[Name, tuple[Permission, ...]] = Field(
        default_factory=dict,
        description="Permissions of each role. Each permission is also a role.",
    )
    tenants: dict[Tenant, TenantPolicy] = Field(
        default_factory=dict, description="Tenants that differ from the default."
    )
    quotas: dict[Name, Quota] = Field(
        default_factory=dict,
        description="Quotas by name; `default` applies to tenants without one.",
    )
    server: RateQuota = Field(
        default=RateQuota(), description="Rate limit of all tenants together."
    )
    identities: dict[Identity, IdentityPolicy] = Field(
        default_factory=dict,
        description="Clients by a name in their certificate (mutual TLS): DNS name or URI.",
    )

    def permissions(self, roles: Iterable[str]) -> frozenset[Permission]:
        """Return the permissions of *roles* together; unknown roles have none."""
        known = {permission.value: (permission,) for permission in Permission} | self.roles
        return frozenset(allowed for role in roles for allowed in known.get(role, ()))

    def quota(self, tenant: str) -> Quota:
        """Return the quota of a tenant, whether it is listed or not."""
        listed = self.tenants.get(tenant)
        name = "default" if listed is None or listed.quota is None else listed.quota
        return self.quotas.get(name, _UNLIMITED)

    def roles_of(self, tenant: str, named: Iterable[str]) -> tuple[str, ...]:
        """Return the roles *named* by credentials, or else those of their tenant."""
        listed = self.tenants.get(tenant)
        return tuple(named) or (listed.roles if listed is not None else ())

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        roles = {permission.value for permission in Permission} | self.roles.keys()
        for shadowed in {permission.value for permission in Permission} & self.roles.keys():
            raise ValueError(f"roles.{shadowed}: is reserved for the role with this permission")
        for name, tenant in self.tenants.items():
            if tenant.quota is not None and tenant.quota not in self.quotas:
                raise ValueError(f"tenants.{name}.quota: is an unknown quota")
        named = {f"tenants.{name}": entry.roles for name, entry in self.tenants.items()} | {
            f"identities.{name[:64]}": entry.roles for name, entry in self.identities.items()
        }
        for location, names in named.items():
            if not roles.issuperset(names):
                raise ValueError(f"{location}.roles: contains an unknown role")
        return self


_UNLIMITED = Quota()
OPEN_POLICY = Policy(version=1)
"""The policy without a file: the four permissions as roles, and no quotas."""


def parse_policy(data: bytes) -> Policy:
    """Parse a policy file (TOML).  Raises `Misconfigured`."""
    return read_toml("policy file", data, Policy)
