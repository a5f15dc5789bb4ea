"""/api/v1: everything that the command line can do, and the OpenAPI document that says so."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from cogment_model_registry import ModelRegistry, errors
from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web.api.openapi import SCHEMAS, document
from cogment_model_registry.web.app import new_app
from cogment_model_registry.web.errors import STATUS_BY_ERROR, status_of
from tests.signing import KeyPair
from tests.web.http import Answer, Http, http_server

MODEL = "/api/v1/models/policy"
JSON = {"Content-Type": "application/json"}


def conforms(value: Any, schema: Mapping[str, Any], where: str = "") -> None:
    """Check a document against one of our schemas; they use a small part of JSON Schema."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rpartition("/")[2]]
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list}
    wanted = schema.get("type")
    if isinstance(wanted, str):
        kind: Any = kinds[wanted]
        assert isinstance(value, kind), f"{where}: {value!r} is no {wanted}"
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        assert {*schema.get("required", ())} <= value.keys(), f"{where}: {value.keys()}"
        for name, each in value.items():
            assert name in properties or more, f"{where}.{name} is not described"
            conforms(each, properties.get(name) or (more if isinstance(more, dict) else {}), f"{where}.{name}")
    if isinstance(value, list):
        for each in value:
            conforms(each, schema.get("items", {}), f"{where}[]")


def described(answer: Answer, schema: str) -> Any:
    """Return the document of an answer, which conforms to its schema."""
    assert answer.status in (HTTPStatus.OK, HTTPStatus.CREATED), answer.text
    conforms(answer.document, SCHEMAS[schema])
    return answer.document


def refused(answer: Answer, status: HTTPStatus) -> str:
    """Return the detail of an answer that is a problem with a status."""
    assert answer.status == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    conforms(answer.document, SCHEMAS["Problem"])
    detail: str = answer.document["detail"]
    return detail


def test_models_are_created_changed_found_and_deleted(http: Http, registry: ModelRegistry) -> None:
    model = described(http.ask("PUT", MODEL, {"user_data": {"a": "b"}}), "ModelInfo")
    assert model == {"model_id": "policy", "user_data": {"a": "b"}}
    described(http.ask("PUT", f"{MODEL}?replace=false", {"user_data": {"a": "c"}}), "ModelInfo")
    assert registry.get_model("policy").user_data == {"a": "b"}
    changed = described(http.ask("PATCH", MODEL, {"tags": {"team": "robots"}, "expected": 1}), "Model")
    assert (changed["tags"], changed["revision"]) == ({"team": "robots"}, 2)
    refused(http.ask("PATCH", MODEL, {"tags": {"team": None}, "expected": 1}), HTTPStatus.PRECONDITION_FAILED)
    assert described(http.get(MODEL), "Model") == changed
    registry.create_model("other")
    assert len(described(http.get("/api/v1/models"), "ModelPage")["models"]) == 2
    found = described(http.get("/api/v1/models?filter=tags.team%3Drobots"), "ModelPage")
    assert [each["model_id"] for each in found["models"]] == ["policy"]
    ids: list[str] = []
    token = ""
    while token or not ids:
        page = described(http.get(f"/api/v1/models?page_size=1&page_token={token}"), "ModelPage")
        token = page["next_page_token"]
        ids += [each["model_id"] for each in page["models"]]
        assert len(page["models"]) <= 1
    assert ids == ["other", "policy"]
    assert http.ask("DELETE", MODEL).status == HTTPStatus.NO_CONTENT
    assert "does not exist" in refused(http.get(MODEL), HTTPStatus.NOT_FOUND)
    assert http.get(MODEL).document["model_id"] == "policy"


def test_versions_are_found_changed_promoted_and_deleted(http: Http, registry: ModelRegistry) -> None:
    for number in range(1, 4):
        registry.publish("policy", bytes(number), metrics={"return": -number})
    version = f"{MODEL}/versions/2"
    assert described(http.get(version), "Version")["metrics"] == {"return": -2.0}
    changes = {"tags": {"a": "b"}, "metrics": {"return": None, "loss": 1}, "expected": 1}
    changed = described(http.ask("PATCH", version, changes), "Version")
    assert (changed["tags"], changed["metrics"]) == ({"a": "b"}, {"loss": 1.0})
    assert "revision" in refused(http.ask("PATCH", version, changes), HTTPStatus.PRECONDITION_FAILED)
    promoted = described(http.ask("POST", f"{version}/promote", {"alias": "best"}), "Version")
    assert (promoted["archived"], promoted["aliases"]) == (True, ["best"])
    found = described(http.get(f"{MODEL}/versions?filter=archived%3Dfalse&order_by=metrics.return"), "VersionPage")
    assert [each["number"] for each in found["versions"]] == [3, 1]
    assert len(described(http.get("/api/v1/versions"), "VersionPage")["versions"]) == 3
    assert "alias" in refused(http.ask("DELETE", version), HTTPStatus.CONFLICT)
    assert http.ask("DELETE", f"{version}?force=true").status == HTTPStatus.NO_CONTENT
    refused(http.get(version), HTTPStatus.NOT_FOUND)
    assert [each.number for each in registry.list_versions("policy")] == [1, 3]


def test_aliases_are_set_with_compare_and_set(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"1")
    registry.publish("policy", b"2")
    alias = f"{MODEL}/aliases/production"
    first = described(http.ask("PUT", alias, {"version": 1, "expected": 0}), "Alias")
    assert (first["alias"], first["version_number"]) == ("production", 1)
    refused(http.ask("PUT", alias, {"version": 2, "expected": 0}), HTTPStatus.PRECONDITION_FAILED)
    moved = described(http.ask("PUT", alias, {"version": "latest", "expected": first["revision"]}), "Alias")
    assert moved["version_number"] == 2
    assert described(http.get(alias), "Alias") == moved
    assert described(http.get(f"{MODEL}/aliases"), "Aliases")["aliases"] == [moved]
    refused(http.ask("DELETE", f"{alias}?expected={first['revision']}"), HTTPStatus.PRECONDITION_FAILED)
    assert http.ask("DELETE", f"{alias}?expected={moved['revision']}").status == HTTPStatus.NO_CONTENT
    refused(http.get(alias), HTTPStatus.NOT_FOUND)
    for name in ("latest", "7", "a%2Fb"):
        answer = http.ask("PUT", f"{MODEL}/aliases/{name}", {"version": 1})
        assert answer.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)


def test_retention_is_tried_set_and_applied(http: Http, registry: ModelRegistry) -> None:
    for number in range(1, 4):
        registry.publish("policy", bytes(number))
    rules = [{"tier": "transient", "keep_last": 1}]
    apply = f"{MODEL}/retention/apply"
    tried = described(http.ask("POST", apply, {"dry_run": True, "rules": rules}), "RetentionReport")
    assert (tried["deleted_versions"], tried["decisions"][0]["deleted"]) == (2, True)
    assert "dry_run" in refused(http.ask("POST", apply, {}), HTTPStatus.BAD_REQUEST)
    refused(http.ask("POST", apply, {"dry_run": False, "rules": rules}), HTTPStatus.BAD_REQUEST)
    model = described(http.ask("PUT", f"{MODEL}/retention", {"rules": rules, "expected": 1}), "Model")
    assert model["retention"] == rules
    assert described(http.ask("POST", apply, {"dry_run": False}), "RetentionReport")["freed_bytes"] == 3
    everywhere = described(http.ask("POST", "/api/v1/retention/apply", {"dry_run": True}), "RetentionReport")
    assert everywhere["kept_versions"] == 1
    for bad in ([{"keep": 1}], [{"keep_last": "1"}], [1], "x", [{"keep_best": 1}]):
        refused(http.ask("PUT", f"{MODEL}/retention", {"rules": bad}), HTTPStatus.BAD_REQUEST)


def test_shares_and_signers_are_set(http: Http, registry: ModelRegistry) -> None:
    registry.create_model("policy")
    share = {"max_items": 3, "max_bytes": 0, "reserved_items": 1, "reserved_bytes": 0}
    assert described(http.ask("PUT", f"{MODEL}/share", share), "Model")["share"] == share
    key = KeyPair().public
    model = described(http.ask("PUT", f"{MODEL}/signers", {"keys": [key.pem]}), "Model")
    assert model["signers"] == [{"key_id": key.key_id, "public_key": key.pem}]
    assert "signature" in refused(http.ask("PUT", f"{MODEL}/versions", b"x"), HTTPStatus.CONFLICT)
    assert described(http.ask("PUT", f"{MODEL}/signers", {"keys": []}), "Model")["signers"] == []
    for bad in ([1], ["x"], ["\ud800"], ["-----BEGIN PRIVATE KEY-----"]):
        refused(http.ask("PUT", f"{MODEL}/signers", {"keys": bad}), HTTPStatus.BAD_REQUEST)


def test_consumers_report_and_are_found(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"1")
    registry.publish("policy", b"2")
    report = {"version_number": 1, "state": "active", "labels": {"host": "a"}, "ttl_seconds": 60, "held_versions": [1]}
    consumer = described(http.ask("PUT", f"{MODEL}/consumers/actor-1", report), "Consumer")
    assert (consumer["versions_behind"], consumer["held_versions"]) == (1, [1])
    found = described(http.get(f"{MODEL}/consumers?filter=versions_behind%3E0"), "ConsumerPage")["consumers"]
    assert [each["consumer_id"] for each in found] == ["actor-1"]
    assert len(described(http.get("/api/v1/consumers"), "ConsumerPage")["consumers"]) == 1
    for bad in ({"state": "asleep"}, {"version_number": "1"}, {"labels": {"a": 1}}, {"held_versions": ["1"]}, {"x": 1}):
        refused(http.ask("PUT", f"{MODEL}/consumers/actor-1", bad), HTTPStatus.BAD_REQUEST)


def test_the_history_says_who_and_from_where(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", f"--audit_log={tmp_path / 'audit'}") as server:
        server.http.ask("PUT", MODEL)
        server.http.ask("PUT", f"{MODEL}/versions?alias=best", b"1")
        changes = described(server.http.get(f"{MODEL}/history"), "ChangePage")["changes"]
        assert {each["change"] for each in changes} >= {"alias set", "model created"}
        assert {each["peer"].rpartition(":")[0] for each in changes} == {"ipv4:127.0.0.1"}
        moves = server.http.get(f"{MODEL}/history?alias=best").document["changes"]
        assert [each["change"] for each in moves] == ["alias set"]
        assert not server.http.get(f"{MODEL}/history?since=2100-01-01T00:00:00Z").document["changes"]
        refused(server.http.get("/api/v1/models/never/history"), HTTPStatus.NOT_FOUND)
        refused(server.http.get(f"{MODEL}/history?since=yesterday"), HTTPStatus.BAD_REQUEST)


def test_the_status_is_shown(http: Http) -> None:
    status = described(http.get("/api/v1/status"), "Status")
    assert "cogment-model-registry" in status["versions"]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (("GET", "/api/v1/models?filter=(", None, {}), 400),
        (("GET", "/api/v1/models?page_size=0", None, {}), 400),
        (("GET", "/api/v1/models?page_size=99999999999999999999999", None, {}), 400),
        (("GET", "/api/v1/models?page_token=x", None, {}), 400),
        (("GET", "/api/v1/models?filtre=x", None, {}), 400),
        (("PUT", MODEL, b"{", JSON), 400),
        (("PUT", MODEL, b"[]", JSON), 400),
        (("PUT", MODEL, b'{"user_data": {"a": 1}}', JSON), 400),
        (("PUT", MODEL, b'{"user_data": {"a": NaN}}', JSON), 400),
        (("PUT", MODEL, b"[" * 100_000, JSON), 400),
        (("PUT", MODEL, b'{"user_data": {"\\ud800": "a"}}', JSON), 400),
        (("PUT", MODEL, b"{}", {"Content-Type": "text/plain"}), 415),
        (("PUT", MODEL, b" " * (4 * 1024 * 1024 + 1), JSON), 413),
        (("PATCH", MODEL, b'{"expected": -1}', JSON), 400),
        (("PATCH", MODEL, b'{"expected": 1e400}', JSON), 400),
        (("PATCH", MODEL, b'{"expected": 99999999999999999999999}', JSON), 400),
        (("PATCH", MODEL, b'{"expected": true}', JSON), 400),
        (("POST", MODEL, None, {}), 405),
        (("BREW", MODEL, None, {}), 405),
        (("GET", "/api/v2/models", None, {}), 404),
        (("GET", "/api/v1/models/", None, {}), 404),
        (("GET", "/api/v1/models/%0a", None, {}), 400),
    ],
)
def test_malformed_requests_are_problems(
    http: Http, registry: ModelRegistry, asked: tuple[str, str, bytes | None, dict[str, str]], status: int
) -> None:
    answer = http.ask(*asked)
    assert answer.status == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert not registry.list_models()


def test_an_address_or_a_method_that_does_not_exist_says_what_does(http: Http) -> None:
    assert "/api/v1/openapi.json" in http.ask("GET", "/api/v2/models", None, {}).text
    answer = http.ask("POST", MODEL, None, {})
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT"
    assert "POST is not possible at this address; possible are DELETE, GET, HEAD, PATCH, PUT" in answer.text
    page = http.ask("POST", "/models/policy", None, {"Accept": "text/html"})
    assert (page.status, page.headers["allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET, HEAD")
    assert "possible are GET, HEAD" in page.text


def test_what_is_wrong_with_a_value_is_said(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"1", metrics={"return": 1.0})
    version, alias = f"{MODEL}/versions/1", f"{MODEL}/aliases/best"
    cases: tuple[tuple[tuple[str, str, object], int, str], ...] = (
        (("PATCH", version, {"metrics": {"return": True}}), 400, 'metrics.return is "True"; it must be a number'),
        (("PUT", alias, {"version": 1.5}), 400, 'version is "1.5"; it must be the number of a version'),
        (("PUT", alias, {"version": 2**40}), 400, f'version is "{2**40}"; it must be the number of a version'),
        (("PUT", alias, {}), 400, "the body must have the field version"),
        (("GET", f"{MODEL}/versions/{'9' * 40}", None), 404, f'model "policy" has no version {"9" * 40}'),
        (("GET", f"/models/policy/versions/-{'9' * 40}/data", None), 404, 'model "policy" has no version -9999'),
        (("PATCH", version, b'{"tags": {}'), 400, "the body is not JSON, at line 1 column 12"),
    )
    for (method, path, body), status, said in cases:
        answer = http.ask(method, path, body, JSON if isinstance(body, bytes) else None)
        assert said in refused(answer, HTTPStatus(status))
    assert registry.describe_version("policy", 1).metrics == {"return": 1.0}


def test_a_consumer_can_say_that_it_is_gone(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"1")
    described(http.ask("PUT", f"{MODEL}/consumers/actor-1", {"version_number": 1}), "Consumer")
    described(http.ask("PUT", f"{MODEL}/consumers/actor-1", {"state": "gone"}), "Consumer")
    found = described(http.get(f"{MODEL}/consumers"), "ConsumerPage")["consumers"]
    assert [each["state"] for each in found] == ["gone"]
    assert (
        "gone"
        in document()["paths"]["/api/v1/models/{model}/consumers/{consumer}"]["put"]["requestBody"]["content"][
            "application/json"
        ]["schema"]["properties"]["state"]["enum"]
    )


def test_all_statuses_of_a_download_are_documented(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"12345")
    documented = document()["paths"]["/api/v1/models/{model}/versions/{version}/data"]["get"]["responses"]
    whole = http.get(f"{MODEL}/versions/1/data")
    part = http.get(f"{MODEL}/versions/1/data", {"Range": "bytes=1-2"})
    unchanged = http.get(f"{MODEL}/versions/1/data", {"If-None-Match": whole.headers["etag"]})
    assert [each.status for each in (whole, part, unchanged)] == [200, 206, 304]
    assert {*documented} == {"200", "206", "304", "default"}


def test_every_error_has_a_status() -> None:
    """The table is complete: only what is nobody's fault but the server's is an internal error."""
    root = errors.ModelRegistryError
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, root)}
    internal: set[type[errors.ModelRegistryError]] = {
        root,
        errors.DataLossError,
        errors.SignatureError,
        errors.WrongServerError,
    }
    internal |= {errors.StartError}
    for kind in kinds:
        error = kind.__new__(kind)
        assert (status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR) == (kind in internal), kind
    assert {*STATUS_BY_ERROR} <= kinds


def test_the_openapi_document_has_every_route_and_nothing_else(http: Http, tmp_path: Path) -> None:
    shown = http.get("/api/v1/openapi.json").document
    assert shown == document()
    app = new_app(WebOptions(socket_path=str(tmp_path / "none"), descriptors=(), grpc_port=9002), print)
    routes = {
        (route.path, method)
        for route in app.routes
        if isinstance(route, Route) and route.path.startswith("/api/v1/") and route.path != "/api/v1/openapi.json"
        for method in (route.methods or set()) - {"HEAD"}
    }
    operations = {(path, method.upper()) for path, methods in shown["paths"].items() for method in methods}
    assert operations == routes
    ids = [each["operationId"] for methods in shown["paths"].values() for each in methods.values()]
    assert len({*ids}) == len(ids)
    references = {*re.findall(r'"#/components/(\w+)/(\w+)"', http.get("/api/v1/openapi.json").text)}
    assert all(name in shown["components"][part] for part, name in references)
    for path, methods in shown["paths"].items():
        for each in methods.values():
            named = {p["name"] for p in each["parameters"] if p["in"] == "path"}
            assert named == {*re.findall(r"\{(\w+)\}", path)}


def test_limits_of_callers_are_those_of_their_address(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--caller_calls_per_second=0.001") as server:
        answers = [server.http.get("/api/v1/models") for _ in range(30)]
        limited = next(each for each in answers if each.status == HTTPStatus.TOO_MANY_REQUESTS)
        assert int(limited.headers["retry-after"]) >= 1
        assert server.http.get("/healthz").status == HTTPStatus.OK
