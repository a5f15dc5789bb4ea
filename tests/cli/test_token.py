"""`cogment token`: tokens created, listed and revoked while a server runs."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, errors
from tests.processes import ServerProcess, run_cogment, server_process
from tests.waiting import wait_until

ENDPOINT = "grpc://127.0.0.1:{}"


def token(*words: str, code: int = 0) -> str:
    """Return the output of a command."""
    result = run_cogment("token", *words)
    assert result.returncode == code, result.stderr
    return (result.stdout if code == 0 else result.stderr).rstrip("\n")


def created(archive: Path, name: str, *words: str) -> str:
    """Return a new token."""
    return token("create", f"--archive_dir={archive}", f"--name={name}", *words)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def guarded(archive: Path) -> Iterator[ServerProcess]:
    """A server that requires a token for every call, and logs everything."""
    with server_process(archive, "--anonymous=nothing", "--log_level=trace") as server:
        yield server


def test_a_token_created_before_the_first_start_works(archive: Path) -> None:
    secret = created(archive, "trainer", "--scope=publish:policy-*", "--scope=read")
    assert re.fullmatch(r"cmr_[\w-]{43}", secret)
    assert not stat.S_IMODE(os.stat(archive / ".catalog.sqlite3").st_mode) & stat.S_IRWXO
    with (
        server_process(archive, "--anonymous=nothing") as server,
        ModelRegistry(ENDPOINT.format(server.port), token=secret) as registry,
    ):
        assert registry.publish("policy-1", b"1").number == 1
        with pytest.raises(errors.PermissionDeniedError, match="token trainer lacks the scope publish:other"):
            registry.publish("other", b"1")


def test_tokens_are_created_and_revoked_while_the_server_runs(archive: Path, guarded: ServerProcess) -> None:
    endpoint = ENDPOINT.format(guarded.port)
    with ModelRegistry(endpoint) as registry, pytest.raises(errors.UnauthenticatedError, match="needs a token"):
        registry.list_models()
    secret = created(archive, "reader", "--scope=read", "--expires=30d")
    with ModelRegistry(endpoint, token=secret) as registry:
        assert registry.list_models() == []
        assert token("revoke", "reader", f"--archive_dir={archive}") == 'token "reader" is revoked'

        def is_refused() -> bool:
            try:
                registry.list_models()
            except errors.UnauthenticatedError:
                return True
            return False

        wait_until(is_refused)
    guarded.wait_for_line("token revoked +name=reader")


def test_tokens_are_listed_without_their_secrets(archive: Path) -> None:
    secrets = [
        created(archive, "trainer", "--scope=publish:policy-*", "--scope=read", "--expires=12h"),
        created(archive, "admin", "--scope=admin"),
    ]
    said = created(archive, "gate", "--certificate=gate.example", "--scope=alias:policy/staging*")
    assert said == 'certificate "gate.example" has the scopes alias:policy/staging*'
    created(archive, "ci", "--subject=system:serviceaccount:rl:ci", "--scope=read")
    lines = token("list", f"--archive_dir={archive}").splitlines()
    assert [re.split(r"  +", line.strip())[:3] for line in lines] == [
        ["NAME", "FOR", "SCOPES"],
        ["admin", "token", "admin"],
        ["ci", "subject system:serviceaccount:rl:ci", "read"],
        ["gate", "certificate gate.example", "alias:policy/staging*"],
        ["trainer", "token", "publish:policy-*, read"],
    ]
    assert [line.endswith("never") for line in lines] == [False, True, True, True, False]
    listed = token("list", f"--archive_dir={archive}", "--json")
    grants: list[dict[str, Any]] = json.loads(listed)
    assert grants[3]["expires_ns"] - grants[3]["created_ns"] == 12 * 3600 * 10**9
    assert grants[1] == {
        "name": "ci",
        "kind": "subject",
        "identity": "system:serviceaccount:rl:ci",
        "scopes": ["read"],
        "created_ns": grants[1]["created_ns"],
        "expires_ns": None,
    }
    database = b"".join(file.read_bytes() for file in archive.iterdir() if file.is_file())
    for secret in secrets:
        assert secret not in listed + "".join(lines)
        assert secret.encode() not in database


def test_json_shows_a_token_only_at_its_creation(archive: Path) -> None:
    made = json.loads(created(archive, "a", "--scope=read", "--json"))
    assert made["token"].startswith("cmr_")
    assert "token" not in json.loads(token("list", f"--archive_dir={archive}", "--json"))[0]


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["create", "--name=a"], 2, "--scope"),
        (["create", "--scope=read"], 2, "--name"),
        (["create", "--name=a", "--scope=reads"], 1, "must begin with one of read, publish"),
        (["create", "--name=a", "--scope=read:a/b"], 1, "only alias has a pattern of aliases"),
        (["create", "--name= a", "--scope=read"], 1, "printable"),
        (["create", "--name=a", "--scope=read", "--expires=30"], 2, "such as 30d"),
        (["create", "--name=a", "--scope=read", "--expires=0d"], 2, "such as 30d"),
        (["create", "--name=a", "--scope=read", "--certificate=a", "--subject=b"], 2, "exclude each other"),
        (["create", "--name=taken", "--scope=read"], 1, 'the name is taken by token "taken"'),
        (["create", "--name=b", "--scope=read", "--certificate=c"], 1, 'the certificate is taken by token "c"'),
        (["revoke", "nobody"], 3, 'token "nobody" does not exist'),
        (["revoke"], 2, "NAME"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(archive: Path, words: list[str], code: int, problem: str) -> None:
    created(archive, "taken", "--scope=read")
    created(archive, "c", "--scope=read", "--certificate=c")
    said = token(*words, f"--archive_dir={archive}", code=code)
    assert problem in said
    assert len(said.splitlines()) == 1


def test_listing_a_directory_that_does_not_exist_creates_nothing(archive: Path) -> None:
    assert "No such file" in token("list", f"--archive_dir={archive}", code=1)
    assert not archive.exists()


def test_no_log_error_or_help_has_a_secret(archive: Path, guarded: ServerProcess, tmp_path: Path) -> None:
    secret = created(archive, "trainer", "--scope=read")
    endpoint = ENDPOINT.format(guarded.port)
    file = tmp_path / "token"
    file.write_text(secret + "\n")
    seen = []
    for chosen in (secret, secret + "x"):
        file.write_text(chosen)
        for words in (["list_models"], ["publish", "m", "/dev/null"], ["list_models", "--json"]):
            done = run_cogment("client", "model_registry", *words, f"--endpoint={endpoint}", f"--token_file={file}")
            seen.append(done.stdout + done.stderr)
    file.write_text(secret + " \n" + secret)
    done = run_cogment("client", "model_registry", "list_models", f"--endpoint={endpoint}", f"--token_file={file}")
    assert done.returncode == 2
    seen.append(done.stderr)
    environment = {"COGMENT_MODEL_REGISTRY_TOKEN": secret}
    help_text = run_cogment("client", "model_registry", "list_models", "--help", environment=environment)
    seen.append(help_text.stdout)
    with ModelRegistry(endpoint, token=secret) as registry:
        seen.append(repr(registry))
        registry.list_models()
    guarded.stop()
    seen += guarded.lines
    assert any("UNAUTHENTICATED" in line for line in seen)
    assert secret not in "\n".join(seen)
