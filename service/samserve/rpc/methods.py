"""The methods of the service, from its descriptor, and the permissions that they need."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from samserve.security.principal import EVERYTHING, Permission
from samserve.v1 import samserve_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"]
SERVICE: str = _SERVICE.full_name

# Any one of these is enough.  A method that is not named here stops the server at start.
_PERMISSIONS: dict[str, frozenset[Permission]] = {
    "Embed": frozenset({Permission.EMBED}),
    "Predict": frozenset({Permission.PREDICT}),
    "AutoMask": frozenset({Permission.AUTOMASK}),
    "DeleteEmbedding": frozenset({Permission.EMBEDDINGS_ADMIN}),
    "ListModels": EVERYTHING,
}


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC; a *small* one has a request of some hundred bytes, without an image or a mask.

    ``streams`` tells whether the answer is a stream.
    """

    name: str
    request: type[Message]
    small: bool
    streams: bool
    permissions: frozenset[Permission]


def _method(descriptor: MethodDescriptor) -> Method:
    return Method(
        name=descriptor.name,
        request=GetMessageClass(descriptor.input_type),
        streams=descriptor.server_streaming,
        small="image" not in descriptor.input_type.fields_by_name,
        permissions=_PERMISSIONS[descriptor.name],
    )


METHODS = tuple(_method(descriptor) for descriptor in _SERVICE.methods)

TYPES = {method.name: "server_stream" if method.streams else "unary" for method in METHODS}
"""The kind of each method, as metrics name it."""
