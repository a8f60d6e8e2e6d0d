"""The policy file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samserve.errors import Misconfigured
from samserve.security.policy import OPEN_POLICY, Policy, parse_policy
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
embed = 8
predict = 64
automask = 2
stored_bytes = 1073741824
image_megapixels = 12.5
prompts = 64

[server]
requests_per_s = 500

[tenants.acme]
quota = "large"
roles = ["annotator"]

[identities."pipeline.acme.test"]
tenant = "acme"
roles = ["annotator", "automask"]
"""


def test_the_whole_format() -> None:
    policy = parse_policy(FULL)

    large = policy.quota("acme")
    assert (large.requests_per_s, large.bucket_size) == (100, 300)
    assert [large.concurrent(name) for name in ("embed", "predict", "automask")] == [8, 64, 2]
    assert large.concurrent("other") is None
    assert (large.stored_bytes, large.image_pixels, large.prompts) == (1 << 30, 12_500_000, 64)
    assert (policy.quota("other").requests_per_s, policy.quota("other").bucket_size) == (5, 5)
    assert policy.server.bucket_size == 500
    assert policy.identities["pipeline.acme.test"].tenant == "acme"


def test_roles_are_those_of_the_credentials_or_else_of_the_tenant() -> None:
    policy = parse_policy(FULL)

    assert policy.roles_of("acme", ()) == ("annotator",)
    assert policy.roles_of("acme", ("automask",)) == ("automask",)
    assert policy.roles_of("other", ()) == ()
    both = {Permission.EMBED, Permission.PREDICT}
    assert policy.permissions(["annotator"]) == both
    assert policy.permissions(["annotator", "embeddings_admin"]) == both | {
        Permission.EMBEDDINGS_ADMIN
    }
    assert policy.permissions(["nobody", ""]) == set()


def test_without_a_file_permissions_are_roles_and_nothing_is_bounded() -> None:
    assert OPEN_POLICY.permissions(["predict"]) == {Permission.PREDICT}
    assert OPEN_POLICY.quota("anybody").requests_per_s is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "version: is missing"),
        ("version = 2", "version: must be 1"),
        ("version = 1\nrole = {}", "role: is not known"),
        ("version = 1\n[roles]\na = ['fly']", "roles.a.0: must be 'embed'"),
        ("version = 1\n[roles]\nembed = ['predict']", "roles.embed: is a role already"),
        ("version = 1\n[tenants.a]\nquota = 'none'", "tenants.a.quota: there is no such quota"),
        ("version = 1\n[tenants.a]\nroles = ['none']", "tenants.a.roles: names a role"),
        (
            "version = 1\n[identities.a]\ntenant = 'a'\nroles = ['none']",
            "identities.a.roles: names a role",
        ),
        ("version = 1\n[quotas.q]\nrequests_per_s = 0", "quotas.q.requests_per_s"),
        ("version = 1\n[quotas.q]\nrequests_per_s = nan", "quotas.q.requests_per_s"),
        ("version = 1\n[quotas.q]\nrequests_per_s = 1e-320", "quotas.q.requests_per_s"),
        ("version = 1\n[quotas.q]\nburst = 3", "burst needs requests_per_s"),
        ("version = 1\n[quotas.q]\nembed = 0", "quotas.q.embed"),
        ("version = 1\n[quotas.q]\nembed = 1.5", "quotas.q.embed"),
        ("version = 1\n[tenants.'(warm-up)']\nroles = []", "tenants.(warm-up)"),
        ("version = 1\n[tenants.'a b']\nroles = []", "tenants.a b"),
    ],
)
def test_a_policy_that_is_wrong_names_the_place(text: str, problem: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse_policy(text.encode())

    assert problem in refused.value.message


def test_the_schema_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == Policy.model_json_schema()


def test_the_example_of_the_document_is_a_policy() -> None:
    text = DOCUMENT.read_text()
    example = text.split("```toml\n# policy.toml\n")[1].split("```")[0]

    assert parse_policy(example.encode()).tenants
