"""Headers of safetensors files: written as the package of that name reads them, and checked."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samserve.core import safetensors
from samserve.core.safetensors import MalformedFile

from tests.support.examples import examples

package = pytest.importorskip("safetensors.numpy")


def entry(start: int, end: int, shape: list[Any] | None = None, dtype: str = "F16") -> Any:
    shape = [(end - start) // 2] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


# By the text of the error.
MALFORMED: dict[str, list[bytes]] = {
    "does not begin with {": [b"", b" {}", b"[]", b"\xef\xbb\xbf{}"],
    "is not JSON in UTF-8": [
        b"{",
        b'{"\xff": 1}',
        b'{"\\ud800": {}}',
        encode({"__metadata__": {"a": "\ud800"}, "b": entry(0, 2)}),
        b'{"a":' * 20_000 + b"}" * 20_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    "a name twice": [
        b'{"a": {"dtype": "F16", "dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}',
        b'{"__metadata__": {}, "__metadata__": {}}',
        b'{"__metadata__": {"a": "b", "a": "b"}}',
    ],
    "__metadata__ must have": [
        encode({"__metadata__": None}),
        encode({"__metadata__": {f"{index}": "" for index in range(65)}}),
    ],
    "not a text": [encode({"__metadata__": {"a": 1}}), encode({"__metadata__": {"a": None}})],
    "from 1 to 64 tensors": [
        b"{}",
        encode({f"{index}": entry(2 * index, 2 * index + 2) for index in range(65)}),
    ],
    "data_offsets, dtype, shape": [
        encode({"a": None}),
        encode({"a": {**entry(0, 2), "strides": [1]}}),
        encode({"a": {"dtype": "F16", "shape": [1]}}),
    ],
    "must be among": [
        encode({"a": entry(0, 2, dtype=dtype)})
        for dtype in ("BF16", "f16", "", ["F16"], 1, None)  # type: ignore[arg-type]
    ],
    "whole numbers": [
        encode({"a": entry(0, 2, shape)})
        for shape in ([1.0], [True], ["1"], [-1], [0], [None], [2**31], [1] * 9, [[1]])
    ]
    + [
        encode({"a": {**entry(0, 2), "data_offsets": offsets}})
        for offsets in ([-2, 0], [0, 2.0], [0, 2**31], "02", None, {"0": 2})
    ],
    "do not match": [
        encode({"a": entry(0, 3, [1])}),
        encode({"a": entry(0, 1, [1])}),
        encode({"a": entry(2, 0, [1])}),
        encode({"a": {**entry(0, 2), "data_offsets": [0, 2, 2]}}),
        encode({"a": {**entry(0, 2), "data_offsets": [0]}}),
        encode({"a": entry(0, 0, [2**31 - 1] * 8)}),
    ],
    "overlap, or do not fill": [
        encode({"a": entry(0, 4), "b": entry(2, 6)}),
        encode({"a": entry(0, 4), "b": entry(0, 4)}),
        encode({"a": entry(0, 8), "b": entry(2, 4)}),
        encode({"a": entry(2, 4)}),
        encode({"a": entry(0, 4), "b": entry(6, 8)}),
    ],
}


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_header_is_rejected_with_its_reason(text: str) -> None:
    for header in MALFORMED[text]:
        with pytest.raises(MalformedFile) as caught:
            safetensors.read_header(header)
        assert text in str(caught.value), header[:80]


def test_length_of_a_header_is_limited() -> None:
    assert safetensors.header_bytes((64 << 10).to_bytes(8, "little")) == 64 << 10
    for nbytes in (0, 1, (64 << 10) + 1, 2**63, 2**64 - 1):
        with pytest.raises(MalformedFile):
            safetensors.header_bytes(nbytes.to_bytes(8, "little"))


def test_tensors_are_in_the_order_of_the_payload() -> None:
    document = {"b": entry(4, 8, [2, 1]), "a": entry(0, 4, dtype="F32", shape=[1])}

    layout = safetensors.read_header(encode(document) + b"   ")

    assert [(each.spec.name, each.start, each.end) for each in layout.tensors] == [
        ("a", 0, 4),
        ("b", 4, 8),
    ]
    assert [each.spec.dtype.str for each in layout.tensors] == ["<f4", "<f2"]
    assert layout.payload_bytes == 8
    assert layout.metadata == {}


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
shapes = st.lists(st.integers(1, 4), max_size=4)
dtypes = st.sampled_from(["<f2", "<f4", "<f8"])


@given(
    st.dictionaries(
        names.filter(lambda name: name != "__metadata__"),
        st.tuples(dtypes, shapes),
        min_size=1,
        max_size=5,
    ),
    st.dictionaries(
        names, st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3
    ),
)
@examples(100)
def test_package_reads_what_is_written_and_the_reverse(
    kinds: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal(shape).astype(dtype) for name, (dtype, shape) in kinds.items()
    }
    # As `embedding_format.chunks` does: the package requires aligned tensors.
    ordered = dict(sorted(tensors.items(), key=lambda each: -each[1].dtype.itemsize))
    payload = b"".join(tensor.tobytes() for tensor in ordered.values())

    written = safetensors.write_header(metadata, ordered) + payload
    read = package.load(written)
    saved = package.save(tensors, metadata or None)
    start = 8 + safetensors.header_bytes(saved[:8])
    layout = safetensors.read_header(saved[8:start])

    assert {name: each.tobytes() for name, each in read.items()} == {
        name: each.tobytes() for name, each in tensors.items()
    }
    assert len(written) - len(payload) == 8 + safetensors.header_bytes(written[:8])
    assert layout.metadata == metadata
    assert layout.payload_bytes == len(saved) - start
    for each in layout.tensors:
        stored = saved[start + each.start : start + each.end]
        assert stored == tensors[each.spec.name].tobytes()
        assert each.spec.shape == tensors[each.spec.name].shape
