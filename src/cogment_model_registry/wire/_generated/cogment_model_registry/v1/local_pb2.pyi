from cogment_model_registry.wire._generated.cogment_model_registry.v1 import lifecycle_pb2 as _lifecycle_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LocalRequest(_message.Message):
    __slots__ = ("local_socket_id", "read", "upload", "authorization", "forwarded_peer")
    LOCAL_SOCKET_ID_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    FORWARDED_PEER_FIELD_NUMBER: _ClassVar[int]
    local_socket_id: str
    read: _lifecycle_pb2.ReadVersionRequest
    upload: _lifecycle_pb2.UploadVersionRequest.Header
    authorization: str
    forwarded_peer: str
    def __init__(self, local_socket_id: _Optional[str] = ..., read: _Optional[_Union[_lifecycle_pb2.ReadVersionRequest, _Mapping]] = ..., upload: _Optional[_Union[_lifecycle_pb2.UploadVersionRequest.Header, _Mapping]] = ..., authorization: _Optional[str] = ..., forwarded_peer: _Optional[str] = ...) -> None: ...

class LocalReply(_message.Message):
    __slots__ = ("refusal", "handed_over", "version")
    class Refusal(_message.Message):
        __slots__ = ("status", "details")
        STATUS_FIELD_NUMBER: _ClassVar[int]
        DETAILS_FIELD_NUMBER: _ClassVar[int]
        status: int
        details: str
        def __init__(self, status: _Optional[int] = ..., details: _Optional[str] = ...) -> None: ...
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    refusal: LocalReply.Refusal
    handed_over: bool
    version: _lifecycle_pb2.Version
    def __init__(self, refusal: _Optional[_Union[LocalReply.Refusal, _Mapping]] = ..., handed_over: _Optional[bool] = ..., version: _Optional[_Union[_lifecycle_pb2.Version, _Mapping]] = ...) -> None: ...
