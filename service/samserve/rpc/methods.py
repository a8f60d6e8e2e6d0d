"""The gRPC methods of the service: each row of `calls.methods` with its request message."""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from samserve.calls.methods import METHODS, Method
from samserve.v1 import samserve_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"]
SERVICE: str = _SERVICE.full_name


def served_methods() -> dict[Method, type[Message]]:
    """Pair every method of the protocol with the class of its request.

    Raises `KeyError` for a method without a row, so that the server does not start.
    """
    rows = {method.name: method for method in METHODS}
    return {rows[each.name]: GetMessageClass(each.input_type) for each in _SERVICE.methods}
