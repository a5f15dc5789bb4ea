"""The messages of the API under one name, whatever the places of their generated modules."""

from collections.abc import Collection, Mapping

from google.protobuf.message import Message as _Message

from cogment_model_registry.wire._generated.cogment import model_registry_pb2 as alias_pb2
from cogment_model_registry.wire._generated.cogment.api import common_pb2, model_registry_pb2

SERVICE_NAMES = (
    model_registry_pb2.DESCRIPTOR.services_by_name["ModelRegistrySP"].full_name,
    alias_pb2.DESCRIPTOR.services_by_name["ModelRegistrySP"].full_name,
)
"""The service's name, and the name that one line of the users' documentation gives it."""

Message = _Message
CreateOrUpdateModelReply = model_registry_pb2.CreateOrUpdateModelReply
CreateOrUpdateModelRequest = model_registry_pb2.CreateOrUpdateModelRequest
CreateVersionReply = model_registry_pb2.CreateVersionReply
CreateVersionRequestChunk = model_registry_pb2.CreateVersionRequestChunk
DeleteModelReply = model_registry_pb2.DeleteModelReply
DeleteModelRequest = model_registry_pb2.DeleteModelRequest
ModelInfo = model_registry_pb2.ModelInfo
ModelVersionInfo = model_registry_pb2.ModelVersionInfo
RetrieveModelsReply = model_registry_pb2.RetrieveModelsReply
RetrieveModelsRequest = model_registry_pb2.RetrieveModelsRequest
RetrieveVersionDataReplyChunk = model_registry_pb2.RetrieveVersionDataReplyChunk
RetrieveVersionDataRequest = model_registry_pb2.RetrieveVersionDataRequest
RetrieveVersionInfosReply = model_registry_pb2.RetrieveVersionInfosReply
RetrieveVersionInfosRequest = model_registry_pb2.RetrieveVersionInfosRequest
StatusReply = common_pb2.StatusReply
StatusRequest = common_pb2.StatusRequest
ServiceVersionInfo = common_pb2.VersionInfo
VersionRequest = common_pb2.VersionRequest
VersionUpdateReply = model_registry_pb2.VersionUpdateReply
VersionUpdateRequest = model_registry_pb2.VersionUpdateRequest


def version_reply(versions: Mapping[str, str]) -> common_pb2.VersionInfo:
    """Return the reply to `Version`: the parts of a service and their versions."""
    reply = common_pb2.VersionInfo()
    for name, version in versions.items():
        reply.versions.add(name=name, version=version)
    return reply


def status_reply(statuses: Mapping[str, str], names: Collection[str]) -> common_pb2.StatusReply:
    """Return the reply to `Status`: those of the statuses that are asked for, all of them for ``*``."""
    return common_pb2.StatusReply(
        statuses={name: value for name, value in statuses.items() if name in names or "*" in names}
    )
