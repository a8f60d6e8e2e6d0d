"""Content digests of each graph of a model, and of the whole model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
"""External weights, next to a model that does not fit into one file."""
TUNED_FILE = "tuned.safetensors"
"""Weights next to a tuned model, from which it can be tuned again; they are not served."""

DIGEST_OUTPUT = "samserve_digest"
"""Output of every graph of a model, int32 ``[B, 8]``: in each row, the digest of the encoder whose
embeddings the graph produces or consumes."""

DIGEST_WORDS = 8

STAMP_KEY = "samserve.stamp"
"""Key of the last entry of a graph's metadata, which `stamp_note` writes."""

_FIRST_ROLES = ("encoder", "decoder")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOTE = re.compile(r"([0-9a-f]{64}):[0-9]{8}")
_NOTE_BYTES = 73
# A complete metadata entry as protobuf serializes it: its tag and length, then tag, length and text
# of its key and of its value.
_TRAILER = re.compile(
    re.escape(
        bytes([0x72, 4 + len(STAMP_KEY) + _NOTE_BYTES, 0x0A, len(STAMP_KEY)])
        + STAMP_KEY.encode()
        + bytes([0x12, _NOTE_BYTES])
    )
    + rb"[0-9a-f]{64}:([0-9]{8})"
)
_TRAILER_BYTES = 6 + len(STAMP_KEY) + _NOTE_BYTES
_GRAPH_TAG = 0x3A
_CHUNK = 1 << 20


def graph_digest(path: Path) -> str:
    """Compute the digest of a graph's weights from its ONNX file: 64 hexadecimal digits.

    The SHA-256 of the file without its stamp; if its weights lie in an external file, the SHA-256
    over the digests of both files.
    """
    data = path.with_name(DATA_FILE)
    digest = _file_digest(path, path.stat().st_size - stamp_bytes(path))
    if data.exists():
        digest = hashlib.sha256(digest + _file_digest(data, data.stat().st_size)).digest()
    return digest.hex()


def graph_digests(graphs: Mapping[str, Path]) -> dict[str, str]:
    """Compute the digest of each of a model's graphs, by role."""
    return {role: graph_digest(path) for role, path in graphs.items()}


def bundle_digest(graphs: Mapping[str, str]) -> str:
    """Compute the digest of a model from the digests of its graphs, which are given by role.

    Hex SHA-256 over their 32 bytes each: the encoder's, the decoder's, then the others by role.
    """
    others = sorted(graphs.keys() - set(_FIRST_ROLES))
    digests = (bytes.fromhex(graphs[role]) for role in (*_FIRST_ROLES, *others))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def stamp_note(digest: str, nbytes: int) -> str:
    """Return the metadata value that describes a graph's stamp: digest and size of the stamp."""
    return f"{digest}:{nbytes:08d}"


def digest_of_note(note: str) -> str:
    """Return the digest in a value of `stamp_note`; empty if *note* is not one."""
    match = _NOTE.fullmatch(note)
    return match[1] if match else ""


def stamped_digest(path: Path) -> str:
    """Return the digest of the encoder in the stamp of a graph's file.

    Empty if the file has no stamp, or if another program has rewritten it since.
    """
    if not stamp_bytes(path):
        return ""
    with path.open("rb") as file:
        file.seek(-_NOTE_BYTES, 2)
        return digest_of_note(file.read().decode("ascii"))


def stamp_bytes(path: Path) -> int:
    """Return how many bytes `export.stamp` has appended to a graph's file; 0 if none.

    A file that another program has rewritten since may have the note, but not the stamp.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TRAILER_BYTES))
        match = _TRAILER.fullmatch(file.read())
        nbytes = int(match[1]) if match else 0
        if not _TRAILER_BYTES < nbytes <= size:
            return 0
        file.seek(size - nbytes)
        header = file.read(8)
    return nbytes if _field_bytes(header) + _TRAILER_BYTES == nbytes else 0


def _field_bytes(header: bytes) -> int:
    """Return the size of a graph as a protobuf field, from its first bytes; 0 if it is not one."""
    length = 0
    for index, byte in enumerate(header[1:] if header[0] == _GRAPH_TAG else b""):
        length |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return 2 + index + length
    return 0


@lru_cache(maxsize=256)
def digest_words(digest: str) -> bytes:
    """Return the 32 bytes of `DIGEST_OUTPUT` for a digest: int32, in native byte order.

    Raises ``ValueError`` if it is not 64 lower-case hexadecimal digits.
    """
    if not _DIGEST.fullmatch(digest):
        raise ValueError("the digest is not 64 hexadecimal digits")
    words = bytes.fromhex(digest)
    return np.frombuffer(words, dtype=">i4").astype(np.int32).tobytes()


def _file_digest(path: Path, size: int) -> bytes:
    """Return the SHA-256 of the first *size* bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.digest()
