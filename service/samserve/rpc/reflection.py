"""Server reflection in both versions: `v1`, and `v1alpha` for older clients.

Both have the same messages in packages of different names, and so the same bytes.  The library that
comes with gRPC has only `v1alpha`.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

from samserve.rpc.public_services import PublicServiceLimits

_OLD: str = reflection_pb2.DESCRIPTOR.package
_NEW = _OLD.removesuffix("alpha")
_V1ALPHA: str = reflection.SERVICE_NAME
V1 = f"{_NEW}.ServerReflection"
"""The name of the service that clients try first."""


def add_reflection(services: Iterable[str], server: PublicServiceLimits) -> None:
    """Add both versions, which list *services* and themselves with their descriptors."""
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer((*services, _V1ALPHA, V1))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
        for name in (_V1ALPHA, V1)
    )


def _describe_v1() -> None:
    """Register the descriptor of `v1` in this process, unless it is registered already."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        text = text_format.MessageToString(file).replace(_OLD, _NEW)
        file = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
        file.name = f"{_NEW.replace('.', '/')}/reflection.proto"
        pool.AddSerializedFile(file.SerializeToString())
