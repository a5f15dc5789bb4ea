"""`cogment client model_registry history`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.records.access import Grant, identity_of, parse_scopes
from cogment_model_registry.storage.tools.tokens import add_grant
from tests.in_process import run_in_process
from tests.processes import server_process

TOKEN = "cmr_trainer"
ESCAPE = "\x1b[31m\x7f\x9b"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server with an audit log, and a model whose history is known."""
    place = tmp_path_factory.mktemp("history")
    scopes = parse_scopes(["store:policy", "publish:policy", "alias:policy", "read:policy"])
    add_grant(str(place / "archive"), Grant("trainer", "token", identity_of(TOKEN), scopes, 0))
    with server_process(place / "archive", f"--audit_log={place / 'audit'}") as server:
        endpoint = f"grpc://127.0.0.1:{server.port}"
        with ModelRegistry(endpoint, token=TOKEN) as registry:
            registry.store("policy", b"1", user_data={"step": "1"}, alias="production")
            registry.publish("policy", b"2")
            registry.update_version("policy", 1, tags={"stage": f"bad {ESCAPE}"}, metrics={"return": 1})
            registry.set_alias("policy", "production", 2)
        yield endpoint


def output(endpoint: str, *arguments: str) -> str:
    result = run_in_process("client", "model_registry", "history", *arguments, f"--endpoint={endpoint}")
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_the_history_is_a_table_newest_first(endpoint: str) -> None:
    head, *lines = output(endpoint, "policy").splitlines()
    assert head.split() == ["TIME", "CHANGE", "VERSION", "ALIAS", "CALLER", "PEER", "BEFORE", "AFTER"]
    assert [line[29:45].strip() for line in lines] == [
        "alias set",
        "version promoted",
        "version changed",
        "version created",
        "alias set",
        "version created",
        "model created",
    ]
    assert "  2  production  trainer  ipv4:127.0.0.1:" in lines[0]
    assert "version_number=1 " in lines[0]
    assert "version_number=2 " in lines[0]
    assert 'user_data={"step":"1"}' in lines[5]


def test_the_table_shows_what_differs_and_no_control_characters(endpoint: str) -> None:
    text = output(endpoint, "policy")
    assert not set(ESCAPE) & set(text) - {"["} - set("31m")
    assert "\\u001b[31m\\u007f\\u009b" in text
    [changed] = [line for line in text.splitlines() if "version changed" in line]
    assert "data_hash" not in changed
    assert 'metrics={"return":1.0}' in changed


def test_json_has_all_fields(endpoint: str) -> None:
    newest, *_ = json.loads(output(endpoint, "policy", "--json", "--limit=1"))
    assert newest.keys() == {
        *["time_ns", "time", "change", "model_id", "version_number", "alias", "before", "after"],
        *["call", "caller", "caller_kind", "peer", "reason"],
    }
    assert newest["before"]["version_number"] == 1
    assert newest["after"]["version_number"] == 2
    assert (newest["call"], newest["caller"], newest["caller_kind"]) == ("SetAliases", "trainer", "token")


def test_the_history_can_be_cut(endpoint: str) -> None:
    entries = json.loads(output(endpoint, "policy", "--json"))
    assert len(json.loads(output(endpoint, "policy", "--json", "--limit=2"))) == 2
    assert output(endpoint, "policy", "--quiet").splitlines() == [entry["time"] for entry in entries]
    day = entries[0]["time"][:10]
    assert len(json.loads(output(endpoint, "policy", "--json", f"--since={day}"))) == len(entries)
    assert json.loads(output(endpoint, "policy", "--json", "--since=2200-01-01")) == []
    moves = json.loads(output(endpoint, "policy", "--json", "--alias=production"))
    assert moves == [entry for entry in entries if entry["change"] == "alias set"]
    assert json.loads(output(endpoint, "policy", "--json", "--alias=other")) == []


@pytest.mark.parametrize(
    ("options", "changes"), [((), "changes"), (("--json",), "changes"), (("--since=2026-01-01",), "such changes")]
)
def test_a_model_that_never_existed_is_not_found(endpoint: str, options: tuple[str, ...], changes: str) -> None:
    result = run_in_process("client", "model_registry", "history", "never", *options, f"--endpoint={endpoint}")
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.count("\n") == 1
    assert f'model "never" does not exist, and the audit log has no {changes} of it' in result.stderr


def test_a_time_that_is_none_and_a_caller_without_the_scope_are_refused(endpoint: str, tmp_path: Path) -> None:
    words = ("client", "model_registry", "history", "policy", f"--endpoint={endpoint}")
    result = run_in_process(*words, "--since=yesterday")
    assert result.returncode == 2
    assert "'yesterday' is neither a time such as 2026-11-22T08:00:00Z nor a day" in result.stderr
    result = run_in_process(*words, environment={"COGMENT_MODEL_REGISTRY_TOKEN": TOKEN})
    assert (result.returncode, result.stdout) == (1, "")
    assert "trainer lacks the scope admin:policy" in result.stderr


def test_a_server_without_an_audit_log_says_so(shared_endpoint: str) -> None:
    result = run_in_process("client", "model_registry", "history", "policy", f"--endpoint={shared_endpoint}")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "this server keeps no audit log: its setting audit_log names no directory" in result.stderr
