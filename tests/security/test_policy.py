"""The policy file, and files that change while the server runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from samserve.errors import Misconfigured
from samserve.security.policy import OPEN_POLICY, Policy, parse_policy
from samserve.security.principal import Permission
from samserve.system.reloading import Watched

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
    assert [large.concurrent(name) for name in ("Embed", "Predict", "AutoMask")] == [8, 64, 2]
    assert large.concurrent("ListModels") is None
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


def number(content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise Misconfigured("numbers: is none") from None


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged in the test."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def put(path: Path, text: str) -> None:
    """Exchange a file in one step, with a time of its own."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    put.moment += 10_000_000  # type: ignore[attr-defined]
    os.utime(temporary, ns=(put.moment, put.moment))  # type: ignore[attr-defined]
    temporary.replace(path)


put.moment = 1_700_000_000_000_000_000  # type: ignore[attr-defined]


def test_a_file_is_read_again_when_it_changes(tmp_path: Path, logged: list[Any]) -> None:
    path = tmp_path / "number"
    put(path, "1")
    reads = []
    watched = Watched("numbers", [path], lambda content: reads.append(content) or number(content))

    watched.refresh()
    assert (watched.value, len(reads)) == (1, 1)
    put(path, "2")
    watched.refresh()
    assert (watched.value, watched.healthy) == (2, True)
    assert [line["event"] for line in logged] == ["read again"]


@pytest.mark.parametrize("damage", ["content", "gone", "too large", "folder"])
def test_a_file_that_got_worse_is_said_once_and_kept_as_it_was(
    tmp_path: Path, logged: list[Any], damage: str
) -> None:
    path = tmp_path / "number"
    put(path, "1")
    watched = Watched("numbers", [path], number, most_bytes=10)

    match damage:
        case "content":
            put(path, "one")
        case "gone":
            path.unlink()
        case "too large":
            put(path, "2" * 11)
        case "folder":
            path.unlink()
            path.mkdir()
    for _ in range(3):
        watched.refresh()

    assert (watched.value, watched.healthy) == (1, False)
    assert [line["event"] for line in logged] == ["kept the old content"]
    if damage == "folder":
        path.rmdir()
    put(path, "3")
    watched.refresh()
    assert (watched.value, watched.healthy) == (3, True)


def test_whatever_a_parser_lets_out_keeps_the_old_content(
    tmp_path: Path, logged: list[Any]
) -> None:
    path = tmp_path / "number"
    put(path, "1")

    def parse(content: bytes) -> int:
        if content == b"2":
            raise LookupError("a secret from the file")
        return int(content)

    watched = Watched("numbers", [path], parse)
    put(path, "2")
    watched.refresh()

    assert (watched.value, watched.healthy) == (1, False)
    assert logged[0]["reason"] == "numbers: LookupError while reading"
    put(path, "3")
    watched.refresh()
    assert watched.value == 3


def test_files_that_are_exchanged_while_they_are_read_are_not_mixed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        put(path, "1")
    exchange = []

    def both(first: bytes, second: bytes) -> tuple[int, int]:
        if exchange:
            put(paths[0], exchange.pop())
        return number(first), number(second)

    watched = Watched("numbers", paths, both)
    exchange.append("7")
    put(paths[1], "5")
    watched.refresh()

    # The first file changed after it had been read: nothing is taken until both stand still.
    assert watched.value == (1, 1)
    watched.refresh()
    assert watched.value == (7, 5)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="No such file"):
        Watched("numbers", [tmp_path / "none"], number)
