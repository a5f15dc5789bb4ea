from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListChangesRequest(_message.Message):
    __slots__ = ("model_id", "since_timestamp", "page_size", "page_token", "alias")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    since_timestamp: int
    page_size: int
    page_token: str
    alias: str
    def __init__(self, model_id: _Optional[str] = ..., since_timestamp: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., alias: _Optional[str] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("timestamp", "change", "model_id", "version_number", "alias", "before_json", "after_json", "call", "caller", "caller_kind", "peer", "reason")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_JSON_FIELD_NUMBER: _ClassVar[int]
    AFTER_JSON_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CALLER_KIND_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    timestamp: int
    change: str
    model_id: str
    version_number: int
    alias: str
    before_json: str
    after_json: str
    call: str
    caller: str
    caller_kind: str
    peer: str
    reason: str
    def __init__(self, timestamp: _Optional[int] = ..., change: _Optional[str] = ..., model_id: _Optional[str] = ..., version_number: _Optional[int] = ..., alias: _Optional[str] = ..., before_json: _Optional[str] = ..., after_json: _Optional[str] = ..., call: _Optional[str] = ..., caller: _Optional[str] = ..., caller_kind: _Optional[str] = ..., peer: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ListChangesReply(_message.Message):
    __slots__ = ("changes", "next_page_token")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    next_page_token: str
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
