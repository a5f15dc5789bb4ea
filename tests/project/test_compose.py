"""The compose files of deploy/: valid, consistent with the program, and run as far as it goes without containers."""

import re
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.exceptions import BaseError, PermissionDeniedError
from obstore.store import S3Store

from cogment_model_registry import ModelRegistry
from cogment_model_registry.settings import Settings, all_settings
from tests.compose import ROOT, ComposeFile, config, object_store
from tests.pods import image_variables
from tests.waiting import wait_until
from tests.web.http import Http

SECRETS = {
    "POSTGRES_PASSWORD": "password-of-a-test",
    "OBJECT_STORE_KEY": "key-of-a-test",
    "OBJECT_STORE_SECRET": "secret-of-a-test",
}
ONE = ComposeFile("compose.yaml", {})
SEVERAL = ComposeFile("compose-several.yaml", SECRETS)
FILES = [pytest.param(each, id=each.name) for each in (ONE, SEVERAL)]


@pytest.mark.parametrize("file", FILES)
def test_compose_accepts_the_file_and_refuses_unknown_keys(file: ComposeFile, tmp_path: Path) -> None:
    assert config(file.name, "--quiet", variables=file.variables).stderr == ""
    changed = tmp_path / file.name
    changed.write_text((ROOT / "deploy" / file.name).read_text().replace("    restart: ", "    restarts: ", 1))
    refused = config(str(changed), "--quiet", variables=file.variables)
    assert refused.returncode != 0
    assert "restarts" in refused.stderr


def test_no_secret_has_a_default() -> None:
    assert config(ONE.name, "--quiet").returncode == 0
    for name in SECRETS:
        for variables in ({**SECRETS, name: ""}, {key: value for key, value in SECRETS.items() if key != name}):
            refused = config(SEVERAL.name, "--quiet", variables=variables)
            assert refused.returncode != 0
            assert f"required variable {name} is missing a value" in refused.stderr


@pytest.mark.parametrize("file", FILES)
def test_every_variable_of_a_registry_is_a_setting_or_one_of_its_libraries(file: ComposeFile) -> None:
    known = {setting.environment for setting in all_settings(Settings)}
    for service in file.registries.values():
        for name in service.get("environment") or ():
            assert name in known or re.match(r"(AWS|PG)[A-Z_]+$", name), name


def settings_of(service: dict[str, Any]) -> Settings:
    """Return the settings of a registry, as flags and variables give them."""
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in service["command"])
    assert {*flags} <= {setting.name for setting in all_settings(Settings)}
    return Settings.load(flags, {**image_variables(), **(service.get("environment") or {})})


@pytest.mark.parametrize("file", FILES)
def test_a_registry_fits_its_image_and_has_few_rights(file: ComposeFile) -> None:
    image = (ROOT / "deploy/Containerfile").read_text()
    for service in file.registries.values():
        assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
            ROOT / "deploy/Containerfile"
        )
        settings = settings_of(service)
        ports = [settings.port, settings.metrics_port, settings.http_port]
        assert [port["target"] for port in service["ports"]] == ports
        assert "/tmp" in service["tmpfs"]  # for the socket of the process that serves HTTP
        assert {*settings.http_hosts} == {*file.registries}
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["stop_grace_period"].removesuffix("s")) >= 2 * settings.grace_seconds
        # Compose takes the health check of the image.
        assert "healthcheck" not in service
        assert "HEALTHCHECK" in image


@pytest.mark.parametrize("file", FILES)
def test_other_machines_reach_no_port(file: ComposeFile) -> None:
    ports = [port for service in file.services.values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert len({port["published"] for port in ports}) == len(ports)


def test_the_archive_of_one_server_is_on_its_volume() -> None:
    [service] = ONE.registries.values()
    [volume] = service["volumes"]
    assert f"VOLUME {volume['target']}\n" in (ROOT / "deploy/Containerfile").read_text()
    assert settings_of(service).archive_dir.startswith(f"{volume['target']}/")


def test_several_servers_share_an_archive_and_a_catalog() -> None:
    settings = {name: settings_of(service) for name, service in SEVERAL.registries.items()}
    assert len(settings) == 3
    assert {(each.archive_url, each.catalog_url) for each in settings.values()} == {
        ("s3://models/registry", "postgresql://registry@postgres:5432/registry")
    }
    assert {name: each.peer_host for name, each in settings.items()} == {name: name for name in settings}
    for service in SEVERAL.registries.values():
        assert {name: each["condition"] for name, each in service["depends_on"].items()} == {
            "postgres": "service_healthy",
            "object-store": "service_healthy",
        }
        assert service["environment"]["PGPASSWORD"] == SECRETS["POSTGRES_PASSWORD"]


def test_the_database_and_the_object_store_have_what_the_servers_use() -> None:
    [service, *_] = SEVERAL.registries.values()
    settings, given = settings_of(service), service["environment"]
    database, store = SEVERAL.services["postgres"]["environment"], SEVERAL.services["object-store"]["environment"]
    address = re.fullmatch(r"postgresql://(\w+)@postgres:5432/(\w+)", settings.catalog_url)
    assert address
    assert (address[1], address[2]) == (database["POSTGRES_USER"], database["POSTGRES_DB"])
    assert f"--username={address[1]}" in SEVERAL.services["postgres"]["healthcheck"]["test"]
    assert given["PGPASSWORD"] == database["POSTGRES_PASSWORD"]
    assert given["AWS_ENDPOINT_URL"] == "http://object-store:8333"
    assert "-s3.port=8333" in SEVERAL.services["object-store"]["command"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert given[name] == store[name]


def test_one_server_serves_with_its_words_and_variables(tmp_path: Path) -> None:
    volume = {"/var/lib/cogment-model-registry": str(tmp_path)}
    with ONE.registry("registry", volume) as server:
        with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
            assert registry.retrieve("walker", registry.store("walker", b"weights").number) == b"weights"
        http = Http(int(server.wait_for_line(r"\bhttp_port[\"=: ]+(\d+)")[1]))
        for host in ("localhost:9080", "registry:9080"):
            assert http.get("/models/walker/versions/1/data", {"Host": host}).body == b"weights"
        assert server.stop() == 0
        assert [line for line in server.lines if "warning" in line or "error" in line] == []
    assert (tmp_path / "archive/walker").exists()


def test_the_object_store_is_healthy_and_takes_objects_with_its_key_alone(tmp_path: Path) -> None:
    service = SEVERAL.services["object-store"]
    with object_store(service, tmp_path) as address:
        [check] = [word for word in service["healthcheck"]["test"] if word.startswith("http")]
        wait_until(lambda: is_there(check.replace("http://127.0.0.1:8333", address)))
        wait_until(lambda: takes_objects(address, SECRETS["OBJECT_STORE_SECRET"]))
        with pytest.raises(PermissionDeniedError):
            put(address, "another")


def test_several_servers_serve_as_one_with_their_words_and_variables(database: str, tmp_path: Path) -> None:
    at = urlsplit(database)
    with object_store(SEVERAL.services["object-store"], tmp_path) as store, ExitStack() as stack:
        wait_until(lambda: takes_objects(store, SECRETS["OBJECT_STORE_SECRET"]))
        here = {"registry@postgres:5432/registry": f"{at.netloc}{at.path}", "http://object-store:8333": store}
        servers = [
            stack.enter_context(SEVERAL.registry(name, {**here, name: "127.0.0.1"})) for name in SEVERAL.registries
        ]
        endpoints = [f"grpc://127.0.0.1:{server.port}" for server in servers]
        with ModelRegistry(endpoints[0]) as registry:
            numbers = [registry.publish("walker", b"transient").number, registry.store("walker", b"archived").number]
        for endpoint in endpoints:
            with ModelRegistry(endpoint) as registry:
                assert [registry.retrieve("walker", number) for number in numbers] == [b"transient", b"archived"]
        for server in servers:
            assert server.stop() == 0
            assert [line for line in server.lines if '"warning"' in line or '"error"' in line] == []


def is_there(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def put(address: str, secret: str) -> None:
    store = S3Store(
        "models",
        prefix="registry",
        endpoint=address,
        access_key_id=SECRETS["OBJECT_STORE_KEY"],
        secret_access_key=secret,
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    obstore.put(store, "object", b"bytes")


def takes_objects(address: str, secret: str) -> bool:
    try:
        put(address, secret)
    except (BaseError, OSError):
        return False
    return True


def test_the_page_has_the_words_of_the_files() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    for file in (ONE, SEVERAL):
        command = f"docker compose --file deploy/{file.name} up --build --detach --wait"
        assert command in (ROOT / "deploy" / file.name).read_text()
        assert command in page
