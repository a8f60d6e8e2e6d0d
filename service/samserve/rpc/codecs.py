"""Encodings of messages: protobuf's binary format, and its JSON format.

Names in JSON are those of protobuf's JSON mapping (``embeddingId``), or of the proto
(``embedding_id``).  A field that does not exist is an error: in a format that people write by hand,
it is a typing error.
"""

from __future__ import annotations

import json
from typing import Any, Protocol, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from samserve.errors import InvalidRequest
from samserve.rpc import field_limit
from samserve.scheduling.offload import is_quick

M = TypeVar("M", bound=Message)

_MAX_ERROR_TEXT = 300
_OPENING = (b"{", b"[", b",")
# JSON is written by Python, at about 0.005 ms for a number.
_QUICK_JSON_BYTES = 4 << 10


class Codec(Protocol):
    """An encoding of messages; large ones are converted in a thread."""

    def is_quick_to_parse(self, kind: type[Message], data: bytes) -> bool:
        """Return whether parsing takes a fraction of a millisecond."""
        ...

    def parse(self, kind: type[M], data: bytes, limit: int) -> M:
        """Parse a message of at most *limit* fields.  Raises `InvalidRequest`."""
        ...

    def is_quick_to_serialize(self, message: Message) -> bool:
        """Return whether serializing takes a fraction of a millisecond."""
        ...

    def serialize(self, message: Message) -> bytes:
        """Serialize a message."""
        ...


class ProtoCodec:
    """The binary format."""

    def is_quick_to_parse(self, kind: type[Message], data: bytes) -> bool:
        """See `Codec.is_quick_to_parse`."""
        return field_limit.is_quick_to_parse(kind, data)

    def parse(self, kind: type[M], data: bytes, limit: int) -> M:
        """See `Codec.parse`."""
        return field_limit.parse(kind, data, limit)

    def is_quick_to_serialize(self, message: Message) -> bool:
        """See `Codec.is_quick_to_serialize`; bytes are only copied."""
        return True

    def serialize(self, message: Message) -> bytes:
        """See `Codec.serialize`."""
        return message.SerializeToString()


class JsonCodec:
    """The JSON format; bytes are base64."""

    def is_quick_to_parse(self, kind: type[Message], data: bytes) -> bool:
        """See `Codec.is_quick_to_parse`."""
        return is_quick(nbytes=len(data))

    def parse(self, kind: type[M], data: bytes, limit: int) -> M:
        """See `Codec.parse`; an upper bound of the fields is counted before anything is parsed."""
        values = sum(data.count(each) for each in _OPENING)
        if values > limit:
            text = f"has more than {limit} values"
            raise InvalidRequest("request", text, metadata={"limit": str(limit)})
        name = kind.DESCRIPTOR.name
        try:
            return json_format.Parse(data, kind())
        except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
            reason = str(error)[:_MAX_ERROR_TEXT] or "it is nested too deeply"
            text = f"is not a valid {name} in JSON: {reason}"
            raise InvalidRequest("request", text) from error

    def is_quick_to_serialize(self, message: Message) -> bool:
        """See `Codec.is_quick_to_serialize`."""
        return message.ByteSize() <= _QUICK_JSON_BYTES

    def serialize(self, message: Message) -> bytes:
        """See `Codec.serialize`; fields with their default values are left out."""
        return as_json(json_format.MessageToDict(message))


def as_json(value: Any) -> bytes:
    """Serialize a value, without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


PROTO, JSON = ProtoCodec(), JsonCodec()
