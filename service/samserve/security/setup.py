"""Setup of authentication, authorization, quotas and TLS from the settings and their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from samserve.errors import Misconfigured
from samserve.security import keys, policy, tokens
from samserve.security.authenticator import Authenticator, Tokens
from samserve.security.certificates import ServerCertificate, parse_server_certificate
from samserve.security.policy import OPEN_POLICY, Policy
from samserve.security.principal import WARM_UP
from samserve.security.tokens import TokenRules
from samserve.settings import AuthSettings, Settings, TlsSettings
from samserve.system.addresses import is_loopback
from samserve.system.reloading import ReloadableFile


@dataclass(frozen=True, slots=True, eq=False)
class Security:
    """The content of the files that the settings name; ``files`` are reloaded when they change."""

    authenticator: Authenticator
    certificate: ReloadableFile[ServerCertificate] | None
    files: tuple[ReloadableFile[Any], ...]
    _policy: ReloadableFile[Policy] | None

    def policy(self) -> Policy:
        """Return the policy in use."""
        return OPEN_POLICY if self._policy is None else self._policy.value

    def has_tenants(self) -> bool:
        """Return whether there are several tenants; without authentication there is only one."""
        return self.authenticator.required

    def max_cached_bytes(self, tenant: str) -> int | None:
        """Return the tenant's quota of bytes in the local cache, None if there is none."""
        return None if tenant == WARM_UP.tenant else self.policy().quota(tenant).max_cached_bytes


def open_security(settings: Settings) -> Security:
    """Read the files.  Raises `Misconfigured` for the first that is not valid."""
    auth, tls = settings.auth, settings.tls
    certificate = server_certificate(tls)
    rules = _file("policy", auth.policy_file, policy.parse_policy, policy.MAX_BYTES)
    key_ring = _file("API keys", auth.api_keys_file, keys.parse_keys, keys.MAX_BYTES)
    key_set = _file("JWKS", auth.jwks_file, tokens.parse_jwks, tokens.MAX_BYTES)
    if rules is not None and rules.value.identities and tls.client_ca_file is None:
        raise Misconfigured("policy file: identities require tls.client_ca_file")
    authenticator = Authenticator(
        rules,
        keys=key_ring,
        tokens=None if key_set is None else Tokens(key_set, _token_rules(auth)),
        identities=tls.identities,
    )
    files = tuple(file for file in (certificate, rules, key_ring, key_set) if file is not None)
    if not authenticator.required and not is_loopback(settings.server.host):
        # A warning and not an error: access may be controlled by the network.
        structlog.get_logger("samserve").warning(
            "authentication disabled", host=settings.server.host
        )
    return Security(authenticator, certificate, files, rules)


def server_certificate(tls: TlsSettings) -> ReloadableFile[ServerCertificate] | None:
    """Return the certificate that the settings name, None without one.  Raises `Misconfigured`."""
    if tls.cert_file is None or tls.key_file is None:
        return None
    paths = [tls.cert_file, tls.key_file]
    if tls.client_ca_file is not None:
        paths.append(tls.client_ca_file)
    return ReloadableFile("TLS certificate", paths, parse_server_certificate)


def _file(name: str, path: Path | None, parse: Any, max_bytes: int) -> ReloadableFile[Any] | None:
    return None if path is None else ReloadableFile(name, [path], parse, max_bytes)


def _token_rules(auth: AuthSettings) -> TokenRules:
    return TokenRules(
        issuer=auth.jwt_issuer,
        audience=auth.jwt_audience,
        tenant_claim=auth.jwt_tenant_claim,
        roles_claim=auth.jwt_roles_claim,
        leeway_s=auth.jwt_leeway_s,
    )
