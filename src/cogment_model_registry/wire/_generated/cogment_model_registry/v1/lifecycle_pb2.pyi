from cogment_model_registry.wire._generated.cogment.api import model_registry_pb2 as _model_registry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionRef(_message.Message):
    __slots__ = ("model_id", "version_number", "alias")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version_number: int
    alias: str
    def __init__(self, model_id: _Optional[str] = ..., version_number: _Optional[int] = ..., alias: _Optional[str] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("version_info", "tags", "metrics", "aliases", "revision", "signature")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_INFO_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    version_info: _model_registry_pb2.ModelVersionInfo
    tags: _containers.ScalarMap[str, str]
    metrics: _containers.ScalarMap[str, float]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    revision: int
    signature: Signature
    def __init__(self, version_info: _Optional[_Union[_model_registry_pb2.ModelVersionInfo, _Mapping]] = ..., tags: _Optional[_Mapping[str, str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., aliases: _Optional[_Iterable[str]] = ..., revision: _Optional[int] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("key_id", "value")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key_id: bytes
    value: bytes
    def __init__(self, key_id: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class Alias(_message.Message):
    __slots__ = ("alias", "version_number", "revision", "set_timestamp")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SET_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    alias: str
    version_number: int
    revision: int
    set_timestamp: int
    def __init__(self, alias: _Optional[str] = ..., version_number: _Optional[int] = ..., revision: _Optional[int] = ..., set_timestamp: _Optional[int] = ...) -> None: ...

class RetentionRule(_message.Message):
    __slots__ = ("tier", "filter", "keep_last", "keep_best", "metric", "lower_is_better", "keep_seconds", "keep_every")
    class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TIER_ANY: _ClassVar[RetentionRule.Tier]
        TIER_TRANSIENT: _ClassVar[RetentionRule.Tier]
        TIER_ARCHIVED: _ClassVar[RetentionRule.Tier]
    TIER_ANY: RetentionRule.Tier
    TIER_TRANSIENT: RetentionRule.Tier
    TIER_ARCHIVED: RetentionRule.Tier
    TIER_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    KEEP_LAST_FIELD_NUMBER: _ClassVar[int]
    KEEP_BEST_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    LOWER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
    KEEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KEEP_EVERY_FIELD_NUMBER: _ClassVar[int]
    tier: RetentionRule.Tier
    filter: str
    keep_last: int
    keep_best: int
    metric: str
    lower_is_better: bool
    keep_seconds: int
    keep_every: int
    def __init__(self, tier: _Optional[_Union[RetentionRule.Tier, str]] = ..., filter: _Optional[str] = ..., keep_last: _Optional[int] = ..., keep_best: _Optional[int] = ..., metric: _Optional[str] = ..., lower_is_better: _Optional[bool] = ..., keep_seconds: _Optional[int] = ..., keep_every: _Optional[int] = ...) -> None: ...

class TransientShare(_message.Message):
    __slots__ = ("max_items", "max_bytes", "reserved_items", "reserved_bytes")
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_items: int
    max_bytes: int
    reserved_items: int
    reserved_bytes: int
    def __init__(self, max_items: _Optional[int] = ..., max_bytes: _Optional[int] = ..., reserved_items: _Optional[int] = ..., reserved_bytes: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("model_info", "tags", "aliases", "retention", "revision", "latest_version_number", "versions", "archived_bytes", "transient_share", "signers")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_INFO_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LATEST_VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ARCHIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSIENT_SHARE_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    model_info: _model_registry_pb2.ModelInfo
    tags: _containers.ScalarMap[str, str]
    aliases: _containers.RepeatedCompositeFieldContainer[Alias]
    retention: _containers.RepeatedCompositeFieldContainer[RetentionRule]
    revision: int
    latest_version_number: int
    versions: int
    archived_bytes: int
    transient_share: TransientShare
    signers: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, model_info: _Optional[_Union[_model_registry_pb2.ModelInfo, _Mapping]] = ..., tags: _Optional[_Mapping[str, str]] = ..., aliases: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ..., retention: _Optional[_Iterable[_Union[RetentionRule, _Mapping]]] = ..., revision: _Optional[int] = ..., latest_version_number: _Optional[int] = ..., versions: _Optional[int] = ..., archived_bytes: _Optional[int] = ..., transient_share: _Optional[_Union[TransientShare, _Mapping]] = ..., signers: _Optional[_Iterable[bytes]] = ...) -> None: ...

class UploadVersionRequest(_message.Message):
    __slots__ = ("header", "data_chunk")
    class Header(_message.Message):
        __slots__ = ("version_info", "tags", "metrics", "aliases", "request_id", "create_model", "signature")
        class TagsEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: str
            def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
        class MetricsEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        VERSION_INFO_FIELD_NUMBER: _ClassVar[int]
        TAGS_FIELD_NUMBER: _ClassVar[int]
        METRICS_FIELD_NUMBER: _ClassVar[int]
        ALIASES_FIELD_NUMBER: _ClassVar[int]
        REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
        CREATE_MODEL_FIELD_NUMBER: _ClassVar[int]
        SIGNATURE_FIELD_NUMBER: _ClassVar[int]
        version_info: _model_registry_pb2.ModelVersionInfo
        tags: _containers.ScalarMap[str, str]
        metrics: _containers.ScalarMap[str, float]
        aliases: _containers.RepeatedScalarFieldContainer[str]
        request_id: str
        create_model: bool
        signature: Signature
        def __init__(self, version_info: _Optional[_Union[_model_registry_pb2.ModelVersionInfo, _Mapping]] = ..., tags: _Optional[_Mapping[str, str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., aliases: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ..., create_model: _Optional[bool] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadVersionRequest.Header
    data_chunk: bytes
    def __init__(self, header: _Optional[_Union[UploadVersionRequest.Header, _Mapping]] = ..., data_chunk: _Optional[bytes] = ...) -> None: ...

class UploadVersionReply(_message.Message):
    __slots__ = ("next_offset", "version")
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    next_offset: int
    version: Version
    def __init__(self, next_offset: _Optional[int] = ..., version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class ReadVersionRequest(_message.Message):
    __slots__ = ("version", "offset", "limit", "expected_hash")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_HASH_FIELD_NUMBER: _ClassVar[int]
    version: VersionRef
    offset: int
    limit: int
    expected_hash: str
    def __init__(self, version: _Optional[_Union[VersionRef, _Mapping]] = ..., offset: _Optional[int] = ..., limit: _Optional[int] = ..., expected_hash: _Optional[str] = ...) -> None: ...

class ReadVersionReply(_message.Message):
    __slots__ = ("version", "data_chunk")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DATA_CHUNK_FIELD_NUMBER: _ClassVar[int]
    version: Version
    data_chunk: bytes
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., data_chunk: _Optional[bytes] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("model_id", "versions", "filter", "order_by", "page_size", "page_token")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    versions: _containers.RepeatedCompositeFieldContainer[VersionRef]
    filter: str
    order_by: str
    page_size: int
    page_token: str
    def __init__(self, model_id: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[VersionRef, _Mapping]]] = ..., filter: _Optional[str] = ..., order_by: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListVersionsReply(_message.Message):
    __slots__ = ("versions", "next_page_token")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    next_page_token: str
    def __init__(self, versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateVersionRequest(_message.Message):
    __slots__ = ("version", "set_tags", "remove_tags", "set_metrics", "remove_metrics", "expected_revision")
    class SetTagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SetMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SET_TAGS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_TAGS_FIELD_NUMBER: _ClassVar[int]
    SET_METRICS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_METRICS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    version: VersionRef
    set_tags: _containers.ScalarMap[str, str]
    remove_tags: _containers.RepeatedScalarFieldContainer[str]
    set_metrics: _containers.ScalarMap[str, float]
    remove_metrics: _containers.RepeatedScalarFieldContainer[str]
    expected_revision: int
    def __init__(self, version: _Optional[_Union[VersionRef, _Mapping]] = ..., set_tags: _Optional[_Mapping[str, str]] = ..., remove_tags: _Optional[_Iterable[str]] = ..., set_metrics: _Optional[_Mapping[str, float]] = ..., remove_metrics: _Optional[_Iterable[str]] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class PromoteVersionRequest(_message.Message):
    __slots__ = ("version", "aliases")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    version: VersionRef
    aliases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[_Union[VersionRef, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteVersionRequest(_message.Message):
    __slots__ = ("version", "force", "tried", "expected_state")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    TRIED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_STATE_FIELD_NUMBER: _ClassVar[int]
    version: VersionRef
    force: bool
    tried: VersionRef
    expected_state: str
    def __init__(self, version: _Optional[_Union[VersionRef, _Mapping]] = ..., force: _Optional[bool] = ..., tried: _Optional[_Union[VersionRef, _Mapping]] = ..., expected_state: _Optional[str] = ...) -> None: ...

class DeleteVersionReply(_message.Message):
    __slots__ = ("aliases", "held", "state")
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    held: str
    state: str
    def __init__(self, aliases: _Optional[_Iterable[str]] = ..., held: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class SetAliasesRequest(_message.Message):
    __slots__ = ("model_id", "changes")
    class Change(_message.Message):
        __slots__ = ("alias", "version_number", "removed", "expected_revision")
        ALIAS_FIELD_NUMBER: _ClassVar[int]
        VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
        REMOVED_FIELD_NUMBER: _ClassVar[int]
        EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
        alias: str
        version_number: int
        removed: bool
        expected_revision: int
        def __init__(self, alias: _Optional[str] = ..., version_number: _Optional[int] = ..., removed: _Optional[bool] = ..., expected_revision: _Optional[int] = ...) -> None: ...
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    changes: _containers.RepeatedCompositeFieldContainer[SetAliasesRequest.Change]
    def __init__(self, model_id: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[SetAliasesRequest.Change, _Mapping]]] = ...) -> None: ...

class SetAliasesReply(_message.Message):
    __slots__ = ("aliases",)
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    aliases: _containers.RepeatedCompositeFieldContainer[Alias]
    def __init__(self, aliases: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("model_ids", "filter", "page_size", "page_token")
    MODEL_IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model_ids: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    page_size: int
    page_token: str
    def __init__(self, model_ids: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsReply(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateModelRequest(_message.Message):
    __slots__ = ("model_id", "set_tags", "remove_tags", "retention", "expected_revision", "transient_share", "signers")
    class Retention(_message.Message):
        __slots__ = ("rules",)
        RULES_FIELD_NUMBER: _ClassVar[int]
        rules: _containers.RepeatedCompositeFieldContainer[RetentionRule]
        def __init__(self, rules: _Optional[_Iterable[_Union[RetentionRule, _Mapping]]] = ...) -> None: ...
    class Signers(_message.Message):
        __slots__ = ("public_keys",)
        PUBLIC_KEYS_FIELD_NUMBER: _ClassVar[int]
        public_keys: _containers.RepeatedScalarFieldContainer[bytes]
        def __init__(self, public_keys: _Optional[_Iterable[bytes]] = ...) -> None: ...
    class SetTagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SET_TAGS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_TAGS_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    TRANSIENT_SHARE_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    set_tags: _containers.ScalarMap[str, str]
    remove_tags: _containers.RepeatedScalarFieldContainer[str]
    retention: UpdateModelRequest.Retention
    expected_revision: int
    transient_share: TransientShare
    signers: UpdateModelRequest.Signers
    def __init__(self, model_id: _Optional[str] = ..., set_tags: _Optional[_Mapping[str, str]] = ..., remove_tags: _Optional[_Iterable[str]] = ..., retention: _Optional[_Union[UpdateModelRequest.Retention, _Mapping]] = ..., expected_revision: _Optional[int] = ..., transient_share: _Optional[_Union[TransientShare, _Mapping]] = ..., signers: _Optional[_Union[UpdateModelRequest.Signers, _Mapping]] = ...) -> None: ...

class ApplyRetentionRequest(_message.Message):
    __slots__ = ("model_id", "validate_only", "retention", "version_numbers", "expected_revision")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    validate_only: bool
    retention: UpdateModelRequest.Retention
    version_numbers: _containers.RepeatedScalarFieldContainer[int]
    expected_revision: int
    def __init__(self, model_id: _Optional[str] = ..., validate_only: _Optional[bool] = ..., retention: _Optional[_Union[UpdateModelRequest.Retention, _Mapping]] = ..., version_numbers: _Optional[_Iterable[int]] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class ApplyRetentionReply(_message.Message):
    __slots__ = ("decisions", "freed_bytes", "deleted_versions", "kept_versions")
    class Decision(_message.Message):
        __slots__ = ("version", "deleted", "reason")
        VERSION_FIELD_NUMBER: _ClassVar[int]
        DELETED_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        version: Version
        deleted: bool
        reason: str
        def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., deleted: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DELETED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    KEPT_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[ApplyRetentionReply.Decision]
    freed_bytes: int
    deleted_versions: int
    kept_versions: int
    def __init__(self, decisions: _Optional[_Iterable[_Union[ApplyRetentionReply.Decision, _Mapping]]] = ..., freed_bytes: _Optional[int] = ..., deleted_versions: _Optional[int] = ..., kept_versions: _Optional[int] = ...) -> None: ...

class Consumer(_message.Message):
    __slots__ = ("consumer_id", "model_id", "version_number", "state", "error", "labels", "ttl_seconds", "held_versions", "versions_behind", "seconds_behind", "reported_timestamp")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNKNOWN: _ClassVar[Consumer.State]
        STATE_LOADING: _ClassVar[Consumer.State]
        STATE_ACTIVE: _ClassVar[Consumer.State]
        STATE_FAILED: _ClassVar[Consumer.State]
        STATE_GONE: _ClassVar[Consumer.State]
    STATE_UNKNOWN: Consumer.State
    STATE_LOADING: Consumer.State
    STATE_ACTIVE: Consumer.State
    STATE_FAILED: Consumer.State
    STATE_GONE: Consumer.State
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HELD_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    REPORTED_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    consumer_id: str
    model_id: str
    version_number: int
    state: Consumer.State
    error: str
    labels: _containers.ScalarMap[str, str]
    ttl_seconds: int
    held_versions: _containers.RepeatedScalarFieldContainer[int]
    versions_behind: int
    seconds_behind: float
    reported_timestamp: int
    def __init__(self, consumer_id: _Optional[str] = ..., model_id: _Optional[str] = ..., version_number: _Optional[int] = ..., state: _Optional[_Union[Consumer.State, str]] = ..., error: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., ttl_seconds: _Optional[int] = ..., held_versions: _Optional[_Iterable[int]] = ..., versions_behind: _Optional[int] = ..., seconds_behind: _Optional[float] = ..., reported_timestamp: _Optional[int] = ...) -> None: ...

class ReportConsumerRequest(_message.Message):
    __slots__ = ("consumer",)
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    consumer: Consumer
    def __init__(self, consumer: _Optional[_Union[Consumer, _Mapping]] = ...) -> None: ...

class ReportConsumerReply(_message.Message):
    __slots__ = ("consumer",)
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    consumer: Consumer
    def __init__(self, consumer: _Optional[_Union[Consumer, _Mapping]] = ...) -> None: ...

class ListConsumersRequest(_message.Message):
    __slots__ = ("model_id", "filter", "page_size", "page_token")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    filter: str
    page_size: int
    page_token: str
    def __init__(self, model_id: _Optional[str] = ..., filter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListConsumersReply(_message.Message):
    __slots__ = ("consumers", "next_page_token")
    CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    consumers: _containers.RepeatedCompositeFieldContainer[Consumer]
    next_page_token: str
    def __init__(self, consumers: _Optional[_Iterable[_Union[Consumer, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("model_ids", "mode", "resume_token", "inline_max_bytes", "consumers", "filter", "known_hash", "in_one_reply")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_LATEST: _ClassVar[WatchRequest.Mode]
        MODE_ALL: _ClassVar[WatchRequest.Mode]
    MODE_LATEST: WatchRequest.Mode
    MODE_ALL: WatchRequest.Mode
    MODEL_IDS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INLINE_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    KNOWN_HASH_FIELD_NUMBER: _ClassVar[int]
    IN_ONE_REPLY_FIELD_NUMBER: _ClassVar[int]
    model_ids: _containers.RepeatedScalarFieldContainer[str]
    mode: WatchRequest.Mode
    resume_token: str
    inline_max_bytes: int
    consumers: bool
    filter: str
    known_hash: str
    in_one_reply: bool
    def __init__(self, model_ids: _Optional[_Iterable[str]] = ..., mode: _Optional[_Union[WatchRequest.Mode, str]] = ..., resume_token: _Optional[str] = ..., inline_max_bytes: _Optional[int] = ..., consumers: _Optional[bool] = ..., filter: _Optional[str] = ..., known_hash: _Optional[str] = ..., in_one_reply: _Optional[bool] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("resume_token", "version", "data", "model", "gone", "gap", "consumer", "caught_up", "version_data")
    class Gap(_message.Message):
        __slots__ = ("model_id", "first_number", "last_number")
        MODEL_ID_FIELD_NUMBER: _ClassVar[int]
        FIRST_NUMBER_FIELD_NUMBER: _ClassVar[int]
        LAST_NUMBER_FIELD_NUMBER: _ClassVar[int]
        model_id: str
        first_number: int
        last_number: int
        def __init__(self, model_id: _Optional[str] = ..., first_number: _Optional[int] = ..., last_number: _Optional[int] = ...) -> None: ...
    class Gone(_message.Message):
        __slots__ = ("version", "reason")
        VERSION_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        version: VersionRef
        reason: str
        def __init__(self, version: _Optional[_Union[VersionRef, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...
    class Data(_message.Message):
        __slots__ = ("data_chunk", "last")
        DATA_CHUNK_FIELD_NUMBER: _ClassVar[int]
        LAST_FIELD_NUMBER: _ClassVar[int]
        data_chunk: bytes
        last: bool
        def __init__(self, data_chunk: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    VERSION_DATA_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    version: Version
    data: WatchReply.Data
    model: Model
    gone: WatchReply.Gone
    gap: WatchReply.Gap
    consumer: Consumer
    caught_up: bool
    version_data: bytes
    def __init__(self, resume_token: _Optional[str] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., data: _Optional[_Union[WatchReply.Data, _Mapping]] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., gone: _Optional[_Union[WatchReply.Gone, _Mapping]] = ..., gap: _Optional[_Union[WatchReply.Gap, _Mapping]] = ..., consumer: _Optional[_Union[Consumer, _Mapping]] = ..., caught_up: _Optional[bool] = ..., version_data: _Optional[bytes] = ...) -> None: ...
