"""gRPC reflection, in both its versions, and what it says about the services.

The library has version v1alpha alone. Version v1 has the same messages under another package, so its descriptors are
made of the other ones, and one servicer answers both.

protoc's Python output leaves out the JSON names of fields, which its Go output has. Tools that print messages as JSON,
grpcurl among them, take them from what reflection answers, so they are put back here.
"""

from collections.abc import Iterable, Sequence

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

_PACKAGES = ("grpc.reflection.v1alpha", "grpc.reflection.v1")
_SERVICES = tuple(f"{package}.ServerReflection" for package in _PACKAGES)


def handlers(service_names: Sequence[str]) -> list[grpc.GenericRpcHandler]:
    """Return the handlers that let a `grpc.aio` server answer reflection.

    Args:
        service_names: Full names of its services, in the default pool.
    """
    names = [*service_names, *_SERVICES]
    servicer = reflection.aio.ReflectionServicer(names, _pool(service_names))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in _SERVICES]


def _pool(service_names: Iterable[str]) -> descriptor_pool.DescriptorPool:
    """Return a pool with the files of services and of reflection, and of all that they need, with JSON names."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        pool.Add(_with_json_names(file))

    for service_name in (*service_names, _SERVICES[0]):
        add(descriptor_pool.Default().FindServiceByName(service_name).file)
    pool.Add(_in_version_1(pool.FindFileContainingSymbol(_SERVICES[0])))
    return pool


def _with_json_names(file: FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for message in proto.message_type:
        _name_fields(message)
    return proto


def _in_version_1(file: FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    """Return the file of reflection v1, from that of v1alpha."""
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    proto.name = proto.name.replace("v1alpha", "v1")
    text = text_format.MessageToString(proto)
    return text_format.Parse(text.replace(*_PACKAGES), descriptor_pb2.FileDescriptorProto())


def _name_fields(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        field.json_name = _json_name(field.name)
    for nested in message.nested_type:
        _name_fields(nested)


def _json_name(field_name: str) -> str:
    """Return the lowerCamelCase name that protobuf's JSON mapping gives a field."""
    first, *others = field_name.split("_")
    return first + "".join(word.capitalize() for word in others)
