"""What gRPC reflection says about the services.

protoc's Python output leaves out the JSON names of fields, which its Go output has. Tools that print messages as JSON,
grpcurl among them, take them from what reflection answers, so they are put back here.
"""

from collections.abc import Iterable

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor


def _json_name(field_name: str) -> str:
    """Return the lowerCamelCase name that protobuf's JSON mapping gives a field."""
    first, *others = field_name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _name_fields(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        field.json_name = _json_name(field.name)
    for nested in message.nested_type:
        _name_fields(nested)


def pool_with_json_names(service_names: Iterable[str]) -> descriptor_pool.DescriptorPool:
    """Return a pool with the files of the services, and of all that they need, with JSON names.

    Args:
        service_names: Full names of services in the default pool.
    """
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            _name_fields(message)
        pool.Add(proto)

    for service_name in service_names:
        add(descriptor_pool.Default().FindServiceByName(service_name).file)
    return pool
