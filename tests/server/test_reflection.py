"""gRPC reflection: both versions describe all services, and themselves."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import audit, lifecycle
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected
from tests.waiting import PATIENCE_SECONDS

VERSIONS = ["grpc.reflection.v1alpha", "grpc.reflection.v1"]
SERVICES = sorted(
    [
        *m.SERVICE_NAMES,
        lifecycle.SERVICE_NAME,
        audit.SERVICE_NAME,
        "grpc.health.v1.Health",
        *(f"{name}.ServerReflection" for name in VERSIONS),
    ]
)


async def asked(client: Client, version: str, **question: Any) -> reflection_pb2.ServerReflectionResponse:
    """Return the reply to one request; its messages are the same in both versions."""
    call: Any = client.channel.stream_stream(f"/{version}.ServerReflection/ServerReflectionInfo")
    request = reflection_pb2.ServerReflectionRequest(**question).SerializeToString()
    async for reply in call(iter([request]), timeout=PATIENCE_SECONDS):
        return reflection_pb2.ServerReflectionResponse.FromString(reply)
    raise AssertionError("the call ended without an answer")


def pool_of(data: Iterable[bytes]) -> descriptor_pool.DescriptorPool:
    """Return a pool with these files, which may be in any order."""
    files = {file.name: file for file in map(descriptor_pb2.FileDescriptorProto.FromString, data)}
    pool = descriptor_pool.DescriptorPool()

    def add(name: str) -> None:
        if (file := files.pop(name, None)) is not None:
            for dependency in file.dependency:
                add(dependency)
            pool.Add(file)

    for name in list(files):
        add(name)
    return pool


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version_lists_and_describes_every_service(tmp_path: Path, version: str) -> None:
    async with serving(tmp_path, Settings(grpc_reflection=True)) as server, connected(server.port) as client:
        listed = (await asked(client, version, list_services="")).list_services_response.service
        assert sorted(service.name for service in listed) == SERVICES
        for name in SERVICES:
            reply = await asked(client, version, file_containing_symbol=name)
            service = pool_of(reply.file_descriptor_response.file_descriptor_proto).FindServiceByName(name)
            assert service.methods
            package = name.rpartition(".")[0]
            if package in VERSIONS:
                assert service.methods[0].input_type.full_name == f"{package}.ServerReflectionRequest"


@pytest.mark.parametrize("version", VERSIONS)
async def test_reflection_is_served_only_if_enabled(tmp_path: Path, version: str) -> None:
    async with serving(tmp_path) as server, connected(server.port) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(client, version, list_services="")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
