from cogment_model_registry.wire._generated.cogment.api import common_pb2 as _common_pb2
from cogment_model_registry.wire._generated.cogment.api import model_registry_pb2 as _model_registry_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
