"""The value format: round trips, corruption, other formats, and invalid headers."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from samserve.cache.shared import value_format
from samserve.cache.shared.value_format import CorruptValue, FormatMismatch, UnusableValue
from samserve.types import Array, EmbeddingFacts, Size, TensorSpec

from fuzz.targets.values import build_value, with_valid_checksum
from tests.support.cases import check_all

KEY = b"samserve:{acme}:0123"
FACTS = EmbeddingFacts(Size(480, 640), "sam_b", "d1", "v1")
PREFIX, MARK = 40, 10
DTYPES = ("<f2", "<f4", "<f8", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8")
# Format 2, byte for byte.  If this test fails, gateways of two versions would misread each other's
# values: increment `value_format.FORMAT` instead of changing these bytes.
GOLDEN_TENSORS = {
    "image_embedding": np.array([[1.0, -2.0, 0.5]], "<f2"),
    "scale": np.array(7, "<u4"),
}
GOLDEN = bytes.fromhex(
    "73616d736572766502000000fc0000004400000000000000f9d1cc5399822ead49f55442be22cc387b22696d"
    "6167655f686569676874223a3438302c22696d6167655f7769647468223a3634302c226d6f64656c5f646967"
    "657374223a226431222c226d6f64656c5f6e616d65223a2273616d5f62222c2270726570726f63657373696e"
    "67223a227631222c2274656e736f7273223a5b7b226474797065223a226632222c226e616d65223a22696d61"
    "67655f656d62656464696e67222c226e6279746573223a362c226f6666736574223a302c227368617065223a"
    "5b312c335d7d2c7b226474797065223a227534222c226e616d65223a227363616c65222c226e627974657322"
    "3a342c226f6666736574223a36342c227368617065223a5b5d7d5d7d003c00c0003800000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000007000000"
)


def noise(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Return an array of random bits, which include every kind of NaN."""
    kind = np.dtype(dtype)
    count = kind.itemsize * int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(Random(seed).randbytes(count), kind).reshape(shape)


def sam_2() -> dict[str, Array]:
    return {
        "image_embed": noise("<f2", (256, 8, 8), 1),
        "high_res_feats_0": noise("<f2", (32, 32, 32), 2),
        "high_res_feats_1": noise("<f2", (64, 16, 16), 3),
    }


def small() -> bytes:
    return value_format.encode(
        KEY, FACTS, {"a": noise("u1", (3,), 4), "b": noise("<f4", (2, 2), 5)}
    )


def digest(key: bytes, value: bytes) -> bytes:
    """Return the checksum of a value, whatever its prefix contains."""
    covered = len(key).to_bytes(8, "little") + key + value[:24] + value[PREFIX:]
    return xxhash.xxh3_128_digest(covered)


def read_back(parsed: value_format.Value) -> dict[str, Array]:
    tensors: dict[str, Array] = {
        spec.name: np.zeros(spec.shape, spec.dtype) for spec in parsed.specs
    }
    parsed.copy_into(tensors)
    return tensors


def assert_same(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape)
        assert actual[name].tobytes() == array.tobytes()


def refusal(value: bytes, key: bytes = KEY) -> type[UnusableValue]:
    with pytest.raises(UnusableValue) as caught:
        value_format.parse(key, value)
    return caught.type


# Round trips.

arrays = st.builds(
    noise,
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 4), max_size=8).map(tuple),
    st.integers(0, 1000),
)
sides = st.integers(1, 2**31 - 1)
facts = st.builds(
    EmbeddingFacts,
    st.builds(Size, sides, sides),
    *[st.text(max_size=40)] * 3,
)


@given(
    st.binary(max_size=40),
    facts,
    st.dictionaries(st.text(min_size=1, max_size=128), arrays, min_size=1, max_size=5),
)
def test_parse_returns_what_was_encoded(
    key: bytes, facts: EmbeddingFacts, tensors: dict[str, Array]
) -> None:
    value = value_format.encode(key, facts, tensors)

    parsed = value_format.parse(key, value)

    assert parsed.facts == facts
    assert parsed.specs == tuple(
        TensorSpec(name, array.dtype, array.shape) for name, array in tensors.items()
    )
    assert_same(read_back(parsed), tensors)
    assert value_format.encode(key, facts, tensors) == value


def test_copy_into_accepts_non_contiguous_arrays() -> None:
    tensors = {"t": noise("<f4", (4, 6))}
    target = np.zeros((6, 4), "<f4").T

    value_format.parse(KEY, value_format.encode(KEY, FACTS, tensors)).copy_into({"t": target})

    assert target.tobytes() == tensors["t"].tobytes()


def frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "second",
    [
        {},
        {"c": np.zeros((2, 2), "<f4")},
        {"b": np.zeros((2, 2), "<f4"), "c": np.zeros(1, "u1")},
        {"b": np.zeros((2, 2), "<f8")},
        {"b": np.zeros((2, 2), ">f4")},
        {"b": np.zeros((4,), "<f4")},
        {"b": np.zeros((1, 2, 2), "<f4")},
        {"b": frozen(np.zeros((2, 2), "<f4"))},
    ],
)
def test_copy_into_rejects_other_arrays_and_copies_nothing(second: dict[str, Array]) -> None:
    first = np.zeros(3, "u1")

    with pytest.raises(ValueError, match=r"arrays|writable"):
        value_format.parse(KEY, small()).copy_into({"a": first, **second})

    assert not first.any()


def test_golden_value() -> None:
    assert value_format.encode(KEY, FACTS, GOLDEN_TENSORS) == GOLDEN
    parsed = value_format.parse(KEY, GOLDEN)
    assert parsed.facts == FACTS
    assert_same(read_back(parsed), GOLDEN_TENSORS)


def test_layout_of_the_golden_value() -> None:
    header = int.from_bytes(GOLDEN[12:16], "little")
    document = json.loads(GOLDEN[PREFIX : PREFIX + header])
    payload = GOLDEN[PREFIX + header :]

    assert GOLDEN[:12] == b"samserve\2\0\0\0"
    assert int.from_bytes(GOLDEN[16:24], "little") == len(payload) == 68
    assert [tensor["offset"] for tensor in document["tensors"]] == [0, 64]
    assert payload == GOLDEN_TENSORS["image_embedding"].tobytes() + bytes(58) + b"\7\0\0\0"
    assert value_format.checksum(GOLDEN) == GOLDEN[24:PREFIX] == digest(KEY, GOLDEN)


def many(count: int) -> dict[str, Array]:
    return {str(at): np.zeros(1, "u1") for at in range(count)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "at least 1"),
        (many(65), "at most 64"),
        ({"": np.zeros(1, "u1")}, "at least 1"),
        ({"a" * 129: np.zeros(1, "u1")}, "at most 128"),
        ({"\ud800": np.zeros(1, "u1")}, "surrogates"),
        ({"t": np.zeros((1,) * 9, "u1")}, "at most 8"),
        ({"t": np.zeros((2, 0), "u1")}, "greater than or equal to 1"),
        ({"t": np.zeros((2, 3), "u1").T}, "not C-contiguous"),
        ({"t": np.zeros(4, "u1")[::2]}, "not C-contiguous"),
        ({"t": np.zeros(1, ">f4")}, "not supported"),
        ({"t": np.zeros(1, "?")}, "not supported"),
        ({"t": np.zeros(1, "<c8")}, "not supported"),
        ({"t": np.zeros(1, "<M8[s]")}, "not supported"),
        ({"t": np.zeros(1, object)}, "not supported"),
        ({"t": np.zeros(1, "S3")}, "not supported"),
        ({"t": np.zeros(1, [("x", "u1")])}, "not supported"),
    ],
)
def test_encode_rejects_unsupported_tensors(tensors: dict[str, Array], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        value_format.encode(KEY, FACTS, tensors)


@pytest.mark.parametrize(
    "facts",
    [
        EmbeddingFacts(Size(0, 1), "m", "d"),
        EmbeddingFacts(Size(1, -1), "m", "d"),
        EmbeddingFacts(Size(2**31, 1), "m", "d"),
        EmbeddingFacts(Size(1, 1), "m" * 513, "d"),
        EmbeddingFacts(Size(1, 1), "m", "d" * 513),
        EmbeddingFacts(Size(1, 1), "m", "d", "p" * 513),
    ],
)
def test_encode_rejects_unsupported_facts(facts: EmbeddingFacts) -> None:
    with pytest.raises(ValueError, match="validation error"):
        value_format.encode(KEY, facts, GOLDEN_TENSORS)


def test_encode_rejects_a_header_that_is_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = {"\0" * 127 + chr(at): noise("u1", (1,) * 8, at) for at in range(64)}
    facts = EmbeddingFacts(Size(2**31 - 1, 2**31 - 1), *["\0" * 512] * 3)

    assert_same(
        read_back(value_format.parse(KEY, value_format.encode(KEY, facts, longest))), longest
    )
    monkeypatch.setattr(value_format, "MAX_HEADER_BYTES", 63_000)
    with pytest.raises(ValueError, match="more than 63000"):
        value_format.encode(KEY, facts, longest)


def peak_bytes(function: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_tensors_are_copied_once() -> None:
    tensors = {"image_embedding": noise("<f2", (256, 32, 32))}
    value = value_format.encode(KEY, FACTS, tensors)
    parsed = value_format.parse(KEY, value)
    target = {"image_embedding": np.zeros((256, 32, 32), "<f2")}

    assert peak_bytes(lambda: value_format.encode(KEY, FACTS, tensors)) < 1.1 * len(value)
    assert peak_bytes(lambda: value_format.parse(KEY, value)) < 0.1 * len(value)
    assert peak_bytes(lambda: parsed.copy_into(target)) < 0.1 * len(value)


# Corruption.


def test_every_flipped_bit_is_detected() -> None:
    value = small()
    for bit in range(8 * len(value)):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8

        # A flipped bit in the magic or format results in a mismatch.
        expected = FormatMismatch if bit < 8 * MARK else CorruptValue
        assert refusal(bytes(changed)) is expected, bit


def test_every_truncation_is_detected() -> None:
    value = small()
    for length in range(len(value)):
        assert refusal(value[:length]) is (FormatMismatch if length < MARK else CorruptValue), (
            length
        )


@given(st.binary(min_size=1, max_size=100))
def test_additional_bytes_at_the_end_are_detected(more: bytes) -> None:
    value = small() + more

    assert_corrupt(value)
    # Also with matching lengths and checksum.
    assert_corrupt(with_valid_checksum(KEY, value))


def test_a_value_is_valid_for_its_key_only() -> None:
    value = small()

    for key in (KEY + b"4", b"", KEY[:-1]):
        assert refusal(value, key) is CorruptValue
    assert_corrupt(value_format.encode(KEY + b"4", FACTS, sam_2()))


@given(
    st.sampled_from([b"", b"samserve\2\0", b"samserve\2\0\0\0"]),
    st.binary(max_size=200),
    st.booleans(),
)
def test_random_bytes_are_no_embedding(start: bytes, rest: bytes, valid: bool) -> None:
    value = with_valid_checksum(KEY, start + rest) if valid else start + rest

    assert refusal(value) is (CorruptValue if value.startswith(b"samserve\2\0") else FormatMismatch)


# Other formats.


@pytest.mark.parametrize("version", [0, 1, 3, 256, 257, 2**16 - 1])
def test_values_of_other_versions_are_a_format_mismatch(version: int) -> None:
    mark = b"samserve" + version.to_bytes(2, "little")
    rest = small()[MARK:]
    for value in (
        mark + rest,
        with_valid_checksum(KEY, mark + rest),
        mark,
        mark + b"{}",
        mark + b"\xff" * 99,
    ):
        assert refusal(value) is FormatMismatch


@pytest.mark.parametrize("value", [b"", b"42", b"samserv", b"samserve\2", b"\x80\x04}\x94." * 50])
def test_values_of_other_programs_are_a_format_mismatch(value: bytes) -> None:
    assert refusal(value) is FormatMismatch


# Headers with a valid checksum, so that only the strict parser can reject them.

DOCUMENT: dict[str, Any] = {
    "model_name": "sam_b",
    "model_digest": "d1",
    "preprocessing": "v1",
    "image_height": 480,
    "image_width": 640,
    "tensors": [
        {"name": "a", "dtype": "u1", "shape": [3], "offset": 0, "nbytes": 3},
        {"name": "b", "dtype": "f4", "shape": [2, 2], "offset": 64, "nbytes": 16},
    ],
}
PAYLOAD = b"abc" + bytes(61) + b"0123456789abcdef"


def serialized(document: object, **options: Any) -> bytes:
    options = {"ensure_ascii": False, "sort_keys": True, "separators": (",", ":"), **options}
    return json.dumps(document, **options).encode("utf-8", "surrogatepass")


def changed(*path: str | int, **to: object) -> bytes:
    """Serialize the document with a value replaced by *to*, or without it."""
    document = copy.deepcopy(DOCUMENT)
    parent: Any = document
    for step in path[:-1]:
        parent = parent[step]
    if to:
        parent[path[-1]] = to["to"]
    else:
        del parent[path[-1]]
    return serialized(document)


def test_the_unchanged_header_is_valid() -> None:
    parsed = value_format.parse(KEY, build_value(KEY, serialized(DOCUMENT), PAYLOAD))

    assert parsed.facts == FACTS
    assert {name: array.tobytes() for name, array in read_back(parsed).items()} == {
        "a": b"abc",
        "b": b"0123456789abcdef",
    }


FIELDS: list[tuple[str | int, ...]] = [
    *((field,) for field in DOCUMENT),
    *(("tensors", 1, field) for field in DOCUMENT["tensors"][0]),
]
NUMBERS: list[object] = [
    *(0, -1, 2**31, 2**63, -(2**63), 2**64, 10**400, 4294967297, 1.0, 1e999, float("nan")),
    *(True, None, "1", [], {}),
]
NUMBER_FIELDS: list[tuple[str | int, ...]] = [
    *(("image_height",), ("image_width",), ("tensors", 1, "shape", 0)),
    *(("tensors", 1, "offset"), ("tensors", 1, "nbytes")),
]
TEXT_FIELDS = ("model_name", "model_digest", "preprocessing", "tensors")
INVALID_TEXTS: list[object] = [None, 1, True, [], {}, ["x"], [[]], [{}], "x" * 513]
INVALID_TYPES: list[object] = [
    *("O", "object", "|O8", "?", "bool", "b1", "c8", "c16", "f16", "S4", "U1", "V4", "M8[s]"),
    *("<f4", ">f4", "=f4", "float32", "F4", "f4 ", "", "f4,f4", "i16", "p", None, 4, ["f4"]),
]
WRONG_FIELDS = {
    **{f"without {path}": changed(*path) for path in FIELDS},
    **{
        f"{path}: {number!r:.20}": changed(*path, to=number)
        for path in NUMBER_FIELDS
        for number in NUMBERS
    },
    **{
        f"{field}: {wrong!r:.20}": changed(field, to=wrong)
        for field in TEXT_FIELDS
        for wrong in INVALID_TEXTS
    },
    **{f"dtype: {dtype!r}": changed("tensors", 1, "dtype", to=dtype) for dtype in INVALID_TYPES},
}


def assert_corrupt(value: bytes) -> None:
    assert refusal(value) is CorruptValue


def test_every_field_is_required_and_has_a_type_and_limits() -> None:
    check_all(lambda header: assert_corrupt(build_value(KEY, header, PAYLOAD)), WRONG_FIELDS)


def tensor(name: str, shape: list[int], offset: int, nbytes: int) -> dict[str, Any]:
    return {"name": name, "dtype": "u1", "shape": shape, "offset": offset, "nbytes": nbytes}


LAYOUTS = {
    "overlapping": ([tensor("a", [70], 0, 70), tensor("b", [70], 64, 70)], 134),
    "the same offset": ([tensor("a", [4], 0, 4), tensor("b", [4], 0, 4)], 4),
    "out of order": ([tensor("a", [4], 64, 4), tensor("b", [4], 0, 4)], 68),
    "not aligned": ([tensor("a", [4], 0, 4), tensor("b", [4], 4, 4)], 8),
    "after a gap": ([tensor("a", [4], 64, 4)], 68),
    "after a long gap": ([tensor("a", [4], 0, 4), tensor("b", [4], 128, 4)], 132),
    "too few bytes": ([tensor("a", [4], 0, 3)], 4),
    "too many bytes": ([tensor("a", [4], 0, 5)], 5),
    "a short payload": ([tensor("a", [4], 0, 4)], 3),
    "no payload": ([tensor("a", [4], 0, 4)], 0),
    "a long payload": ([tensor("a", [4], 0, 4)], 5),
    "an aligned payload": ([tensor("a", [4], 0, 4)], 64),
    "the same name": ([tensor("a", [4], 0, 4), tensor("a", [4], 64, 4)], 68),
    "no name": ([tensor("", [4], 0, 4)], 4),
    "a long name": ([tensor("a" * 129, [4], 0, 4)], 4),
    "no elements": ([tensor("a", [4, 0], 0, 0)], 0),
    "nine dimensions": ([tensor("a", [1] * 9, 0, 1)], 1),
    "a negative pair": ([tensor("a", [-2, -2], 0, 4)], 4),
    "larger than the payload": ([tensor("a", [2**31 - 1], 0, 2**31 - 1)], 4),
    "over 63 bits": ([tensor("a", [2**31 - 1] * 3, 0, 2**63 - 1)], 4),
    # 2 ** 64 + 4 bytes, in a product of 64 bits: 4.
    "wrapping around": ([tensor("a", [4, 274177, 2**23], 0, 4)], 4),
    "wrapping to nothing": ([tensor("a", [2**30, 2**30, 16], 0, 0)], 0),
    "too many": ([tensor(str(at), [1], 64 * at, 1) for at in range(65)], 64 * 64 + 1),
    "none": ([], 0),
}


def test_other_layouts_are_invalid() -> None:
    def check(layout: tuple[list[dict[str, Any]], int]) -> None:
        tensors, payload = layout
        assert_corrupt(build_value(KEY, changed("tensors", to=tensors), bytes(payload)))

    check_all(check, LAYOUTS)


@pytest.mark.parametrize("at", [3, 40, 63])
def test_padding_must_be_zero(at: int) -> None:
    payload = PAYLOAD[:at] + b"\1" + PAYLOAD[at + 1 :]

    assert_corrupt(build_value(KEY, serialized(DOCUMENT), payload))


VALID = serialized(DOCUMENT)


SERIALIZATIONS = {
    "nothing": b"",
    "another value": b"[]",
    "a number": b"1",
    "an additional field": serialized({**DOCUMENT, "color": 1}),
    "an additional field of a tensor": changed("tensors", 0, "color", to=1),
    "spaces": serialized(DOCUMENT, separators=(", ", ":")),
    "indented": serialized(DOCUMENT, indent=1),
    "other order": serialized(DOCUMENT, sort_keys=False),
    "space after": VALID + b" ",
    "space before": b" " + VALID,
    "twice": VALID + VALID,
    "a zero byte after": VALID + b"\0",
    "a byte order mark": b"\xef\xbb\xbf" + VALID,
    "escaped": VALID.replace(b'"sam_b"', b'"sam\\u005fb"'),
    "an escaped name": VALID.replace(b'"model_name"', b'"model\\u005fname"'),
    "the same field twice": VALID.replace(b'{"image_h', b'{"image_height":480,"image_h'),
    "another field first": VALID.replace(b'{"image_h', b'{"image_height":1,"image_h'),
    "a field of a tensor twice": VALID.replace(b'"shape":[3]', b'"shape":[3],"shape":[3]'),
    "a float": VALID.replace(b"480", b"480.0"),
    "an exponent": VALID.replace(b"480", b"48e1"),
    "a leading zero": VALID.replace(b"480", b"0480"),
    "a sign": VALID.replace(b"480", b"+480"),
    "a long number": VALID.replace(b"480", b"9" * 5000),
    "NaN": VALID.replace(b"480", b"NaN"),
    "infinity": VALID.replace(b"480", b"-Infinity"),
    "invalid UTF-8": VALID.replace(b"sam_b", b"sam\xff\xfe"),
    "overlong UTF-8": VALID.replace(b"sam_b", b"sam\xc0\xaf"),
    "a surrogate": changed("model_name", to="\ud800"),
    "an escaped surrogate": VALID.replace(b"sam_b", b"\\ud800"),
    "truncated": VALID[: len(VALID) // 2],
    "deep lists": b"[" * 65536,
    "deep objects": b'{"tensors":' * 5900,
    "a deep field": VALID[:-1] + b',"z":' + b"[" * 30000 + b"]" * 30000 + b"}",
    "a deep tensor": changed("tensors", to=0).replace(b":0", b":" + b"[" * 999 + b"]" * 999),
    "many fields": b"{" + b",".join(b'"%x":1' % at for at in range(6500)) + b"}",
    "many tensors": changed("tensors", to=[{}] * 20000),
    "many dimensions": changed("tensors", 0, "shape", to=[0] * 30000),
    "a long text": changed("model_name", to="x" * 65000),
    "over 64 KiB": VALID + b" " * 65536,
}


def test_headers_must_be_in_canonical_form() -> None:
    def check(header: bytes) -> None:
        value = build_value(KEY, header, PAYLOAD)

        assert_corrupt(value)
        # For a long header, most memory is used by pydantic's list of errors.
        assert peak_bytes(lambda: refusal(value)) < 64 * len(value) + (64 << 10)

    check_all(check, SERIALIZATIONS)


@pytest.mark.parametrize("bit", range(16))
def test_reserved_bytes_must_be_zero(bit: int) -> None:
    assert_corrupt(build_value(KEY, VALID, PAYLOAD, reserved=1 << bit))


@pytest.mark.parametrize("field", ["header", "payload"])
@pytest.mark.parametrize("length", [0, 1, 65, 65537, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_wrong_lengths_are_detected(field: str, length: int) -> None:
    value = small()
    offset, width = (12, 4) if field == "header" else (16, 8)
    if length >= 1 << 8 * width:
        return
    wrong = value[:offset] + length.to_bytes(width, "little") + value[offset + width :]
    # Also with a matching checksum.
    valid = wrong[:24] + digest(KEY, wrong) + wrong[PREFIX:]

    assert_corrupt(wrong)
    assert_corrupt(valid)
    assert peak_bytes(lambda: refusal(wrong)) < 1 << 20
