"""Names by content: of each graph of a model, and of all of them together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
"""Beside a model whose weights do not fit into one file."""

DIGEST_OUTPUT = "samserve_digest"
"""Output of every graph of a model, int32 ``[B, 8]``: which encoder makes the embeddings that the
graph makes or takes, by its digest, in each row."""

DIGEST_WORDS = 8

STAMP_KEY = "samserve.stamp"
"""Key of the last entry of a graph's metadata, which `stamp_note` writes."""

_FIRST_ROLES = ("encoder", "decoder")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOTE = re.compile(r"([0-9a-f]{64}):[0-9]{8}")
_NOTE_BYTES = 73
# A whole entry of the metadata as protobuf writes it: its tag and length, then tag, length and
# text of its key and of its value.
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
    """Name the weights of a graph by its ONNX file: 64 hexadecimal digits.

    The SHA-256 of the file without its stamp; if its weights lie in a file beside it, the SHA-256
    over the digests of both.
    """
    data = path.with_name(DATA_FILE)
    digest = _file_digest(path, path.stat().st_size - stamp_bytes(path))
    if data.exists():
        digest = hashlib.sha256(digest + _file_digest(data, data.stat().st_size)).digest()
    return digest.hex()


def graph_digests(graphs: Mapping[str, Path]) -> dict[str, str]:
    """Name the weights of each of a model's graphs, which are given by role."""
    return {role: graph_digest(path) for role, path in graphs.items()}


def bundle_digest(graphs: Mapping[str, str]) -> str:
    """Name the weights of a model by the digests of its graphs, which are given by role.

    Hex SHA-256 over their 32 bytes each: the encoder's, the decoder's, then the others by role.
    """
    others = sorted(graphs.keys() - set(_FIRST_ROLES))
    digests = (bytes.fromhex(graphs[role]) for role in (*_FIRST_ROLES, *others))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def stamp_note(digest: str, nbytes: int) -> str:
    """Write what a graph's metadata say of its stamp: its digest and the size of the stamp."""
    return f"{digest}:{nbytes:08d}"


def noted_digest(note: str) -> str:
    """Read the digest that `stamp_note` has written; empty if it has not."""
    found = _NOTE.fullmatch(note)
    return found[1] if found else ""


def stamp_bytes(path: Path) -> int:
    """Count the bytes that `export.stamp` has added at the end of a graph's file; 0 if none.

    A file that another program has written since then may have the note, but not the stamp.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TRAILER_BYTES))
        found = _TRAILER.fullmatch(file.read())
        nbytes = int(found[1]) if found else 0
        if not _TRAILER_BYTES < nbytes <= size:
            return 0
        file.seek(size - nbytes)
        begin = file.read(8)
    return nbytes if _field_bytes(begin) + _TRAILER_BYTES == nbytes else 0


def _field_bytes(begin: bytes) -> int:
    """Read how long a graph is as a field of a message of protobuf; 0 if it is none."""
    length = 0
    for place, byte in enumerate(begin[1:] if begin[0] == _GRAPH_TAG else b""):
        length |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return 2 + place + length
    return 0


@lru_cache(maxsize=256)
def digest_words(digest: str) -> bytes:
    """Return the 32 bytes of `DIGEST_OUTPUT` for a digest: int32, in this machine's order.

    Raises ``ValueError`` if it is not 64 lower-case hexadecimal digits.
    """
    if not _DIGEST.fullmatch(digest):
        raise ValueError("the digest is not 64 hexadecimal digits")
    words = bytes.fromhex(digest)
    return np.frombuffer(words, dtype=">i4").astype(np.int32).tobytes()


def _file_digest(path: Path, size: int) -> bytes:
    """Digest the first *size* bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.digest()
