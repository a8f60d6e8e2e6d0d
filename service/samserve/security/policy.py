"""The policy file: what roles allow, what tenants get, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from samserve.security.principal import Permission
from samserve.security.strict import TENANT, Strict, read_toml

MOST_BYTES = 256 << 10

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Tenant = Annotated[str, StringConstraints(pattern=TENANT)]
Identity = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]
# One in a million seconds is never; less would not fit into what tells when to come back.
Rate = Annotated[float, Field(ge=1e-6, le=1e9, allow_inf_nan=False)]


class RateQuota(Strict):
    """A token bucket: *burst* calls at once, and *requests_per_s* in the long run."""

    requests_per_s: Rate | None = Field(default=None, description="Calls a second in the long run.")
    burst: Count | None = Field(
        default=None, description="Calls at once; unset takes those of one second, at least one."
    )

    @property
    def bucket_size(self) -> int:
        """How many calls fit into the bucket."""
        return self.burst or max(1, math.ceil(self.requests_per_s or 1))

    @model_validator(mode="after")
    def _burst_needs_a_rate(self) -> Self:
        if self.burst is not None and self.requests_per_s is None:
            raise ValueError("burst needs requests_per_s")
        return self


class ConcurrentCalls(Strict):
    """Calls that may run at once; a method has the field that is named as its limits are."""

    embed: Count | None = Field(default=None, description="Concurrent Embed calls.")
    predict: Count | None = Field(default=None, description="Concurrent Predict calls.")
    automask: Count | None = Field(default=None, description="Concurrent AutoMask calls.")

    def concurrent(self, name: str) -> int | None:
        """Return the limit of this name, None if there is none."""
        limit: int | None = getattr(self, name) if name in ConcurrentCalls.model_fields else None
        return limit


class Quota(ConcurrentCalls, RateQuota):
    """What one tenant may use of one gateway; what is unset has only the server's own limits."""

    stored_bytes: Count | None = Field(
        default=None,
        description="Bytes of embeddings held; more drives out its own oldest.",
    )
    image_megapixels: Rate | None = Field(
        default=None, description="Millions of pixels of one image that is to be encoded."
    )
    prompts: Count | None = Field(default=None, description="Prompts of one Predict.")

    @property
    def image_pixels(self) -> int | None:
        """`image_megapixels` in pixels."""
        return None if self.image_megapixels is None else int(self.image_megapixels * 1_000_000)


class TenantPolicy(Strict):
    """One tenant: its quota, and the roles of those callers whose credentials name none."""

    quota: Name | None = Field(default=None, description="Name of a quota; unset takes `default`.")
    roles: tuple[Name, ...] = Field(
        default=(), description="Roles where the credentials name none."
    )


class IdentityPolicy(Strict):
    """A client certificate that is a credential by itself."""

    tenant: Tenant = Field(description="Tenant of the client.")
    roles: tuple[Name, ...] = Field(
        default=(), description="Its roles; none takes those of the tenant."
    )


class Policy(Strict):
    """The whole file."""

    version: Literal[1] = Field(description="Version of this format.")
    roles: dict[Name, tuple[Permission, ...]] = Field(
        default_factory=dict,
        description="Permissions of each role. Each permission is a role of its own, too.",
    )
    tenants: dict[Tenant, TenantPolicy] = Field(
        default_factory=dict, description="Tenants that differ from the default."
    )
    quotas: dict[Name, Quota] = Field(
        default_factory=dict, description="Quotas by name; `default` is for tenants without one."
    )
    server: RateQuota = Field(default=RateQuota(), description="The rate of all tenants together.")
    identities: dict[Identity, IdentityPolicy] = Field(
        default_factory=dict,
        description="Clients by a name in their certificate (mTLS): DNS name or URI.",
    )

    def permissions(self, roles: Iterable[str]) -> frozenset[Permission]:
        """What *roles* allow together; roles that are not known allow nothing."""
        known = {permission.value: (permission,) for permission in Permission} | self.roles
        return frozenset(allowed for role in roles for allowed in known.get(role, ()))

    def quota(self, tenant: str) -> Quota:
        """The quota of a tenant, listed or not."""
        listed = self.tenants.get(tenant)
        name = "default" if listed is None or listed.quota is None else listed.quota
        return self.quotas.get(name, _UNLIMITED)

    def roles_of(self, tenant: str, named: Iterable[str]) -> tuple[str, ...]:
        """The roles that credentials name, or else those of their tenant."""
        listed = self.tenants.get(tenant)
        return tuple(named) or (listed.roles if listed is not None else ())

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        roles = {permission.value for permission in Permission} | self.roles.keys()
        for shadowed in {permission.value for permission in Permission} & self.roles.keys():
            raise ValueError(f"roles.{shadowed}: is a role already, with that one permission")
        for name, tenant in self.tenants.items():
            if tenant.quota is not None and tenant.quota not in self.quotas:
                raise ValueError(f"tenants.{name}.quota: there is no such quota")
        named = {f"tenants.{name}": entry.roles for name, entry in self.tenants.items()} | {
            f"identities.{name[:64]}": entry.roles for name, entry in self.identities.items()
        }
        for place, wanted in named.items():
            if not roles.issuperset(wanted):
                raise ValueError(f"{place}.roles: names a role that is not there")
        return self


_UNLIMITED = Quota()
OPEN_POLICY = Policy(version=1)
"""The policy where there is no file: the four permissions as roles, and no quotas."""


def parse_policy(data: bytes) -> Policy:
    """Read a policy file (TOML).  Raises `Misconfigured`."""
    return read_toml("policy file", data, Policy)
