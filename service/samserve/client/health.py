"""The standard health service, ``grpc.health.v1``, without the package of its stubs.

Its two messages have one field each, a text and an enum; protobuf's wrappers of a text and a number
are encoded in the same way.
"""

from __future__ import annotations

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

SERVING = 1
"""The value of ``HealthCheckResponse.SERVING``."""


def check_method(
    channel: grpc.aio.Channel,
) -> grpc.aio.UnaryUnaryMultiCallable[StringValue, Int32Value]:
    """Return the Check method of a channel: the name of a service, or "", to its status."""
    return channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=Int32Value.FromString,
    )
