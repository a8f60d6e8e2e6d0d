"""API keys: creation, storage, lookup and listing."""

from __future__ import annotations

import io
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from samserve.cli.main import main
from samserve.errors import Misconfigured, Unauthenticated
from samserve.security import keys

from tests.secret_leaks import allowed_output, secret

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def new_key() -> str:
    key = secret(keys.new_key())
    secret(key.split("_", 2)[2])
    return key


def ring(*entries: keys.KeyEntry) -> keys.KeyRing:
    return keys.parse_keys("\n".join(entry.to_toml() for entry in entries).encode())


def test_a_key_finds_its_entry() -> None:
    one, two = new_key(), new_key()
    known = ring(keys.entry_for(one, "acme", ("embed",)), keys.entry_for(two, "other", ()))

    assert known.find(one, NOW).tenant == "acme"
    assert known.find(one, NOW).roles == ("embed",)
    assert known.find(two, NOW).tenant == "other"


@pytest.mark.parametrize(
    "changed",
    [
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: key[:9] + "aaaaaaaaaaaa" + key[21:],
        lambda key: key + "x",
        lambda key: key[:-1],
        lambda key: key.upper(),
        lambda key: "samserve_",
        lambda key: "",
    ],
    ids=["secret", "id", "longer", "shorter", "case", "prefix", "nothing"],
)
def test_a_changed_key_is_rejected(changed) -> None:  # type: ignore[no-untyped-def]
    key = new_key()
    known = ring(keys.entry_for(key, "acme", ()))

    with pytest.raises(Unauthenticated) as rejected:
        known.find(changed(key), NOW)

    assert key[9:] not in str(rejected.value)


def test_an_unknown_id_and_a_wrong_secret_have_the_same_error() -> None:
    key = new_key()
    known = ring(keys.entry_for(key, "acme", ()))
    texts = set()
    for wrong in (key[:22] + "x" * 43, "samserve_bbbbbbbbbbbb_" + "x" * 43):
        with pytest.raises(Unauthenticated) as rejected:
            known.find(wrong, NOW)
        texts.add(str(rejected.value))

    assert len(texts) == 1


def test_notes_with_any_characters_survive_a_round_trip() -> None:
    note = '\U0001f600 \x7f \x00 " \\ \ud7ff\ue000'
    entry = keys.entry_for(new_key(), "acme", (), note=note)

    assert ring(entry).entries[0].note == note


def test_an_expired_key_is_rejected() -> None:
    key = new_key()
    known = ring(keys.entry_for(key, "acme", (), expires=NOW))

    assert known.find(key, NOW - timedelta(seconds=1)).tenant == "acme"
    with pytest.raises(Unauthenticated, match="expired"):
        known.find(key, NOW)


def test_hashes_are_salted_and_do_not_contain_the_key() -> None:
    key = new_key()
    entries = [keys.entry_for(key, "acme", ()) for _ in range(2)]

    salts, digests = zip(*(entry.hash.split(":")[1:] for entry in entries), strict=True)
    assert len(set(salts)) == len(set(digests)) == 2
    assert key.split("_", 2)[2] not in entries[0].to_toml()


def test_keys_are_long_and_unique() -> None:
    many = {new_key() for _ in range(200)}

    assert len(many) == 200
    assert all(len(key.split("_", 2)[2]) == 43 for key in many)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("keys = 5", "keys: must be a list"),
        ("[[keys]]\nid = 'aaaaaaaaaaaa'", "keys.0.tenant: is missing"),
        ("[[keys]]\nid = 'short'\ntenant = 'a'\nhash = 'sha256:x:y'", "keys.0.id"),
        ("[[keys]]\nid = 'aaaaaaaaaaaa'\ntenant = 'a'\nhash = 'sha256:x:y'", "keys.0.hash"),
        ("[[keys]]\nid = 'aaaaaaaaaaaa'\ntenant = 'a\\nb'\nhash = 'h'", "keys.0.tenant"),
        ("[[keys]]\nsecret = 'hunter2hunter2'", "keys.0.secret: is unknown"),
        ("[[keys", "is not valid TOML at end of document"),
        ("a = " + "[" * 100_000, "is not valid TOML"),
        ("a = 1\nb = ", "is not valid TOML at end of document"),
        ("a b", "is not valid TOML at line 1, column 3"),
        ("\x00", "is not valid TOML"),
    ],
)
def test_errors_in_a_key_file_name_the_location_and_no_value(text: str, problem: str) -> None:
    with pytest.raises(Misconfigured) as rejected:
        keys.parse_keys(text.encode())

    assert problem in rejected.value.message
    assert "hunter2" not in rejected.value.message
    assert rejected.value.__cause__ is None
    assert rejected.value.__suppress_context__


def test_duplicate_key_ids_are_invalid() -> None:
    entry = keys.entry_for(new_key(), "acme", ())

    with pytest.raises(Misconfigured, match=f"duplicate key id {entry.id}"):
        ring(entry, entry)


def test_keys_new_prints_the_key_once_and_stores_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("# Keys of the annotators.\n")
    arguments = ["keys", "create", "--tenant", "acme", "--role", "embed", "--file", str(file)]

    key = new(arguments, capsys)
    other = new([*arguments, "--expires", "12h", "--note", 'a "quoted" note'], capsys)

    known = keys.parse_keys(file.read_bytes())
    now = datetime.now(UTC)
    assert known.find(key, now).roles == ("embed",)
    ends = known.find(other, now).expires
    assert ends is not None
    assert timedelta(hours=11) < ends - now <= timedelta(hours=12)
    assert file.read_text().startswith("# Keys of the annotators.\n")
    assert key.split("_", 2)[2] not in file.read_text()


def new(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `keys create`; a key may appear on its standard output only."""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    key = out.strip()
    assert re.fullmatch(r"samserve_[a-z0-9]{12}_[A-Za-z0-9_-]{43}", key)
    secret(key.split("_", 2)[2])
    return secret(allowed_output(key))


def test_a_new_key_file_is_readable_by_its_owner_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.toml"

    new(["keys", "create", "--tenant", "acme", "--file", str(file)], capsys)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_without_a_file_the_entry_is_printed_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["keys", "create", "--tenant", "acme"]) == 0

    out, err = capsys.readouterr()
    key = secret(allowed_output(out.strip()))
    secret(key.split("_", 2)[2])
    assert keys.parse_keys(err.encode()).find(key, NOW).tenant == "acme"


def test_keys_hash_stores_an_existing_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, file = new_key(), tmp_path / "keys.toml"
    arguments = ["keys", "hash", "--tenant", "acme", "--file", str(file)]

    for code in (0, 1):  # the second time, the file contains it already
        monkeypatch.setattr("sys.stdin", typed(key))
        assert main(arguments) == code
    monkeypatch.setattr("sys.stdin", typed("my birthday"))
    assert main(arguments) == 2

    assert keys.parse_keys(file.read_bytes()).find(key, NOW).tenant == "acme"
    out, err = capsys.readouterr()
    assert out == ""
    assert "already contains the key" in err
    assert "birthday" not in err


def typed(line: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(f"{line}\n".encode()))


def test_keys_list_shows_no_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    expired = datetime(2020, 1, 2, 3, 4, tzinfo=UTC)
    entries = [
        keys.entry_for(new_key(), "acme", ("embed", "predict"), note="team A"),
        keys.entry_for(new_key(), "other", (), expires=expired),
    ]
    file.write_text("".join(entry.to_toml() for entry in entries))

    assert main(["keys", "list", "--file", str(file)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", entries[0].id, entries[1].id]
    assert "embed,predict" in lines[1]
    assert "team A" in lines[1]
    assert "2020-01-02 03:04 (expired)" in lines[2]
    assert all(entry.hash not in "".join(lines) for entry in entries)


@pytest.mark.parametrize(
    "arguments",
    [
        ["new", "--tenant", "a b"],
        ["new", "--tenant", "acme", "--role", "no such/role"],
        ["new", "--tenant", "acme", "--expires", "soon"],
        ["new", "--tenant", "acme", "--expires", "9999y"],
        ["new"],
        ["list"],
    ],
)
def test_invalid_arguments_are_a_one_line_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", *arguments]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_an_invalid_key_file_is_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("[[keys")

    assert main(["keys", "create", "--tenant", "acme", "--file", str(file)]) == 1

    assert file.read_text() == "[[keys"
    assert "is not valid TOML" in capsys.readouterr().err
