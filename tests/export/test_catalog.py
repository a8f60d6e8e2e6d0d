"""The catalog of models, and errors in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samserve.export import catalog
from samserve.export.errors import ExportError
from samserve.export.triton_repository import check_name

GOOD = {
    "url": "https://models.example/weights/some.pth",
    "variant": "vit_b",
    "license": "Apache-2.0",
    "page": "https://models.example/some",
    "description": "some model",
}


def written(folder: Path, **values: object) -> Path:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "catalog.toml"
    path.write_text("\n".join(["[some]", *lines]))
    return path


HUB = {"hub": "owner/some", **{key: GOOD[key] for key in ("license", "page", "description")}}


def test_the_packaged_catalog_has_the_published_models_and_one_checksum() -> None:
    entries = catalog.load()

    by_url = {name: entry for name, entry in entries.items() if entry.url}
    assert {name: (entry.variant, entry.checksum) for name, entry in by_url.items()} == {
        "sam_vit_b": ("vit_b", None),
        "sam_vit_l": ("vit_l", None),
        "sam_vit_h": ("vit_h", None),
        "mobile_sam": ("mobile", "git-blob-sha1:7ef2d090979fd9853adf17b7a99c8b94a1c5a6a7"),
    }
    sizes = ("tiny", "small", "base_plus", "large")
    assert {name: entry.hub for name, entry in entries.items() if entry.hub} == {
        **{
            f"{version}_hiera_{size}": f"facebook/{version}-hiera-{size.replace('_', '-')}"
            for version in ("sam2.1", "sam2")
            for size in sizes
        },
        "edgetam": "yonigozlan/EdgeTAM-hf",
        "sam_hq_vit_b": "syscv-community/sam-hq-vit-base",
        "sam_hq_vit_l": "syscv-community/sam-hq-vit-large",
        "sam_hq_vit_h": "syscv-community/sam-hq-vit-huge",
    }
    # The default name of the model that each of them has to be.
    assert all(entry.variant == name for name, entry in entries.items() if entry.hub)
    assert {entry.license for entry in entries.values()} == {"Apache-2.0"}
    for name, entry in entries.items():
        assert (catalog.find(name, entries), entry.name) == (entry, name)
        assert entry.url.startswith("https://") or entry.page.endswith(f"/{entry.hub}")
        check_name(name)


def test_an_entry_of_the_hub_is_parsed_with_its_figures(tmp_path: Path) -> None:
    figures = {"checkpoint_mib": 149, "tflop_per_image": 0.291}

    entry = catalog.load(written(tmp_path, **HUB, **figures))["some"]

    assert entry == catalog.Entry(name="some", **HUB, **figures)  # type: ignore[arg-type]
    assert (entry.url, entry.checksum, entry.served_memory_mib) == ("", None, None)


@pytest.mark.parametrize("sources", [(), ("hub", "url")])
def test_an_entry_has_one_source(tmp_path: Path, sources: tuple[str, ...]) -> None:
    both = {**GOOD, **HUB}
    entry = {key: both[key] for key in both if key in sources or key not in ("hub", "url")}

    with pytest.raises(ExportError, match=r"some\.url or hub is missing, or both"):
        catalog.load(written(tmp_path, **entry))


def test_an_entry_is_parsed(tmp_path: Path) -> None:
    path = written(tmp_path, **GOOD, checksum="AB" * 32)

    assert catalog.load(path) == {
        "some": catalog.Entry(name="some", checksum=f"sha256:{'ab' * 32}", **GOOD)
    }


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("colour", "red", "unknown key"),
        ("url", "http://models.example/some.pth", "only https"),
        ("url", "https://me:secret@models.example/some.pth", "credentials"),
        ("url", "https://models.example/", "must end in a file name"),
        ("url", "https://me:secret@models.example:99999/some.pth", "not a URL"),
        ("page", "some page", "not a URL"),
        ("variant", "vit_x", "vit_b, vit_l, vit_h, mobile"),
        ("license", 2, "expected one printable line"),
        ("description", " ", "expected one printable line"),
        ("description", "two\tparts", "expected one printable line"),
        ("checksum", "ab" * 31, "64 hexadecimal digits"),
        ("hub", "some", "expected OWNER/NAME"),
        ("hub", "../x/some", "expected OWNER/NAME"),
        ("checkpoint_mib", "149", "expected a positive number"),
        ("checkpoint_mib", True, "expected a positive number"),
        ("tflop_per_image", 0, "expected a positive number"),
    ],
)
def test_an_error_names_the_entry_and_key(
    tmp_path: Path, key: str, value: object, text: str
) -> None:
    path = written(tmp_path, **{**GOOD, key: value})

    with pytest.raises(ExportError, match=text) as error:
        catalog.load(path)

    assert str(error.value).startswith(f"{path}: some.{key}: ")
    assert "secret" not in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("key", ["license", "page", "description"])
def test_keys_that_every_entry_needs(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, **{name: value for name, value in GOOD.items() if name != key})

    with pytest.raises(ExportError, match=f"some.{key} is missing"):
        catalog.load(path)


@pytest.mark.parametrize("content", [None, b"[some", b"\xff", b"some = 1"])
def test_an_invalid_catalog_is_rejected(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "catalog.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ExportError, match=r"catalog\.toml"):
        catalog.load(path)


def test_an_unknown_model_is_reported_with_the_known_ones() -> None:
    with pytest.raises(ExportError, match=r"'sam'.*sam_vit_b, sam_vit_l, sam_vit_h, mobile_sam"):
        catalog.find("sam", catalog.load())
