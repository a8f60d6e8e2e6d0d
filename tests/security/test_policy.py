"""The policy file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samserve.errors import Misconfigured
from samserve.security.policy import OPEN_POLICY, ConcurrentCalls, Policy, parse_policy
from samserve.security.principal import Permission

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "security.md"
SCHEMA = ROOT / "docs" / "policy.schema.json"

FULL = b"""
version = 1

[roles]
annotator = ["embed", "predict"]

[quotas.default]
requests_per_s = 5

[quotas.large]
requests_per_s = 100
burst = 300
max_concurrent_embed = 8
max_concurrent_predict = 64
max_concurrent_automask = 2
max_cached_bytes = 1073741824
max_image_megapixels = 12.5
max_prompts = 64

[server]
requests_per_s = 500

[tenants.acme]
quota = "large"
roles = ["annotator"]

[identities."pipeline.acme.test"]
tenant = "acme"
roles = ["annotator", "automask"]
"""


def test_all_fields_of_a_policy_are_read() -> None:
    policy = parse_policy(FULL)

    large = policy.quota("acme")
    assert (large.requests_per_s, large.bucket_size) == (100, 300)
    assert [large.concurrent(name) for name in ConcurrentCalls.model_fields] == [8, 64, 2]
    assert large.concurrent("max_concurrent_other") is None
    assert (large.max_cached_bytes, large.max_image_pixels) == (1 << 30, 12_500_000)
    assert large.max_prompts == 64
    assert (policy.quota("other").requests_per_s, policy.quota("other").bucket_size) == (5, 5)
    assert policy.server.bucket_size == 500
    assert policy.identities["pipeline.acme.test"].tenant == "acme"


def test_roles_come_from_the_credentials_or_else_from_the_tenant() -> None:
    policy = parse_policy(FULL)

    assert policy.roles_of("acme", ()) == ("annotator",)
    assert policy.roles_of("acme", ("automask",)) == ("automask",)
    assert policy.roles_of("other", ()) == ()
    both = {Permission.EMBED, Permission.PREDICT}
    assert policy.permissions(["annotator"]) == both
    assert policy.permissions(["annotator", "embeddings_admin"]) == both | {
        Permission.EMBEDDINGS_ADMIN
    }
    assert policy.permissions(["unknown", ""]) == set()


def test_the_open_policy_has_permission_roles_and_no_quotas() -> None:
    assert OPEN_POLICY.permissions(["predict"]) == {Permission.PREDICT}
    assert OPEN_POLICY.quota("any-tenant").requests_per_s is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "version: is missing"),
        ("version = 2", "version: must be 1"),
        ("version = 1\nrole = {}", "role: is unknown"),
        ("version = 1\n[roles]\na = ['fly']", "roles.a.0: must be 'embed'"),
        ("version = 1\n[roles]\nembed = ['predict']", "roles.embed: is reserved"),
        ("version = 1\n[tenants.a]\nquota = 'none'", "tenants.a.quota: is an unknown quota"),
        ("version = 1\n[tenants.a]\nroles = ['none']", "tenants.a.roles: contains an unknown role"),
        (
            "version = 1\n[identities.a]\ntenant = 'a'\nroles = ['none']",
            "identities.a.roles: contains an unknown role",
        ),
        ("version = 1\n[quotas.q]\nrequests_per_s = 0", "quotas.q.requests_per_s"),
        ("version = 1\n[quotas.q]\nrequests_per_s = nan", "quotas.q.requests_per_s"),
        ("version = 1\n[quotas.q]\nrequests_per_s = 1e-320", "quotas.q.requests_per_s"),
        ("version = 1\n[quotas.q]\nburst = 3", "burst requires requests_per_s"),
        ("version = 1\n[quotas.q]\nembed = 3", "quotas.q.embed: is now max_concurrent_embed"),
        ("version = 1\n[server]\nembed = 3", "server.embed: is unknown"),
        ("version = 1\n[quotas.q]\nmax_concurrent_embed = 0", "quotas.q.max_concurrent_embed"),
        ("version = 1\n[quotas.q]\nmax_concurrent_embed = 1.5", "quotas.q.max_concurrent_embed"),
        ("version = 1\n[tenants.'(warm-up)']\nroles = []", "tenants.(warm-up)"),
        ("version = 1\n[tenants.'a b']\nroles = []", "tenants.a b"),
    ],
)
def test_errors_in_a_policy_name_the_location(text: str, problem: str) -> None:
    with pytest.raises(Misconfigured) as invalid:
        parse_policy(text.encode())

    assert problem in invalid.value.message


def test_the_schema_file_matches_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == Policy.model_json_schema()


def test_the_documented_example_is_a_valid_policy() -> None:
    text = DOCUMENT.read_text()
    example = text.split("```toml\n# policy.toml\n")[1].split("```")[0]

    assert parse_policy(example.encode()).tenants
