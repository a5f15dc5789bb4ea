"""The settings of the model registry.

Names, variables and defaults of the documented settings are those of the original. The others are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from cogment_model_registry.errors import SettingError
from cogment_model_registry.records.sizes import GIB, KIB, MIB
from cogment_model_registry.settings.base import (
    ServiceSettings,
    certificate_setting,
    client_authorities_setting,
    client_certificate_setting,
    host_setting,
    key_setting,
    port_setting,
    reflection_setting,
    setting,
    setting_made_by,
)
from cogment_model_registry.settings.kinds import (
    ANONYMOUS_ACCESS,
    ARCHIVE_URL,
    AUTO,
    CATALOG_URL,
    ENDPOINT,
    HOSTS,
    INTERFACE,
    ISSUER,
    KEYS,
    LOCAL_SOCKET,
    NAME,
    NETWORKS,
    PATH,
    PROPERTIES,
    REACHABLE_HOST,
    SWITCH,
    TOKEN,
    byte_count,
    integer,
    number,
    optional,
    seconds,
)
from cogment_model_registry.system.machine import usable_memory_bytes

_PREFIX = "COGMENT_MODEL_REGISTRY_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServiceSettings):
    """The settings of the model registry. Every field is a flag and an environment variable."""

    port: int = port_setting(9002, _PREFIX + "PORT")
    host: str = host_setting(_PREFIX + "HOST")
    grpc_reflection: bool = reflection_setting(_PREFIX + "GRPC_REFLECTION")
    tls_certificate: str = certificate_setting(_PREFIX + "TLS_CERTIFICATE")
    tls_key: str = key_setting(_PREFIX + "TLS_KEY")
    tls_client_ca: str = client_authorities_setting(_PREFIX + "TLS_CLIENT_CA")
    tls_require_client_certificate: bool | None = client_certificate_setting(_PREFIX + "TLS_REQUIRE_CLIENT_CERTIFICATE")
    archive_dir: str = setting(
        ".cogment/model_registry",
        _PREFIX + "ARCHIVE_DIR",
        PATH,
        "Directory of the archived versions and of the metadata of models. The server creates it if it is missing.",
    )
    archive_url: str = setting(
        "",
        _PREFIX + "ARCHIVE_URL",
        optional(ARCHIVE_URL),
        "Archive in an object store, in place of archive_dir: s3://bucket/prefix, gs://..., az://... or file:///path. "
        "Credentials and endpoint come from the variables of the store, such as AWS_ACCESS_KEY_ID.",
        "none: the archive is archive_dir",
    )
    catalog_dir: str = setting(
        "",
        _PREFIX + "CATALOG_DIR",
        optional(PATH),
        "Directory of the catalog of an archive in an object store: aliases, tags, metrics and tokens. "
        "The server creates it if it is missing.",
        "a directory for the `archive_url`, in `$XDG_STATE_HOME` or `~/.local/state`",
    )
    catalog_url: str = setting(
        "",
        _PREFIX + "CATALOG_URL",
        optional(CATALOG_URL),
        "Catalog in PostgreSQL, which several servers of one archive_url share: postgresql://user@host:port/database. "
        "The password comes from PGPASSWORD or from the file that PGPASSFILE names.",
        "none: the catalog of one server, in archive_dir or catalog_dir",
    )
    peer_host: str = setting(
        "",
        _PREFIX + "PEER_HOST",
        optional(REACHABLE_HOST),
        "Host at which the other servers of a catalog_url reach this one.",
        "as for `directory_registration_host`",
    )
    transient_replicas: int = setting(
        1,
        _PREFIX + "TRANSIENT_REPLICAS",
        integer(1, 16),
        "How many servers of a catalog_url have a transient version in memory before its publish is acknowledged.",
    )
    peer_token_file: str = setting(
        "",
        _PREFIX + "PEER_TOKEN_FILE",
        optional(PATH),
        "File with the token that this server shows to the other servers of a catalog_url, with the scope read for all "
        "models. It is read again when it may have been replaced.",
        "none: no token is shown",
    )
    peer_tls_ca: str = setting(
        "",
        _PREFIX + "PEER_TLS_CA",
        optional(PATH),
        "PEM file of the authorities of the certificates of the other servers of a catalog_url; "
        "servers that ask for a certificate get `tls_certificate`.",
        "none: the public authorities that gRPC knows",
    )
    read_only: bool = setting(
        False,
        _PREFIX + "READ_ONLY",
        SWITCH,
        "Whether to serve the archive without writing to it, as on a read-only file system.",
        "off",
    )
    cache_max_items: int = setting(
        100,
        _PREFIX + "VERSION_CACHE_MAX_ITEMS",
        integer(1, 10**9),
        "Largest number of transient versions to keep.",
    )
    cache_max_bytes: int = setting_made_by(
        lambda: usable_memory_bytes() // 2,
        _PREFIX + "CACHE_MAX_BYTES",
        byte_count(1, 2**60),
        "Largest number of bytes of transient versions in memory, including those being uploaded or read.",
        "half of the memory that the process may use",
    )
    sent_version_chunk_size: int = setting(
        2 * MIB,
        _PREFIX + "SENT_MODEL_VERSION_DATA_CHUNK_SIZE",
        byte_count(1, 256 * MIB),
        "Largest size of the chunks in which a version is sent.",
    )
    directory_endpoint: str = setting(
        "",
        "COGMENT_DIRECTORY_ENDPOINT",
        optional(ENDPOINT),
        "Cogment Directory to register with, so that clients find this server.",
        "none: not registered",
    )
    directory_authentication_token: str = setting(
        "",
        "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN",
        TOKEN,
        "Token to register with the Directory; clients must give the same token to find this server.",
        "none",
    )
    directory_tls_ca: str = setting(
        "",
        "COGMENT_DIRECTORY_TLS_CA",
        optional(PATH),
        "PEM file of the authorities of the certificate of a Directory with an endpoint grpcs://host:port; "
        "a Directory that asks for a certificate gets `tls_certificate`.",
        "none: the public authorities that gRPC knows",
    )
    directory_registration_host: str = setting(
        "",
        _PREFIX + "DIRECTORY_REGISTRATION_HOST",
        optional(REACHABLE_HOST),
        "Host to register with the Directory.",
        "`host` if that is one interface, otherwise the first IPv4 address that is not a loopback address",
    )
    directory_registration_properties: Mapping[str, str] = setting_made_by(
        dict[str, str],
        _PREFIX + "DIRECTORY_REGISTRATION_PROPERTIES",
        PROPERTIES,
        'Properties to register with the Directory, such as "Sim=20,hpp,mem=HIGH".',
        "none",
    )
    metrics_port: int | None = setting(
        None,
        _PREFIX + "METRICS_PORT",
        optional(integer(0, 65535), None),
        "TCP port to serve metrics on, in Prometheus' text format; 0 takes a free port, which the log shows.",
        "none: not served",
    )
    http_port: int | None = setting(
        None,
        _PREFIX + "HTTP_PORT",
        optional(integer(0, 65535), None),
        "TCP port to serve HTTP on, the pages and /api/v1; 0 takes a free port, which the log shows as http_port=N. "
        "It needs the extra web.",
        "none: not served",
    )
    http_host: str = setting(
        "",
        _PREFIX + "HTTP_HOST",
        optional(INTERFACE),
        "Interface to serve HTTP on, by name or address.",
        "that of `host`",
    )
    http_hosts: tuple[str, ...] = setting(
        (),
        _PREFIX + "HTTP_HOSTS",
        HOSTS,
        "Names by which browsers and others reach HTTP without TLS, separated by commas; * for any name, behind a "
        "proxy that checks it. Addresses, localhost and the name of this host are always accepted.",
        "none",
    )
    http_trusted_proxies: tuple[str, ...] = setting(
        (),
        _PREFIX + "HTTP_TRUSTED_PROXIES",
        NETWORKS,
        "Addresses and networks of proxies in front of HTTP, separated by commas, such as 10.0.0.0/8,127.0.0.1,::1. "
        "Their X-Forwarded-For has the address of the client; X-Forwarded-Proto says whether the client uses TLS.",
        "none: these headers are ignored",
    )
    http_access_log: bool = setting(
        False,
        _PREFIX + "HTTP_ACCESS_LOG",
        SWITCH,
        "Whether to log each HTTP request, at the level info: client, caller, method, path, status, bytes and seconds.",
        "off",
    )
    local_socket: str = setting(
        AUTO,
        _PREFIX + "LOCAL_SOCKET",
        LOCAL_SOCKET,
        "UNIX socket by which processes of the same user on this host get and publish versions without a copy; "
        "off for none.",
        "auto: a socket of its own in the runtime directory of the user",
    )
    anonymous: str = setting(
        AUTO,
        _PREFIX + "ANONYMOUS",
        ANONYMOUS_ACCESS,
        "What callers may do who show no token and no certificate: everything, read, or nothing.",
        "auto: everything from this host, read from elsewhere",
    )
    oidc_issuer: str = setting(
        "",
        _PREFIX + "OIDC_ISSUER",
        optional(ISSUER),
        "Issuer of JSON Web Tokens that callers may show, as the tokens have it (iss).",
        "none: no such tokens are accepted",
    )
    oidc_audience: str = setting(
        "",
        _PREFIX + "OIDC_AUDIENCE",
        optional(NAME),
        "Audience that tokens of the issuer must be for (aud), so that no tokens for other services are accepted.",
        "none; required with oidc_issuer",
    )
    oidc_keys: str = setting(
        "",
        _PREFIX + "OIDC_KEYS",
        optional(KEYS),
        "Public keys of the issuer, a JSON Web Key Set: the path of a file, or an http or https address.",
        "none: the jwks_uri that oidc_issuer/.well-known/openid-configuration gives",
    )
    oidc_scopes_claim: str = setting(
        "scope",
        _PREFIX + "OIDC_SCOPES_CLAIM",
        NAME,
        "Claim of the issuer's tokens with scopes, as a list or as a text with spaces between them; what is not a "
        "scope of the registry is ignored.",
    )
    audit_log: str = setting(
        "",
        _PREFIX + "AUDIT_LOG",
        optional(PATH),
        "Directory of the audit log, with a line for each change of models, versions and aliases, in a file a day. "
        "The server creates it if it is missing.",
        "none: no audit log is kept",
    )
    caller_calls_per_second: float = setting(
        0.0,
        _PREFIX + "CALLER_CALLS_PER_SECOND",
        number(0, 1_000_000),
        "How many calls one caller may begin per second: whoever a token or a certificate names, or else a host; "
        "0 for no limit.",
        "0: no limit",
    )
    caller_bytes_per_second: int = setting(
        0,
        _PREFIX + "CALLER_BYTES_PER_SECOND",
        byte_count(0, 2**50),
        "How many bytes per second the calls of one caller may move, in both directions together; 0 for no limit.",
        "0: no limit",
    )
    caller_uploads_max: int = setting(
        0,
        _PREFIX + "CALLER_UPLOADS_MAX",
        integer(0, 1_000_000),
        "Largest number of uploads that one caller may have under way; 0 for no limit.",
        "0: no limit",
    )
    request_max_bytes: int = setting(
        16 * MIB,
        _PREFIX + "REQUEST_MAX_BYTES",
        byte_count(64 * KIB, GIB),
        "Largest size of one request message.",
    )
    request_max_items: int = setting(
        10_000,
        _PREFIX + "REQUEST_MAX_ITEMS",
        integer(1, 10**6),
        "Largest number of model ids or version numbers in one request.",
    )
    reply_max_bytes: int = setting(
        4 * MIB,
        _PREFIX + "REPLY_MAX_BYTES",
        byte_count(KIB, GIB),
        "Largest size of a page of a listing without a count. Many clients refuse messages over 4 MiB.",
    )
    model_id_max_bytes: int = setting(
        128,
        _PREFIX + "MODEL_ID_MAX_BYTES",
        # A file name has at most 255 bytes on the usual file systems; "-v4294967295.data" takes 17 of them.
        integer(1, 238),
        "Largest number of bytes of a model id in UTF-8.",
    )
    user_data_max_bytes: int = setting(
        256 * KIB,
        _PREFIX + "USER_DATA_MAX_BYTES",
        # Its metadata file must stay below what the archive reads back.
        byte_count(0, MIB),
        "Largest number of bytes in the user_data of one model or version, keys and values together; "
        "its tags and metrics together may have as many.",
    )
    model_aliases_max: int = setting(
        1000,
        _PREFIX + "MODEL_ALIASES_MAX",
        integer(1, 100_000),
        "Largest number of aliases of one model.",
    )
    consumers_max: int = setting(
        10_000,
        _PREFIX + "CONSUMERS_MAX",
        integer(1, 1_000_000),
        "Largest number of consumers that may report which version they run.",
    )
    consumers_held_max_bytes: int = setting_made_by(
        lambda: usable_memory_bytes() // 8,
        _PREFIX + "CONSUMERS_HELD_MAX_BYTES",
        byte_count(0, 2**60),
        "Largest number of bytes of the versions of both tiers that consumers may hold, so that they are not deleted.",
        "an eighth of the memory that the process may use",
    )
    upload_idle_seconds: float = setting(
        60.0,
        _PREFIX + "UPLOAD_IDLE_SECONDS",
        seconds(0.01, 86_400),
        "How long an upload may send nothing before it ends with DEADLINE_EXCEEDED.",
    )
    upload_resume_seconds: float = setting(
        600.0,
        _PREFIX + "UPLOAD_RESUME_SECONDS",
        seconds(0, 86_400),
        "How long an interrupted upload keeps what it received, to be resumed by its request_id; 0 for not at all.",
    )
    retrieval_idle_seconds: float = setting(
        60.0,
        _PREFIX + "RETRIEVAL_IDLE_SECONDS",
        seconds(0.01, 86_400),
        "How long a client may receive nothing of a retrieval before it ends with DEADLINE_EXCEEDED.",
    )
    retention_seconds: float = setting(
        60.0,
        _PREFIX + "RETENTION_SECONDS",
        seconds(0, 86_400),
        "How often the server applies the rules of retention automatically; 0 for never.",
    )
    grace_seconds: float = setting(
        5.0,
        _PREFIX + "GRACE_SECONDS",
        seconds(0, 86_400),
        "How long transfers in progress may continue after the server was asked to stop.",
    )
    keepalive_seconds: float = setting(
        20.0,
        _PREFIX + "KEEPALIVE_SECONDS",
        seconds(1, 86_400),
        "How long a connection may be silent before the server pings the peer.",
    )
    keepalive_timeout_seconds: float = setting(
        10.0,
        _PREFIX + "KEEPALIVE_TIMEOUT_SECONDS",
        seconds(1, 86_400),
        "How long the server waits for the answer to a ping before it closes the connection.",
    )
    max_concurrent_streams: int = setting(
        10_000,
        _PREFIX + "MAX_CONCURRENT_STREAMS",
        integer(1, 2**31 - 1),
        "Largest number of concurrent calls on one connection; further calls wait in the client.",
    )
    max_connections: int = setting(
        10_000,
        _PREFIX + "MAX_CONNECTIONS",
        integer(1, 2**31 - 1),
        "Largest number of concurrent connections; further ones are closed immediately.",
    )


def check_archive(settings: Settings) -> None:
    """Check that the settings name one archive.

    Raises:
        SettingError: They name two, a catalog without its archive, or two catalogs.
    """
    default = next(field.default for field in fields(Settings) if field.name == "archive_dir")
    if settings.archive_url and settings.archive_dir != default:
        raise SettingError(
            "archive_url", settings.archive_url, "unset when archive_dir is given: an archive is one of them"
        )
    if settings.catalog_dir and not settings.archive_url:
        raise SettingError(
            "catalog_dir", settings.catalog_dir, "unset without archive_url: archive_dir has the catalog"
        )
    if settings.catalog_url and not settings.archive_url:
        raise SettingError("catalog_url", settings.catalog_url, "unset without archive_url: servers share both")
    if settings.catalog_url and settings.catalog_dir:
        raise SettingError(
            "catalog_dir", settings.catalog_dir, "unset when catalog_url is given: a catalog is one of them"
        )
    if settings.catalog_url and settings.read_only:
        raise SettingError("read_only", "on", "off when catalog_url is given")
    if settings.transient_replicas > 1 and not settings.catalog_url:
        raise SettingError("transient_replicas", str(settings.transient_replicas), "1 without catalog_url")
