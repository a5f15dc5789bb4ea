"""Settings: their sources, their allowed values, and the default memory budget."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from cogment_model_registry.errors import SettingError, quoted
from cogment_model_registry.records.sizes import GIB, KIB, MIB, TIB
from cogment_model_registry.settings import DirectorySettings, Setting, Settings, all_settings, check_archive, is_local
from cogment_model_registry.system.machine import usable_memory_bytes

# From the original's documentation: name, environment variable, default, an example and its value.
DOCUMENTED = [
    ("port", "COGMENT_MODEL_REGISTRY_PORT", 9002, "12000", 12000),
    ("grpc_reflection", "COGMENT_MODEL_REGISTRY_GRPC_REFLECTION", False, "1", True),
    (
        "archive_dir",
        "COGMENT_MODEL_REGISTRY_ARCHIVE_DIR",
        ".cogment/model_registry",
        "./path/to/models/",
        "./path/to/models/",
    ),
    ("cache_max_items", "COGMENT_MODEL_REGISTRY_VERSION_CACHE_MAX_ITEMS", 100, "500", 500),
    (
        "sent_version_chunk_size",
        "COGMENT_MODEL_REGISTRY_SENT_MODEL_VERSION_DATA_CHUNK_SIZE",
        2_097_152,
        "100000",
        100_000,
    ),
    ("log_level", "COGMENT_LOG_LEVEL", "info", "5", "debug"),
    ("log_file", "COGMENT_LOG_FILE", "", "./path/to/cogment.log", "./path/to/cogment.log"),
    ("directory_endpoint", "COGMENT_DIRECTORY_ENDPOINT", "", "grpc://foo:9005", "grpc://foo:9005"),
    ("directory_authentication_token", "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN", "", "GH670ploT", "GH670ploT"),
    (
        "directory_registration_host",
        "COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_HOST",
        "",
        "foo.bar",
        "foo.bar",
    ),
    (
        "directory_registration_properties",
        "COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_PROPERTIES",
        {},
        "Sim=20,hpp,mem=HIGH",
        {"Sim": "20", "hpp": "", "mem": "HIGH"},
    ),
]

# The limits that the original does not have, and their defaults.
LIMITS = {
    "request_max_bytes": 16 * MIB,
    "caller_calls_per_second": 0.0,
    "caller_bytes_per_second": 0,
    "caller_uploads_max": 0,
    "user_data_max_bytes": 256 * KIB,
    "model_id_max_bytes": 128,
    "request_max_items": 10_000,
    "model_aliases_max": 1000,
    "retention_seconds": 60.0,
    "consumers_max": 10_000,
    "reply_max_bytes": 4 * MIB,
    "upload_idle_seconds": 60.0,
    "upload_resume_seconds": 600.0,
    "retrieval_idle_seconds": 60.0,
}

# For each setting, two texts of different values, neither of them the default.
VALUES: Mapping[str, tuple[tuple[str, object], tuple[str, object]]] = {
    "port": (("1", 1), ("2", 2)),
    "host": (("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")),
    "grpc_reflection": (("true", True), ("false", False)),
    "tls_certificate": (("a", "a"), ("b", "b")),
    "tls_key": (("a", "a"), ("b", "b")),
    "tls_client_ca": (("a", "a"), ("b", "b")),
    "tls_require_client_certificate": (("true", True), ("false", False)),
    "archive_dir": (("a", "a"), ("b", "b")),
    "archive_url": (("s3://a/b", "s3://a/b"), ("file:///a/b/", "file:///a/b")),
    "catalog_dir": (("a", "a"), ("b", "b")),
    "catalog_url": (("postgresql://a/b", "postgresql://a/b"), ("postgres://u@c:1/d?sslmode=require",) * 2),
    "peer_host": (("a", "a"), ("b", "b")),
    "transient_replicas": (("2", 2), ("3", 3)),
    "peer_token_file": (("a", "a"), ("/b c", "/b c")),
    "peer_tls_ca": (("a", "a"), ("/b c", "/b c")),
    "read_only": (("true", True), ("false", False)),
    "cache_max_items": (("1", 1), ("2", 2)),
    "cache_max_bytes": (("1", 1), ("2", 2)),
    "sent_version_chunk_size": (("1", 1), ("2", 2)),
    "log_level": (("error", "error"), ("trace", "trace")),
    "log_file": (("a", "a"), ("b", "b")),
    "log_format": (("json", "json"), ("text", "text")),
    "directory_endpoint": (("grpc://a:1", "grpc://a:1"), ("grpc://b:1", "grpc://b:1")),
    "directory_authentication_token": (("a", "a"), ("b", "b")),
    "directory_tls_ca": (("a", "a"), ("b", "b")),
    "directory_registration_host": (("a", "a"), ("b", "b")),
    "directory_registration_properties": (("a", {"a": ""}), ("b=c", {"b": "c"})),
    "oidc_issuer": (("https://a", "https://a"), ("http://b:8080/realm", "http://b:8080/realm")),
    "oidc_audience": (("a", "a"), ("b", "b")),
    "oidc_keys": (("a", "a"), ("https://a/keys", "https://a/keys")),
    "oidc_scopes_claim": (("a", "a"), ("b", "b")),
    "audit_log": (("a", "a"), ("b", "b")),
    "caller_calls_per_second": (("0.5", 0.5), ("100", 100.0)),
    "caller_bytes_per_second": (("1000", 1000), ("10MiB", 10 * MIB)),
    "caller_uploads_max": (("1", 1), ("2", 2)),
    "request_max_bytes": (("100000", 100_000), ("1MiB", MIB)),
    "request_max_items": (("1", 1), ("2", 2)),
    "model_aliases_max": (("1", 1), ("2", 2)),
    "retention_seconds": (("0", 0.0), ("0.5", 0.5)),
    "consumers_max": (("1", 1), ("2", 2)),
    "consumers_held_max_bytes": (("0", 0), ("1MiB", MIB)),
    "reply_max_bytes": (("2048", 2048), ("4KiB", 4096)),
    "model_id_max_bytes": (("1", 1), ("2", 2)),
    "user_data_max_bytes": (("0", 0), ("1", 1)),
    "upload_idle_seconds": (("1", 1.0), ("2.5", 2.5)),
    "upload_resume_seconds": (("0", 0.0), ("2.5", 2.5)),
    "retrieval_idle_seconds": (("1", 1.0), ("2.5", 2.5)),
    "grace_seconds": (("1", 1.0), ("0", 0.0)),
    "metrics_port": (("0", 0), ("9100", 9100)),
    "http_port": (("0", 0), ("9080", 9080)),
    "http_host": (("127.0.0.1", "127.0.0.1"), ("*", "*")),
    "http_hosts": (("*", ("*",)), ("Models.example, models", ("models.example", "models"))),
    "http_trusted_proxies": (
        ("10.0.0.0/8, 127.0.0.1,::1", ("10.0.0.0/8", "127.0.0.1/32", "::1/128")),
        ("::ffff:10.1.0.0/112,10.1.0.0/16", ("10.1.0.0/16",)),
    ),
    "http_access_log": (("on", True), ("off", False)),
    "anonymous": (("read", "read"), ("NOTHING", "nothing")),
    "local_socket": (("off", ""), ("/run/registry.sock", "/run/registry.sock")),
    "keepalive_seconds": (("5", 5.0), ("60", 60.0)),
    "keepalive_timeout_seconds": (("5", 5.0), ("60", 60.0)),
    "max_concurrent_streams": (("100", 100), ("1", 1)),
    "max_connections": (("100", 100), ("1", 1)),
}

SETTINGS = {setting.name: setting for setting in all_settings(Settings)}
each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


def load(name: str, text: str) -> object:
    """Return the value of a setting whose flag was given."""
    return getattr(Settings.load({name: text}, {}), name)


@pytest.mark.parametrize(
    ("name", "variable", "default", "text", "value"), DOCUMENTED, ids=[row[0] for row in DOCUMENTED]
)
def test_documented_setting_has_its_name_variable_default_and_example(
    name: str, variable: str, default: object, text: str, value: object
) -> None:
    assert SETTINGS[name].environment == variable
    assert getattr(Settings.load({}, {}), name) == default
    assert load(name, text) == value
    assert getattr(Settings.load({}, {variable: text}), name) == value


@pytest.mark.parametrize("name", LIMITS)
def test_limit_is_a_setting_with_its_default(name: str) -> None:
    assert getattr(Settings.load({}, {}), name) == LIMITS[name]


def test_every_field_is_a_setting_with_a_variable_of_its_own() -> None:
    assert {setting.name for setting in all_settings(Settings)} == {field.name for field in fields(Settings)}
    assert len({setting.environment for setting in all_settings(Settings)}) == len(SETTINGS)
    assert VALUES.keys() == SETTINGS.keys()


@each_setting
def test_every_setting_is_explained(setting: Setting) -> None:
    assert setting.help
    assert setting.default_text
    assert setting.kind.allowed


@each_setting
def test_flag_overrides_environment_which_overrides_default(setting: Setting) -> None:
    (first, first_value), (second, second_value) = VALUES[setting.name]
    default = getattr(Settings(), setting.name)
    assert getattr(Settings.load({}, {}), setting.name) == default != first_value
    assert getattr(Settings.load({}, {setting.environment: first}), setting.name) == first_value
    assert load(setting.name, first) == first_value
    both = Settings.load({setting.name: second}, {setting.environment: first})
    assert getattr(both, setting.name) == second_value != first_value


@each_setting
def test_setting_changes_no_other_setting(setting: Setting) -> None:
    text, _ = VALUES[setting.name][0]
    changed = Settings.load({setting.name: text}, {})
    others = [name for name in SETTINGS if name != setting.name]
    assert [getattr(changed, name) for name in others] == [getattr(Settings(), name) for name in others]


@each_setting
def test_empty_environment_variable_counts_as_unset(setting: Setting) -> None:
    assert Settings.load({}, {setting.environment: ""}) == Settings()


def test_flag_hides_an_invalid_environment_variable() -> None:
    settings = Settings.load({"port": "1"}, {"COGMENT_MODEL_REGISTRY_PORT": "nonsense"})
    assert settings.port == 1


LINKS = ["tcp://10.0.0.1:9002", "tcp://[fd00::1]:9002", "udp://10.0.0.1:9002"]
"""Variables of Kubernetes for a Service that is named like the server, and of Docker for a linked container."""


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", ["port", "host", "metrics_port", "http_port", "directory_registration_host"])
def test_a_variable_set_by_the_platform_counts_as_unset(name: str, link: str) -> None:
    variable = SETTINGS[name].environment
    assert Settings.load({}, {variable: link}) == Settings()
    assert SETTINGS[name].is_link({variable: link})
    assert not SETTINGS[name].is_link({variable: "1"})
    assert not SETTINGS[name].is_link({})


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("variable", ["COGMENT_DIRECTORY_PORT", "COGMENT_DIRECTORY_HOST"])
def test_a_variable_of_the_directory_set_by_the_platform_counts_as_unset(variable: str, link: str) -> None:
    assert DirectorySettings.load({}, {variable: link}) == DirectorySettings()


def test_an_endpoint_of_another_scheme_is_refused_as_always() -> None:
    """No platform sets such a value."""
    with pytest.raises(SettingError, match=r"directory_endpoint \(from COGMENT_DIRECTORY_ENDPOINT\)"):
        Settings.load({}, {"COGMENT_DIRECTORY_ENDPOINT": LINKS[0]})


def test_unrelated_variables_are_ignored() -> None:
    assert Settings.load({}, {"PORT": "1", "COGMENT_PORT": "1", "port": "1"}) == Settings()


GOOD = [
    ("port", "0", 0),
    ("port", "65535", 65535),
    ("cache_max_items", "1000000000", 10**9),
    ("model_id_max_bytes", "238", 238),
    *[("grpc_reflection", text, True) for text in ("1", "true", "True", "TRUE", "yes", "on")],
    *[("grpc_reflection", text, False) for text in ("0", "false", "False", "FALSE", "no", "off")],
    *[("log_level", name, name) for name in ("off", "error", "warning", "info", "debug", "trace")],
    ("log_level", "WARNING", "warning"),
    ("log_format", "JSON", "json"),
    ("archive_dir", "été/ with spaces", "été/ with spaces"),
    *[("host", text, text) for text in ("*", "localhost", "my-host_1.example.org.", "0.0.0.0", "::", "::1")],
    *[("host", text, text) for text in ("2001:db8::1", "::ffff:127.0.0.1", "fe80::1%eth0", "fe80::1%br-lan")],
    ("directory_registration_host", "", ""),
    ("directory_registration_host", "10.0.0.1", "10.0.0.1"),
    ("directory_endpoint", "", ""),
    *[("directory_endpoint", text, text) for text in ("grpc://10.0.0.1:1", "grpc://[::1]:65535", "grpc://a-b.c:9005")],
    ("directory_authentication_token", "", ""),
    ("directory_authentication_token", "a b!~", "a b!~"),
    *[("oidc_issuer", text, text) for text in ("", "https://a.b-c.d/", "https://[::1]:8443/realm", "http://10.0.0.1")],
    *[("oidc_audience", text, text) for text in ("", "a b", "https://a/?b", "a" * 255)],
    *[("oidc_keys", text, text) for text in ("", "/etc/keys.json", "https://a/keys?p=x", "http://localhost:1/keys")],
    ("oidc_scopes_claim", "https://a/roles", "https://a/roles"),
    ("upload_idle_seconds", "0.01", 0.01),
    ("retrieval_idle_seconds", "0.01", 0.01),
    ("upload_idle_seconds", "86400", 86_400.0),
    ("upload_resume_seconds", "0", 0.0),
    ("grace_seconds", "0", 0.0),
    ("grace_seconds", "0.25", 0.25),
    # Bytes, plain or with a unit.
    ("cache_max_bytes", "1", 1),
    ("cache_max_bytes", "3kB", 3_000),
    ("cache_max_bytes", "3MB", 3_000_000),
    ("cache_max_bytes", "3GB", 3_000_000_000),
    ("cache_max_bytes", "3KiB", 3 * KIB),
    ("cache_max_bytes", "3MiB", 3 * MIB),
    ("cache_max_bytes", "3GiB", 3 * GIB),
    ("cache_max_bytes", "3 GiB", 3 * GIB),
    ("cache_max_bytes", "3TiB", 3 * TIB),
    ("cache_max_bytes", "3k", 3 * KIB),
    ("cache_max_bytes", "3M", 3 * MIB),
    ("cache_max_bytes", "3G", 3 * GIB),
    ("cache_max_bytes", "3 G", 3 * GIB),
    ("cache_max_bytes", "3T", 3 * TIB),
    ("cache_max_bytes", "3TB", 3 * 10**12),
    ("cache_max_bytes", "3 B", 3),
    ("cache_max_bytes", "3gib", 3 * GIB),
    ("request_max_bytes", "1GiB", GIB),
    # Properties: white space is trimmed, an empty item is skipped, a value may be missing.
    ("directory_registration_properties", "", {}),
    ("directory_registration_properties", " , ,", {}),
    ("directory_registration_properties", "a", {"a": ""}),
    ("directory_registration_properties", "a=", {"a": ""}),
    ("directory_registration_properties", " a = b c ,, d ,", {"a": "b c", "d": ""}),
    ("directory_registration_properties", "a=b,c=d", {"a": "b", "c": "d"}),
    ("directory_registration_properties", "é=ü", {"é": "ü"}),
]

BAD = [
    *[("port", text) for text in ("", "x", "-1", "+1", " 1", "1 ", "1.0", "0x1", "1_0", "٣", "65536", "9" * 30)],
    *[("cache_max_items", text) for text in ("", "0", "-1", "1e3", "1000000001", "all")],
    *[("request_max_items", text) for text in ("0", "1000001")],
    *[("model_aliases_max", text) for text in ("0", "100001")],
    *[("retention_seconds", text) for text in ("-1", "86401")],
    *[("anonymous", text) for text in ("", "all", "write")],
    *[("consumers_max", text) for text in ("0", "1000001")],
    *[("consumers_held_max_bytes", text) for text in ("-1", "1.5MiB")],
    *[("model_id_max_bytes", text) for text in ("0", "239")],
    *[("caller_calls_per_second", text) for text in ("-1", "1000001", "1/s", "nan")],
    *[("caller_bytes_per_second", text) for text in ("-1", "1.5MiB", "2048TiB")],
    *[("caller_uploads_max", text) for text in ("-1", "1000001", "1.5")],
    *[
        ("cache_max_bytes", text)
        for text in ("", "0", "0MiB", "-1", "MiB", "1.5MiB", "1P", "1Mi", "1  MiB", "1e9", "1_000")
    ],
    *[("sent_version_chunk_size", text) for text in ("0", "-1", "257MiB", "2MBs")],
    *[("request_max_bytes", text) for text in ("65535", "2GiB")],
    *[("user_data_max_bytes", text) for text in ("-1", "2MiB")],
    *[("grpc_reflection", text) for text in ("", "2", "-1", "maybe", "true ", "enabled")],
    *[("log_level", text) for text in ("", "7", "-1", "05", "5 ", "loud", "critical", "٣")],
    *[("log_format", text) for text in ("", "xml")],
    *[("archive_dir", text) for text in ("", "a\0b")],
    *[("archive_url", text) for text in ("/a", "http://a/b", "memory:///", "s3:///a", "s3://a/../b", "s3://a//b")],
    *[
        ("archive_url", text)
        for text in ("file://a/b", "file:///", "s3://a/b#c", "s3://a b/c", "s3://é/a", "s3://a/b?")
    ],
    *[("catalog_url", text) for text in ("mysql://a/b", "postgresql:a", "postgresql://u:secret@a/b", "/a")],
    *[
        ("catalog_url", text)
        for text in ("postgresql://a/b?password=secret", "postgresql://a/b#c", "postgresql://a b/c")
    ],
    ("log_file", "a\0b"),
    *[("host", text) for text in ("", "a b", "a/b", "-a", "grpc://a", "a:9000", "[::1]", "**", "é")],
    # An address must not have a port.
    *[("host", text) for text in ("127.0.0.1:9000", "cafe:9000", ":", ":9000")],
    *[("peer_host", text) for text in ("*", "a b", "10.0.0.1:9000", "::")],
    *[("directory_registration_host", text) for text in ("*", "a b", "10.0.0.1:9000", "0.0.0.0", "::", "0::0")],
    *[("directory_endpoint", text) for text in ("foo:9005", "http://foo:9005", "cogment://foo:9005", "grpc:foo:9005")],
    *[
        ("directory_endpoint", text)
        for text in ("grpc://foo", "grpc://foo:", "grpc://:9005", "grpc://", "grpc://foo:0")
    ],
    *[("directory_endpoint", text) for text in ("grpc://foo:65536", "grpc://foo:-1", "grpc://foo:x", "grpc://f oo:1")],
    *[
        ("directory_endpoint", text)
        for text in ("grpc://foo:1/", "grpc://foo:1/x", "grpc://foo:1?x=y", "grpc://u@foo:1")
    ],
    *[
        ("directory_endpoint", text)
        for text in ("grpc://[::1:1", "grpc://fo\no:1", " grpc://foo:1", "cogment://discover")
    ],
    *[("directory_authentication_token", text) for text in ("é", "a\n", "a\tb", " a", "a ")],
    *[
        ("oidc_issuer", text)
        for text in ("a", "//a", "ftp://a", "https://", "https:///a", "https://a:0", "https://a:x")
    ],
    *[("oidc_issuer", text) for text in ("https://u@a", "https://a?b", "https://a#b", "https://a b", "https://a/é")],
    *[("oidc_issuer", text) for text in ("HTTPS://a", " https://a", "https://a\n")],
    *[("oidc_audience", text) for text in (" a", "a ", "a\n", "a" * 256)],
    *[("oidc_keys", text) for text in ("a\0b", "file:///a", "https://u:p@a/keys", "https://a/#keys", "https://")],
    *[("oidc_scopes_claim", text) for text in ("", " ", "a\tb")],
    *[("upload_idle_seconds", text) for text in ("", "0", "0.001", "86401", "-1", "nan", "inf", "1e3", "1s", ".5")],
    *[("upload_resume_seconds", text) for text in ("-1", "86401", "five")],
    *[("grace_seconds", text) for text in ("-1", "86401", "five")],
    *[("directory_registration_properties", text) for text in ("=", "=x", " = x", "a,=b", "a=b=c", "a==", "a=b,c==d")],
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_allowed_value_is_accepted(name: str, text: str, value: object) -> None:
    assert load(name, text) == value
    if text:
        assert getattr(Settings.load({}, {SETTINGS[name].environment: text}), name) == value


@pytest.mark.parametrize(("name", "value"), {(name, repr(value)): (name, value) for name, _, value in GOOD}.values())
def test_a_program_can_set_every_value_that_a_text_can(name: str, value: object) -> None:
    assert getattr(Settings(**{name: value}), name) == value  # type: ignore[arg-type]


BAD_VALUES: list[tuple[str, object]] = [
    *[("port", value) for value in (-5, 65536, "9000", 9000.0, True, None)],
    *[("local_socket", value) for value in ("a\0b", None, True)],
    *[("oidc_issuer", value) for value in ("a", None, 1)],
    *[("oidc_audience", value) for value in (" a", None, 1)],
    *[("oidc_keys", value) for value in (None, b"a", Path("a"))],
    *[("oidc_scopes_claim", value) for value in ("", None, ["a"])],
    *[("metrics_port", value) for value in (-1, 65536, "9100", False)],
    *[("http_port", value) for value in (-1, 65536, "9080", False)],
    *[("http_host", value) for value in ("a b", None, 1)],
    *[("http_hosts", value) for value in ("a", ["a"], ("a b",), ("*", "a"), (1,), None)],
    *[("http_trusted_proxies", value) for value in ("::1", ["::1"], ("10.0.0.1/8",), ("*",), ("proxy",), (1,), None)],
    *[("cache_max_items", value) for value in (0, 10**9 + 1, 1.5, "all")],
    *[("cache_max_bytes", value) for value in (0, -1, "3MiB", 2**61)],
    *[("grace_seconds", value) for value in (-0.1, 86_401, float("nan"), float("inf"), "5", True, None)],
    *[("grpc_reflection", value) for value in (0, 1, "true", None)],
    *[("archive_dir", value) for value in ("", "a\0b", None, Path("a"), b"a")],
    *[("host", value) for value in ("", "a b", None, 127)],
    *[("log_level", value) for value in ("loud", 5, None)],
    *[("log_format", value) for value in ("xml", None)],
    *[("directory_endpoint", value) for value in ("foo:9005", None, 9005)],
    *[("directory_authentication_token", value) for value in ("é", None, b"a")],
    *[
        ("directory_registration_properties", value)
        for value in ({"": "a"}, {"a": "b,c"}, {"a": "b=c"}, {"a": " b"}, {"a": 1}, {1: "a"}, "a=b", None)
    ],
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_program_cannot_set_a_value_that_is_not_allowed(name: str, value: object) -> None:
    allowed = SETTINGS[name].kind.allowed
    with pytest.raises(SettingError) as caught:
        Settings(**{name: value})  # type: ignore[arg-type]
    assert caught.value.message == f"{name}: {quoted(str(value))} is not allowed; it must be {allowed}"
    with pytest.raises(SettingError):
        dataclasses.replace(Settings(), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"port": -1}, {"check_seconds": 0.0}, {"persistence_file": "a\0b"}])
def test_the_directory_checks_its_settings_too(values: dict[str, object]) -> None:
    [name] = values
    with pytest.raises(SettingError, match=f"^{name}: "):
        DirectorySettings(**values)  # type: ignore[arg-type]


def test_a_program_may_use_the_spellings_of_a_text() -> None:
    settings = Settings(log_level="5", log_format="JSON", grace_seconds=2)
    assert (settings.log_level, settings.log_format) == ("debug", "json")
    assert isinstance(settings.grace_seconds, float)


@pytest.mark.parametrize(("name", "text"), BAD)
def test_value_that_is_not_allowed_is_refused(name: str, text: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(name, text)
    assert caught.value.value == text
    assert caught.value.allowed == SETTINGS[name].kind.allowed


@pytest.mark.parametrize(
    ("number", "level"), list(enumerate(["off", "off", "error", "warning", "info", "debug", "trace"]))
)
def test_log_level_may_be_a_number(number: int, level: str) -> None:
    assert load("log_level", str(number)) == level


@pytest.mark.parametrize("text", ["s3://key:secret@bucket/a", "s3://secret@bucket", "az://c/a?sig=secret"])
def test_a_refused_address_does_not_show_its_secrets(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        load("archive_url", text)
    assert "secret" not in caught.value.message
    with pytest.raises(SettingError) as caught:
        Settings(archive_url=text)
    assert "secret" not in caught.value.message


def test_an_archive_is_a_directory_or_in_an_object_store() -> None:
    check_archive(Settings(archive_dir="a"))
    check_archive(Settings(archive_url="s3://a", catalog_dir="b"))
    with pytest.raises(SettingError, match="unset when archive_dir is given"):
        check_archive(Settings(archive_url="s3://a", archive_dir="b"))
    with pytest.raises(SettingError, match="unset without archive_url"):
        check_archive(Settings(catalog_dir="b"))
    check_archive(Settings(archive_url="s3://a", catalog_url="postgresql://b"))
    with pytest.raises(SettingError, match="catalog_url"):
        check_archive(Settings(catalog_url="postgresql://b"))
    with pytest.raises(SettingError, match="catalog_dir"):
        check_archive(Settings(archive_url="s3://a", catalog_url="postgresql://b", catalog_dir="c"))
    with pytest.raises(SettingError, match="transient_replicas"):
        check_archive(Settings(transient_replicas=2))
    with pytest.raises(SettingError, match="read_only"):
        check_archive(Settings(archive_url="s3://a", catalog_url="postgresql://b", read_only=True))


def test_refusal_names_the_setting_its_source_its_value_and_what_is_allowed() -> None:
    with pytest.raises(SettingError) as caught:
        Settings.load({"port": "x"}, {})
    assert all(part in caught.value.message for part in ("port", "--port", '"x"', SETTINGS["port"].kind.allowed))
    with pytest.raises(SettingError) as caught:
        Settings.load({}, {"COGMENT_LOG_LEVEL": "loud"})
    allowed = ("off", "error", "warning", "info", "debug", "trace", "0", "6")
    assert all(part in caught.value.message for part in ("log_level", "COGMENT_LOG_LEVEL", '"loud"', *allowed))


PHYSICAL_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("groups", "limits", "expected_bytes"),
    [
        pytest.param("0::/\n", {"memory.max": "67108864\n"}, 64 * MIB, id="version 2"),
        pytest.param("0::/a/b\n", {"a/b/memory.max": "67108864\n"}, 64 * MIB, id="version 2, nested"),
        pytest.param(
            "0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "67108864\n"}, 64 * MIB, id="limit of the parent"
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/b/memory.max": "134217728\n", "a/memory.max": "67108864\n", "memory.max": "max\n"},
            64 * MIB,
            id="the smallest limit counts",
        ),
        pytest.param("0::/a\n", {"a/memory.max": "67108864", "b/memory.max": "1024"}, 64 * MIB, id="not of a sibling"),
        pytest.param("0::/a\n", {"a/memory.max": "max\n"}, PHYSICAL_BYTES, id="no limit"),
        pytest.param("0::/a\n", {"a/memory.max": f"{2**62}\n"}, PHYSICAL_BYTES, id="limit past what there is"),
        pytest.param("0::/a\n", {}, PHYSICAL_BYTES, id="group without a file"),
        pytest.param("0::/a\n", {"a/memory.max": ""}, PHYSICAL_BYTES, id="empty file"),
        pytest.param("", {"memory.max": "1024"}, PHYSICAL_BYTES, id="no group"),
        pytest.param(
            "3:cpu,cpuacct:/x\n2:memory:/docker/c\n1:name=systemd:/x\n",
            {"memory/docker/c/memory.limit_in_bytes": "67108864\n"},
            64 * MIB,
            id="version 1",
        ),
        pytest.param(
            "2:hugetlb,memory:/docker/c\n",
            {"memory/memory.limit_in_bytes": "67108864\n"},
            64 * MIB,
            id="version 1 in a container, which sees its own group as the root",
        ),
        pytest.param(
            "2:memory:/c\n",
            {"memory/c/memory.limit_in_bytes": "9223372036854771712\n"},
            PHYSICAL_BYTES,
            id="version 1, no limit",
        ),
        pytest.param(
            "2:memory:/c\n0::/d\n",
            {"memory/c/memory.limit_in_bytes": "67108864\n", "d/memory.max": "max\n"},
            64 * MIB,
            id="both versions",
        ),
        pytest.param("0::/../a\n", {"memory.max": "67108864\n"}, 64 * MIB, id="group outside of what is seen"),
    ],
)
def test_usable_memory_is_the_smaller_limit_of_machine_and_control_group(
    tmp_path: Path, groups: str, limits: dict[str, str], expected_bytes: int
) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(groups)
    for name, text in limits.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    assert usable_memory_bytes(proc, cgroups) == expected_bytes


def test_usable_memory_is_that_of_the_machine_without_control_groups(tmp_path: Path) -> None:
    assert usable_memory_bytes(tmp_path / "missing", tmp_path / "missing") == PHYSICAL_BYTES


def test_budget_is_half_of_the_usable_memory_by_default() -> None:
    assert Settings().cache_max_bytes == usable_memory_bytes() // 2


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_a_host_that_only_this_machine_reaches_is_local(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "registry.example", ""])
def test_a_host_that_others_may_reach_is_not_local(host: str) -> None:
    assert not is_local(host)
